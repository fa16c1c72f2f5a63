//go:build linux

package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/gobwas/ws"
)

const (
	demoClients = 90 // 50 with requests, 20 with events, 20 in the chat
	demoVerdict = "answers, events and messages; nothing missing, nothing twice, each over its first connection"
)

// talk is one client, over one connection: it counts what it receives, and says what is wrong with it.
func talk(addr string, id int, received *atomic.Int64, over <-chan struct{}) error {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	in := bufio.NewReader(c)
	next := exchangeBodies
	switch id % 9 {
	case 5, 6:
		next, err = followEvents(c, in)
	case 7, 8:
		next, err = joinChat(c, in)
	}
	for n := 0; err == nil; n++ {
		select {
		case <-over:
			return nil
		default:
			c.SetDeadline(time.Now().Add(20 * time.Second))
			err = next(c, in, id, n)
			received.Add(1)
		}
	}
	return err
}

// exchangeBodies sends a body, and compares the answer.
func exchangeBodies(c net.Conn, in *bufio.Reader, _, _ int) error {
	body := bytes.Repeat([]byte{'x'}, rand.Intn(64<<10))
	fmt.Fprintf(c, "POST /echo HTTP/1.1\r\nHost: demo\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	answer, err := http.ReadResponse(in, nil)
	if err != nil {
		return err
	}
	if got, err := io.ReadAll(answer.Body); err != nil || !bytes.Equal(got, body) || answer.Close {
		return fmt.Errorf("answer of %d bytes to %d: %s, %w", len(got), len(body), answer.Status, err)
	}
	return nil
}

type receiving func(c net.Conn, in *bufio.Reader, id, n int) error

// followEvents asks for events, and returns what reads the next one: their numbers have no gap.
func followEvents(c net.Conn, in *bufio.Reader) (receiving, error) {
	fmt.Fprint(c, "GET /events HTTP/1.1\r\nHost: demo\r\n\r\n")
	_, err := http.ReadResponse(in, nil)
	return func(_ net.Conn, in *bufio.Reader, _, n int) error {
		for want, line := fmt.Sprintf("id: %d\n", n+1), ""; line != "\n"; {
			if line, err = in.ReadString('\n'); err != nil || line[0] == 'i' && line != want {
				return fmt.Errorf("received %q, not %q: %w", line, want, err)
			}
		}
		return nil
	}, err
}

// joinChat opens a WebSocket, and returns what says something, and then reads until that has come back. What
// others say has no gap either.
func joinChat(c net.Conn, in *bufio.Reader) (receiving, error) {
	fmt.Fprint(c, "GET /chat HTTP/1.1\r\nHost: demo\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: c3RlYWwsIHN0ZXAgMDghIQ==\r\n\r\n")
	_, err := http.ReadResponse(in, nil)
	heard := map[int]int{} // by who has said it
	return func(c net.Conn, in *bufio.Reader, id, n int) error {
		if err := ws.WriteFrame(c, ws.MaskFrame(ws.NewTextFrame(fmt.Appendf(nil, "%d %d", id, n)))); err != nil {
			return err
		}
		for {
			h, err := ws.ReadHeader(in)
			text := make([]byte, h.Length)
			if err == nil {
				_, err = io.ReadFull(in, text)
			}
			var from, number int
			if err == nil {
				_, err = fmt.Sscan(string(text), &from, &number)
			}
			if last, known := heard[from]; err != nil || known && number != last+1 {
				return fmt.Errorf("received %q behind %d: %w", text, last, err)
			}
			if heard[from] = number; from == id && number == n {
				return nil
			}
		}
	}, err
}
