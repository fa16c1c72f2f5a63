//go:build linux

package main

// All that one process leaves to another, and the messages that carry it. The keeper gives it to a
// server, and a server to a new keeper: the same, so that either can lose the other. To copy: with what
// serve.go names. It promises that nothing is used before it is checked, and leaves descriptors after an
// error to a process that is about to end, or to kill the sender.

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// message is one record on the control socket: JSON, so that strace shows it.
//
//	connections  some connections: a descriptor for each of Slots
//	all          that was all that there is
//	done         from a server: the connections in Slots are over, and it has let go of them
type message struct {
	Type  string `json:"type"`
	Slots []int  `json:"slots,omitempty"`
}

// errGone is that nobody is at the other end any more, and nothing is queued.
var errGone = errors.New("its end of the control socket is closed")

// send sends a message with duplicates of fds. It fails if the other process is gone, and with ETOOMANYREFS
// if more descriptors of this user are on their way than a process may have: unix(7). Root has no such limit.
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
	addr     string
	patience time.Duration
	listener int
	memory   memory
	held     map[int]int // slot to descriptor
}

// inherited is what a process has from the start, if another one has started it. The rest is sent.
func inherited(addr string, patience time.Duration) (estate, error) {
	m, err := mapMemory(atMemory)
	if err != nil {
		err = fmt.Errorf("%w (-role is for the program itself to use)", err)
	}
	return estate{addr, patience, atListener, m, map[int]int{}}, err
}

// start starts a process that inherits.
func (e *estate) start(role string) (*partner, error) {
	return startPartner(e.memory.fd, e.listener, "-role", role, "-addr", e.addr, "-patience", e.patience.String())
}

// sendTo sends the rest: 253 connections in a message, which is as many as there can be.
// After an error the other process has a part, and is not told that it is all: the slots of the others
// would pass for free. It is good for nothing then.
func (e *estate) sendTo(c *socket.Conn) error {
	for some := range slices.Chunk(slices.Sorted(maps.Keys(e.held)), scmMaxFD) {
		if err := e.sendSome(c, some...); err != nil {
			return err
		}
	}
	return send(c, message{Type: "all"})
}

func (e *estate) sendSome(c *socket.Conn, some ...int) error {
	var fds []int
	for _, slot := range some {
		fds = append(fds, e.held[slot])
	}
	return send(c, message{Type: "connections", Slots: some}, fds...)
}

// add adds what a message brings. After an error the sender is not to be trusted: what it says is
// checked before it is used.
func (e *estate) add(m message, fds []int) error {
	if len(fds) != len(m.Slots) || m.Type != "connections" && m.Type != "all" {
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
