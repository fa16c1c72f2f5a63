//go:build linux

// Step 05: the same connection, pulled. The new process takes the descriptor out of the old one's
// table with pidfd_getfd(2), and no control message carries it.
//
//	go run ./steps/05-pidfd              # the old process: serves TCP; wait for "listening on"
//	nc 127.0.0.1 8080                    # a client: type lines
//	go run ./steps/05-pidfd -c           # the new process: waits
//	STEAL                                # typed in nc
//
// Or all of it in one terminal: go run ./steps/05-pidfd -demo
//
// And to look at any descriptor of a process that you may trace: go run ./steps/05-pidfd -pid PID -fd N
//
//	main.go      skip: flags
//	pull.go      read, copy: the old process names a descriptor, the new one takes it
//	pidfd.go     read, copy: pidfd_getfd, and why it may be refused
//	look.go      read: what a descriptor is, from outside
//	session.go   known from 04, and protocol.go, steal.go and demo.go too; push.go is gone
//	fdpass.go    known from 03
//	control.go   known from 02
//	socket.go    known from 01, and listen.go and process.go too
//
// Needs Linux 5.6 (for pidfd_getfd) and no privilege, if both processes are the same user's and
// Yama, where there is one, is in its modes 0 or 1.
package main

import (
	"flag"
	"log"
	"time"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8080", "TCP `host:port` to serve; port 0 lets the kernel choose")
	control := flag.String("control", "", "`path` of the unix socket where the two processes meet (default in a private folder)")
	connect := flag.Bool("c", false, "be the new process: connect to the old one and wait")
	demo := flag.Bool("demo", false, "tell the whole story in one terminal")
	timeout := flag.Duration("timeout", time.Second, "how long the new process may take to answer an offer")
	pid := flag.Int("pid", 0, "look at a descriptor of the process with this `pid`, with -fd")
	fd := flag.Int("fd", 0, "the descriptor's `number` in that process")
	flag.Parse()
	if *pid != 0 {
		start("look")
		if err := look(*pid, *fd); err != nil {
			log.Fatal(err)
		}
		return
	}
	role, run := "old", func(path string) error { return runOld(*addr, path, *timeout) }
	switch {
	case *demo:
		role, run = "demo", runDemo
	case *connect:
		role, run = "new", runNew
	}
	start(role)
	path, err := controlPath(*control, "05-pidfd")
	if err == nil {
		err = run(path)
	}
	if err != nil {
		log.Fatal(err)
	}
}
