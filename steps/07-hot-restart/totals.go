//go:build linux

package main

import (
	"fmt"
	"runtime"
	"sync/atomic"
)

// totals is what has been counted since the first generation. It travels from each to the next.
type totals struct {
	Generation  int    `json:"generation"`
	Connections uint64 `json:"connections"`
	Lines       uint64 `json:"lines"`
}

// counters count on from the totals of the process before, which may still be counting itself.
type counters struct {
	before             atomic.Pointer[totals]
	connections, lines atomic.Uint64
}

func (c *counters) now() totals {
	t := totals{Generation: 1}
	if before := c.before.Load(); before != nil {
		t = *before
		t.Generation++
	}
	t.Connections += c.connections.Load()
	t.Lines += c.lines.Load()
	return t
}

// state says in one line what this process serves.
func (s *server) state() string {
	t := s.counted.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Sprintf("generation %d: listeners %d, connections %d, goroutines %d; since generation 1: connections %d, lines %d",
		t.Generation, len(s.listeners), s.sessions.count(), runtime.NumGoroutine(), t.Connections, t.Lines)
}
