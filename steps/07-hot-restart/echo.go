//go:build linux

package main

// The protocol, in the place of which you put your own: every line comes back. It is all that session.go
// wants to know of one: what has to travel, when there is nothing to be done, and what the answer is.

import (
	"bytes"
	"fmt"
	"os"
	"sync/atomic"
)

// state is what has to travel with the socket. Add here what your own server must know to go on, in
// exported fields: JSON leaves out the others without a word.
type state struct {
	In     []byte `json:"in,omitempty"`     // read, and not yet answered
	Out    []byte `json:"out,omitempty"`    // an answer that the kernel has not accepted yet
	Ended  bool   `json:"ended,omitempty"`  // end-of-file has been read
	Inside bool   `json:"inside,omitempty"` // what comes next continues a line
}

// isSilent reports whether there is nothing to be done before the client says something.
func (s *session) isSilent() bool { return s.bytes() == 0 && !s.Ended }

// answer makes the answer to the lines that have been read, and reports whether there were any.
func (s *session) answer(lines *atomic.Uint64) bool {
	read := s.In
	for line := s.next(read); len(line) > 0; line = s.next(read) {
		read = read[len(line):]
		begins := !s.Inside
		s.Inside = line[len(line)-1] != '\n'
		if !s.Inside {
			lines.Add(1)
		}
		if s.Out == nil {
			s.Out = newBuffer()
		}
		if begins && isStay(line) {
			s.stays.Store(true)
			s.Out = fmt.Appendf(s.Out, "* stays with pid %d\n", os.Getpid())
		} else {
			s.Out = append(s.Out, line...) // binary-exact: no byte is taken for text
		}
	}
	s.In = shrink(s.In, len(s.In)-len(read))
	return len(s.Out) > 0
}

// next returns the line that in begins with, or the piece of one that fills the buffer (a longer line is
// echoed in pieces) or ends with the connection. It is empty if there is more to come first.
func (s *session) next(in []byte) []byte {
	if end := bytes.IndexByte(in, '\n'); end >= 0 {
		return in[:end+1]
	}
	if s.Ended || len(in) >= bufferSize {
		return in
	}
	return nil
}

// isStay reports whether a line marks its connection as one that cannot move: here in the place of
// TLS, or of a library that has the socket.
func isStay(line []byte) bool {
	word := bytes.Trim(line, " \t\r\n")
	// The length keeps out what folds to these letters and is none of them, such as U+017F.
	return len(word) == len("STAY") && bytes.EqualFold(word, []byte("STAY"))
}
