//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What a kill -9 does, at every step of a takeover. Each row runs two real processes, with so many
// clients that their connections need two batches. The offers are: 1 the listeners, 2 the first
// batch, 3 the second, 4 done. The victim dies the moment it is to log a line that matches: so
// "sending" is before a send, "sent" after it, "received" after a receive.
//
// The last three say who serves afterwards: the listeners, the connections of the first batch,
// and those of the second. (Anew: the new process, which is the first again, and opens its own.)
var kills = []struct {
	situation, victim, at    string // what the new process does with the offer that it is about
	listeners, first, second string
}{
	{"takes", "old", `sending {"type":"hello"`, "anew", "nobody", "nobody"},
	{"takes", "old", `sent {"type":"hello"`, "anew", "nobody", "nobody"},
	{"takes", "old", `received .{"type":"hello"`, "anew", "nobody", "nobody"},
	{"takes", "old", `sending {"type":"offer","id":1`, "anew", "nobody", "nobody"},
	{"takes", "old", `sent {"type":"offer","id":1`, "new", "nobody", "nobody"},
	{"takes", "old", `received .{"type":"taken","id":1`, "new", "nobody", "nobody"},
	{"takes", "old", `sending {"type":"offer","id":2`, "new", "nobody", "nobody"},
	{"takes", "old", `sent {"type":"offer","id":2`, "new", "new", "nobody"},
	{"takes", "old", `received .{"type":"taken","id":2`, "new", "new", "nobody"},
	{"takes", "old", `sending {"type":"offer","id":3`, "new", "new", "nobody"},
	{"takes", "old", `sent {"type":"offer","id":3`, "new", "new", "new"},
	{"takes", "old", `received .{"type":"taken","id":3`, "new", "new", "new"},
	{"takes", "old", `sending {"type":"offer","id":4`, "new", "new", "new"},
	{"takes", "old", `sent {"type":"offer","id":4`, "new", "new", "new"},
	{"takes", "old", `received .{"type":"taken","id":4`, "new", "new", "new"},
	{"takes", "new", `sending {"type":"hello"`, "old", "old", "old"},
	{"takes", "new", `sent {"type":"hello"`, "old", "old", "old"},
	{"takes", "new", `received .{"type":"hello"`, "old", "old", "old"},
	{"takes", "new", `received .{"type":"offer","id":1`, "old", "old", "old"},
	{"takes", "new", `sending {"type":"taken","id":1`, "old", "old", "old"},
	{"takes", "new", `sent {"type":"taken","id":1`, "old", "old", "old"},
	{"takes", "new", `received .{"type":"offer","id":2`, "old", "old", "old"},
	{"takes", "new", `sending {"type":"taken","id":2`, "old", "old", "old"},
	{"takes", "new", `sent {"type":"taken","id":2`, "old", "nobody", "old"},
	{"takes", "new", `received .{"type":"offer","id":3`, "old", "nobody", "old"},
	{"takes", "new", `sending {"type":"taken","id":3`, "old", "nobody", "old"},
	{"takes", "new", `sent {"type":"taken","id":3`, "old", "nobody", "nobody"},
	{"takes", "new", `received .{"type":"offer","id":4`, "old", "nobody", "nobody"},
	{"takes", "new", `sending {"type":"taken","id":4`, "old", "nobody", "nobody"},
	{"takes", "new", `sent {"type":"taken","id":4`, "nobody", "nobody", "nobody"},
	{"falls silent", "old", `sending {"type":"withdraw","id":1`, "new", "nobody", "nobody"},
	{"falls silent", "old", `sent {"type":"withdraw","id":1`, "nobody", "nobody", "nobody"},
	{"falls silent", "old", `sending {"type":"withdraw","id":2`, "new", "new", "nobody"},
	{"falls silent", "old", `sent {"type":"withdraw","id":2`, "nobody", "nobody", "nobody"},
	{"falls silent", "old", `sending {"type":"withdraw","id":3`, "new", "new", "new"},
	{"falls silent", "old", `sent {"type":"withdraw","id":3`, "nobody", "new", "nobody"},
	{"falls silent", "old", `sending {"type":"withdraw","id":4`, "new", "new", "new"},
	{"falls silent", "old", `sent {"type":"withdraw","id":4`, "nobody", "new", "new"},
	{"falls silent", "new", `received .{"type":"withdraw","id":1`, "old", "old", "old"},
	{"falls silent", "new", `received .{"type":"withdraw","id":2`, "old", "old", "old"},
	{"falls silent", "new", `received .{"type":"withdraw","id":3`, "old", "nobody", "old"},
	{"falls silent", "new", `received .{"type":"withdraw","id":4`, "old", "nobody", "nobody"},
	{"refuses", "old", `received .{"type":"refused","id":3`, "new", "new", "nobody"},
	{"refuses", "old", `sending {"type":"withdraw"`, "new", "new", "nobody"},
	{"refuses", "old", `sent {"type":"withdraw"`, "nobody", "new", "nobody"},
	{"refuses", "new", `sending {"type":"refused","id":3`, "old", "nobody", "old"},
	{"refuses", "new", `sent {"type":"refused","id":3`, "old", "nobody", "old"},
	{"refuses", "new", `received .{"type":"withdraw"`, "old", "nobody", "old"},
}

