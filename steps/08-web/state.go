//go:build linux

package main

import (
	"net"
	"time"
)

// state is what has to travel with the socket. At most one of the modes is not nil: that is the session's.
type state struct {
	In    []byte    `json:"in,omitempty"`     // read, and not yet answered
	Out   []byte    `json:"out,omitempty"`    // an answer that the kernel has not accepted yet
	Ended bool      `json:"ended,omitempty"`  // end-of-file has been read
	Until time.Time `json:"until,omitzero"`   // by when the rest of the request must have come
	Event *events   `json:"events,omitempty"` // mode: it is told something again and again
	Chat  *chat     `json:"chat,omitempty"`   // mode: a WebSocket
	Bye   *farewell `json:"bye,omitempty"`    // mode: all has been said

	local, remote net.Addr // for net/http; asked for anew in each process
}

// mode returns the session's, or nil between two requests.
func (s *session) mode() mode {
	switch {
	case s.Event != nil:
		return s.Event
	case s.Chat != nil:
		return s.Chat
	case s.Bye != nil:
		return s.Bye
	}
	return nil
}
