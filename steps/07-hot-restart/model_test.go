//go:build linux

package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

// A takeover as a model, as step 04 has one of a single offer: two processes, two queues, and the
// kernel's rules. The test goes through every order in which things can happen, with each process
// dying at any moment, the time-out striking whenever the old one waits, and the new one refusing
// any offer, or ending for a reason of its own. It checks that
//
//   - no batch ever has two readers, and
//   - when nothing more can happen, whoever owns a batch or the listeners, and lives, serves them,
//     and nobody else does.
//
// Ownership is a ghost: the processes do not see it. A batch is the old process's until its taken is
// queued, and the listeners until that of done is. If the owner dies, they are lost; except that
// what an old process has offered, and not withdrawn, it leaves to a new one that waits for more.

// The numbers of the offers.
const (
	theListeners = iota + 1
	firstBatch
	secondBatch
	done
)

// parts are the listeners and the batches, by the number of their offer.
type parts[T any] [secondBatch + 1]T

// world is one state of everything. It is a value, so that visited states can be remembered.
type world struct {
	old, new       string // what each process will do next; "dead"
	offer          int    // which the old process makes
	taken          int    // how many the new process has
	toOld, toNew   string // the queues, oldest message first: o(ffer), t(aken), r(efused), w(ithdraw)
	oldShut        bool   // the old process has shut its socket down
	newClosed      bool   // the new process has closed its own
	owner          parts[string]
	oldHas, newHas parts[bool] // who serves what
}

// rules are the ways to get it wrong.
type rules struct {
	noWithdraw, noShutdown, shutFirst, noDrain bool // step 04's, for each offer
	forgetOrphans                              bool // as in step 04
	noFarewell                                 bool // after a refusal the old process just hangs up
	keepShut                                   bool // the old process does not accept again
	keepLent                                   bool // the new process keeps what was lent when it is told that it is over
	forgetLent                                 bool // it gives that up even if the old one has died
}

// oldCanSend and newCanSend are the kernel's rule: a send gets in if the receiver lives and
// nobody has shut the socket down.
func (w world) oldCanSend() bool { return !w.oldShut && !w.newClosed && w.new != "dead" }
func (w world) newCanSend() bool { return !w.oldShut && !w.newClosed && w.old != "dead" }

// waitsForMore reports whether the new process may yet take something.
func (w world) waitsForMore() bool {
	return w.new != "dead" && !w.newClosed && w.new != "gives up" && w.new != "serves on" && !strings.Contains(w.toNew, "w")
}

// offered reports whether the new process has part i, or the offer of it is on its way.
func (w world) offered(i int) bool {
	arrived := w.new == "takes" || w.new == "last word" || strings.Contains(w.toNew, "o")
	return w.taken >= i || w.taken == i-1 && arrived
}

// next is every world that can follow, by what happens.
func (r rules) next(w world) map[string]world {
	all := map[string]world{}
	may := func(what string, change func(*world)) {
		after := w
		change(&after)
		all[what] = after
	}
	r.oldMay(w, may)
	r.newMay(w, may)
	if w.old != "dead" {
		may("old dies", func(w *world) {
			for i := theListeners; i <= secondBatch; i++ {
				if w.owner[i] == "old" {
					w.owner[i] = "nobody"
					if w.offered(i) && w.waitsForMore() {
						w.owner[i] = "new"
					}
				}
			}
			w.old, w.toOld, w.oldHas = "dead", "", parts[bool]{}
		})
	}
	if w.new != "dead" {
		may("new dies", func(w *world) {
			w.disown("new")
			w.new, w.toNew, w.newHas = "dead", "", parts[bool]{}
		})
	}
	return all
}

// disown takes from a process all that it owns.
func (w *world) disown(who string) {
	for i, owner := range w.owner {
		if owner == who {
			w.owner[i] = "nobody"
		}
	}
}

