//go:build linux

package steps

import (
	"fmt"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// What a kill -9 does, at every message. Each row is two real processes with three clients. The
// second client asks for STEAL, and its connection is the one in question; the victim dies at that
// message. The first client has been stolen before, and goes on with the new process as long as
// that lives. The third asks for nothing, and goes on with the old one.
//
// What the new process does with the offer is the situation:
//
//	takes         it answers
//	falls silent  it is stopped before it has looked; when it wakes, the time-out is over
//	hesitates     it has the descriptor, and is stopped before it answers; likewise
//	refuses       it cannot have the descriptor: it has no number free
//
// And the last column is who serves the connection afterwards. An offer inFlight is the new
// process's if the descriptor came with it (04), and lost if it was to be fetched (05).
var kills = []struct{ situation, victim, at, serves string }{
	{"takes", "old", "before-send offer", "nobody"},
	{"takes", "old", "after-receive taken", "new"},
	{"takes", "new", "after-receive offer", "old"},
	{"takes", "new", "before-send taken", "old"},
	{"takes", "new", "after-send taken", "nobody"},
	{"falls silent", "old", "after-send offer", "inFlight"},
	{"falls silent", "old", "before-send withdraw", "inFlight"},
	{"falls silent", "old", "after-send withdraw", "nobody"},
	{"falls silent", "new", "after-receive offer", "old"},
	{"falls silent", "new", "before-send taken", "old"},
	{"falls silent", "new", "after-receive withdraw", "old"},
	{"hesitates", "old", "after-send offer", "new"},
	{"hesitates", "old", "before-send withdraw", "new"},
	{"hesitates", "old", "after-send withdraw", "nobody"},
	{"hesitates", "new", "after-receive withdraw", "old"},
	{"refuses", "old", "after-receive refused", "nobody"},
	{"refuses", "new", "before-send refused", "old"},
	{"refuses", "new", "after-send refused", "old"},
}

func TestKills(t *testing.T) {
	for _, k := range kills {
		t.Run(fmt.Sprintf("%s/%s dies %s", k.situation, k.victim, k.at), func(t *testing.T) {
			every(t, stealing(), steals, func(t *testing.T, s step) { // each, also with -short: the two differ
				at := k.at
				if s.pulls && k.situation == "falls silent" && at == "before-send taken" && !knowsPeerPidfd(t) {
					at = "before-send refused" // see knowsPeerPidfd
				}
				x := newScene(t, s, k.situation, k.victim, at)
				x.ask()
				victim := x.old
				if k.victim == "new" {
					victim = x.young
				}
				if held := k.situation == "falls silent" || k.situation == "hesitates"; held && k.victim == "new" {
					x.expect(k.serves) // without the new process, which learns of it when it wakes
					x.wake()
					victim.died()
					x.asking.echoed("still here")
				} else {
					victim.died()
					x.wake()
					x.expect(k.serves)
				}
				x.expectTheOthers(k.victim)
				x.expectSuccession(k.victim)
			})
		})
	}
}

// knowsPeerPidfd reports whether the kernel knows SO_PEERPIDFD, as Linux does since 6.5. Where it
// does not, a new process cannot be sure of the process at the other end once that has hung up, and
// refuses its offer: it wakes too late to take what it could have taken on a newer kernel.
func knowsPeerPidfd(t *testing.T) bool {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	pidfd, err := unix.GetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if err == unix.ENOPROTOOPT {
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(pidfd)
	return true
}

// TestSilence: a new process that comes too late finds that its offer was withdrawn, serves what it
// has to its end, and never touches the connection.
func TestSilence(t *testing.T) {
	for _, situation := range []string{"falls silent", "hesitates"} {
		t.Run(situation, func(t *testing.T) {
			each(t, steals, func(t *testing.T, s step) {
				x := newScene(t, s, situation, "", "")
				keepsFDs := x.young.keepsFDs()
				x.ask()
				x.expect("old")
				x.asking.send("STEAL\n")
				x.asking.expect(nobodyWaits)
				x.wake()
				x.young.logged(`gave up`)
				keepsFDs()
				x.stolen.echoed("still here")
				x.kept.echoed("still here")
				x.stolen.finish("")
				x.young.exits(1) // the reason is an error
				x.asking.stolen(x.old, s.young(t, x.path))
			})
		})
	}
}

// TestEndForEverybody: a new process that sleeps through its offer may have a descriptor of the
// connection. When the old process ends that, it ends.
func TestEndForEverybody(t *testing.T) {
	each(t, steals, func(t *testing.T, s step) {
		x := newScene(t, s, "hesitates", "", "")
		x.ask()
		x.expect("old")
		if !x.young.has(x.asking.inode()) {
			t.Error("the new process has no descriptor of it: this test tests nothing")
		}
		x.asking.finish("")
		x.wake()
	})
}

// scene is an old and a new process, one of them doomed, and three clients.
type scene struct {
	t                    *testing.T
	s                    step
	situation            string
	path                 string
	old, young           *process
	stolen, asking, kept *client
}

func newScene(t *testing.T, s step, situation, victim, at string) *scene {
	t.Helper()
	var oldHooks, youngHooks []string
	switch situation {
	case "falls silent":
		oldHooks = []string{"after-send offer 2 expire"}
	case "hesitates": // the old process waits until the new one does
		oldHooks = []string{"after-send offer 2 stop", "after-send offer 2 expire"}
		youngHooks = []string{"before-send taken 2 stop"}
	}
	// The first client's STEAL is the first offer. It was not withdrawn or refused.
	kill := at + " 1 kill"
	if slices.Contains([]string{"before-send offer", "after-send offer", "after-receive offer",
		"before-send taken", "after-send taken", "after-receive taken"}, at) {
		kill = at + " 2 kill"
	}
	switch victim {
	case "old":
		oldHooks = append(oldHooks, kill)
	case "new":
		youngHooks = append(youngHooks, kill)
	}
	x := &scene{t: t, s: s, situation: situation, path: meetingPlace(t)}
	x.old = s.old(t, x.path, hook(oldHooks...))
	x.young = s.young(t, x.path, hook(youngHooks...))
	addr := x.old.addr()
	x.stolen, x.asking, x.kept = dial(t, addr), dial(t, addr), dial(t, addr)
	x.stolen.stolen(x.old, x.young)
	x.kept.echoed("hello")
	x.asking.echoed("hello")
	return x
}

// ask makes the second client ask, when the new process is prepared for it.
func (x *scene) ask() {
	x.t.Helper()
	switch x.situation {
	case "falls silent":
		x.young.stop()
	case "refuses":
		x.young.limitFDs(0)
	}
	x.asking.send("before\nSTEAL\nafter\n")
	x.asking.expect("before")
	if x.situation == "hesitates" {
		x.young.stopped()
		x.old.stopped()
		x.old.signal(unix.SIGCONT)
	}
}

// wake lets a new process go on that was stopped.
func (x *scene) wake() {
	x.t.Helper()
	if x.situation == "falls silent" || x.situation == "hesitates" {
		x.young.signal(unix.SIGCONT)
	}
}

// expect checks who serves the connection in question: not a byte of it is lost or doubled, or it
// has ended with its owner.
func (x *scene) expect(serves string) {
	x.t.Helper()
	if serves == "inFlight" {
		serves = "new"
		if x.s.pulls {
			serves = "nobody"
		}
	}
	inode := ""
	switch serves {
	case "new":
		x.asking.expect(stolenLine(x.old, x.young))
		inode = x.asking.inode()
	case "old":
		x.asking.matches(`\* not stolen: .+`)
	case "nobody":
		x.asking.ended()
		return
	}
	x.asking.expect("after")
	x.asking.echoed("and on")
	if inode != "" && !x.young.has(inode) {
		x.t.Error("the new process has no descriptor of the connection")
	}
}

// expectTheOthers checks that whoever lives serves what it has.
func (x *scene) expectTheOthers(victim string) {
	x.t.Helper()
	dead, alive := x.kept, x.stolen
	if victim == "new" {
		dead, alive = x.stolen, x.kept
	}
	dead.ended()
	alive.echoed("still here")
}

// expectSuccession checks that nothing needs cleaning up: the next process takes the dead one's
// place at the same path.
func (x *scene) expectSuccession(victim string) {
	x.t.Helper()
	old, c := x.old, x.kept
	if victim == "old" {
		old = x.s.old(x.t, x.path)
		c = dial(x.t, old.addr())
		c.echoed("hello")
	}
	c.stolen(old, x.s.young(x.t, x.path))
}
