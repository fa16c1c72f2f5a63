//go:build linux

package main

// Many connections in one offer: their sockets, and a sealed memfd with all that user space holds of
// them. To copy: this file, session.go, fdpass.go and socket.go, and content of give.go. It promises
// that a batch is what it says, or is refused as a whole, and that its sender cannot change it any more.

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxSockets = scmMaxFD - 1 // in one offer: the memfd is one more

	// cutBytes is how many bytes a batch may hold before no other session is put into it, and
	// maxBytes how many the receiver reads. The difference is much more than one session of echo can
	// hold.
	cutBytes = 1 << 20
	maxBytes = 16 << 20

	// seals: nothing can be written, the file can be made neither longer nor shorter, and that is
	// final: fcntl(2).
	seals = unix.F_SEAL_WRITE | unix.F_SEAL_GROW | unix.F_SEAL_SHRINK | unix.F_SEAL_SEAL
)

// packed is what the memfd says of a session. The bytes follow behind all of these, raw: base64 would
// make a third more of them, and somebody would have to look at each.
type packed struct {
	Cookie uint64 `json:"c"`
	State  state  `json:"s,omitzero"` // without In and Out
	In     int    `json:"in,omitempty"`
	Out    int    `json:"out,omitempty"`
}

// errUnfit is that a batch would be refused, or cannot be written down.
var errUnfit = errors.New("does not fit an offer")

// pack packs sessions that stand still: what to offer, and the descriptors that come with it. The
// first of these is the memfd, which the caller closes.
func pack(batch []*session) (what content, fds []int, err error) {
	what, oldest := content{What: "connections"}, batch[0].stood
	list := make([]packed, len(batch))
	for i, s := range batch {
		list[i] = packed{s.cookie, s.state, len(s.In), len(s.Out)}
		list[i].State.In, list[i].State.Out = nil, nil
		if s.stood.Before(oldest) {
			oldest = s.stood
		}
	}
	what.Stood = uptime() - time.Since(oldest)
	head, err := json.Marshal(list)
	if err != nil {
		return what, nil, fmt.Errorf("%w: %w", errUnfit, err)
	}
	text, size := [][]byte{head, {'\n'}}, len(head)+1 // the first newline, as JSON has none
	for _, s := range batch {
		text, size = append(text, s.In, s.Out), size+s.bytes()
	}
	if size > maxBytes {
		return what, nil, fmt.Errorf("%w: %d bytes", errUnfit, size)
	}
	memfd, err := newMemfd()
	if err != nil {
		return what, nil, err
	}
	n, err := unix.Writev(memfd, text) // at most 506 pieces, and IOV_MAX is 1024
	if err == nil && n < size {        // RLIMIT_FSIZE counts for a memfd too
		err = io.ErrShortWrite
	}
	if err == nil {
		_, err = unix.FcntlInt(uintptr(memfd), unix.F_ADD_SEALS, seals)
	}
	if err != nil {
		unix.Close(memfd)
		return what, nil, fmt.Errorf("write and seal a memfd of %d bytes: %w", size, err)
	}
	fds = []int{memfd}
	for _, s := range batch {
		fds = append(fds, s.fd) // nobody closes it, as the session stands still
	}
	return what, fds, nil
}

// uptime is a clock that all processes of a machine share.
func uptime() time.Duration {
	var now unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // cannot fail: clock_gettime(2)
	return time.Duration(now.Nano())
}

// newMemfd makes a file in memory: memfd_create(2). It is not to be executed, which Linux since 6.3
// wants to be told, and may insist on (vm.memfd_noexec).
func newMemfd() (int, error) {
	flags := unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate("sessions", flags|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // Linux before 6.3
		fd, err = unix.MemfdCreate("sessions", flags)
	}
	return fd, os.NewSyscallError("memfd_create", err)
}

// unpacker makes sessions of batches.
type unpacker struct {
	text []byte // used again for each: what is garbage soon should not pile up
}

// unpack makes sessions of an offer's descriptors, which it owns, if they are what they should be.
func (u *unpacker) unpack(fds []int) (batch []*session, err error) {
	if len(fds) == 0 {
		return nil, errors.New("a batch without a memfd")
	}
	list, rest, err := u.read(fds[0])
	unix.Close(fds[0])
	fds = fds[1:]
	if err == nil && len(list) != len(fds) {
		err = fmt.Errorf("it speaks of %d sockets, and %d came", len(list), len(fds))
	}
	for i := 0; i < len(list) && err == nil; i++ {
		p := list[i]
		if err = verifyConnection(fds[i], p.Cookie); err != nil {
			break
		}
		if p.In < 0 || p.In > len(rest) || p.Out < 0 || p.Out > len(rest)-p.In {
			err = fmt.Errorf("it ends within connection %d", i)
			break
		}
		s := &session{state: p.State, fd: fds[i], cookie: p.Cookie}
		s.In, s.Out = clone(rest[:p.In]), clone(rest[p.In:][:p.Out])
		batch, rest = append(batch, s), rest[p.In+p.Out:]
	}
	if err != nil {
		closeFDs(fds)
		return nil, fmt.Errorf("batch: %w", err)
	}
	return batch, nil
}

// read reads a sealed memfd: what it says of the sessions, and the bytes that follow.
func (u *unpacker) read(fd int) (list []packed, rest []byte, err error) {
	has, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("fcntl F_GET_SEALS", err)
	}
	if has&seals != seals {
		return nil, nil, fmt.Errorf("its sender could still change it: its seals are %#x, not %#x", has, seals)
	}
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return nil, nil, os.NewSyscallError("fstat", err)
	}
	if stat.Size > maxBytes {
		return nil, nil, fmt.Errorf("%d bytes, and at most %d are read", stat.Size, maxBytes)
	}
	if int(stat.Size) > cap(u.text) {
		u.text = make([]byte, stat.Size)
	}
	u.text = u.text[:stat.Size]
	n, err := unix.Pread(fd, u.text, 0)
	if err == nil && n < len(u.text) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, nil, os.NewSyscallError("pread", err)
	}
	head, rest, _ := bytes.Cut(u.text, []byte("\n"))
	return list, rest, json.Unmarshal(head, &list)
}

// clone copies bytes into a buffer of a session, or into a longer one.
func clone(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	return append(newBuffer(), b...)
}

// verifyConnection checks that fd, which stays the caller's, is the TCP connection with that cookie.
// One that its client has reset meanwhile is not connected any more: that is no reason to refuse all
// the others, but for its session to find out.
func verifyConnection(fd int, cookie uint64) error {
	protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil || protocol != unix.IPPROTO_TCP && protocol != unix.IPPROTO_MPTCP { // Go listens for both
		return fmt.Errorf("not a TCP socket: SO_PROTOCOL is %d (%v)", protocol, err)
	}
	if listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || listens != 0 {
		return fmt.Errorf("not a connection: SO_ACCEPTCONN is %d (%v)", listens, err)
	}
	got, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil || got != cookie {
		return fmt.Errorf("another socket: its cookie is %d, the batch says %d (%v)", got, cookie, err)
	}
	return nil
}
