//go:build linux

// Step 08: the web. net/http, server-sent events and WebSockets, over restarts that no browser notices.
//
//	go run ./steps/08-web        # serves http://127.0.0.1:8080; wait for "listening on"
//	go run ./steps/08-web        # the same again: takes over, and the first one ends
//	go run ./steps/08-web -demo  # restarts under load, in one terminal
//
// What is new is what a session is; what moves it is step 07's, unchanged. In a line of state, "lines" are
// requests.
//
//	main.go        read: the life of one process
//	state.go       read: what travels with a socket
//	web.go         read, copy: what a session does: it is between two requests, in one, or in a mode
//	request.go     read, copy: where a request ends
//	http.go        read, copy: net/http over one request
//	events.go      read: server-sent events, a mode
//	chat.go        read: a WebSocket, a mode
//	room.go        read: what clients share while some are here, and some are there
//	page.go        read: what is served, with page.html
//	webdemo.go     skip: the demonstration's clients
//	session.go     known from 07, and clients.go, silent.go, give.go, take.go, batch.go and loaddemo.go too
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
	"net"
	"os"
	"strings"
	"time"

	"github.com/mdlayher/socket"
)

func main() {
	addrs := flag.String("addr", "", "TCP `host:port` to serve, or several with commas between (default what the process before serves, or "+defaultAddr+")")
	control := flag.String("control", "", "`path` of the unix socket where two processes meet; another server needs another (default in a private folder)")
	drain := flag.Duration("drain", 30*time.Second, "how long clients that cannot move are served when another process has taken over")
	timeout := flag.Duration("timeout", time.Second, "how long another process may take to say what it wants, and to answer an offer")
	batch := flag.Int("batch", 128, fmt.Sprintf("how many `connections` move at once: 1 to %d; fewer stand still for a shorter time, more move faster", maxSockets))
	flag.DurationVar(&patience, "patience", patience, "how long a client may take for a request, without a body of more than 16 KiB, of unknown length, or behind 100 Continue")
	demo := flag.Bool("demo", false, "restart a server under load, and check what its clients receive")
	flag.Parse()
	start("server")
	if *batch < 1 || *batch > maxSockets {
		log.Printf("-batch %d: 1 to %d connections can move at once", *batch, maxSockets)
		os.Exit(2)
	}
	if patience <= 0 {
		log.Printf("-patience %v: a request takes some time to come", patience)
		os.Exit(2)
	}
	path, err := controlPath(*control, "08-web")
	if err == nil && *demo {
		log.SetPrefix(fmt.Sprintf("demo[%d]: ", os.Getpid()))
		err = runDemo()
	} else if err == nil {
		flag.Set("control", path) // absolute, for the process that SIGUSR2 starts
		if strings.Contains(program, "/go-build") {
			program = "/proc/self/exe" // go run removes the file when the process that it has started ends
		}
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
	web.Handler = handler()
	go web.Serve(exchanges)
	s := newServer(batch)
	all, err := begin(addrs, path, func(c *socket.Conn, addrs, path string, inherited []*net.TCPListener) (*everything, error) {
		if err := chatRoom.open(path + ".room"); err != nil { // before the first chat comes
			return nil, err
		}
		return (&taker{server: s}).takeOver(c, addrs, path, inherited)
	})
	if err == nil && all.totals.Generation == 1 {
		if err = chatRoom.open(path + ".room"); err == nil {
			err = chatRoom.clear()
		}
	}
	if err != nil {
		if n := s.count(); n > 0 { // they have moved here before it went wrong
			log.Printf("%v; serving connections to their end: %d", err, n)
		}
		s.clients.Wait()
		return err
	}
	s.before = all.totals
	generation.Store(int64(all.totals.Generation))
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
	leave()
	s.drain(drain)
	g.finish()
	return nil
}
