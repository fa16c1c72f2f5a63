//go:build linux

package steps

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Many at once, again and again, and with little to spare.

// TestManyUnderLoad: many clients talk without waiting for answers, and each is stolen in the middle.
// Each gets every byte back once and in order, from the very socket that it had. Then the old process
// is killed, and all go on.
func TestManyUnderLoad(t *testing.T) {
	each(t, steals, func(t *testing.T, s step) {
		path := meetingPlace(t)
		old, young := s.old(t, path), s.young(t, path)
		clients := make([]*client, rounds(50, 500))
		for i := range clients {
			clients[i] = dial(t, old.addr())
			clients[i].echoed("hello")
		}
		before := inodes(t, clients...)
		var all sync.WaitGroup
		for i, c := range clients {
			all.Go(func() { pump(t, c, i, stolenLine(old, young)) })
		}
		all.Wait()
		has := slices.Collect(maps.Values(young.fds()))
		for i, now := range inodes(t, clients...) {
			if there := slices.Contains(has, "socket:["+now+"]"); now != before[i] || !there {
				t.Errorf("client %d: socket %s was %s; the new process has it: %v", i, now, before[i], there)
			}
		}
		old.kill()
		for i, c := range clients {
			c.echoed(fmt.Sprintf("client %d is still here", i))
		}
	})
}

// pump sends numbered lines and STEAL somewhere among them, and checks what comes back.
func pump(t *testing.T, c *client, id int, answer string) {
	lines := 300
	if testing.Short() {
		lines = 50
	}
	steal := 1 + rand.Intn(lines-1)
	line := func(n int) string { return fmt.Sprintf("client %d line %d %s\n", id, n, strings.Repeat("x", n)) }
	go func() {
		w := bufio.NewWriterSize(c, 1000)
		for n := range lines {
			if n == steal {
				_, _ = io.WriteString(w, "STEAL\n") // what fails is missing below
			}
			_, _ = io.WriteString(w, line(n))
		}
		_ = w.Flush()
	}()
	for n := range lines {
		want := []string{line(n)}
		if n == steal {
			want = []string{answer + "\n", line(n)}
		}
		for _, want := range want {
			if got, err := c.in.ReadString('\n'); got != want {
				t.Errorf("got %.60q and %v, want %.60q", got, err, want)
				return
			}
		}
	}
}

// TestNothingLeaks: connections come, are stolen, and go, and both processes have as many descriptors
// as before.
func TestNothingLeaks(t *testing.T) {
	each(t, servesTCP, func(t *testing.T, s step) {
		path := meetingPlace(t)
		old := s.old(t, path)
		visit := func() {
			c := dial(t, old.addr())
			c.echoed("hello")
			c.finish("")
		}
		keeps := func() {}
		if s.steals {
			young := s.young(t, path)
			visit = func() {
				c := dial(t, old.addr())
				c.stolen(old, young)
				c.finish("")
			}
			visit() // now the two are in conversation
			keeps = young.keepsFDs()
		} else {
			visit()
		}
		keepsOld := old.keepsFDs()
		for range rounds(30, 1000) {
			visit()
		}
		keepsOld()
		keeps()
	})
}

// TestOutOfDescriptors: clients wait in the accept queue until there is room again, and one line says
// so. Whoever has a connection notices nothing.
func TestOutOfDescriptors(t *testing.T) {
	each(t, servesTCP, func(t *testing.T, s step) {
		path := meetingPlace(t)
		old := s.old(t, path)
		c := dial(t, old.addr())
		c.echoed("hello")
		if s.steals {
			s.young(t, path)
		}
		restore := old.limitFDs(0)
		waiting := []*client{dial(t, old.addr()), dial(t, old.addr()), dial(t, old.addr())}
		for _, w := range waiting {
			go io.WriteString(w, "hello\n") // of TLS, that is behind the handshake; what fails is missing below
		}
		old.logged(`too many open files: clients wait in the accept queue`)
		c.echoed("still here")
		if s.steals {
			c.send("STEAL\n")
			c.matches(`\* not stolen: .*too many open files.*`)
			c.echoed("still here")
		}
		restore()
		for _, w := range waiting {
			w.expect("hello")
		}
		if n := strings.Count(old.err.String(), "clients wait in the accept queue"); n != 1 {
			t.Errorf("%d lines about it, want one", n)
		}
	})
}

// TestNewOutOfDescriptors: a new process that has no number free refuses, in words; and takes when it
// has one again.
func TestNewOutOfDescriptors(t *testing.T) {
	each(t, steals, func(t *testing.T, s step) {
		path := meetingPlace(t)
		old, young := s.old(t, path), s.young(t, path)
		c := dial(t, old.addr())
		c.echoed("hello")
		keepsFDs := young.keepsFDs()
		restore := young.limitFDs(0)
		for range 3 {
			c.send("STEAL\nafter\n")
			c.matches(fmt.Sprintf(`\* not stolen: pid %d \(uid \d+\) refused: ".*\(ulimit -n\).*"`, young.pid))
			c.expect("after")
		}
		keepsFDs()
		restore()
		c.stolen(old, young)
	})
}

