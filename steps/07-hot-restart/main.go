//go:build linux

// Step 07: hot restart. Start it again, and the new process takes over everything: listeners,
// with the clients in their accept queues, and every connection. No client notices.
//
//	go run ./steps/07-hot-restart        # serves 127.0.0.1:8080
//	nc 127.0.0.1 8080                    # a client: type lines
//	go run ./steps/07-hot-restart        # the same again: it takes over, and the first one ends
//
// Or all of it in one terminal: go run ./steps/07-hot-restart -demo
//
// New since 04: session.go, a connection that can be stopped at any moment (standstill.go); batch.go,
// the state of 252 of them in one sealed memfd (memfd.go), in the place of parcel.go and push.go;
// listeners.go, accept queues that change hands; handover.go and takeover.go, the two sides of
// it; server.go, what either of them serves; totals.go, what it has counted; spare.go, descriptors
// kept for a takeover; supervisor.go, for systemd. hello.go speaks another version of the protocol.
//
// Needs Linux 4.12 (for SO_COOKIE) and no privilege.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"slices"
	"time"
)

// defaultAddr is served when nothing else is asked for or inherited.
const defaultAddr = "127.0.0.1:8080"

func main() { os.Exit(command(run)) }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	nameProcess("server", stderr)
	s := &server{stdout: stdout}
	flags := flag.NewFlagSet("07-hot-restart", flag.ContinueOnError)
	flags.Func("addr", "TCP `host:port` to serve; may be given several times (default what the process before serves, or "+defaultAddr+")", func(addr string) error {
		tcp, err := net.ResolveTCPAddr("tcp", addr)
		if err != nil {
			return err
		}
		if twice := slices.Contains(s.asked, tcp.String()); !twice || tcp.Port == 0 {
			s.asked = append(s.asked, tcp.String())
		}
		if len(s.asked) > maxListeners {
			return fmt.Errorf("more than %d addresses", maxListeners)
		}
		return nil
	})
	control := flags.String("control", "", "`path` of the unix socket where two processes meet; another server needs another one (default in a private folder)")
	demo := flags.Bool("demo", false, "tell the whole story in one terminal")
	flags.IntVar(&s.batch, "batch", maxSockets, "how many connections move at a time; fewer make each stand still for less long, and the whole takeover longer")
	flags.DurationVar(&s.drain, "drain", 30*time.Second, "how long connections that stay are served after a takeover")
	flags.DurationVar(&s.timeout, "takeover-timeout", time.Second, "how long the new process may take for each batch")
	verbose := flags.Bool("v", false, "show every message")
	if err := parseFlags(flags, args, stdout); err != nil {
		return err
	}
	if s.batch < 1 || s.batch > maxSockets {
		return usageError{fmt.Errorf("-batch %d: from 1 to %d connections fit one offer", s.batch, maxSockets)}
	}
	if s.timeout <= 0 || s.drain < 0 {
		return usageError{fmt.Errorf("-takeover-timeout %v, -drain %v: the first must be more than nothing, and the second not less", s.timeout, s.drain)}
	}
	if *verbose {
		trace = log.Printf
	}
	if *demo {
		nameProcess("demo", stderr)
		return runDemo(ctx, stderr)
	}
	var err error
	if s.path, err = controlPath(*control, flags.Name()); err != nil {
		return err
	}
	return s.run(ctx)
}