func TestKillAtEveryStep(t *testing.T) {
	for i, k := range kills {
		if short() && i%16 != 1 {
			continue
		}
		t.Run(fmt.Sprintf("%s/%s dies at %.40s", k.situation, k.victim, k.at), func(t *testing.T) {
			t.Parallel()
			s := newScene(t)
			s.doom(k.victim, k.at)
			switch k.situation {
			case "takes":
				s.begin(patience)
				s.victim.status()
			case "falls silent":
				s.stopNew(`sending {"type":"taken","id":` + idIn(k.at))
				s.begin(silence(t))
				s.new.stopped()
				if s.victim == s.old {
					s.victim.status()
				} else {
					s.old.logged(`not taken over`)
				}
				s.new.signal(unix.SIGCONT)
				s.victim.status()
			case "refuses": // the second batch
				s.stopNew(`sent {"type":"taken","id":2`)
				s.begin(patience)
				s.new.stopped()
				restore := limitFDs(t, s.new, someFDs)
				s.new.signal(unix.SIGCONT)
				s.victim.status()
				if s.victim == s.old {
					restore()
				}
			}
			s.expectServed(k.first, k.second)
			s.expectListeners(k.listeners)
			s.expectSuccession(k.listeners)
		})
	}
}

// Between those moments there are others: in the middle of stopping the sessions of a batch, of
// packing it, of adopting it, all while the clients talk. Whenever a kill comes, it ends like one
// of the rows.
func TestKillAtAnyMoment(t *testing.T) {
	possible := map[outcome]bool{}
	for _, k := range kills {
		possible[outcome{k.victim, k.listeners, connections(k.first, k.second)}] = true
	}
	rounds := 20
	if short() {
		rounds = 2
	}
	for i := range rounds {
		victim := []string{"old", "new"}[i%2]
		t.Run(fmt.Sprintf("%d: %s", i, victim), func(t *testing.T) {
			t.Parallel()
			s := newScene(t)
			s.doomed = victim
			s.begin(patience, "-v=false") // to write all that takes longer than all else
			stop := s.clients.talk(t)
			s.new.logged(`taking over from`)
			time.Sleep(rand.N(40 * time.Millisecond)) // any moment will do
			s.victim.kill()
			is := outcome{victim: victim, listeners: s.survivor()}
			s.clients = stop().goOn(t)
			is.served = len(s.clients)
			if !possible[is] {
				t.Errorf("not one of the rows: %+v", is)
			}
			t.Logf("%+v", is)
			s.expectListeners(is.listeners)
			s.expectSuccession(is.listeners)
		})
	}
}

// outcome is how a kill has ended.
type outcome struct {
	victim, listeners string
	served            int
}

