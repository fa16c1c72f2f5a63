//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// demoTime is how long the story may take. It takes a fraction of that.
const demoTime = 10 * time.Second

// runDemo plays the old process, the new one and a client, and returns nil only if the client
// received what it should have.
func runDemo(ctx context.Context, stdout, stderr io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, demoTime)
	defer cancel()
	folder, err := os.MkdirTemp("", "steal-demo")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder) // if it comes to nothing; there is already an error to report
	path := filepath.Join(folder, "control")

	older, addr, err := startActor(ctx, "old", "listening on ", stdout, stderr, "-addr", "127.0.0.1:0", "-control", path)
	if err != nil {
		return err
	}
	defer older.end()
	client, err := connectClient(ctx, addr)
	if err != nil {
		return err
	}
	defer closeQuietly(client.conn)
	port := client.conn.LocalAddr().String()
	client.say("one\n")
	client.hear(1)

	newer, _, err := startActor(ctx, "new", "waiting on ", stdout, stderr, "-c", "-control", path)
	if err != nil {
		return err
	}
	defer newer.end()
	if err := os.RemoveAll(folder); err != nil { // they have met; nothing is left to clean up
		return err
	}
	client.say("two\nSTEAL\nthree\nfour\n")
	client.hear(4)

	log.Printf("kill -9 %d: the old process goes, its client stays", older.pid())
	older.end()
	client.say("five\n")
	client.hear(1)

	want := []string{"one", "two", fmt.Sprintf("* stolen: pid %d -> pid %d", older.pid(), newer.pid()), "three", "four", "five"}
	switch {
	case client.err != nil:
		return fmt.Errorf("verdict: BAD: the client: %w", client.err)
	case !slices.Equal(client.heard, want):
		return fmt.Errorf("verdict: BAD: the client received %q, want %q", client.heard, want)
	case client.conn.LocalAddr().String() != port:
		return errors.New("verdict: BAD: the client has another port")
	}
	log.Printf("verdict: good: the client at %s sent five lines and one STEAL, and received exactly that, in order, from two processes over one connection", port)
	return nil
}

// actor is a child that plays a role.
type actor struct{ *child }

// startActor starts a child, shows its lines as they come, and waits until one of them contains
// mark. It returns what follows the mark.
func startActor(ctx context.Context, role, mark string, stdout, stderr io.Writer, args ...string) (a actor, rest string, err error) {
	r, w := io.Pipe()
	c, err := startChild(ctx, w, args...)
	if err != nil {
		return actor{}, "", err
	}
	go func() {
		<-c.ended
		closeQuietly(w)
	}()
	marked := make(chan string, 1)
	go func() {
		defer close(marked)
		for in := bufio.NewScanner(r); in.Scan(); {
			line := in.Text()
			if strings.HasPrefix(line, `"`) { // what it received
				fmt.Fprintf(stdout, "%s[%d] prints %s\n", role, c.Process.Pid, line)
			} else {
				fmt.Fprintln(stderr, line)
			}
			if _, rest, found := strings.Cut(line, mark); found {
				marked <- rest
			}
		}
	}()
	rest, found := <-marked
	if !found {
		return actor{}, "", fmt.Errorf("the %s process ended before it was %q", role, mark)
	}
	return actor{c}, rest, nil
}

func (a actor) pid() int { return a.Process.Pid }

// end kills the actor, if it lives, and waits until it is gone.
func (a actor) end() {
	_ = a.Process.Kill() // it may be gone already
	_ = a.wait()         // killed, as it should be
}

// demoClient is a TCP client that remembers what it heard, and the first thing that went wrong.
type demoClient struct {
	conn  net.Conn
	in    *bufio.Reader
	heard []string
	err   error
}

func connectClient(ctx context.Context, addr string) (*demoClient, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	log.Printf("a client connects: %v -> %v", conn.LocalAddr(), conn.RemoteAddr())
	return &demoClient{conn: conn, in: bufio.NewReader(conn)}, conn.SetDeadline(time.Now().Add(demoTime))
}

// say sends text in a single write.
func (c *demoClient) say(text string) {
	if c.err == nil {
		log.Printf("the client sends %q", text)
		_, c.err = io.WriteString(c.conn, text)
	}
}

// hear reads n lines.
func (c *demoClient) hear(n int) {
	for ; n > 0 && c.err == nil; n-- {
		var line string
		line, c.err = c.in.ReadString('\n')
		c.heard = append(c.heard, strings.TrimSuffix(line, "\n"))
		log.Printf("the client receives %q", line)
	}
}
