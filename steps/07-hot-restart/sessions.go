//go:build linux

package main

import "sync"

// sessions are all connections that a process has.
type sessions struct {
	mu  sync.Mutex
	all map[*session]struct{}
}

func (s *sessions) add(c *session) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = map[*session]struct{}{}
	}
	s.all[c] = struct{}{}
	return c
}

func (s *sessions) remove(some ...*session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range some {
		delete(s.all, c)
	}
}

func (s *sessions) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.all)
}

func (s *sessions) list() []*session {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]*session, 0, len(s.all))
	for c := range s.all {
		list = append(list, c)
	}
	return list
}