// survivor waits until the process that was not killed knows what it has, and says who has the
// listeners.
func (s *scene) survivor() string {
	s.t.Helper()
	switch {
	case s.victim == s.old && s.new.addr() == s.old.addr():
		return "new"
	case s.victim == s.old:
		return "anew"
	case s.old.logged(`((?:not )?taken over)`)[1] == "not taken over":
		return "old"
	}
	s.old.status()
	return "nobody"
}

// connections is how many connections a row leaves.
func connections(first, second string) (n int) {
	if first != "nobody" {
		n += batchSize()
	}
	if second != "nobody" {
		n += crowdSize() - batchSize()
	}
	return n
}

// silence is how long an old process waits for a new one that a test has stopped. One that has not
// been stopped must answer within that, also where everything takes its time.
func silence(t *testing.T) time.Duration {
	t.Helper()
	calibrate.Do(func() {
		path := meetingPlace(t)
		old := startServer(t, path)
		clients := gather(t, old.addr(), crowdSize())
		begin := time.Now()
		startServer(t, path)
		expectEnd(t, old)
		clients.goOn(t)
		usual = max(usual, (4 * time.Since(begin)).Round(time.Second))
	})
	return usual
}

var (
	calibrate sync.Once
	usual     = time.Second
)

func idIn(record string) string { return regexp.MustCompile(`"id":(\d)`).FindStringSubmatch(record)[1] }

// scene is a server with clients, and a process that takes over from it. Either may be doomed.
type scene struct {
	t                *testing.T
	path             string
	clients          crowd
	old, new, victim *process
	oldEnv, newEnv   []string
	doomed           string
	descriptors      int // of the old process, with all its clients
}

func newScene(t *testing.T) *scene {
	t.Helper()
	return &scene{t: t, path: meetingPlace(t)}
}

// doom lets a process die at a line of its log.
func (s *scene) doom(victim, at string) {
	s.doomed = victim
	env := &s.oldEnv
	if victim == "new" {
		env = &s.newEnv
	}
	*env = append(*env, killAt+"="+at)
}

func (s *scene) stopOld(at string) { s.oldEnv = append(s.oldEnv, stopAt+"="+at) }
func (s *scene) stopNew(at string) { s.newEnv = append(s.newEnv, stopAt+"="+at) }

// begin starts the old process, the clients, and the new process, which may take timeout for each
// answer.
func (s *scene) begin(timeout time.Duration, more ...string) {
	s.t.Helper()
	args := []string{"-v", "-batch", strconv.Itoa(batchSize()), "-takeover-timeout", timeout.String()}
	s.old = startDoomed(s.t, s.path, s.oldEnv, args...)
	s.clients = gather(s.t, s.old.addr(), crowdSize())
	s.descriptors = len(s.old.descriptors())
	s.new = startDoomed(s.t, s.path, s.newEnv, append(args, more...)...)
	s.victim = map[string]*process{"old": s.old, "new": s.new}[s.doomed]
}

// startDoomed is startServer, with an environment, and does not wait.
func startDoomed(t testing.TB, path string, env []string, more ...string) *process {
	t.Helper()
	return startWith(t, func(cmd *exec.Cmd) {
		quiet(cmd)
		cmd.Env = append(cmd.Env, env...)
	}, append([]string{"-addr", "127.0.0.1:0", "-control", path}, more...)...)
}

// expectServed checks who serves the connections of both batches. Which is in which nobody
// has told us, but how many there are in each is known.
func (s *scene) expectServed(first, second string) {
	s.t.Helper()
	s.clients = s.clients.goOn(s.t)
	if want := connections(first, second); len(s.clients) != want {
		s.t.Errorf("%d connections are served, want %d", len(s.clients), want)
	}
}

// expectListeners checks who serves new clients: of the two, one at most still lives.
func (s *scene) expectListeners(owner string) {
	s.t.Helper()
	addr := s.old.addr()
	switch owner {
	case "nobody":
		expectRefused(s.t, addr)
		return
	case "old":
	case "new":
		if got := s.new.addr(); got != addr {
			s.t.Errorf("the new process listens on %s, want %s", got, addr)
		}
	case "anew":
		addr = s.new.addr()
	}
	c := dial(s.t, addr)
	c.echoed("a new client")
	s.clients = append(s.clients, c)
	c.send("half")
}