// TestReaderThatNeverReads: a client that takes nothing back blocks nobody else, and can be left.
func TestReaderThatNeverReads(t *testing.T) {
	each(t, servesTCP, func(t *testing.T, s step) {
		path := meetingPlace(t)
		old := s.old(t, path)
		deaf := dial(t, old.addr())
		for full := false; !full; { // until neither side's buffers hold more
			if err := deaf.SetWriteDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			_, err := deaf.Write(make([]byte, 1<<20))
			full = err != nil
		}
		c := dial(t, old.addr())
		c.echoed("hello")
		if s.steals {
			c.stolen(old, s.young(t, path))
		}
	})
}

// chaos is what the clients of TestChaos know of the kills, and count.
type chaos struct {
	killed       sync.Map     // pid to true, before it is killed
	begun, done  atomic.Int64 // kills
	stolen, lost atomic.Int64 // connections
	over         chan struct{}
}

// TestChaos: clients talk and ask for STEAL as they like, while one new process after the other is
// killed and replaced. Each gets every byte once and in order. It loses its connection only if the
// process was killed that had it, or that it was being given to.
func TestChaos(t *testing.T) {
	each(t, steals, func(t *testing.T, s step) {
		path := meetingPlace(t)
		old := s.old(t, path)
		addr := old.addr()
		line := []*process{s.young(t, path), s.young(t, path)} // of those who wait, or serve
		x := &chaos{over: make(chan struct{})}
		var all sync.WaitGroup
		for id := range rounds(8, 30) {
			all.Go(func() {
				for session := 0; !x.isOver(); session++ {
					x.chat(t, addr, fmt.Sprintf("client %d.%d", id, session), old.pid)
				}
			})
		}
		for range rounds(6, 60) {
			// Not a time, but so many connections later.
			for enough := x.stolen.Load() + int64(rand.Intn(20)); x.stolen.Load() < enough && !t.Failed(); {
				time.Sleep(time.Millisecond)
			}
			victim := line[0]
			if rand.Intn(4) == 0 {
				victim = line[1] // which waits
			}
			x.killed.Store(victim.pid, true)
			x.begun.Add(1)
			victim.kill()
			x.done.Add(1)
			line = append(slices.DeleteFunc(line, func(p *process) bool { return p == victim }), s.young(t, path))
		}
		close(x.over)
		all.Wait()
		t.Logf("%d stolen, %d lost to a kill", x.stolen.Load(), x.lost.Load())
	})
}

func (x *chaos) isOver() bool {
	select {
	case <-x.over:
		return true
	default:
		return false
	}
}

// chat is one connection, which owner has: some lines at a time, and the answers to them.
func (x *chaos) chat(t *testing.T, addr, name string, owner int) {
	c, err := connect(addr)
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	if err := c.SetDeadline(deadline()); err != nil {
		t.Error(err)
		return
	}
	in := bufio.NewReader(c)
	for n, length := 0, rand.Intn(30); n < length && !x.isOver(); n++ {
		want := []string{fmt.Sprintf("%s, %d, %s\n", name, n, strings.Repeat("x", rand.Intn(3000)))}
		asks := rand.Intn(4) == 0
		if asks {
			want = append(want, "STEAL\n")
		}
		want = append(want, fmt.Sprintf("%s, %d, last\n", name, n))
		ended := x.done.Load()
		_, err := io.WriteString(c, strings.Join(want, ""))
		for got := 0; err == nil && got < len(want); got++ {
			var line string
			if line, err = in.ReadString('\n'); err != nil {
				break
			}
			var from, to int
			_, noMatch := fmt.Sscanf(line, "* stolen: pid %d -> pid %d\n", &from, &to)
			switch {
			case line == want[got] && line != "STEAL\n":
			case want[got] == "STEAL\n" && strings.HasPrefix(line, "* not stolen: "):
			case want[got] == "STEAL\n" && noMatch == nil && from == owner:
				owner = to
				x.stolen.Add(1)
			default:
				t.Errorf("%s of pid %d: got %.80q, want %.80q", name, owner, line, want[got])
				return
			}
		}
		if err != nil {
			_, dead := x.killed.Load(owner)
			// Or the process was killed that had it for so short a time that it could not even say so.
			if between := asks && x.begun.Load() > ended; !dead && !between {
				t.Errorf("%s of pid %d, which lives: %v", name, owner, err)
			}
			if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
				t.Errorf("%s: %v", name, err)
			}
			x.lost.Add(1)
			return
		}
	}
}
