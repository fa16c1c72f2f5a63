//go:build linux

package main

import (
	"fmt"
	"log"
	"net"
	"strings"
	"time"
)

// serveTCP listens on addr and gives everyone who connects to serve, in a goroutine of its own.
// It returns only if it cannot listen.
//
// An error of accept(2) is about one pending connection, or a shortage that will pass ("Error
// handling" in accept(2)). Whoever else connects waits in the accept queue meanwhile. So the loop
// waits a little, as a shortage would make it spin, and goes on. It reports one error a minute.
func serveTCP(addr string, serve func(*net.TCPConn)) error {
	network := "tcp"
	if strings.HasPrefix(addr, "0.0.0.0:") {
		network = "tcp4" // of "tcp" and 0.0.0.0 package net makes [::], which is IPv6 as well
	}
	listener, err := net.Listen(network, addr)
	if err != nil {
		return fmt.Errorf("%w: choose another with -addr, or stop what has it (ss -ltnp)", err)
	}
	log.Printf("listening on %v", listener.Addr())
	for reported := (time.Time{}); ; {
		c, err := listener.Accept()
		if err == nil {
			go serve(c.(*net.TCPConn))
			continue
		}
		if time.Since(reported) > time.Minute {
			reported = time.Now()
			log.Printf("%v: clients wait in the accept queue until it works again", err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