func expectRefused(t *testing.T, addr string) {
	t.Helper()
	eventually(t, "nobody listens on "+addr, func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			_ = c.Close() // somebody has accepted it, or it ends with the listener
		}
		return errors.Is(err, unix.ECONNREFUSED)
	})
}

// expectSuccession checks that nothing needs cleaning up: the same command once more does what
// it always does.
func (s *scene) expectSuccession(listeners string) {
	s.t.Helper()
	next := startNext(s.t, s.path)
	if survivor := map[string]*process{"old": s.old, "new": s.new, "anew": s.new}[listeners]; survivor != nil {
		if got, want := next.addr(), survivor.addr(); got != want {
			s.t.Errorf("the next process listens on %s, want %s", got, want)
		}
		expectEnd(s.t, survivor)
	}
	if still := s.clients.goOn(s.t); len(still) != len(s.clients) {
		s.t.Errorf("%d connections are served after the next takeover, and %d were before", len(still), len(s.clients))
	}
	dial(s.t, next.addr()).echoed("hello")
	next.signal(unix.SIGTERM)
	expectEnd(s.t, next)
	left, err := os.ReadDir(filepath.Dir(s.path))
	if err != nil || len(left) > 0 {
		s.t.Errorf("left behind: %v, %v", left, err)
	}
}

// startNext starts the next process, when the one that serves may not have noticed yet that the
// last one died.
func startNext(t *testing.T, path string) (next *process) {
	t.Helper()
	eventually(t, "the next process serves", func() bool {
		next = startDoomed(t, path, nil)
		return next.err.wait(regexp.MustCompile(`listening on `)) != nil
	})
	return next
}

// someFDs are enough to go on with, and too few for a batch.
const someFDs = 8

// limitFDs leaves a stopped process so many free descriptors, until restore is called.
func limitFDs(t *testing.T, p *process, free int) (restore func()) {
	t.Helper()
	open := p.descriptors()
	lowest := 0
	for ; free > 0 || open[strconv.Itoa(lowest)] != ""; lowest++ {
		if open[strconv.Itoa(lowest)] == "" {
			free--
		}
	}
	var before unix.Rlimit
	limit := func(new, old *unix.Rlimit) {
		t.Helper()
		if err := unix.Prlimit(p.pid(), unix.RLIMIT_NOFILE, new, old); err != nil {
			t.Fatal(err)
		}
	}
	limit(nil, &before)
	limit(&unix.Rlimit{Cur: uint64(lowest), Max: before.Max}, nil)
	return func() { limit(&before, nil) }
}

// crowd are many clients, each in the middle of a line.
type crowd []*client

// batchSize is how many connections move together. Where a connection costs a hundred times as much
// as here, such as in an emulator, few must do.
func batchSize() int {
	if short() {
		return 20
	}
	return maxSockets
}

// crowdSize makes two batches, and the second is too big for someFDs.
func crowdSize() int { return batchSize() + 2*someFDs }

func gather(t testing.TB, addr string, n int) crowd {
	t.Helper()
	if can := affordable(t, n); can < n {
		t.Skipf("RLIMIT_NOFILE has room for %d connections, and it takes %d", can, n)
	}
	all := make(crowd, n)
	for i := range all {
		all[i] = dial(t, addr)
		all[i].send("whole\nhalf") // the server reads both at once, and keeps the half
	}
	for _, c := range all {
		c.expect("whole")
	}
	return all
}

// goOn lets everyone finish the line that it is in, and begin another. It returns those who are
// served. All others have ended.
func (all crowd) goOn(t testing.TB) (served crowd) {
	t.Helper()
	for _, c := range all {
		is, err := c.goOn()
		if err != nil {
			t.Fatal(err)
		}
		if is {
			served = append(served, c)
		}
	}
	return served
}

