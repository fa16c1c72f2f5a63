//go:build linux

// Step 02: two processes meet at a unix socket, and the kernel tells each who the other is.
//
//	go run ./steps/02-unix-socket        # the old process: listens
//	go run ./steps/02-unix-socket -c     # the new process: connects
//
// Each sends the other one record, in which it may claim what it likes, and shows beside it what
// the kernel says. The TCP server of step 01 comes back in step 04.
//
//	main.go      read: the two processes
//	control.go   read, copy: a path that one process listens on, and who is at the other end
//	process.go   skip: flags, log, signals (as in 01)
//
// Needs Linux 2.6.4 (for SOCK_SEQPACKET) and no privilege.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/mdlayher/socket"
)

func main() {
	control := flag.String("control", "", "`path` of the unix socket where the two processes meet (default in a private folder)")
	connect := flag.Bool("c", false, "be the new process: connect to the old one")
	flag.Parse()
	run, role := runOld, "old"
	if *connect {
		run, role = runNew, "new"
	}
	start(role)
	path, err := controlPath(*control, "02-unix-socket")
	if err == nil {
		err = run(path)
	}
	if err != nil {
		log.Fatal(err)
	}
}

// runOld meets every process that connects.
func runOld(path string) error {
	control, err := listenControl(path)
	if err != nil {
		return err
	}
	exitOnSignal(control.remove)
	log.Printf("listening on %s", path)
	for {
		c, _, err := control.Accept(context.Background(), 0)
		if err != nil { // a shortage, which will pass: accept(2)
			log.Print(err)
			time.Sleep(time.Second)
			continue
		}
		go func() {
			defer c.Close() // it is gone
			if err := meet(c); err != nil {
				log.Print(err)
			}
		}()
	}
}

// runNew meets the old process, and ends when that does.
func runNew(path string) error {
	c, err := dialControl(path)
	if err != nil {
		return err
	}
	exitOnSignal(func() {}) // the path is the old process's
	log.Printf("waiting on %s", path)
	return meet(c)
}

// meet exchanges a record with the process at the other end, and returns when it is gone, or may
// not be here. However a process ends, the kernel closes its sockets, and the other end hears of
// it at once.
func meet(c *socket.Conn) error {
	peer, err := peerOf(c)
	if err != nil {
		return err
	}
	fmt.Fprintf(c, "I am pid %d", os.Getpid()) // if it is gone, Read says so
	for record := make([]byte, 80); ; {
		n, err := c.Read(record)
		if err != nil { // io.EOF, or ECONNRESET if it has left our record unread
			log.Printf("%v is gone: %v", peer, err)
			return nil
		}
		log.Printf("%v says %q", peer, record[:n])
	}
}
