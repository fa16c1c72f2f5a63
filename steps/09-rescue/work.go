//go:build linux

package main

// What a server does for one client, so that at any moment it may die, and another one can go on.

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
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
			begins := word.Load()&inside == 0
			decided += uint64(len(line))
			s.decide(word, func() uint64 {
				if begins && whole {
					work(line)
				}
				if whole {
					return decided * position
				}
				return decided*position | inside
			})
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
	case "SLOW": // not a bug, as long as it is less than the patience
		time.Sleep(500 * time.Millisecond)
	case "EAT":
		_ = make([]byte, 128<<20) // kills a process that has a limit: getrlimit(2), RLIMIT_AS
	}
}
