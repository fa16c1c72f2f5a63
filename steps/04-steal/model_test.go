//go:build linux

package main

import (
	"fmt"
	"strings"
	"testing"
)

// The protocol as a model: two processes, two queues, and a kernel with the rules that protocol.go
// builds on. The test goes through every order in which things can happen, with each process
// dying at any moment and the time-out striking whenever the old one waits, and checks
//
//   - that the connection never has two readers, and
//   - that, when nothing more can happen, whoever owns it and lives reads it.
//
// Ownership is a ghost: the processes do not see it. The connection is the old process's until
// a taken is in its queue. If the owner dies, it is lost; except that an old process with an
// open offer, not withdrawn, leaves it to a new one that has the descriptor. If that is pushed,
// it has it from the moment of the offer; if it is pulled, when it has fetched it.

// world is one state of everything. It is a value, so that visited states can be remembered.
type world struct {
	old, new     string // what each process will do next; "dead"
	toOld, toNew string // the queues, oldest message first: o(ffer), t(aken), r(efused), w(ithdraw)
	shut         bool   // the old process has shut its socket down
	owner        string // old, new or nobody
	offers       int    // how many there have been
}

// rules are the ways to get it wrong.
type rules struct {
	readBeforeTaken, noWithdraw, noShutdown, shutFirst, noDrain, forgetOrphans bool
	// And the way in which the descriptor travels: pushed, it is in the queue with the offer, and
	// survives its sender (step 04); pulled, it must be fetched while the old process lives (05).
	pull bool
}

// maxOffers lets a refused connection be offered again.
const maxOffers = 2

// next is every world that can follow, by what happens.
func (r rules) next(w world) map[string]world {
	all := map[string]world{}
	may := func(what string, change func(*world)) {
		after := w
		change(&after)
		all[what] = after
	}
	oldReceives := func(taken, refused, end string) {
		switch {
		case w.toOld != "":
			may("old receives "+w.toOld[:1], func(w *world) {
				w.old = map[string]string{"t": taken, "r": refused}[w.toOld[:1]]
				w.toOld = w.toOld[1:]
			})
		case w.shut || w.new == "dead":
			may("old receives end-of-file", func(w *world) { w.old = end })
		}
	}

	switch w.old {
	case "reads":
		if w.offers < maxOffers && !w.shut {
			may("old stops reading", func(w *world) { w.old = "offers" })
		}
	case "offers":
		may("old sends offer", func(w *world) {
			w.old = "reads" // it could not be sent
			if w.oldCanSend() {
				w.old, w.toNew = "waits", w.toNew+"o"
				w.offers++
			}
		})
	case "waits":
		oldReceives("has given", "reads", "reads")
		may("time-out", func(w *world) { w.old = r.after("waits") })
	case "withdraws":
		may("old sends withdraw", func(w *world) {
			if w.oldCanSend() {
				w.toNew += "w"
			}
			w.old = r.after("withdraws")
		})
	case "shuts":
		may("old shuts down", func(w *world) { w.shut, w.old = true, r.after("shuts") })
	case "drains":
		oldReceives("has given", "drains", "reads")
		if r.noShutdown && w.toOld == "" {
			may("old has seen enough", func(w *world) { w.old = "reads" })
		}
	}

	newReceives := func(offer, withdraw, end string) {
		switch {
		case w.toNew != "":
			may("new receives "+w.toNew[:1], func(w *world) {
				w.new = map[string]string{"o": offer, "w": withdraw}[w.toNew[:1]]
				w.toNew = w.toNew[1:]
			})
		case w.shut || w.old == "dead":
			may("new receives end-of-file", func(w *world) { w.new = end })
		}
	}
	switch w.new {
	case "waits":
		newReceives("fetches", "ends", "ends")
	case "fetches":
		may("new fetches the descriptor", func(w *world) {
			switch {
			case w.old == "dead" && r.pull:
				w.new = "waits" // refused, and nobody is there to hear it
			case r.readBeforeTaken:
				w.new = "reads, takes"
			default:
				w.new = "takes"
			}
		})
	case "takes", "reads, takes":
		may("new sends taken", func(w *world) {
			w.new = "last word"
			if w.newCanSend() {
				w.new, w.toOld, w.owner = "reads", w.toOld+"t", "new"
			} else if r.forgetOrphans {
				w.new = "ends"
			}
		})
		may("new sends refused", func(w *world) {
			w.new = "waits"
			switch {
			case w.newCanSend():
				w.toOld += "r"
			case w.owner == "new": // nobody is left who could serve it
				w.owner = "nobody"
			}
		})
	case "last word":
		newReceives("last word", "ends", "reads")
	}

	if w.old != "dead" {
		may("old dies", func(w *world) {
			// What the new process has, or will have, and is not withdrawn, is left to it.
			inFlight := strings.Contains(w.toNew, "o") || w.new == "fetches"
			arrived := w.new == "takes" || w.new == "reads, takes" || w.new == "last word"
			if withdrawn := strings.Contains(w.toNew, "w"); w.owner == "old" {
				w.owner = "nobody"
				if (arrived || inFlight && !r.pull) && !withdrawn && w.new != "dead" {
					w.owner = "new"
				}
			}
			w.old, w.toOld = "dead", ""
		})
	}
	if w.new != "dead" {
		may("new dies", func(w *world) {
			if w.owner == "new" {
				w.owner = "nobody"
			}
			w.new, w.toNew = "dead", ""
		})
	}
	return all
}

