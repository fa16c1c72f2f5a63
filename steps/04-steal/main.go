//go:build linux

// Step 04: STEAL. A live TCP connection moves to another process, and its client goes on talking.
//
//	go run ./steps/04-steal              # the old process: serves TCP
//	nc 127.0.0.1 8080                    # a client: type lines
//	go run ./steps/04-steal -c           # the new process: waits
//	STEAL                                # typed in nc
//
// Or all of it in one terminal: go run ./steps/04-steal -demo
//
// New since 03: steal.go, the protocol that decides who has the connection, whoever dies and
// whenever; parcel.go, what one offer holds; push.go, its one message that carries a descriptor;
// verify.go, what the new process checks before it says yes; old.go and new.go, the two
// processes. echo.go is that of step 01 with an eye for STEAL.
//
// Needs Linux 4.12 (for SO_COOKIE) and no privilege.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"time"
)

func main() { os.Exit(command(run)) }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	nameProcess("old", stderr)
	flags := flag.NewFlagSet("04-steal", flag.ContinueOnError)
	addr := flags.String("addr", "127.0.0.1:8080", "TCP `host:port` to serve; port 0 lets the kernel choose")
	control := flags.String("control", "", "`path` of the unix socket where the two processes meet (default in a private folder)")
	connect := flags.Bool("c", false, "be the new process: connect to the old one and wait")
	demo := flags.Bool("demo", false, "tell the whole story in one terminal")
	timeout := flags.Duration("timeout", time.Second, "how long the new process may take to answer an offer")
	verbose := flags.Bool("v", false, "show every message")
	if err := parseFlags(flags, args, stdout); err != nil {
		return err
	}
	if *timeout <= 0 {
		return usageError{fmt.Errorf("-timeout %v: a new process needs some time to answer", *timeout)}
	}
	if *verbose {
		trace = log.Printf
	}
	if *demo {
		nameProcess("demo", stderr)
		return runDemo(ctx, stdout, stderr)
	}
	if *connect {
		nameProcess("new", stderr)
	}
	path, err := controlPath(*control, flags.Name())
	if err != nil {
		return err
	}
	if *connect {
		return runNew(ctx, path, stdout)
	}
	old := &oldProcess{stdout: stdout, timeout: *timeout}
	return old.run(ctx, *addr, path)
}
