//go:build linux

// Step 05: the same connection, pulled. The new process takes the descriptor out of the old one's
// table with pidfd_getfd, and no control message carries it.
//
//	go run ./steps/05-pidfd              # the old process: serves TCP
//	nc 127.0.0.1 8080                    # a client: type lines
//	go run ./steps/05-pidfd -c           # the new process: waits
//	STEAL                                # typed in nc
//
// Or all of it in one terminal: go run ./steps/05-pidfd -demo
//
// And to look at any descriptor of a process that you may trace: go run ./steps/05-pidfd -pid PID -fd N
//
// New since 04: pull.go, in the place of push.go, and pidfd.go, which does it; peer.go, whose
// process it is; denied.go, why it may not be; ended.go, how the old process ended; look.go, for
// looking around. old.go lets the new process fetch, and closes nothing that it may still come for;
// new.go says how the old one ended.
//
// Needs Linux 5.6 (for pidfd_getfd) and no privilege, if both processes are the same user's and
// Yama, where there is one, is in its modes 0 or 1.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"math"
	"os"
	"time"
)

func main() { os.Exit(command(run)) }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	nameProcess("old", stderr)
	flags := flag.NewFlagSet("05-pidfd", flag.ContinueOnError)
	addr := flags.String("addr", "127.0.0.1:8080", "TCP `host:port` to serve; port 0 lets the kernel choose")
	control := flags.String("control", "", "`path` of the unix socket where the two processes meet (default in a private folder)")
	connect := flags.Bool("c", false, "be the new process: connect to the old one and wait")
	demo := flags.Bool("demo", false, "tell the whole story in one terminal")
	timeout := flags.Duration("timeout", time.Second, "how long the new process may take to answer an offer")
	verbose := flags.Bool("v", false, "show every message")
	pid := flags.Int("pid", 0, "look at a descriptor of the process with this `pid`, with -fd")
	fd := flags.Int("fd", -1, "the descriptor's `number` in that process")
	if err := parseFlags(flags, args, stdout); err != nil {
		return err
	}
	if *timeout <= 0 {
		return usageError{fmt.Errorf("-timeout %v: a new process needs some time to answer", *timeout)}
	}
	looks := *pid != 0 || *fd != -1
	if looks && (*pid <= 0 || *pid > math.MaxInt32 || *fd < 0 || *fd > math.MaxInt32) {
		return usageError{fmt.Errorf("-pid %d -fd %d: a process and one of its descriptors are needed", *pid, *fd)}
	}
	if *verbose {
		trace = log.Printf
	}
	if looks {
		nameProcess("look", stderr)
		return look(*pid, *fd, stdout)
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
