//go:build linux

package main

import (
	"bufio"
	"fmt"
	"io"
	"math/rand"
	"net"
	"strings"
	"sync/atomic"
	"time"
)

const (
	demoClients = 200
	demoVerdict = "lines; each came back once, in order, over the connection it was sent on"
)

// talk is one client: it sends lines of any length, and compares what comes back.
func talk(addr string, id int, lines *atomic.Int64, over <-chan struct{}) error {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	in := bufio.NewReader(c)
	for n := 0; ; n++ {
		select {
		case <-over:
			return nil
		default:
		}
		c.SetDeadline(time.Now().Add(20 * time.Second))
		want := fmt.Sprintf("client %d, line %d %s\n", id, n, strings.Repeat("x", rand.Intn(2000)))
		io.WriteString(c, want) // what fails here is not received below
		if got, err := in.ReadString('\n'); got != want {
			return fmt.Errorf("received %q (%v), not %q", got, err, want)
		}
		lines.Add(1)
	}
}
