//go:build linux

package main

// All that one process leaves to another, and the messages that carry it. The keeper gives it to a
// server, and a server to a new keeper: the same, so that either can lose the other.

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// message is one record on the control socket: JSON, so that strace shows it.
//
//	estate       all that there is: first the memory and the listener (two descriptors), Addr, and how
//	             many connections follow
//	connections  some of them: a descriptor for each of Slots
//	done         from a server: it has let go of the connections in Slots, which are over
type message struct {
	Type  string `json:"type"`
	Addr  string `json:"addr,omitempty"`
	Count int    `json:"count,omitempty"`
	Slots []int  `json:"slots,omitempty"`
}

// errGone is that nobody is at the other end any more, and nothing is queued.
var errGone = errors.New("is gone")

// send sends a message with duplicates of fds. It fails if the other process is gone.
func send(c *socket.Conn, m message, fds ...int) error {
	record, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return sendFDs(c, record, fds...)
}

// receive waits for a message. Its descriptors are the caller's.
func receive(c *socket.Conn) (m message, fds []int, err error) {
	record := make([]byte, 4<<10) // 253 slots are half of it
	n, fds, err := receiveFDs(c, record, 0, scmMaxFD)
	if errors.Is(err, io.EOF) {
		err = errGone
	}
	if err == nil {
		err = json.Unmarshal(record[:n], &m)
	}
	return m, fds, err
}

// estate is the listener, the memory, and every connection. Its owner guards it with a mutex.
type estate struct {
	addr     string // of the listener, for the log
	listener int    // its descriptor
	memory   memory
	count    int         // how many connections there were when it was sent
	held     map[int]int // slot to descriptor
}

// sendTo sends all of it.
func (e *estate) sendTo(c *socket.Conn) error {
	err := send(c, message{Type: "estate", Addr: e.addr, Count: len(e.held)}, e.memory.fd, e.listener)
	for some := range slices.Chunk(slices.Sorted(maps.Keys(e.held)), scmMaxFD) {
		if err == nil {
			err = e.sendSome(c, some...)
		}
	}
	return err
}

// sendSome sends the connections in these slots: at most 253.
func (e *estate) sendSome(c *socket.Conn, some ...int) error {
	var fds []int
	for _, slot := range some {
		fds = append(fds, e.held[slot])
	}
	return send(c, message{Type: "connections", Slots: some}, fds...)
}

// add adds what a message brings. After an error the sender is not to be trusted: what it says is
// checked before it is used.
func (e *estate) add(m message, fds []int) (err error) {
	if m.Type == "estate" && e.held == nil && len(fds) == 2 {
		e.addr, e.count, e.listener, e.held = m.Addr, m.Count, fds[1], map[int]int{}
		e.memory, err = mapMemory(fds[0])
		return err
	}
	if m.Type != "connections" || e.held == nil || len(fds) != len(m.Slots) {
		return fmt.Errorf("a message %q with %d descriptors and %d slots", m.Type, len(fds), len(m.Slots))
	}
	for i, slot := range m.Slots {
		protocol, err := unix.GetsockoptInt(fds[i], unix.SOL_SOCKET, unix.SO_PROTOCOL)
		if _, used := e.held[slot]; used || slot < 1 || slot >= slots || protocol != unix.IPPROTO_TCP {
			return fmt.Errorf("slot %d (used: %v) with a socket of protocol %d (%v)", slot, used, protocol, err)
		}
		e.held[slot] = fds[i]
	}
	return nil
}
