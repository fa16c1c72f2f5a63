//go:build linux

package main

// Server-sent events: a mode. Its state is the number of the next event, and when that is due.

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"sync/atomic"
	"time"
)

// tick is how often there is an event.
const tick = 100 * time.Millisecond

// events is the mode of a client that is told something ten times a second. Due is a moment, and not a time to
// wait: whoever is late, because of a restart or a slow client, is not late for the next one as well.
type events struct {
	Next int64     `json:"next"` // the number of the next event
	Due  time.Time `json:"due"`  // when that will be

	woken time.Time // for when this process has set an alarm
}

// generation is this process's; 0: it is taking over, and does not know yet.
var generation atomic.Int64

// serveEvents begins. Last-Event-ID is from those who come over another connection: nothing is left out.
func serveEvents(w http.ResponseWriter, r *http.Request) {
	if leaving.Load() { // a browser comes again when a stream has ended, but not after an error
		w.Header().Set("Content-Type", "text/event-stream")
		return
	}
	x, ok := hijack(w, r)
	if !ok {
		return
	}
	defer x.Close()
	last, err := strconv.ParseUint(r.Header.Get("Last-Event-ID"), 10, 62)
	if err != nil {
		last = 0 // it says nothing, or nonsense
	}
	x.Event = &events{Next: int64(last) + 1, Due: time.Now()}
	io.WriteString(x, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n")
}

// step says what is due. Whoever reads slowly hears all of it later.
func (e *events) step(s *session) bool {
	s.In = shrink(s.In, len(s.In))
	for !s.Ended && len(s.Out) < bufferSize/2 && !time.Now().Before(e.Due) {
		s.say(fmt.Appendf(nil, "id: %d\ndata: {\"pid\": %d, \"generation\": %d}\n\n", e.Next, os.Getpid(), generation.Load()))
		e.Next, e.Due = e.Next+1, e.Due.Add(tick)
	}
	if e.woken != e.Due {
		e.woken = e.Due
		time.AfterFunc(time.Until(e.Due), func() { _ = s.wake() }) // it may have moved: there it has another alarm
	}
	return len(s.Out) > 0
}
