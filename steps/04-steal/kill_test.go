//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What a kill -9 does, at every step of the protocol. Each row runs two real processes with
// three clients. The victim dies the moment it is to log a line that matches: so "sending"
// is before a send, "sent" after it, "received" after a receive.
//
// The second client asks for STEAL, and its connection is the one in question. The first has
// been stolen before, and must go on with the new process as long as that lives. The third
// asks for nothing, and must go on with the old one.
var kills = []struct {
	situation string // what the new process is made to do with the offer: take it, or fall silent, or refuse it
	victim    string
	at        string
	survives  string // who serves the connection afterwards: old, new, nobody, or inFlight
}{
	{"takes", "old", `sending {"type":"offer","id":2`, "nobody"},
	{"takes", "old", `received .{"type":"taken","id":2`, "new"},
	{"takes", "new", `received .{"type":"offer","id":2`, "old"},
	{"takes", "new", `sending {"type":"taken","id":2`, "old"},
	{"takes", "new", `sent {"type":"taken","id":2`, "nobody"},
	{"falls silent", "old", `sent {"type":"offer","id":2`, inFlight},
	{"falls silent", "old", `sending {"type":"withdraw","id":2`, inFlight},
	{"falls silent", "old", `sent {"type":"withdraw","id":2`, "nobody"},
	{"falls silent", "new", `received .{"type":"offer","id":2`, "old"},
	{"falls silent", "new", `sending {"type":"taken","id":2`, "old"},
	{"falls silent", "new", `received .{"type":"withdraw","id":2`, "old"},
	{"refuses", "old", `received .{"type":"refused","id":2`, "nobody"},
	{"refuses", "new", `sending {"type":"refused","id":2`, "old"},
	{"refuses", "new", `sent {"type":"refused","id":2`, "old"},
}

// inFlight is who has a connection whose old process died, and whose new one has not looked at
// the offer yet: the new one if the descriptor is in the queue, and otherwise nobody.
const inFlight = "in flight"

func TestKillAtEveryStep(t *testing.T) {
	for i, k := range kills {
		if testing.Short() && i%3 != 1 {
			continue
		}
		t.Run(fmt.Sprintf("%s/%s dies at %.25s", k.situation, k.victim, k.at), func(t *testing.T) {
			t.Parallel()
			if k.situation == "falls silent" {
				k.at = strings.Replace(k.at, `"taken"`, lateAnswer(t), 1)
			}
			s := newScene(t, k.victim, k.at)
			release := s.prepare(k.situation)
			s.asking.send("before\nSTEAL\nafter\n")
			s.asking.expect("before")
			if k.victim == "new" && k.situation == "falls silent" {
				s.asking.expect(notAnswered(s.new)) // the new process learns of it when it wakes
				release()
				s.asking.expect("after")
				s.new.status()
			} else {
				s.victim.status()
				release()
				s.expectAnswer(k.survives)
			}
			s.expectTheOthersServed()
			s.expectSuccession()
		})
	}
}

// A kill before the two have agreed to talk concerns nobody else.
func TestKillDuringHello(t *testing.T) {
	for _, victim := range []string{"old", "new"} {
		for _, at := range []string{`sending {"type":"hello"`, `sent {"type":"hello"`, `received .{"type":"hello"`} {
			t.Run(fmt.Sprintf("%s dies at %.12s", victim, at), func(t *testing.T) {
				t.Parallel()
				path := meetingPlace(t)
				old := startWith(t, doomed(victim == "old", at), "-v", "-addr", "127.0.0.1:0", "-control", path)
				c := dial(t, old.addr())
				c.echoed("hello")
				new := startWith(t, doomed(victim == "new", at), "-v", "-c", "-control", path)
				new.status()
				if victim == "new" {
					next := startNext(t, path)
					c.send("STEAL\n")
					c.expect(stolenLine(old, next))
					return
				}
				old.status()
				c.ended()
				new.logged(`hung up|is gone`)
				next := startOld(t, path)
				startNew(t, path)
				next.logged(`waits for connections`)
			})
		}
	}
}

// startNext is startNew when the old process may not have noticed yet that the last one died.
func startNext(t *testing.T, path string) (next *process) {
	t.Helper()
	eventually(t, "the old process lets the next one in", func() bool {
		next = start(t, "-c", "-control", path)
		return next.err.wait(regexp.MustCompile(`waiting on `)) != nil
	})
	return next
}

