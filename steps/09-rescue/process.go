//go:build linux

package main

// What every step's process does. There is no shutdown: to end is to die, and the kernel closes
// what was open. As kill -9 must be safe at any moment, a second, gentle way would gain nothing.

import (
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// start is called after flag.Parse. It makes every line of the log begin with role and pid, and
// ends a process that was given something else than flags.
func start(role string) {
	log.SetFlags(0)
	log.SetPrefix(fmt.Sprintf("%s[%d]: ", role, os.Getpid()))
	if flag.NArg() > 0 {
		log.Printf("unexpected argument %q; -h lists the flags", flag.Arg(0))
		os.Exit(2)
	}
	// By default Go lets SIGPIPE end a process whose write to descriptor 1 or 2 meets a closed pipe
	// (package os/signal). That nobody reads our log any more is no client's fault.
	signal.Ignore(unix.SIGPIPE)
}

// exitOnSignal makes SIGINT and SIGTERM end this process with status 0, after cleanUp.
func exitOnSignal(cleanUp func()) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM)
	go func() {
		<-signals
		cleanUp()
		os.Exit(0)
	}()
}
