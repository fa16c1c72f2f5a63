//go:build linux

// Step 10: TLS. An encrypted connection moves, and the new process never sees the keys: once the
// handshake is done, the kernel has them, as part of the socket.
//
//	go run ./steps/10-tls                # the old process: serves TLS 1.3; wait for "listening on"
//	openssl s_client -connect 127.0.0.1:8443 -quiet      # a client: type lines
//	go run ./steps/10-tls -c             # the new process: waits
//	STEAL                                # typed in openssl
//
// Or all of it in one terminal: go run ./steps/10-tls -demo
//
//	main.go      skip: flags
//	session.go   read: as in 04, with a handshake before, and what is done without the kernel's help
//	handshake.go read, copy: crypto/tls shakes hands, and lets go of the secrets
//	ktls.go      read, copy: the keys go to the kernel, and what is not data comes from it
//	pushtls.go   read, copy: refuses what the kernel does not encrypt; it stands in for push.go
//	tlsdemo.go   skip: plays all parts
//	protocol.go  known from 04, and steal.go too
//	fdpass.go    known from 03
//	control.go   known from 02
//	socket.go    known from 01, and listen.go and process.go too
//
// Needs Linux 5.11 with its module tls loaded (as root, modprobe tls), and no privilege. Without
// the module it serves, and STEAL is refused.
package main

import (
	"flag"
	"log"
	"time"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8443", "TCP `host:port` to serve; port 0 lets the kernel choose")
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
	path, err := controlPath(*control, "10-tls")
	if err == nil {
		err = run(path)
	}
	if err != nil {
		log.Fatal(err)
	}
}
