//go:build linux

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// read(2): what has been read is no longer in the kernel's queue. A bufio.Reader reads as much as
// it can get, and what it has not handed out yet is in the memory of one process only.

// Wrong: send the descriptor, and nothing of what the reader holds.
func readaheadWrong(s *sockets) (string, error) {
	return handOver(s, func(*bufio.Reader) string { return "" })
}

// Right: send what the reader holds along with it. The receiver reads that first.
func readaheadRight(s *sockets) (string, error) {
	return handOver(s, func(r *bufio.Reader) string {
		held, _ := r.Peek(r.Buffered()) // does not fail: the bytes are there
		return string(held)
	})
}

// handOver reads the first of a client's three lines, and hands the connection over.
func handOver(s *sockets, ahead func(*bufio.Reader) string) (string, error) {
	err := errors.Join(send(s.client, "one\ntwo\nthree\n"), s.client.Close())
	if err != nil {
		return "", err
	}
	reader := bufio.NewReader(s.server)
	first, err := reader.ReadString('\n')
	if err != nil {
		return "", err
	}
	payload, fd, err := s.pass(s.server, "+"+ahead(reader), unix.MSG_CMSG_CLOEXEC) // never empty: no_payload.go
	if err != nil {
		return "", err
	}
	received := os.NewFile(uintptr(fd), "received")
	defer received.Close() // nothing was written to it
	rest, err := io.ReadAll(received)
	return fmt.Sprintf("the old process reads %q, the new one gets %q", first, payload[1:]+string(rest)), err
}