// Without a kill: a new process that slept through its offer finds that it was withdrawn, and
// goes on with what it has.
func TestSilence(t *testing.T) {
	s := newScene(t, "", "")
	release := s.prepare("falls silent")
	s.asking.send("STEAL\nafter\n")
	s.asking.expect(notAnswered(s.new))
	s.asking.expect("after")
	s.asking.send("STEAL\n")
	s.asking.expect("* not stolen: no new process is waiting")
	release()
	s.new.logged(`gave up: ".* did not answer within 1s"; connections to serve to their end: 1$`)
	s.stolen.echoed("still here")
	s.kept.echoed("still here")
	s.stolen.finish("")
	if status := s.new.status(); status != 1 {
		t.Errorf("new: exit status %d, want 1", status)
	}
	next := startNew(t, s.path)
	s.asking.send("STEAL\n")
	s.asking.expect(stolenLine(s.old, next))
}

// A new process that sleeps through its offer may have a descriptor of the connection. The client
// gets its end-of-file from the old one all the same.
func TestEndsForEverybody(t *testing.T) {
	s := newScene(t, "", "")
	release := s.prepare("falls silent")
	s.asking.send("STEAL\nafter\n")
	s.asking.expect(notAnswered(s.new))
	s.asking.expect("after")
	s.asking.finish("")
	release()
}

// scene is an old and a new process, one of them doomed, and three clients.
type scene struct {
	t                    *testing.T
	path                 string
	old, new             *process
	victim               *process
	stolen, asking, kept *client
}

func newScene(t *testing.T, victim, at string) *scene {
	t.Helper()
	s := &scene{t: t, path: meetingPlace(t)}
	s.old = startWith(t, doomed(victim == "old", at), "-v", "-addr", "127.0.0.1:0", "-control", s.path, "-timeout", "1s")
	addr := s.old.addr()
	s.new = startWith(t, doomed(victim == "new", at), "-v", "-c", "-control", s.path)
	s.new.logged(`waiting on `)
	s.victim = s.old
	if victim == "new" {
		s.victim = s.new
	}
	s.stolen, s.asking, s.kept = dial(t, addr), dial(t, addr), dial(t, addr)
	s.stolen.send("STEAL\n")
	s.stolen.expect(stolenLine(s.old, s.new))
	s.kept.echoed("hello")
	s.asking.echoed("hello")
	return s
}

// doomed makes a process die at a line of its log, if it is the victim.
func doomed(victim bool, at string) func(*exec.Cmd) {
	return func(cmd *exec.Cmd) {
		if victim {
			cmd.Env = append(cmd.Env, killAt+"="+at)
		}
	}
}

// prepare makes the new process do what the situation says, and returns what undoes it.
func (s *scene) prepare(situation string) (release func()) {
	s.t.Helper()
	switch situation {
	case "falls silent":
		s.new.stop()
		return func() { s.new.signal(unix.SIGCONT) }
	case "refuses":
		// Without a free number below its limit it can receive no descriptor.
		open := s.new.descriptors()
		free := 0
		for open[strconv.Itoa(free)] != "" {
			free++
		}
		limit := unix.Rlimit{Cur: uint64(free), Max: uint64(free)}
		if err := unix.Prlimit(s.new.pid(), unix.RLIMIT_NOFILE, &limit, nil); err != nil {
			s.t.Fatal(err)
		}
	}
	return func() {}
}

// notAnswered is what a client reads when the new process has not answered the offer.
func notAnswered(new *process) string {
	return fmt.Sprintf("* not stolen: pid %d (uid %d, gid %d) did not answer within 1s", new.pid(), os.Getuid(), os.Getgid())
}

// expectAnswer checks who serves the connection in question: not a byte of it is lost or
// doubled, or it has ended with its owner.
func (s *scene) expectAnswer(survives string) {
	s.t.Helper()
	switch {
	case survives == "new", survives == inFlight && survivesInFlight:
		s.asking.expect(stolenLine(s.old, s.new))
	case survives == "old":
		if got := s.asking.line(); !strings.HasPrefix(got, "* not stolen: pid ") {
			s.t.Errorf("got %q, want why it was not stolen", got)
		}
	default:
		s.asking.ended()
		return
	}
	s.asking.expect("after")
	s.asking.echoed("and on")
}

