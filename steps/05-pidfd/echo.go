//go:build linux

package main

import (
	"bufio"
	"bytes"
	"errors"
	"io"
)

// bufferSize bounds what one connection can make this process remember. A line longer than
// this is echoed in pieces as it arrives.
const bufferSize = 16 << 10

// echo sends every line back to c and shows it, until end-of-file: first those in unread, which
// another process had read already, then those of c. A last line without a newline counts.
// Bytes are never changed.
//
// A STEAL line goes to steal instead, with what has been read behind it. If steal reports that
// the connection is gone, echo returns at once.
func echo(c io.ReadWriter, unread []byte, show func(line []byte), steal func(unread []byte) (gone bool, err error)) error {
	in := bufio.NewReaderSize(io.MultiReader(bytes.NewReader(unread), c), bufferSize)
	inside := false // the next piece continues a line
	for {
		line, readErr := in.ReadSlice('\n')
		full := errors.Is(readErr, bufio.ErrBufferFull)
		whole := !inside && !full
		inside = full
		switch {
		case whole && isSteal(line):
			rest, err := in.Peek(in.Buffered())
			if err != nil {
				return err
			}
			if gone, err := steal(rest); gone || err != nil {
				return err
			}
		case len(line) > 0:
			show(line)
			if _, err := c.Write(line); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(readErr, io.EOF):
			return nil
		case readErr != nil && !full:
			return readErr
		}
	}
}

// isSteal reports whether a line asks for its connection to be moved.
func isSteal(line []byte) bool {
	word := bytes.Trim(line, " \t\r\n")
	// The length keeps out what folds to these letters, and is none of them, such as U+017F.
	return len(word) == len("STEAL") && bytes.EqualFold(word, []byte("STEAL"))
}
