//go:build linux

// Step 09: rescue. A server is killed with -9, or hangs, and no client notices: another process goes on
// with every connection, at the exact byte.
//
//	go run ./steps/09-rescue             # a keeper, which starts a server and a spare one; wait for "listening on"
//	nc 127.0.0.1 8080                    # a client: type lines
//	kill -9 PID                          # the server's, which the log names. Type on in nc
//	PANIC                                # typed in nc: a bug. HANG is another
//
// Or all of it in one terminal, with a hundred clients: go run ./steps/09-rescue -demo
//
// The keeper accepts. It has a descriptor of every connection and does nothing with it: so the death of
// a server closes none. The server reads into memory that both have, and writes from it: so what it had
// read is not lost with it. How far it had come, the kernel knows.
//
//	main.go       skip: flags
//	counters.go   read, copy: how far a dead process had come with a socket
//	memory.go     read, copy: what a dead process leaves: a ring of bytes and a word for each connection
//	work.go       read: what a server does for one client, so that another one can go on
//	partner.go    read, copy: another process of this program: to start it, and to see that it is dead
//	estate.go     read, copy: all that one process leaves to another, and the messages that carry it
//	serve.go      read, copy: the server: takes what the keeper has, and gives it to the next keeper
//	keeper.go     read, copy: the keeper: one server after the other
//	rescuedemo.go skip: the demonstration
//	fdpass.go     known from 03
//	socket.go     known from 01, and process.go too
//
// Needs Linux 5.3 (for pidfd_open) and no privilege.
package main

import (
	"flag"
	"fmt"
	"log"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8080", "TCP `host:port` to serve; port 0 lets the kernel choose")
	patience := flag.Duration("patience", 2*time.Second, "how long a server may stand still before it is killed: 100ms or more")
	role := flag.String("role", "", "server or keeper: to be one of those that the program starts itself")
	demo := flag.Bool("demo", false, "tell the whole story in one terminal")
	flag.Parse()
	log.SetOutput(stderr{})
	var err error
	switch {
	case *demo:
		start("demo")
		err = runDemo()
	case *role == "server":
		start("server")
		err = runServer(*addr, *patience)
	case *role != "" && *role != "keeper":
		start("keeper")
		err = fmt.Errorf("-role %s: there is no such role, and -role is for the program itself to use", *role)
	default:
		start("keeper")
		err = runKeeper(*addr, *patience, *role == "keeper")
	}
	if err != nil {
		log.Fatal(err)
	}
}

// stderr drops what would have to wait, as when nobody reads from the pipe that it is: a rescue cannot
// wait for that. A pipe that is writable has room for a line: pipe(7).
type stderr struct{}

func (stderr) Write(line []byte) (int, error) {
	ready := []unix.PollFd{{Fd: 2, Events: unix.POLLOUT}}
	if n, err := unix.Poll(ready, 0); n == 0 && err == nil {
		return len(line), nil
	}
	return os.Stderr.Write(line)
}
