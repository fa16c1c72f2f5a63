//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A session and nothing else, in one process: it can be stopped more often than between two.

// A connection moves from one session to the next, as often as it can be stopped, while its client
// sends lines of any length and reads as it likes. Nothing of what it reads is anything but what
// it has sent.
func TestStoppedAnywhere(t *testing.T) {
	for name, reader := range map[string]func(io.Reader) io.Reader{
		"fast reader": func(r io.Reader) io.Reader { return r },
		"slow reader": func(r io.Reader) io.Reader { return &slowly{r, rand.New(rand.NewPCG(3, 3))} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			size, least := 16<<20, 50
			if short() {
				size, least = 8<<20, 10
			}
			sent := manyLines(rand.New(rand.NewPCG(1, 2)), size)
			server, c := serverSide(t)
			if err := errorOf(server.SetWriteBuffer(32<<10), c.SetReadBuffer(32<<10)); err != nil {
				t.Fatal(err)
			}
			go func() {
				_, err := c.Write(sent)
				if err := errors.Join(err, c.CloseWrite()); err != nil {
					t.Error(err)
				}
			}()
			received := make(chan []byte, 1)
			go func() {
				got, err := io.ReadAll(reader(c))
				if err != nil {
					t.Error(err)
				}
				received <- got
			}()
			moves, kinds := moveUntilDone(t, server)
			if got := <-received; !bytes.Equal(got, sent) {
				t.Errorf("sent %d bytes, received %d, first different at %d", len(sent), len(got), firstDifference(sent, got))
			}
			t.Logf("moved %d times: %v", moves, kinds)
			// How often it is caught, and where, is a matter of speed: only the long test wants much.
			if !short() && (moves < least || kinds["in"] == 0 || kinds["inside"] == 0 || kinds["out"] == 0) {
				t.Error("it was hardly moved")
			}
		})
	}
}

// moveUntilDone serves a connection by one session after the other, and counts what they left to
// the next.
func moveUntilDone(t *testing.T, conn stream) (moves int, left map[string]int) {
	t.Helper()
	left = map[string]int{}
	s := newSession(conn, 0, state{})
	random := rand.New(rand.NewPCG(5, 6))
	for {
		go func() { _ = s.serve(func([]byte) {}) }() // what it says is that it has moved
		select {
		case <-s.ended:
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			return moves, left
		case <-time.After(time.Duration(random.IntN(500)) * time.Microsecond): // any moment will do
		}
		if still, _ := halt([]*session{s}, patience); len(still) == 0 {
			<-s.ended // just now
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			return moves, left
		}
		moves++
		for what, is := range map[string]bool{"in": len(s.In) > 0, "out": len(s.Out) > 0, "ended": s.Ended, "inside": s.Inside} {
			if is {
				left[what]++
			}
		}
		s = move(t, s)
	}
}

// move makes a session of what another one would send to the next process.
func move(t *testing.T, s *session) *session {
	t.Helper()
	text, err := json.Marshal(s.state)
	if err != nil {
		t.Fatal(err)
	}
	var has state
	if err := json.Unmarshal(text, &has); err != nil {
		t.Fatal(err)
	}
	copied := -1
	if err := borrow(s, func(fd int) (err error) {
		copied, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	s.release(leave)
	<-s.ended
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	return newSession(os.NewFile(uintptr(copied), "tcp"), s.cookie, has)
}

// manyLines is about so many bytes in lines of 1 byte to 64 KiB, and the last one without its end.
func manyLines(random *rand.Rand, total int) []byte {
	var lines []byte
	for len(lines) < total {
		length := 1 << random.IntN(17)
		line := bytes.Repeat([]byte{byte('a' + random.IntN(26))}, length)
		lines = fmt.Appendf(append(lines, line...), " %d\n", len(lines))
	}
	return lines[:len(lines)-1]
}

func firstDifference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// slowly reads a little at a time, with pauses now and then: the sender's buffers fill up.
type slowly struct {
	io.Reader
	*rand.Rand
}

func (s *slowly) Read(b []byte) (int, error) {
	if s.IntN(8) == 0 {
		time.Sleep(time.Millisecond)
	}
	return s.Reader.Read(b[:min(len(b), 1+s.IntN(32<<10))])
}

// serverSide is a TCP connection whose server is this test.
func serverSide(t testing.TB) (server *net.TCPConn, c *client) {
	t.Helper()
	l, err := listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer closeQuietly(l)
	c = dial(t, l.Addr().String())
	server, err = l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeQuietly(server) })
	return server, c
}

// served serves a session, and closes it, as its owner does.
func served(s *session, show func([]byte)) {
	go func() {
		defer closeQuietly(s)
		_ = s.serve(show) // the client sees how it ends
	}()
}

// Asked to stand still, and released again without having been moved, a session goes on.
func TestReleased(t *testing.T) {
	server, c := serverSide(t)
	s := newSession(server, 0, state{})
	served(s, func([]byte) {})
	for i := range 1000 {
		c.send(fmt.Sprintf("line %d\nhalf ", i))
		if still, _ := halt([]*session{s}, patience); len(still) != 1 {
			t.Fatal("it does not stand still")
		}
		s.release(goOn)
		c.send("\n")
		c.expect(fmt.Sprintf("line %d", i))
		c.expect("half ")
	}
	c.finish("")
	<-s.ended
}

// One that does not stop in time goes on, and nobody waits for it.
func TestNotStoppedInTime(t *testing.T) {
	server, c := serverSide(t)
	s := newSession(server, 0, state{})
	inShow, letGo := make(chan bool), make(chan bool)
	served(s, func([]byte) { inShow <- true; <-letGo })
	c.send("hello\n")
	<-inShow
	if still, busy := halt([]*session{s}, time.Millisecond); len(still) != 0 || len(busy) != 1 {
		t.Fatal("it stands still, and is busy")
	}
	letGo <- true
	c.expect("hello")
	c.finish("")
}

// One that has stopped is not called busy because others are, in whatever order they are asked.
func TestLateOnlyForOthers(t *testing.T) {
	inShow, letGo := make(chan bool), make(chan bool)
	server, c := serverSide(t)
	busy := newSession(server, 0, state{})
	served(busy, func([]byte) { inShow <- true; <-letGo })
	c.send("hello\n")
	<-inShow
	server, _ = serverSide(t)
	idle := newSession(server, 0, state{})
	served(idle, func([]byte) {})
	for range 20 {
		still, late := halt([]*session{busy, idle}, 20*time.Millisecond)
		if len(still) != 1 || still[0] != idle || len(late) != 1 {
			t.Fatalf("%d stand still, and %d are late", len(still), len(late))
		}
		idle.release(goOn)
	}
	close(letGo)
	c.expect("hello")
}

// A batch of sessions that have just ended is no batch: nobody waits for them.
func TestHaltOfTheEnded(t *testing.T) {
	server, c := serverSide(t)
	s := newSession(server, 0, state{})
	served(s, func([]byte) {})
	c.finish("")
	<-s.ended
	if still, busy := halt([]*session{s}, patience); len(still)+len(busy) != 0 {
		t.Error("it has ended, and stands still")
	}
}

// What another process says that it had read may be more than would fit here.
func TestMoreThanTheBuffer(t *testing.T) {
	server, c := serverSide(t)
	long := bytes.Repeat([]byte("x"), 3*bufferSize)
	s := newSession(server, 0, state{In: bytes.Clone(long), Out: []byte("out\n")})
	served(s, func([]byte) {})
	c.expect("out")
	c.send("tail\n")
	c.expect(string(long) + "tail")
	c.finish("")
}