// oldMay is what the old process may do next. It makes one offer after the other; when one comes to
// nothing, it withdraws and takes back what is left.
func (r rules) oldMay(w world, may func(string, func(*world))) {
	receives := func(taken, refused, end func(*world)) {
		switch {
		case w.toOld != "":
			may("old receives "+w.toOld[:1], func(w *world) {
				change := map[string]func(*world){"t": taken, "r": refused}[w.toOld[:1]]
				w.toOld = w.toOld[1:]
				change(w)
			})
		case w.oldShut || w.newClosed || w.new == "dead":
			may("old receives end-of-file", end)
		}
	}
	becomes := func(what string) func(*world) { return func(w *world) { w.old = what } }
	given := func(what string) func(*world) {
		return func(w *world) { w.offer, w.old = w.offer+1, what }
	}

	switch w.old {
	case "stops":
		may("old stops what it will offer", func(w *world) {
			w.old = "offers"
			if w.offer <= secondBatch {
				w.oldHas[w.offer] = false
			}
			if w.offer == firstBatch {
				w.oldHas[secondBatch] = false // one ahead
			}
		})
	case "offers":
		may("old sends offer", func(w *world) {
			w.old = "withdraws" // it could not be sent
			if w.oldCanSend() {
				w.old, w.toNew = "waits", w.toNew+"o"
			}
		})
	case "waits":
		taken := given("stops")
		if w.offer == done {
			taken = given("leaves")
		}
		receives(taken, func(w *world) {
			w.goOn() // the batches, before the new process hears of it
			w.old = "withdraws"
			if r.noFarewell {
				w.old = "shuts"
			}
		}, becomes("withdraws"))
		may("time-out", becomes(r.after("waits")))
	case "withdraws":
		may("old sends withdraw", func(w *world) {
			if w.oldCanSend() {
				w.toNew += "w"
			}
			w.old = r.after("withdraws")
		})
	case "shuts":
		may("old shuts down", func(w *world) { w.oldShut, w.old = true, r.after("shuts") })
	case "drains":
		receives(given("drains"), becomes("drains"), becomes("resumes"))
		if r.noShutdown && w.toOld == "" {
			may("old has seen enough", becomes("resumes"))
		}
	case "resumes":
		may("old resumes", func(w *world) {
			if w.old = "leaves"; w.offer <= done {
				w.old = "serves on"
				w.goOn()
				w.oldHas[theListeners] = !r.keepShut
			}
		})
	}
}

// goOn lets the batches that have not been given go on with the old process.
func (w *world) goOn() {
	for i := max(w.offer, firstBatch); i <= secondBatch; i++ {
		w.oldHas[i] = true
	}
}

