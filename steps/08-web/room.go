//go:build linux

package main

// What clients share is in no session's state. While they move, some are here and some are with the other
// process, and both must read the same. So it is in a file that both have open, and a session's state says
// only how far it has read. Then nobody who moves misses anything, and who reads slowly costs no memory.
// (Between machines, a message broker's log does the same.)

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/gobwas/ws"
	"golang.org/x/sys/unix"
)

// room is a file with frames, one after the other, as they are sent. Its first page is for one number, which all
// processes have mapped: where the last frame ends. Who is killed while writing one leaves that as it was.
type room struct {
	fd  int
	end *atomic.Int64

	mu   sync.Mutex
	here map[*session]bool // some may have left
	seen int64             // these know that there is something up to here
}

var chatRoom room

// roomBegins is where the first frame is, and maxBehind how far a reader may be behind the end: what is twice as
// old is given back to the file system.
const roomBegins, maxBehind = 4 << 10, 16 << 20

// open opens the file, or makes it, and looks into it from then on.
func (r *room) open(path string) (err error) {
	r.here = map[*session]bool{}
	if r.fd, err = unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600); err != nil {
		return fmt.Errorf("open %s, which has the chat: %w", path, err)
	}
	var page []byte
	if _, err = unix.Pwrite(r.fd, []byte{0}, roomBegins-1); err == nil { // so that there is a page
		page, err = unix.Mmap(r.fd, 0, roomBegins, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	if err != nil {
		return fmt.Errorf("map %s: %w", path, err)
	}
	r.end = (*atomic.Int64)(unsafe.Pointer(&page[0])) // mmap(2): a page begins where any number may
	r.end.CompareAndSwap(0, roomBegins)
	go func() {
		for range time.Tick(tick) { // what is said here is heard at once
			r.mu.Lock()
			r.look()
			r.mu.Unlock()
		}
	}()
	return nil
}

// enter is called at each step of a session: who goes on after a standstill is here again.
func (r *room) enter(s *session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.here[s] = true
}

// look wakes all who are here if somebody has said something: here, or in the other process. The caller holds mu.
func (r *room) look() {
	end := r.end.Load()
	if end == r.seen {
		return
	}
	r.seen = end
	for s := range r.here {
		if s.wake() != nil {
			delete(r.here, s)
		}
	}
}

// post adds a frame. The lock keeps the other process out, and goes with this one if it is killed.
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
	end := r.end.Load()
	if n, err := unix.Pwrite(r.fd, frame, end); n < len(frame) {
		return fmt.Errorf("a message of %d bytes is lost, pwrite wrote %d: %w", len(frame), n, err)
	}
	r.end.Store(end + int64(len(frame)))
	if old := end - 2*maxBehind; old > roomBegins { // fails where a file can have no holes
		unix.Fallocate(r.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, roomBegins, old-roomBegins)
	}
	r.look()
	return nil
}

// reader is how far a client has read: all that this session has of the room, and so all that travels.
type reader struct {
	At   int64 `json:"at"`   // the position of what comes next
	Left int64 `json:"left"` // so much of the frame that has begun
}

// read returns what comes next for a client: half a session's buffer at most, and not beyond the end of a frame,
// behind which something else may have to be said. It returns nothing if nobody has said anything, and an error if
// what comes next is, or may soon be, given back to the file system.
func (r *room) read(from *reader) ([]byte, error) {
	end := r.end.Load()
	if behind := end - from.At; behind > maxBehind && from.Left == 0 || behind > maxBehind*3/2 {
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
