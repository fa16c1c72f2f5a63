//go:build linux

package main

import (
	"bufio"
	"errors"
	"io"
)

// bufferSize bounds what one connection can make this process remember. A line longer than
// this is echoed in pieces as it arrives.
const bufferSize = 16 << 10

// echo sends every line of c back to it and shows it, until end-of-file. A last line without
// a newline counts. Bytes are never changed.
func echo(c io.ReadWriter, show func(line []byte)) error {
	in := bufio.NewReaderSize(c, bufferSize)
	for {
		line, readErr := in.ReadSlice('\n')
		if len(line) > 0 {
			show(line)
			if _, err := c.Write(line); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(readErr, io.EOF):
			return nil
		case errors.Is(readErr, bufio.ErrBufferFull): // the line goes on: so do we
		case readErr != nil:
			return readErr
		}
	}
}
