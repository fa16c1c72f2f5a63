//go:build linux

// Step 03: a descriptor travels. Two processes tell each other two stories:
//
//   - the old one reads line one of a file, the new one line two, the old one line three;
//   - the old one opens a listener, and the new one accepts the client that waits there.
//
// To run it:
//
//	go run ./steps/03-scm-rights        # the old process: waits for new ones
//	go run ./steps/03-scm-rights -c     # the new process
//
//	main.go      read: who tells what to whom
//	msghdr.go    read: the control message and the system call, with nothing between
//	fdpass.go    read, copy: descriptors passed without leaks or surprises
//	offset.go    read: the story of the file
//	queue.go     read: the story of the listener
//	control.go   known from 02
//	socket.go    known from 01, and process.go too
//
// Needs Linux 4.12 (for SO_COOKIE; MSG_CMSG_CLOEXEC is there since 2.6.23) and no privilege.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
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
	path, err := controlPath(*control, "03-scm-rights")
	if err == nil {
		err = run(path)
	}
	if err != nil {
		log.Fatal(err)
	}
}

// runOld tells both stories to every new process that connects, one after the other.
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
		if err := tell(c, sendFile, sendListener); err != nil {
			log.Print(err)
		}
		c.Close()
	}
}

// runNew plays its part in both stories.
func runNew(path string) error {
	c, err := dialControl(path)
	if err != nil {
		return err
	}
	exitOnSignal(func() {})
	log.Printf("waiting on %s", path)
	return tell(c, receiveFile, receiveListener)
}

// tell plays this process's part in the stories.
func tell(c *socket.Conn, stories ...func(*socket.Conn) error) error {
	peer, err := peerOf(c)
	if err != nil {
		return err
	}
	for _, story := range stories {
		c.SetReadDeadline(time.Now().Add(20 * time.Second)) // for whoever falls silent in the middle
		if err := story(c); err != nil {
			return fmt.Errorf("%v: %w", peer, err)
		}
	}
	log.Printf("both stories are told, with %v", peer)
	return nil
}
