//go:build linux

// Step 07: hot restart. Start the program again: listeners and connections move to the new process,
// wherever they are, and the old one ends. No client notices.
//
//	go run ./steps/07-hot-restart        # serves 127.0.0.1:8080; wait for "listening on"
//	nc 127.0.0.1 8080                    # a client: type lines. STAY marks one that cannot move
//	go run ./steps/07-hot-restart        # the same again: takes over, and the first one ends
//	go run ./steps/07-hot-restart -demo  # restarts under load, in one terminal
//
// SIGUSR1 asks for a line of state. SIGUSR2 starts the program at its path again, as a new build.
//
//	main.go        read: the life of one process
//	session.go     read, copy: a connection that can be stopped at any moment
//	clients.go     read: what a process does for its clients: accepting, serving, counting
//	silent.go      read: those who say nothing, of whom there are most
//	give.go        read: the old process's side, and who stands still when
//	take.go        read: the new process's side
//	batch.go       read, copy: many connections in one offer
//	loaddemo.go    skip: the demonstration
//	listeners.go   known from 06, and generations.go, restart.go and supervisor.go too
//	protocol.go    known from 04
//	fdpass.go      known from 03
//	control.go     known from 02
//	socket.go      known from 01, and process.go too
//
// Needs Linux 4.12 (for SO_COOKIE) and no privilege.
package main

import (
	"flag"
	"fmt"
	"log"
	"os"
	"time"
)

func main() {
	addrs := flag.String("addr", "", "TCP `host:port` to serve, or several with commas between (default what the process before serves, or "+defaultAddr+")")
	control := flag.String("control", "", "`path` of the unix socket where two processes meet; another server needs another (default in a private folder)")
	drain := flag.Duration("drain", 30*time.Second, "how long clients that cannot move are served when another process has taken over")
	timeout := flag.Duration("timeout", time.Second, "how long another process may take to say what it wants, and to answer an offer")
	batch := flag.Int("batch", 128, fmt.Sprintf("how many `connections` move at once: 1 to %d; fewer stand still for a shorter time, more move faster", maxSockets))
	demo := flag.Bool("demo", false, "restart a server under load, and check every byte")
	flag.Parse()
	start("server")
	if *batch < 1 || *batch > maxSockets {
		log.Printf("-batch %d: 1 to %d connections can move at once", *batch, maxSockets)
		os.Exit(2)
	}
	path, err := controlPath(*control, "07-hot-restart")
	if err == nil && *demo {
		log.SetPrefix(fmt.Sprintf("demo[%d]: ", os.Getpid()))
		err = runDemo()
	} else if err == nil {
		flag.Set("control", path) // absolute, for the process that SIGUSR2 starts
		err = run(*addrs, path, *drain, *timeout, *batch)
	}
	if err != nil {
		log.Fatal(err)
	}
}

// run is the life of one process: it takes over or begins, serves, and serves to their end those who
// cannot move when the next one has taken over.
func run(addrs, path string, drain, timeout time.Duration, batch int) error {
	come := catchSignals()
	s := newServer(batch)
	all, err := begin(addrs, path, (&taker{server: s}).takeOver)
	if err != nil {
		if n := s.count(); n > 0 { // they have moved here before it went wrong
			log.Printf("%v; serving connections to their end: %d", err, n)
		}
		s.clients.Wait()
		return err
	}
	s.before = all.totals
	g := &giver{server: s, control: all.control, timeout: timeout, taken: make(chan struct{})}
	g.answerSignals(come)
	s.open(all.listeners)
	for _, l := range all.listeners {
		log.Printf("listening on %v", l.Addr())
	}
	notify("READY=1", mainPID())
	go all.follow(s) // only now may the process before end
	go g.acceptAll(all.control.Conn)
	for _, l := range all.surplus {
		log.Printf("no longer listening on %v", l.Addr())
		s.clients.Go(func() { s.acceptWaiting(l) })
	}
	<-g.taken
	s.drain(drain)
	g.finish()
	return nil
}