// goOn reports whether what the client sends comes back. If it does not, the connection has ended,
// and what came before that was right.
func (c *client) goOn() (served bool, err error) {
	_, _ = io.WriteString(c, " and whole\nmore\nhalf") // it fails if the connection has ended
	const want = "half and whole\nmore\n"
	got := make([]byte, len(want))
	n, err := io.ReadFull(c.in, got)
	if ended := err != nil && !errors.Is(err, os.ErrDeadlineExceeded); string(got[:n]) != want[:n] || n < len(want) && !ended {
		return false, fmt.Errorf("client %v got %q and %w, want %q or the end", c.LocalAddr(), got[:n], err, want)
	}
	return err == nil, nil
}

// talk lets everyone go on and on, until its result is called, which returns those who are served.
func (all crowd) talk(t testing.TB) (stop func() crowd) {
	t.Helper()
	enough := make(chan struct{})
	served, failures := make([]bool, len(all)), make([]error, len(all))
	var talking sync.WaitGroup
	for i, c := range all {
		talking.Go(func() {
			for served[i] = true; served[i] && failures[i] == nil; {
				select {
				case <-enough:
					return
				default:
					served[i], failures[i] = c.goOn()
				}
			}
		})
	}
	return func() (still crowd) {
		t.Helper()
		close(enough)
		talking.Wait()
		if err := errors.Join(failures...); err != nil {
			t.Fatal(err)
		}
		for i, c := range all {
			if served[i] {
				still = append(still, c)
			}
		}
		return still
	}
}

// Silence is not death: nobody can know what a process that is stopped has done. The old one takes
// back what is not taken, and serves on. When the new one wakes, it finds that out, and serves what
// it has taken to its end. No connection is lost.
func TestNewFallsSilent(t *testing.T) {
	for i, s := range []struct {
		at    string // the new process stops there
		moved int    // connections by then
	}{
		{`sent {"type":"hello"`, 0},
		{`received .{"type":"hello"`, 0},
		{`received .{"type":"offer","id":1`, 0},
		{`sent {"type":"taken","id":1`, 0},
		{`received .{"type":"offer","id":2`, 0},
		{`sent {"type":"taken","id":2`, batchSize()},
		{`received .{"type":"offer","id":3`, batchSize()},
		{`sent {"type":"taken","id":3`, crowdSize()},
		{`received .{"type":"offer","id":4`, crowdSize()},
	} {
		if short() && i != 5 {
			continue
		}
		t.Run(s.at, func(t *testing.T) {
			t.Parallel()
			s, at, moved := newScene(t), s.at, s.moved
			s.stopNew(at)
			s.begin(silence(t))
			s.new.stopped()
			waiting := dial(t, s.old.addr()) // in a queue from which only the new one may accept, if any
			waiting.send("hello\n")
			s.old.logged(fmt.Sprintf(`not taken over: pid %d .* did not answer within %v; connections moved: %d, `, s.new.pid(), silence(t), moved)) // waiting may be here already
			waiting.expect("hello")
			s.expectState(s.old, 1, crowdSize()-moved+1)
			s.new.signal(unix.SIGCONT)
			s.expectGivenUp(`gave up: ".* did not answer within ` + silence(t).String() + `|said nothing for`) // it may have slept through its own time for a hello
		})
	}
}

// expectGivenUp checks that the new process has given up for that reason, and serves what it has
// to its end; and that no connection is lost, nor a descriptor, and the next attempt works.
func (s *scene) expectGivenUp(reason string) {
	s.t.Helper()
	if served := s.clients.goOn(s.t); len(served) != len(s.clients) {
		s.t.Errorf("%d connections are served, want %d", len(served), len(s.clients))
	}
	s.expectListeners("old")
	s.expectSuccession("old")
	for _, c := range s.clients {
		_ = c.Close() // those that the next process had have ended with it
	}
	if status := s.new.status(); status != 1 {
		s.t.Errorf("new: exit status %d, want 1", status)
	}
	s.new.logged(reason)
}

