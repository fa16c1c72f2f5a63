//go:build linux

// Step 04: STEAL. A live TCP connection moves to another process, and its client goes on talking.
//
//	go run ./steps/04-steal              # the old process: serves TCP; wait for "listening on"
//	nc 127.0.0.1 8080                    # a client: type lines
//	go run ./steps/04-steal -c           # the new process: waits
//	STEAL                                # typed in nc
//
// Or all of it in one terminal: go run ./steps/04-steal -demo
//
//	main.go      skip: flags
//	session.go   read: the two processes, what either does for a client, and the STEAL line
//	protocol.go  read, copy: who owns what is offered, whoever dies and whenever
//	steal.go     read, copy: how a connection is offered, and taken
//	push.go      read, copy: the one message with a descriptor in it
//	demo.go      skip: plays all parts
//	fdpass.go    known from 03
//	control.go   known from 02
//	socket.go    known from 01, and listen.go and process.go too
//
// Needs Linux 4.12 (for SO_COOKIE) and no privilege.
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
	flag.Parse()
	role, run := "old", func(path string) error { return runOld(*addr, path, *timeout) }
	switch {
	case *demo:
		role, run = "demo", runDemo
	case *connect:
		role, run = "new", runNew
	}
	start(role)
	path, err := controlPath(*control, "04-steal")
	if err == nil {
		err = run(path)
	}
	if err != nil {
		log.Fatal(err)
	}
}