// after is what the old process does after a step on its way back.
func (r rules) after(step string) string {
	way := []string{"waits", "withdraws", "shuts", "drains", "resumes"}
	if r.shutFirst {
		way = []string{"waits", "shuts", "withdraws", "drains", "resumes"}
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

// newMay is what the new process may do next.
func (r rules) newMay(w world, may func(string, func(*world))) {
	receives := func(offer, withdraw string, end func(*world)) {
		switch {
		case w.toNew != "":
			may("new receives "+w.toNew[:1], func(w *world) {
				w.new = map[string]string{"o": offer, "w": withdraw}[w.toNew[:1]]
				w.toNew = w.toNew[1:]
			})
		case w.oldShut || w.old == "dead":
			may("new receives end-of-file", end)
		}
	}
	switch w.new {
	case "waits":
		receives("takes", "gives up", func(w *world) {
			switch {
			case w.taken == 0:
				w.new = "begins anew"
			case r.forgetLent:
				w.new = "gives up"
			default:
				w.new = "owns"
			}
		})
		if w.taken == 1 {
			may("new cannot open a listener", func(w *world) {
				w.disown("new") // nothing that it has not looked at will be served
				w.new = "gives up"
			})
		}
	case "takes":
		may("new sends taken", func(w *world) {
			switch {
			case w.newCanSend():
				w.toOld += "t"
				if i := w.taken + 1; i == done {
					w.owner[theListeners] = "new"
				} else if i != theListeners {
					w.owner[i] = "new"
				}
				w.take()
			case r.forgetOrphans:
				w.new = "waits"
			default:
				w.new = "last word"
			}
		})
		may("new sends refused", func(w *world) {
			w.new = "waits"
			if i := w.taken + 1; w.newCanSend() {
				w.toOld += "r"
			} else if i != done && w.owner[i] == "new" { // nobody is left who could serve it
				w.owner[i] = "nobody"
			}
		})
	case "last word":
		receives("last word", "gives up", (*world).take)
	case "gives up":
		may("new gives up", func(w *world) {
			w.new, w.newClosed, w.toNew = "serves on", true, ""
			w.newHas[theListeners] = w.newHas[theListeners] && r.keepLent
		})
	}
}

// take adds the next part to what the new process serves.
func (w *world) take() {
	w.taken++
	w.new = "waits"
	if w.taken == done {
		w.new = "owns"
		return
	}
	w.newHas[w.taken] = true
}

// wrong says which invariant a world breaks, if any. final: nothing but a death can follow.
func (w world) wrong(final bool) string {
	for i := theListeners; i <= secondBatch; i++ {
		oldHas, newHas, owner := w.oldHas[i], w.newHas[i], w.owner[i]
		what := []string{theListeners: "the listeners", firstBatch: "the first batch", secondBatch: "the second batch"}[i]
		lent := i == theListeners && !final // they may both accept for a moment
		switch {
		case oldHas && newHas && !lent:
			return what + ": served by both"
		case newHas && owner == "old" && !lent:
			return what + ": the new process serves what is the old one's"
		case final && (owner == "old" && !oldHas || owner == "new" && !newHas):
			return what + ": its owner lives, and nobody serves it"
		}
	}
	return ""
}

// explore goes through every world that can follow and returns how many there are, and the
// way to the first broken one.
func (r rules) explore() (worlds int, broken string) {
	start := world{old: "stops", new: "waits", offer: theListeners,
		owner: parts[string]{theListeners: "old", firstBatch: "old", secondBatch: "old"}, oldHas: parts[bool]{theListeners: true, firstBatch: true, secondBatch: true}}
	seen := map[world]bool{start: true}
	type visit struct {
		world
		way string
	}
	for todo := []visit{{start, ""}}; len(todo) > 0; todo = todo[1:] {
		v := todo[0]
		final := true
		following := r.next(v.world)
		for _, what := range slices.Sorted(maps.Keys(following)) { // so that it is always the same way
			after := following[what]
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
	worlds, broken := rules{}.explore()
	if broken != "" {
		t.Error(broken)
	}
	t.Logf("%d worlds, and every one of them is well", worlds)
	if worlds < 300 {
		t.Errorf("only %d worlds: the model has lost its legs", worlds)
	}
}

// Each rule is there because without it the model breaks.
func TestModelNeedsEveryRule(t *testing.T) {
	for name, r := range map[string]struct {
		rules
		wrong string
	}{
		"no withdraw before the shutdown":       {rules{noWithdraw: true}, "the listeners: served by both"},
		"withdraw behind the shutdown":          {rules{shutFirst: true}, "the listeners: served by both"},
		"no shutdown after the withdraw":        {rules{noShutdown: true}, "the first batch: served by both"},
		"the queue not read to its end":         {rules{noDrain: true}, "the first batch: served by both"},
		"a failed taken taken for withdrawn":    {rules{forgetOrphans: true}, "the listeners: its owner lives, and nobody serves it"},
		"no withdraw after a refusal":           {rules{noFarewell: true}, "the listeners: served by both"},
		"the old one does not accept again":     {rules{keepShut: true}, "the listeners: its owner lives, and nobody serves it"},
		"the new one keeps what was lent":       {rules{keepLent: true}, "the listeners: served by both"},
		"what was lent is given up to the dead": {rules{forgetLent: true}, "the listeners: its owner lives, and nobody serves it"},
	} {
		t.Run(name, func(t *testing.T) {
			_, broken := r.explore()
			if !strings.Contains(broken, r.wrong) {
				t.Errorf("got %q, want %q", broken, r.wrong)
			}
			t.Log(broken)
		})
	}
}