// expectState checks how many connections and listeners a process says it has.
func (s *scene) expectState(p *process, listeners, connections int) {
	s.t.Helper()
	p.signal(unix.SIGUSR1)
	p.logged(fmt.Sprintf(`generation \d: listeners %d, connections %d, `, listeners, connections))
}

// What is accepted from a listener that is only lent is the new process's to serve, to its end.
func TestAcceptedMeanwhile(t *testing.T) {
	waits(t)
	s := newScene(t)
	s.stopOld(`received .{"type":"taken","id":1`)
	s.begin(silence(t))
	s.old.stopped()
	accepted := dial(t, s.old.addr())
	accepted.echoed("by the new one")
	s.new.stop()
	s.old.signal(unix.SIGCONT)
	s.old.logged(`not taken over`)
	s.new.signal(unix.SIGCONT)
	s.new.logged(`connections to serve to their end: 1$`)
	next := startDoomed(t, s.path, nil)
	s.old.stopped() // as before
	s.old.signal(unix.SIGCONT)
	next.addr()
	expectEnd(t, s.old)
	accepted.echoed("still by the new one")
	accepted.finish("")
	if status := s.new.status(); status != 1 {
		t.Errorf("new: exit status %d, want 1", status)
	}
	s.expectServed("next", "next")
}

// A new process that does not even say hello has not begun anything.
func TestNewIsSilentFromTheBeginning(t *testing.T) {
	waits(t)
	s := newScene(t)
	s.stopNew(`sending {"type":"hello"`)
	s.begin(silence(t))
	s.new.stopped()
	overslept := time.Now().Add(helloTime) // by then its own time is over, which passes while it is stopped
	s.old.logged(fmt.Sprintf(`hello from pid %d .* said nothing for 2s`, s.new.pid()))
	time.Sleep(time.Until(overslept)) // or it might see only that the old one has hung up, and try again
	s.new.signal(unix.SIGCONT)
	s.expectGivenUp(`deadline exceeded|hung up without a word`)
}

// What it has taken last, it has taken, however long it sleeps then.
func TestNewFallsSilentWhenItHasAll(t *testing.T) {
	waits(t)
	s := newScene(t)
	s.stopNew(`sent {"type":"taken","id":4`)
	s.begin(silence(t))
	s.new.stopped()
	s.old.logged(`has not hung up within `)
	expectEnd(t, s.old)
	waiting := dial(t, s.old.addr())
	s.new.signal(unix.SIGCONT)
	waiting.echoed("hello")
	s.expectServed("new", "new")
	s.expectListeners("new")
	s.expectSuccession("new")
}

// An old process that sleeps holds up nobody but the clients that it still has: the new one serves
// what it was given, says for whom it waits, and gets the rest when that wakes or dies.
func TestOldFallsSilent(t *testing.T) {
	for i, s := range []struct {
		at    string // the old process stops there
		moved int    // connections by then
	}{
		{`sent {"type":"offer","id":1`, 0},
		{`received .{"type":"taken","id":1`, 0},
		{`sent {"type":"offer","id":2`, batchSize()},
		{`received .{"type":"taken","id":2`, batchSize()},
		{`sent {"type":"offer","id":3`, crowdSize()},
		{`sending {"type":"offer","id":4`, crowdSize()},
	} {
		for _, then := range []string{"wakes", "dies"} {
			if short() && i != 2 {
				continue
			}
			t.Run(fmt.Sprintf("%s/and %s", s.at, then), func(t *testing.T) {
				t.Parallel()
				s, at, moved := newScene(t), s.at, s.moved
				s.stopOld(at)
				s.begin(patience, "-takeover-timeout", (silence(t) / 2).String())
				s.old.stopped()
				s.new.logged(fmt.Sprintf(`waiting for pid %d .*, which is silent`, s.old.pid()))
				s.expectState(s.new, 1, moved)
				dial(t, s.old.addr()).echoed("served by the new one")
				if then == "dies" {
					s.old.kill()
					s.new.logged(fmt.Sprintf(`has ended before it had given all; connections that came before: %d$`, moved))
				} else {
					s.old.signal(unix.SIGCONT)
					moved = crowdSize()
					expectEnd(t, s.old)
				}
				s.clients = s.clients.goOn(t)
				if len(s.clients) != moved {
					t.Errorf("%d connections are served, want %d", len(s.clients), moved)
				}
				s.expectListeners("new")
				s.expectSuccession("new")
			})
		}
	}
}

