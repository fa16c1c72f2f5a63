//go:build linux

package main

// What clients share is in no session's state. While they move, some are here and some are with the other
// process, and both must read the same. So it is in a file that both have open, and a session's state says
// only how far it has read. Then nobody who moves misses anything, and nothing is queued for who reads slowly.
// (Between machines, a message broker's log does the same.)
//
// The file may be removed, and made shorter, at any time. Then there is another room, and who has read the one before
// is told to come again. So it is not mapped: who makes a mapped file shorter ends all who look at it (SIGBUS).

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"github.com/gobwas/ws"
	"golang.org/x/sys/unix"
)

// room is a file with frames, one after the other, as they are sent. It begins with a head: which room it is, and
// where the last frame ends. Who is killed while writing a frame leaves that as it was.
type room struct {
	path string
	fd   int

	writing sync.Mutex // flock(2) keeps out the other process, and this the others here

	mu   sync.Mutex
	told sync.Once         // that there is another room
	here map[*session]bool // who reads; some may have left
	seen reader            // these know that there is something up to here
}

var chatRoom room

// roomBegins is where the first frame is, behind the head, and maxBehind how far a reader may be behind the end: what
// is twice as old is given back to the file system.
const roomBegins, maxBehind = 24, 16 << 20

// reader is how far a client has read: all that this session has of the room, and so all that travels.
type reader struct {
	Room uint64 `json:"room"` // which one
	At   int64  `json:"at"`   // the position of what comes next
	Left int64  `json:"left"` // so much of the frame that has begun
}

var (
	errBehind = errors.New("too far behind")
	errOther  = errors.New("not the room, or not all of it")
)

// open opens the file, or makes it, and looks into it from then on. It may be called again.
func (r *room) open(path string) (err error) {
	if r.here != nil {
		return nil
	}
	if r.fd, err = unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600); err != nil {
		return fmt.Errorf("open %s, which has the chat: %w: choose another path with -control", path, err)
	}
	r.path, r.here = path, map[*session]bool{}
	if _, err := r.end(); err != nil {
		return err
	}
	go func() {
		for range time.Tick(tick) { // what is said here is heard at once
			r.look()
		}
	}()
	return nil
}

// clear empties it, when a server begins: nobody is left who has read what an earlier one has had there.
func (r *room) clear() error { return os.NewSyscallError("ftruncate", unix.Ftruncate(r.fd, 0)) }

// head reads the head: where the room ends, as what a reader is who comes now. The error is errOther if the file is
// empty, or shorter than that.
func (r *room) head() (end reader, err error) {
	var b [roomBegins]byte
	var head [3]uint64
	var stat unix.Stat_t
	n, err := unix.Pread(r.fd, b[:], 0)
	if err == nil {
		err = unix.Fstat(r.fd, &stat)
	}
	_, _ = binary.Decode(b[:], binary.NativeEndian, &head) // there is enough
	end = reader{Room: head[0], At: int64(head[1])}
	switch {
	case err != nil:
		return end, fmt.Errorf("read %s: %w", r.path, err)
	case n == 0:
		return end, errOther
	case n < len(b) || head[0]^head[1] != head[2] || end.At < roomBegins:
		return end, fmt.Errorf("%s is no chat: remove it, and restart; or choose another path with -control", r.path)
	case end.At > stat.Size:
		return end, errOther
	}
	return end, nil
}

// end returns where the room ends. Who reads the head while it is written may see a part of that, which is no head:
// it looks again when nobody writes.
func (r *room) end() (end reader, err error) {
	if end, err = r.head(); err != nil {
		err = r.alone(func(now reader) error { end = now; return nil })
	}
	return end, err
}

// setEnd writes the head. It is so short that who is killed has written it, or has not. Its last number is made of the
// others.
func (r *room) setEnd(to reader) error {
	b, _ := binary.Append(nil, binary.NativeEndian, [3]uint64{to.Room, uint64(to.At), to.Room ^ uint64(to.At)}) // fits
	_, err := unix.Pwrite(r.fd, b, 0)
	return os.NewSyscallError("pwrite", err)
}

// alone does something while nobody else writes, here or in the other process. An empty file becomes a room
// before that, and so does one that somebody has made shorter. The kernel takes the lock from who is killed.
func (r *room) alone(do func(end reader) error) error {
	r.writing.Lock()
	defer r.writing.Unlock()
	late := time.AfterFunc(time.Second, func() { log.Printf("%s is locked: is the other process stopped?", r.path) })
	defer late.Stop()
	if err := unix.Flock(r.fd, unix.LOCK_EX); err != nil {
		return os.NewSyscallError("flock", err)
	}
	defer unix.Flock(r.fd, unix.LOCK_UN)
	end, err := r.head()
	if errors.Is(err, errOther) {
		end = reader{Room: rand.Uint64(), At: roomBegins}
		if err = r.clear(); err == nil {
			err = r.setEnd(end)
		}
	}
	if err == nil {
		err = do(end)
	}
	return err
}

// enter is called at each step of a session: who goes on after a standstill is here again.
func (r *room) enter(s *session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.here[s] = true
}

// look forgets who has left, and wakes all others if somebody has said something: here, or in the other process.
func (r *room) look() {
	r.mu.Lock()
	defer r.mu.Unlock()
	end, err := r.end()
	news := err != nil || end != r.seen
	r.seen = end
	for s := range r.here {
		if s.gone() || news && s.wake() != nil {
			delete(r.here, s)
		}
	}
}

// post adds a frame.
func (r *room) post(f ws.Frame) error {
	frame, err := ws.CompileFrame(f)
	if err != nil {
		return err
	}
	err = r.alone(func(end reader) error {
		if n, err := unix.Pwrite(r.fd, frame, end.At); n < len(frame) {
			return fmt.Errorf("pwrite wrote %d: %w", n, cmp.Or(err, io.ErrShortWrite))
		}
		if old := end.At - 2*maxBehind; old > roomBegins { // fails where a file can have no holes
			unix.Fallocate(r.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, roomBegins, old-roomBegins)
		}
		end.At += int64(len(frame))
		return r.setEnd(end)
	})
	if err != nil {
		return fmt.Errorf("a message of %d bytes is lost: %w", len(frame), err)
	}
	r.look()
	return nil
}

// read returns what comes next for a client: half a session's buffer at most, and not beyond the end of a frame,
// behind which something else may have to be said. It returns nothing if nobody has said anything, and an error if
// what comes next is not there, or may soon be given back to the file system.
func (r *room) read(from *reader) ([]byte, error) {
	end, err := r.end()
	if err != nil {
		return nil, err
	}
	behind := end.At - from.At
	switch {
	case end.Room != from.Room:
		r.told.Do(func() {
			log.Printf("%s is another one, or is shorter: the chat's clients are told to come again", r.path)
		})
		return nil, errOther
	case behind > maxBehind && from.Left == 0 || behind > maxBehind*3/2:
		return nil, errBehind
	}
	some := make([]byte, min(bufferSize/2, max(0, behind)))
	if n, err := unix.Pread(r.fd, some, from.At); err != nil {
		return nil, os.NewSyscallError("pread", err)
	} else if n < len(some) {
		return nil, errOther
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
