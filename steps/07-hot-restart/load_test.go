//go:build linux

package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// load is clients of every kind, which talk to a server until they are told to stop. Each knows
// what it must read, byte by byte, and that it must be able to connect.
type load struct {
	t        testing.TB
	addr     string
	stopping chan struct{}
	clients  sync.WaitGroup
	dialled  atomic.Int64
	lines    atomic.Int64
}

// startLoad returns when everybody is connected who is from the beginning.
func startLoad(t testing.TB, addr string, talkers int) *load {
	t.Helper()
	l := &load{t: t, addr: addr, stopping: make(chan struct{})}
	for i := range talkers {
		l.start("talker", i, l.talk)
	}
	for i := range max(1, talkers/20) {
		l.start("slow reader", i, l.readSlowly)
		l.start("half-closed", i, l.halfClose)
	}
	for i := range max(1, talkers/4) {
		l.start("idle", i, l.idle)
	}
	l.clients.Go(l.comeAndGo)
	t.Cleanup(func() { l.stop() })
	return l
}

func (l *load) start(kind string, number int, run func(c *client, number int) error) {
	c := dial(l.t, l.addr)
	l.dialled.Add(1)
	l.clients.Go(func() {
		defer closeQuietly(c.TCPConn)
		if err := run(c, number); err != nil {
			l.t.Errorf("%s %d at %v: %v", kind, number, c.LocalAddr(), err)
		}
	})
}

// stop tells all clients to come to an end, and waits for them.
func (l *load) stop() {
	select {
	case <-l.stopping:
	default:
		close(l.stopping)
	}
	l.clients.Wait()
}

func (l *load) stopped() bool {
	select {
	case <-l.stopping:
		return true
	default:
		return false
	}
}

// rest waits between two things that a client does.
func (l *load) rest(d time.Duration) {
	select {
	case <-l.stopping:
	case <-time.After(d):
	}
}

// script is a client's lines: from 1 byte to 64 KiB, each with its number and checksum.
type script struct {
	random *rand.Rand
	number int
}

func newScript(client int) *script { return &script{rand.New(rand.NewPCG(uint64(client), 0)), 0} }

func (s *script) next() []byte {
	s.number++
	if s.number%4 == 0 {
		return []byte("\n")
	}
	body := bytes.Repeat([]byte{byte('a' + s.random.IntN(26))}, 1<<s.random.IntN(16)+s.random.IntN(100))
	return fmt.Appendf(body, " %d %x\n", s.number, sha256.Sum256(body))
}

// talk sends lines without waiting for the answers, and checks these as they come.
func (l *load) talk(c *client, number int) error {
	sent := make(chan int, 1)
	failed := make(chan error, 1)
	go func() {
		lines := newScript(number)
		n := 0
		for ; !l.stopped(); n++ {
			if _, err := c.Write(lines.next()); err != nil {
				failed <- fmt.Errorf("line %d: %w", n, err)
				break
			}
			l.rest(time.Duration(number%20+20) * time.Millisecond)
		}
		if err := c.CloseWrite(); err != nil {
			failed <- err
		}
		sent <- n
	}()
	lines := newScript(number)
	for n := 0; ; n++ {
		got, err := c.in.ReadSlice('\n')
		for errors.Is(err, bufio.ErrBufferFull) {
			got = bytes.Clone(got)
			var more []byte
			more, err = c.in.ReadSlice('\n')
			got = append(got, more...)
		}
		if errors.Is(err, io.EOF) && len(got) == 0 {
			select {
			case err := <-failed:
				return err
			case all := <-sent:
				if all != n {
					return fmt.Errorf("sent %d lines, received %d", all, n)
				}
				return nil
			}
		}
		if want := lines.next(); err != nil || !bytes.Equal(got, want) {
			return fmt.Errorf("line %d: got %d bytes (%.60q) and %w, want %d (%.60q)", n, len(got), got, err, len(want), want)
		}
		l.lines.Add(1)
	}
}

// readSlowly lets the answers wait in all buffers that there are.
func (l *load) readSlowly(c *client, number int) error {
	sent := manyLines(rand.New(rand.NewPCG(uint64(number), 1)), 1<<20)
	go func() {
		if _, err := c.Write(sent); err != nil {
			l.t.Errorf("slow reader %d: %v", number, err)
		}
		closeQuietly(closerFunc(c.CloseWrite)) // if it fails, so does the reading
	}()
	return l.expectSlowly(c, sent)
}

// halfClose has said everything, and hears the answer while the server restarts.
func (l *load) halfClose(c *client, number int) error {
	sent := manyLines(rand.New(rand.NewPCG(uint64(number), 2)), 64<<10)
	if _, err := c.Write(sent); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	return l.expectSlowly(c, sent)
}

func (l *load) expectSlowly(c *client, want []byte) error {
	got := make([]byte, 0, len(want))
	for {
		if !l.stopped() {
			l.rest(10 * time.Millisecond)
		}
		n, err := c.Read(got[len(got):min(cap(got), len(got)+2000)])
		got = got[:len(got)+n]
		if len(got) == len(want) || err != nil {
			if !bytes.Equal(got, want) {
				return fmt.Errorf("%d of %d bytes, first different at %d: %w", len(got), len(want), firstDifference(got, want), err)
			}
			if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
				return fmt.Errorf("then %d bytes and %w, want end-of-file", n, err)
			}
			return nil
		}
	}
}

// idle says nothing for as long as possible.
func (l *load) idle(c *client, number int) error {
	<-l.stopping
	want := fmt.Sprintf("idle client %d", number)
	if _, err := io.WriteString(c, want+"\n"); err != nil {
		return err
	}
	if got, err := c.in.ReadString('\n'); got != want+"\n" {
		return fmt.Errorf("got %q, %w", got, err)
	}
	l.lines.Add(1)
	return nil
}

// comeAndGo is 200 new clients a second, each with one line to say. None may be refused.
func (l *load) comeAndGo() {
	for n := 0; !l.stopped(); n++ {
		l.rest(5 * time.Millisecond)
		l.clients.Go(func() {
			if err := l.brief(n); err != nil {
				l.t.Errorf("brief client %d: %v", n, err)
			}
		})
	}
}

func (l *load) brief(number int) error {
	c, err := net.DialTimeout("tcp", l.addr, patience)
	if err != nil {
		return err
	}
	defer closeQuietly(c)
	l.dialled.Add(1)
	want := fmt.Sprintf("brief client %d\n", number)
	if err := errorOf(c.SetDeadline(time.Now().Add(patience)), errorOnly(io.WriteString(c, want))); err != nil {
		return err
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		return fmt.Errorf("got %q, %w", got, err)
	}
	l.lines.Add(1)
	return nil
}

func errorOnly(_ int, err error) error { return err }

type closerFunc func() error

func (f closerFunc) Close() error { return f() }
