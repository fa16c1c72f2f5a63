//go:build linux

// Step 06: listeners change hands, as in Envoy, HAProxy and nginx. Start the program again: the new
// process has the listeners, with whoever waits there, and the old one serves its clients to their end.
//
//	go run ./steps/06-listeners          # serves 127.0.0.1:8080; wait for "listening on"
//	nc 127.0.0.1 8080                    # a client: type lines
//	go run ./steps/06-listeners          # the same again: takes over, and the first one drains
//
// SIGUSR1 asks for a line of state. SIGUSR2 starts the program at its path again, as a new build.
//
//	main.go        read: the life of one process
//	server.go      read: what it does for its clients: accepting, counting, draining
//	listeners.go   read, copy: listening sockets: adopted, compared, opened
//	generations.go read: how one process and the next meet, and what they tell each other
//	handover.go    read: the offer by which everything changes hands
//	restart.go     read: signals, and the program started again
//	supervisor.go  read, copy: what systemd wants to hear, and what it brings
//	protocol.go    known from 04
//	fdpass.go      known from 03
//	control.go     known from 02
//	socket.go      known from 01, and process.go too
//
// Needs Linux 4.12 (for SO_COOKIE) and no privilege.
package main

import (
	"flag"
	"log"
	"time"
)

func main() {
	addrs := flag.String("addr", "", "TCP `host:port` to serve, or several with commas between (default what the process before serves, or "+defaultAddr+")")
	control := flag.String("control", "", "`path` of the unix socket where two processes meet; another server needs another (default in a private folder)")
	drain := flag.Duration("drain", 30*time.Second, "how long clients are served when another process has taken over")
	timeout := flag.Duration("timeout", time.Second, "how long another process may take to say what it wants, and to answer an offer")
	flag.Parse()
	start("server")
	path, err := controlPath(*control, "06-listeners")
	if err == nil {
		flag.Set("control", path) // absolute, for the process that SIGUSR2 starts
		err = run(*addrs, path, *drain, *timeout)
	}
	if err != nil {
		log.Fatal(err)
	}
}

// run is the life of one process: it takes over or begins, serves, and drains when the next one has
// taken over.
func run(addrs, path string, drain, timeout time.Duration) error {
	come := catchSignals()
	all, err := begin(addrs, path, takeOver)
	if err != nil {
		return err
	}
	s := newServer(all.listeners, all.totals)
	g := &giver{server: s, control: all.control, timeout: timeout, taken: make(chan struct{})}
	g.answerSignals(come)
	for _, l := range s.listeners {
		log.Printf("listening on %v", l.Addr())
		s.running.Go(func() { s.acceptAll(l) })
	}
	notify("READY=1", mainPID())
	go all.follow(s) // only now may the process before end
	go g.acceptAll(all.control.Conn)
	for _, l := range all.surplus {
		log.Printf("no longer listening on %v", l.Addr())
		s.running.Go(func() { s.acceptWaiting(l) })
	}
	<-g.taken
	s.drain(drain)
	g.finish()
	return nil
}