// Before it has given anything, nothing depends on it. The new one does not wait for its hello.
func TestOldIsSilentFromTheBeginning(t *testing.T) {
	waits(t)
	path := meetingPlace(t)
	old := startServer(t, path)
	clients := gather(t, old.addr(), 10)
	old.stop()
	new := startDoomed(t, path, nil)
	if status := new.status(); status != 1 {
		t.Errorf("new: exit status %d, want 1", status)
	}
	new.logged(`said nothing for 2s`)
	old.signal(unix.SIGCONT)
	if served := clients.goOn(t); len(served) != len(clients) {
		t.Errorf("%d connections are served, want %d", len(served), len(clients))
	}
	startNext(t, path)
	old.status()
}

// A new process that runs out of descriptors refuses what it has no room for. What did arrive of
// it is closed, and the old one takes it back.
func TestNewIsOutOfDescriptors(t *testing.T) {
	for i, s := range []struct {
		at    string // there the new process loses its descriptors
		free  int    // except for so many
		offer string // what it must refuse
		moved int
	}{
		{`sent {"type":"hello"`, 1, "1", 0},
		{`sent {"type":"taken","id":1`, someFDs, "2", 0},
		{`sent {"type":"taken","id":2`, someFDs, "3", batchSize()},
		{`sent {"type":"taken","id":3`, 0, "4", crowdSize()},
	} {
		if short() && i != 2 {
			continue
		}
		t.Run("offer "+s.offer, func(t *testing.T) {
			t.Parallel()
			s, at := newScene(t), s
			s.stopNew(at.at)
			s.begin(patience)
			s.new.stopped()
			restore := limitFDs(t, s.new, at.free)
			s.new.signal(unix.SIGCONT)
			s.old.logged(fmt.Sprintf(`not taken over: .* refused: "descriptors lost \(MSG_CTRUNC\).*; connections moved: %d, still here: %d$`, at.moved, crowdSize()-at.moved))
			s.new.logged("refused offer " + at.offer)
			if at.moved > 0 {
				restore()
			}
			eventually(t, "the old process has no more descriptors than it needs", func() bool { return len(s.old.descriptors()) == s.descriptors-at.moved })
			s.expectGivenUp(`gave up: ".* refused: `)
		})
	}
}

// The new process takes the listeners, and cannot open the one that is missing.
func TestNewCannotListen(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	occupied, err := listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer closeQuietly(occupied)
	s.begin(patience, "-addr", occupied.Addr().String())
	s.old.logged(`not taken over`)
	s.expectGivenUp(`address already in use: stop the process that has it`)
}

// One process takes over at a time. Whoever comes meanwhile is told so, or waits for the next.
func TestTwoNewProcesses(t *testing.T) {
	for at, late := range map[string]string{
		`received .{"type":"offer","id":2`: "pid %d is taking over already: wait until it has",
		`received .{"type":"offer","id":4`: "", // the old one lets nobody in any more
	} {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			s := newScene(t)
			s.stopNew(at)
			s.begin(patience)
			s.new.stopped()
			second := startDoomed(t, s.path, nil)
			if late != "" {
				second.logged(fmt.Sprintf(late, s.new.pid()))
				if status := second.status(); status != 1 {
					t.Errorf("second: exit status %d, want 1", status)
				}
			}
			s.new.signal(unix.SIGCONT)
			expectEnd(t, s.old)
			if late == "" {
				expectEnd(t, s.new)
				s.new = second
			}
			s.expectServed("new", "new")
			s.expectListeners("new")
			s.expectSuccession("new")
		})
	}
}
