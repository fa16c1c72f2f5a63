//go:build linux

package main

// What clients share is in no session's state. While they move, some are here and some are with the other
// process, and both must read the same. So it is in a file that both have open, and a session's state says
// only how far it has read. Then nobody who moves misses anything, and who reads slowly costs no memory.
// (Between machines, a message broker's log does the same.)

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gobwas/ws"
	"golang.org/x/sys/unix"
)

// room is a file: in its first eight bytes the position behind the last frame, and from there on frames, as
// they are sent. A process that is killed in the middle of one leaves that position as it was.
type room struct {
	fd  int
	mu  sync.Mutex
	end atomic.Int64 // as far as this process knows
}

var chatRoom room

// roomBegins is the position of the first frame, and maxBehind how far a reader may be behind: what is older
// is given back to the file system.
const roomBegins, maxBehind = 8, 16 << 20

// open opens the file, or makes it.
func (r *room) open(path string) (err error) {
	if r.fd, err = unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600); err != nil {
		return fmt.Errorf("open %s, which has the chat: %w", path, err)
	}
	r.look()
	return nil
}

// look finds out where the room ends by now, and reports whether somebody has said something: here, or in
// the other process.
func (r *room) look() bool {
	text := make([]byte, roomBegins)
	unix.Pread(r.fd, text, 0) // an empty file is one without frames
	end := max(roomBegins, int64(binary.NativeEndian.Uint64(text)))
	return r.end.Swap(end) != end
}

// post adds a frame, and wakes all who are here. The lock is for the other process, and goes with this one if it is killed.
func (r *room) post(f ws.Frame) error {
	frame, err := ws.CompileFrame(f)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := unix.Flock(r.fd, unix.LOCK_EX); err != nil {
		return os.NewSyscallError("flock", err)
	}
	defer unix.Flock(r.fd, unix.LOCK_UN)
	r.look()
	end := r.end.Load()
	n, err := unix.Pwrite(r.fd, frame, end)
	if err == nil && n == len(frame) {
		_, err = unix.Pwrite(r.fd, binary.NativeEndian.AppendUint64(nil, uint64(end)+uint64(n)), 0)
	}
	if err != nil || n < len(frame) {
		return fmt.Errorf("a message of %d bytes is lost, pwrite wrote %d: %w", len(frame), n, err)
	}
	if old := end - 2*maxBehind; old > 4096 { // fails where a file can have no holes
		unix.Fallocate(r.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 4096, old-4096)
	}
	r.look()
	chatters.wake()
	return nil
}

// reader is how far a client has read.
type reader struct {
	At   int64 `json:"at"`   // the position of what comes next
	Left int64 `json:"left"` // so much of the frame that has begun
}

// join returns where a client begins: with what is said from now on.
func (r *room) join() reader { return reader{At: r.end.Load()} }

// read returns what comes next for a client, as much as a session's buffer holds; nothing, if nobody has said anything.
func (r *room) read(from *reader) ([]byte, error) {
	end := r.end.Load()
	if end-from.At > maxBehind {
		return nil, errors.New("too far behind")
	}
	some := make([]byte, min(bufferSize/2, max(0, end-from.At)))
	if n, err := unix.Pread(r.fd, some, from.At); n < len(some) {
		return nil, fmt.Errorf("read the room: %d of %d bytes, %w", n, len(some), err)
	}
	if from.Left == 0 && len(some) > 0 {
		h, err := ws.ReadHeader(bytes.NewReader(some))
		if err != nil {
			return nil, err
		}
		from.Left = int64(ws.HeaderSize(h)) + h.Length
	}
	some = some[:min(from.Left, int64(len(some)))]
	from.At, from.Left = from.At+int64(len(some)), from.Left-int64(len(some))
	return some, nil
}

// tickAlways wakes those who have something to say by themselves.
func tickAlways() {
	for range time.Tick(tick) {
		listeners.wake()
		if chatRoom.look() { // the other process has
			chatters.wake()
		}
	}
}
