//go:build linux

package main

// Story 1. A descriptor is a number for an open file description, and that is where the offset is
// kept (open(2)). SCM_RIGHTS gives the receiver a new number for the same description: two
// processes read one file to its end, and no line twice. Here the control message is made by hand.

import (
	"fmt"
	"io"
	"log"
	"os"

	"github.com/mdlayher/socket"
)

// sendFile reads the first line of a file, sends the descriptor, and when the other process has
// read the second, reads the third.
func sendFile(c *socket.Conn) error {
	file, err := os.CreateTemp("", "03-scm-rights-")
	if err != nil {
		return err
	}
	defer file.Close()
	// Without its name the file can only be reached through a descriptor (unlink(2)).
	if err := os.Remove(file.Name()); err != nil {
		return err
	}
	if _, err := file.WriteAt([]byte("line one\nline two\nline three\n"), 0); err != nil { // leaves the offset at 0
		return err
	}
	showNextLine(file)
	err = borrow(file, func(fd int) error {
		control := rights(fd)
		log.Printf("sending descriptor %d in the control message % x", fd, control)
		return sendRaw(c, []byte("file"), control)
	})
	if err != nil {
		return err
	}
	// This process still has its own descriptor. Until the other one has read, it must not.
	if _, _, err := receiveFDs(c, make([]byte, 16), 0, 0); err != nil {
		return fmt.Errorf("the other process has not read its line: %w", err)
	}
	showNextLine(file)
	return nil
}

// receiveFile receives the descriptor, reads the next line, and says so.
func receiveFile(c *socket.Conn) error {
	_, fds, err := receiveFDs(c, make([]byte, 16), 1, 1)
	if err != nil {
		return err
	}
	log.Printf("received descriptor %d", fds[0])
	file := os.NewFile(uintptr(fds[0]), "the file")
	defer file.Close() // takes away this number, and nothing from the other process
	showNextLine(file)
	return sendFDs(c, []byte("read"))
}

// showNextLine reads one line from where the offset stands, and so moves it for everybody.
func showNextLine(file *os.File) {
	line, err := readLine(file)
	if err != nil {
		log.Print(err)
	}
	log.Printf("the next line is %q", line)
}

// readLine reads one line and not a byte more. What a buffered reader reads ahead is gone for
// everybody else who shares the description.
func readLine(r io.Reader) (line string, err error) {
	for next := make([]byte, 1); err == nil && next[0] != '\n'; line += string(next) {
		_, err = io.ReadFull(r, next)
	}
	return line, err
}
