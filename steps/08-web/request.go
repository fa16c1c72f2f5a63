//go:build linux

package main

// Where a request ends. To copy: this file, web.go and http.go, with those of step 07 and a state of your
// own. Who is wrong here takes a part of one request for another one: that is request smuggling. So net/http
// itself reads the head, and what it makes of the body counts: a connection is used again only if it is
// content with the request, and has read it to the same end.
//
//	endOf       what a request is, as soon as its head is here
//	own         how many of the bytes that have come are its own; who takes some subtracts them from left
//	clear       whether all of them have been taken, and another request may follow

import (
	"bufio"
	"bytes"
	"net/http"
	"strconv"
)

// ending is where a request ends, as far as its bytes have come.
type ending struct {
	left int64 // so many of those to come are its own, whatever they are
	then part  // and behind them comes this
	last bool  // whatever comes behind it is not believed, although net/http does, and has not said Connection: close
}

type part int

const (
	nothing part = iota // it ends
	chunk               // a line with the length of a chunk
	trailer             // a line behind the last chunk
	unclear             // nobody knows: it has all that comes, and is the last one
)

// endOf returns where the request ends that in begins with, and whether there is enough of it to answer
// it: its head, and a body too if both fit a session's buffer. A longer one, and one of which it is not
// known how long it is, are read by the handler.
func endOf(in []byte) (e ending, enough bool) {
	head := headOf(in)
	e.left = int64(head)
	if head == 0 {
		e.then = unclear
		return e, len(in) >= bufferSize // net/http says: 431
	}
	if !speaksOf(in[:head], "Content-Length", "Transfer-Encoding", "Expect", "PRI") { // PRI begins HTTP/2
		return e, true // there is none, and net/http reads the head once, in place of twice
	}
	r, err := http.ReadRequest(bufio.NewReaderSize(bytes.NewReader(in[:head]), min(head, 4<<10)))
	switch {
	case err != nil || r.ProtoMajor > 1: // net/http says what is wrong with it
		e.then = unclear
		return e, true
	case len(r.TransferEncoding) > 0:
		e.then = chunk
		e.last = speaksOf(in[:head], "Content-Length") // RFC 9112, 6.3
		return e, true
	}
	e.last = !r.ProtoAtLeast(1, 1) && speaksOf(in[:head], "Transfer-Encoding") // RFC 9112, 6.1
	e.left += r.ContentLength
	return e, int64(len(in)) >= e.left || e.left > bufferSize || r.Header.Get("Expect") != ""
}

// speaksOf reports whether a line of a head begins with one of these names.
func speaksOf(head []byte, names ...string) bool {
	for rest := head; len(rest) > 0; {
		for _, name := range names {
			if len(rest) >= len(name) && bytes.EqualFold(rest[:len(name)], []byte(name)) {
				return true
			}
		}
		rest = rest[bytes.IndexByte(rest, '\n')+1:] // a head ends with one
	}
	return false
}

// headOf returns how long the head is that in begins with: up to an empty line. 0: it has not come whole.
func headOf(in []byte) int {
	for end := 0; ; {
		n := bytes.IndexByte(in[end:], '\n')
		if n < 0 {
			return 0
		}
		end += n + 1
		if rest := in[end:]; len(rest) > 0 && rest[0] == '\n' {
			return end + 1
		} else if len(rest) > 1 && rest[0] == '\r' && rest[1] == '\n' {
			return end + 2
		}
	}
}

// own returns how many of the bytes that have come belong to the request. If none do, there must come
// more of them first, or it has ended.
func (e *ending) own(in []byte) int {
	if e.left == 0 && len(in) > 0 && e.then != nothing {
		e.advance(in)
	}
	return int(min(e.left, int64(len(in))))
}

// advance looks at what comes behind all that is known.
func (e *ending) advance(in []byte) {
	line, _, found := bytes.Cut(in, []byte("\n"))
	switch {
	case e.then == unclear, !found && len(in) >= bufferSize:
		e.left, e.then = int64(len(in)), unclear
	case !found: // the rest must come first
	case e.then == trailer:
		e.left = int64(len(line)) + 1
		if len(bytes.TrimSuffix(line, []byte("\r"))) == 0 {
			e.then = nothing
		}
	default:
		size, _, _ := bytes.Cut(line, []byte(";")) // behind that are extensions
		n, err := strconv.ParseUint(string(bytes.TrimSpace(size)), 16, 62)
		switch {
		case err != nil:
			e.left, e.then = int64(len(in)), unclear
		case n == 0:
			e.left, e.then = int64(len(line))+1, trailer
		default:
			e.left = int64(len(line)) + 1 + int64(n) + 2 // with the line's end behind it
		}
	}
}

// ended reports whether all of the request has been taken.
func (e *ending) ended() bool { return e.left == 0 && e.then == nothing }

// clear reports whether all of it has, and another request may follow.
func (e *ending) clear() bool { return e.ended() && !e.last }
