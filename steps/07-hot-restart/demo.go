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
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	demoTime     = 2 * time.Minute // how long the story may take; it takes a fraction of that
	demoClients  = 200
	demoRestarts = 5
)

// runDemo restarts a server again and again, while clients talk to it. It returns nil only if
// every byte came back, over the connections of the beginning.
func runDemo(ctx context.Context, stderr io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, demoTime)
	defer cancel()
	lines, err := restartUnderTalk(ctx, stderr)
	if err != nil {
		return fmt.Errorf("verdict: BAD: %w", err)
	}
	log.Printf("verdict: good: %d restarts, %d clients, %d lines; each came back once, in order, over the connection it was sent on",
		demoRestarts, demoClients, lines)
	return nil
}

// restartUnderTalk returns how many lines were sent and came back.
func restartUnderTalk(ctx context.Context, stderr io.Writer) (lines int64, err error) {
	folder, err := os.MkdirTemp("", "restart-demo")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(folder) // nothing of value is in it
	path := filepath.Join(folder, "control")

	// On a busy machine nobody is to be called silent who is only slow.
	args := []string{"-addr", "127.0.0.1:0", "-control", path, "-takeover-timeout", "10s"}
	server, addr, err := startActor(ctx, stderr, args...)
	if err != nil {
		return 0, err
	}
	defer func() { server.end() }()
	log.Printf("%d clients talk to pid %d", demoClients, server.Process.Pid)
	talk := startTalk(ctx, addr)
	for range demoRestarts {
		if err := talk.goesOn(ctx); err != nil {
			return 0, err
		}
		next, _, err := startActor(ctx, stderr, args...)
		if err != nil {
			return 0, err
		}
		begin := time.Now()
		if err := server.wait(); err != nil {
			return 0, fmt.Errorf("the old process: %w", err)
		}
		log.Printf("pid %d serves, and pid %d ended %v later", next.Process.Pid, server.Process.Pid, time.Since(begin).Round(time.Millisecond))
		server = next
	}
	err = errors.Join(talk.goesOn(ctx), talk.end())
	return talk.lines.Load(), err
}

// actor is a server process of the story.
type actor struct{ *child }

// startActor starts a server, shows what it says, and returns when it serves, and where.
func startActor(ctx context.Context, stderr io.Writer, args ...string) (a actor, addr string, err error) {
	r, w := io.Pipe()
	c, err := startChild(ctx, w, args...)
	if err != nil {
		return actor{}, "", err
	}
	go func() {
		<-c.ended
		closeQuietly(w)
	}()
	ready := make(chan string, 1)
	go func() {
		defer close(ready)
		for in := bufio.NewScanner(r); in.Scan(); {
			if strings.HasPrefix(in.Text(), `"`) {
				continue // a line that it received
			}
			fmt.Fprintln(stderr, in.Text())
			if n, _ := fmt.Sscanf(in.Text(), "server[%d]: listening on %s", new(int), &addr); n == 2 {
				ready <- addr
			}
		}
	}()
	addr, serves := <-ready
	if !serves {
		return actor{}, "", errors.New("the server ended before it served")
	}
	return actor{c}, addr, nil
}

// end kills the actor, if it lives, and waits until it is gone.
func (a actor) end() {
	_ = a.Process.Kill() // it may be gone already
	_ = a.wait()         // killed, as it should be
}

// talk is many clients, each of which sends a line, expects it back, and goes on with the next.
type talk struct {
	lines   atomic.Int64
	stop    atomic.Bool
	clients sync.WaitGroup
	failed  chan error
}

func startTalk(ctx context.Context, addr string) *talk {
	t := &talk{failed: make(chan error, demoClients)}
	for i := range demoClients {
		t.clients.Go(func() {
			if err := t.client(ctx, addr, i); err != nil {
				t.failed <- fmt.Errorf("client %d: %w", i, err)
			}
		})
	}
	return t
}

func (t *talk) client(ctx context.Context, addr string, number int) error {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer closeQuietly(conn)
	defer context.AfterFunc(ctx, func() { closeQuietly(conn) })()
	in := bufio.NewReader(conn)
	for i := 0; !t.stop.Load(); i++ {
		want := fmt.Sprintf("line %d of client %d\n", i, number)
		if _, err := io.WriteString(conn, want); err != nil {
			return err
		}
		if got, err := in.ReadString('\n'); got != want {
			return fmt.Errorf("sent %q, received %q: %w", want, got, errors.Join(err, errors.New("not the same")))
		}
		t.lines.Add(1)
	}
	return nil
}

// goesOn waits until two more lines for each client have come back.
func (t *talk) goesOn(ctx context.Context) error {
	for until := t.lines.Load() + 2*demoClients; t.lines.Load() < until; {
		select {
		case err := <-t.failed:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}

// end hangs up, and returns what went wrong.
func (t *talk) end() error {
	t.stop.Store(true)
	t.clients.Wait()
	close(t.failed)
	var err error
	for failure := range t.failed {
		err = errors.Join(err, failure)
	}
	return err
}
