//go:build linux

package main

// What a session does here: it is between two requests, in one, or in a mode. To copy: this file, http.go
// and request.go, with those of step 07 and a state of your own. net/http answers requests, and never has
// the connection: between two of them it owns nothing, and within one this process does not let go of the
// session.

import (
	"bytes"
	"sync/atomic"
	"time"
)

// mode is what a session does that is no exchange of requests any more. Its state is in its exported
// fields, and so it goes on elsewhere.
type mode interface {
	// step takes what it can use from In (which must become less, as a full one ends the session), puts into
	// Out what there is to say, and reports whether there is more to do before the client says something. It
	// waits for nothing. It is called when something has come, when all of Out is written, after wake, and at
	// times for no reason. When nothing more will come (Ended), it must come to report false.
	//
	// To end, it takes itself from the state, puts s.Bye = &farewell{} there, and reports true.
	step(s *session) bool
}

// isSilent reports whether there is nothing to be done before the client says something.
func (s *session) isSilent() bool { return s.bytes() == 0 && !s.Ended && s.mode() == nil }

// patience is how long a client may take for a request, from its first byte to the end of its head, or of a body that
// fits the buffer, if it does not wait for 100 Continue.
var patience = 10 * time.Second

// answer answers the request that has been read, if it has been, and reports whether there may be more.
func (s *session) answer(requests *atomic.Uint64) bool {
	if m := s.mode(); m != nil {
		return m.step(s)
	}
	for bytes.HasPrefix(s.In, []byte("\r\n")) { // some send it behind a body: RFC 9112, 2.2
		s.In = shrink(s.In, 2)
	}
	e, here := endOf(s.In)
	if here || len(s.In) == 0 { // it may have been half an empty line
		s.Until = time.Time{}
	} else if s.Until.IsZero() {
		s.Until = time.Now().Add(patience)
	}
	if s.Until != s.deadline { // it has changed, or has come from another process
		s.setDeadline(s.Until)
	}
	if here {
		requests.Add(1)
		s.answerOne(e)
	}
	return here
}

// say adds to what there is to say.
func (s *session) say(b []byte) {
	if s.Out == nil {
		s.Out = newBuffer()
	}
	s.Out = append(s.Out, b...)
}

// wake makes a session in a mode look whether there is something to say, although its client has said
// nothing. It fails if the connection has been closed, or moved.
func (s *session) wake() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn.SetDeadline(past) // serve goes on, if the session has not been asked to stand still
}

// gone reports whether the connection has ended.
func (s *session) gone() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.over
}

// farewell is the mode of a session that has said all. It does not close at once: what its client is still
// sending would be answered with a reset, which can destroy the last answer on its way.
type farewell struct {
	Until time.Time `json:"until,omitzero"`
}

func (f *farewell) step(s *session) bool {
	s.In = shrink(s.In, len(s.In))
	if f.Until.IsZero() {
		f.Until = time.Now().Add(time.Second)
		s.hangUp()
	}
	s.setDeadline(f.Until) // or until the client closes
	return false
}
