//go:build linux

package main

// Story 1. A descriptor is a number for an open file description, and that is where the
// offset is kept (open(2)). SCM_RIGHTS gives the receiver a new number for the same
// description: two processes read one file to its end, and no line twice.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"strings"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

var fileLines = []string{"line one\n", "line two\n", "line three\n"}

// sendFile reads the first line of a file, sends the descriptor, and when the other process
// has read the second, reads the third.
func sendFile(ctx context.Context, c *socket.Conn) error {
	file, err := threeLines()
	if err != nil {
		return err
	}
	defer closeQuietly(file)
	if err := showNextLine(file); err != nil {
		return err
	}
	err = borrow(file, func(fd int) error {
		control := rights(fd)
		log.Printf("sending descriptor %d in this control message:", fd)
		logLines(dump(control))
		_, err := sendRaw(ctx, c, []byte("file"), control)
		return err
	})
	if err != nil {
		return fmt.Errorf("send the file: %w", err)
	}
	if _, _, err := receiveFDs(ctx, c, make([]byte, 16), 0, 0); err != nil {
		return fmt.Errorf("wait until the other one has read its line: %w", err)
	}
	return showNextLine(file)
}

// receiveFile receives the descriptor, reads the next line, and says that it did. The receipt
// is what receiveFDs does, in plain view.
func receiveFile(ctx context.Context, c *socket.Conn) error {
	payload, control := make([]byte, 16), make([]byte, unix.CmsgSpace(4*maxFDs))
	n, control, flags, err := receiveRaw(ctx, c, payload, control, unix.MSG_CMSG_CLOEXEC)
	if err == nil && n == 0 && len(control) == 0 {
		err = io.EOF
	}
	if err != nil {
		return fmt.Errorf("receive the file: %w", err)
	}
	fds, err := parseControl(control)
	if err := errors.Join(checkRecord(n, len(fds), flags, 1, 1), err); err != nil {
		return fmt.Errorf("receive the file: %w", errors.Join(err, closeFDs(fds)))
	}
	file := os.NewFile(uintptr(fds[0]), "the file")
	defer closeQuietly(file) // which takes away this number, and nothing from the other process
	log.Printf("received descriptor %d in this control message:", fds[0])
	logLines(dump(control))
	if err := showNextLine(file); err != nil {
		return err
	}
	return sendFDs(ctx, c, []byte("read"))
}

// threeLines returns a file that stands in no folder: removing its name leaves the file, as
// long as anybody has it open (unlink(2)).
func threeLines() (*os.File, error) {
	file, err := os.CreateTemp("", "03-scm-rights-")
	if err != nil {
		return nil, err
	}
	_, writeErr := file.WriteString(strings.Join(fileLines, ""))
	_, seekErr := file.Seek(0, io.SeekStart)
	if err := errors.Join(os.Remove(file.Name()), writeErr, seekErr); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// showNextLine reads one line from where the offset stands, and so moves it for everybody.
func showNextLine(file *os.File) error {
	offset, err := file.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	line, err := readLine(file)
	if err != nil {
		return err
	}
	return borrow(file, func(fd int) error {
		log.Printf("descriptor %d, at offset %d, reads %q", fd, offset, line)
		return nil
	})
}

// readLine reads one line and not a byte more. A buffered reader would read ahead, and what
// it has read is gone for everybody else who shares the description.
func readLine(r io.Reader) (string, error) {
	var line []byte
	for next := make([]byte, 1); ; {
		if _, err := io.ReadFull(r, next); err != nil {
			return "", err
		}
		line = append(line, next...)
		if next[0] == '\n' {
			return string(line), nil
		}
	}
}

func logLines(lines []string) {
	for _, line := range lines {
		log.Print(line)
	}
}
