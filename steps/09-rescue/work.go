//go:build linux

package main

// What a server does for one client, so that at any moment it may die, and another one can go on.

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"
)

// echo sends every line back as it came, in the manner of step 01. The answer is a function of what is
// in the ring, and the word says up to where. So it goes on where another process was killed, or begins,
// which is the same: everything is 0 then.
func (s *server) echo(c *os.File, slot int, p progress) error {
	word, r := s.memory.word(slot), s.memory.ring(slot)
	decided := word.Load() / position
	if !p.open { // it was just about to be closed
		return io.EOF
	}
	if p.written > decided || decided > p.read || p.read-p.written > ringSize {
		return fmt.Errorf("shared memory is not true: written %d, decided %d, read %d", p.written, decided, p.read)
	}
	for ended := false; ; {
		for p.written < decided { // first: the next line may be a server's death
			n, err := c.Write(r.piece(p.written, decided))
			if err != nil {
				return err
			}
			p.written += uint64(n)
		}
		for decided < p.read {
			line, whole := r.line(decided, p.read)
			if !whole && !ended && len(line) < ringSize {
				break // there is more to come
			}
			decided = s.decide(word, line, whole)
		}
		if p.written < decided {
			continue
		}
		if ended {
			return io.EOF
		}
		c.SetReadDeadline(time.Now().Add(s.idle))
		n, err := c.Read(r.piece(p.read, p.written+ringSize))
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if p.read == p.written {
				s.memory.release(slot)
			}
			c.SetReadDeadline(time.Time{})
			n, err = c.Read(r.piece(p.read, p.written+ringSize))
		}
		p.read += uint64(n)
		ended = errors.Is(err, io.EOF)
		if err != nil && !ended {
			return err
		}
	}
}

// decide works on the line at a word's position, and returns the position behind it. Only then may the
// answer be sent. A server that dies in it leaves a busy word: so it is known which line it was about.
// Where there are several such lines, they are worked on one at a time, so that only one is to blame.
func (s *server) decide(word *atomic.Uint64, line []byte, whole bool) uint64 {
	before := word.Load()
	if before%position >= strike {
		s.suspects.Lock()
		defer s.suspects.Unlock()
	}
	word.Store(before | busy)
	if whole && before&inside == 0 {
		work(line)
	}
	after := before/position + uint64(len(line))
	if whole {
		word.Store(after * position)
	} else {
		word.Store(after*position | inside)
	}
	return after
}

// work is where a real server would find an answer. This one has some bugs, for you to try.
func work(line []byte) {
	switch string(bytes.TrimSpace(line)) {
	case "PANIC":
		panic("a client has typed PANIC")
	case "HANG":
		for i := 0; ; i++ {
		}
	case "DEADLOCK":
		select {}
	case "EAT":
		_ = make([]byte, 128<<20) // kills a process that has a limit: getrlimit(2), RLIMIT_AS
	}
}
