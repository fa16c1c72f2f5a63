//go:build linux

// Step 01: a TCP server that sends every line back, and names the socket behind each connection.
//
//	go run ./steps/01-echo            # in one terminal; wait for "listening on"
//	nc 127.0.0.1 8080                 # in another: type lines, each comes back
//
// For every client it prints the number by which this process knows the socket, and what the
// kernel itself calls it. Later steps move that very socket into another process.
//
//	main.go      read: the server, and what it does for one client
//	socket.go    read, copy: what the kernel calls a socket
//	listen.go    read: a TCP listener, and the accept loop
//	process.go   skip: flags, log, signals
//
// Needs Linux 4.12 (for SO_COOKIE) and no privilege.
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8080", "TCP `host:port` to serve; port 0 lets the kernel choose")
	flag.Parse()
	start("echo")
	exitOnSignal(func() {}) // nothing to clean up
	log.Fatal(serveTCP(*addr, serve))
}

// serve echoes one client until it has nothing more to say, and closes the connection.
func serve(c *net.TCPConn) {
	defer c.Close() // ends the connection: nobody else has a descriptor of this socket
	fd, cookie, err := identify(c)
	log.Printf("client %v -> %v is descriptor %d, cookie %d", c.RemoteAddr(), c.LocalAddr(), fd, cookie)
	if err == nil {
		err = echo(c)
	}
	log.Printf("closing descriptor %d: %v", fd, err)
}

// echo sends every line back as it came, and shows it. It returns io.EOF when the client has
// ended its side; a last line without a newline counts. A line longer than the buffer, which
// bounds what one client makes this process remember, is echoed in pieces.
func echo(c io.ReadWriter) error {
	in := bufio.NewReaderSize(c, 16<<10)
	for {
		line, err := in.ReadSlice('\n')
		if len(line) > 0 {
			// Quoted and cut: a client's bytes must not move the terminal's cursor, or worse.
			fmt.Printf("%q\n", line[:min(len(line), 80)])
			if _, err := c.Write(line); err != nil {
				return err
			}
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
	}
}