// expectTheOthersServed checks that whoever lives serves what it has, and says what happened.
func (s *scene) expectTheOthersServed() {
	s.t.Helper()
	if s.victim == s.old {
		s.kept.ended()
		s.stolen.echoed("still here")
		s.new.logged(fmt.Sprintf(`pid %d .* (is gone|gave up)`, s.old.pid()))
		return
	}
	s.stolen.ended()
	s.kept.echoed("still here")
	s.old.logged(fmt.Sprintf(`pid %d .* no longer waits$`, s.new.pid()))
}

// expectSuccession checks that nothing needs cleaning up: the next process takes the dead
// one's place.
func (s *scene) expectSuccession() {
	s.t.Helper()
	old := s.old
	if s.victim == s.old {
		old = startOld(s.t, s.path)
		s.kept = dial(s.t, old.addr())
	}
	next := startNew(s.t, s.path)
	s.kept.send("STEAL\n")
	s.kept.expect(stolenLine(old, next))
	s.kept.echoed("with the next")
}

// An old process that is told to end while an offer is open does not take the connection with it.
// If the descriptor is in flight, it need not wait for the new one; otherwise it has to.
func TestSignalWhileAnOfferIsOpen(t *testing.T) {
	s, release := toldToEnd(t, 10*patience)
	if survivesInFlight {
		s.endedWell()
	}
	release()
	s.expectAnswer("new")
	s.endedWell()
}

// It waits no longer than for any other answer.
func TestSignalAndNoAnswer(t *testing.T) {
	s, release := toldToEnd(t, time.Second)
	s.endedWell()
	release()
	s.expectAnswer(inFlight)
}

// What the new process does not want, or does not live to take, ends with the old one. Its client
// is told why, if the old one was still there to hear it.
func TestSignalAndNoTaker(t *testing.T) {
	for does, told := range map[string]string{"dies": `went away without taking it`, "refuses": `refused: ".*"`} {
		t.Run(does, func(t *testing.T) {
			t.Parallel()
			s, release := toldToEnd(t, 10*patience)
			if does == "dies" {
				s.new.kill()
			} else {
				s.prepare("refuses")
				release()
			}
			got, err := io.ReadAll(s.asking.in)
			if survivesInFlight {
				told = `^$`
			} else {
				told = `^\* not stolen: pid .* ` + told + `\n(after\n)?$`
			}
			if !regexp.MustCompile(told).Match(got) || err != nil && !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("got %q, %v, want %q", got, err, told)
			}
			s.endedWell()
		})
	}
}

// toldToEnd sends SIGTERM to an old process with an open offer, and waits for its effect on
// another client. release lets the new process look at the offer.
func toldToEnd(t *testing.T, timeout time.Duration) (s *scene, release func()) {
	t.Helper()
	path := meetingPlace(t)
	s = &scene{t: t, old: start(t, "-v", "-addr", "127.0.0.1:0", "-control", path, "-timeout", timeout.String())}
	s.asking, s.kept = dial(t, s.old.addr()), dial(t, s.old.addr())
	s.asking.echoed("hello")
	s.kept.echoed("hello")
	s.new = startNew(t, path)
	release = s.prepare("falls silent")
	s.asking.send("STEAL\nafter\n")
	s.old.logged(`sent {"type":"offer"`)
	s.old.signal(unix.SIGTERM)
	s.kept.ended()
	return s, release
}

// endedWell waits for the end of the old process.
func (s *scene) endedWell() {
	s.t.Helper()
	if status := s.old.status(); status != 0 {
		s.t.Errorf("old: exit status %d, want 0", status)
	}
}

// The old process ends when the new one has the descriptor, and has not said taken yet. However
// the descriptor came, the connection is the new one's.
func TestOldEndsAfterTheDescriptorCame(t *testing.T) {
	for _, signal := range []unix.Signal{unix.SIGKILL, unix.SIGTERM} {
		t.Run(unix.SignalName(signal), func(t *testing.T) {
			t.Parallel()
			path := meetingPlace(t)
			old := start(t, "-addr", "127.0.0.1:0", "-control", path, "-timeout", "1s")
			c := dial(t, old.addr())
			new := startWith(t, func(cmd *exec.Cmd) {
				cmd.Env = append(cmd.Env, stopAt+`=sending {"type":"taken"`)
			}, "-v", "-c", "-control", path)
			new.logged(`waiting on `)
			want := stolenLine(old, new)
			c.send("STEAL\nafter\n")
			new.stopped()
			old.signal(signal)
			old.status()
			new.signal(unix.SIGCONT)
			c.expect(want)
			c.expect("after")
			c.echoed("and on")
		})
	}
}