// oldCanSend and newCanSend are the kernel's rule: a send gets in if the receiver lives and
// nobody has shut the socket down.
func (w world) oldCanSend() bool { return !w.shut && w.new != "dead" }
func (w world) newCanSend() bool { return !w.shut && w.old != "dead" }

// after is what the old process does after a step on its way back to reading.
func (r rules) after(step string) string {
	way := []string{"waits", "withdraws", "shuts", "drains", "reads"}
	if r.shutFirst {
		way = []string{"waits", "shuts", "withdraws", "drains", "reads"}
	}
	for i, s := range way {
		if s != step {
			continue
		}
		next := way[i+1]
		if next == "withdraws" && r.noWithdraw || next == "shuts" && r.noShutdown || next == "drains" && r.noDrain {
			return r.after(next)
		}
		return next
	}
	return ""
}

// wrong says which invariant a world breaks, if any. final: nothing but a death can follow.
func (w world) wrong(final bool) string {
	oldReads, newReads := w.old == "reads", strings.HasPrefix(w.new, "reads")
	switch {
	case oldReads && newReads:
		return "two readers"
	case newReads && w.owner == "old":
		return "the new process reads what is the old one's"
	case final && w.owner == "old" && !oldReads, final && w.owner == "new" && !newReads:
		return "its owner lives, and nobody reads it"
	}
	return ""
}

// explore goes through every world that can follow and returns how many there are, and the
// way to the first broken one.
func (r rules) explore() (worlds int, broken string) {
	start := world{old: "reads", new: "waits", owner: "old"}
	seen := map[world]bool{start: true}
	type visit struct {
		world
		way string
	}
	for todo := []visit{{start, ""}}; len(todo) > 0; todo = todo[1:] {
		v := todo[0]
		following := r.next(v.world)
		final := true
		for what, after := range following {
			final = final && strings.HasSuffix(what, " dies")
			if !seen[after] {
				seen[after] = true
				todo = append(todo, visit{after, v.way + what + "; "})
			}
		}
		if wrong := v.wrong(final); wrong != "" {
			return len(seen), fmt.Sprintf("%s after: %s%+v", wrong, v.way, v.world)
		}
	}
	return len(seen), ""
}

func TestModel(t *testing.T) {
	for _, pull := range []bool{false, true} {
		worlds, broken := rules{pull: pull}.explore()
		if broken != "" {
			t.Errorf("pull %v: %s", pull, broken)
		}
		t.Logf("pull %v: %d worlds, and every one of them is well", pull, worlds)
		if worlds < 100 {
			t.Errorf("pull %v: only %d worlds: the model has lost its legs", pull, worlds)
		}
	}
}

// Each rule of the protocol is there because without it the model breaks.
func TestModelNeedsEveryRule(t *testing.T) {
	for name, r := range map[string]struct {
		rules
		wrong string
	}{
		"the first read before taken":        {rules{readBeforeTaken: true}, "reads what is the old one's"},
		"no withdraw before the shutdown":    {rules{noWithdraw: true}, "reads what is the old one's"},
		"withdraw behind the shutdown":       {rules{shutFirst: true}, "reads what is the old one's"},
		"no shutdown after the withdraw":     {rules{noShutdown: true}, "two readers"},
		"the queue not read to its end":      {rules{noDrain: true}, "two readers"},
		"a failed taken taken for withdrawn": {rules{forgetOrphans: true}, "nobody reads it"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, r.pull = range []bool{false, true} {
				_, broken := r.explore()
				if !strings.Contains(broken, r.wrong) {
					t.Errorf("pull %v: got %q, want %q", r.pull, broken, r.wrong)
				}
				t.Log(broken)
			}
		})
	}
}
