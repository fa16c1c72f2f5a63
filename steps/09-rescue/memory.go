//go:build linux

package main

// What a server leaves when it dies: memory that it shares with the keeper and with the next server. To
// copy: this file, with golang.org/x/sys/unix. It promises that nobody who has this memory can make
// others die of it: it cannot be made shorter, which would be their SIGBUS (memfd_create(2)). The
// descriptors live as long as the process.

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	slots    = 1 << 14                  // one for each connection. The first is the server's own: for its heartbeat
	ringSize = 64 << 10                 // bytes of a connection that have been read and not yet answered
	ringsAt  = slots * 8                // the words come first, so that those of idle connections share pages
	memSize  = ringsAt + slots*ringSize // most of it holes, which cost nothing
	seals    = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
)

// A connection's word says what the server has made of it. All of it changes in one store. Its upper
// bits are a position: the bytes before it have been decided about. That is where the answer goes on after
// a death, and the next line begins.
const (
	busy     = 1 << 0 // the line at that position is being worked on
	inside   = 1 << 1 // the position is inside a line, whose beginning has been answered
	strike   = 1 << 2 // a server has died of that line, perhaps: two bits, so up to three strikes
	position = 1 << 4 // the upper bits
)

// memory is a memfd, mapped. All of it is 0 at first.
type memory struct {
	fd    int
	bytes []byte
}

func createMemory() (memory, error) {
	// Linux 6.3 and later want to be told that it is not to be executed. Older ones do not know the flag.
	fd, err := unix.MemfdCreate("rescue", unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate("rescue", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return memory{}, os.NewSyscallError("memfd_create", err)
	}
	if err := unix.Ftruncate(fd, memSize); err != nil {
		return memory{}, fmt.Errorf("%d bytes of shared memory: ftruncate: %w: is there a limit on file sizes? (ulimit -f)", memSize, err)
	}
	unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals) // fails if it cannot be sealed: mapMemory looks
	return mapMemory(fd)
}

// mapMemory maps memory, perhaps of another process, if it is as createMemory makes it.
func mapMemory(fd int) (memory, error) {
	var stat unix.Stat_t
	got, err1 := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	err2 := unix.Fstat(fd, &stat)
	if err := errors.Join(err1, err2); err != nil {
		return memory{}, fmt.Errorf("descriptor %d is no shared memory: F_GET_SEALS: %w", fd, err)
	}
	if got&seals != seals || stat.Size != memSize {
		return memory{}, fmt.Errorf("shared memory with seals %#x and %d bytes, not %#x and %d", got, stat.Size, seals, memSize)
	}
	all, err := unix.Mmap(fd, 0, memSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return memory{}, fmt.Errorf("mmap of %d bytes: %w: is there a limit on address space? (ulimit -v)", memSize, err)
	}
	return memory{fd, all}, nil
}

// word returns a slot's word. The mapping begins at a page, so the word is aligned.
func (m memory) word(slot int) *atomic.Uint64 {
	return (*atomic.Uint64)(unsafe.Pointer(&m.bytes[slot*8]))
}

func (m memory) ring(slot int) ring {
	return m.bytes[ringsAt+slot*ringSize:][:ringSize:ringSize]
}

// release gives a ring's pages back to the kernel, and leaves zeros: fallocate(2). If it cannot, they
// are only not given back.
func (m memory) release(slot int) {
	unix.Fallocate(m.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(ringsAt+slot*ringSize), ringSize)
}

// ring holds the last bytes that have been read from a connection: the byte at position p, counted from
// the connection's beginning, is at p modulo the ring's size. So where it is need not be written down:
// the kernel's counters are the ring's two ends.
type ring []byte

// piece returns the bytes from one position to another, or as many of them as lie side by side.
func (r ring) piece(from, to uint64) []byte {
	size := uint64(len(r))
	at := from % size
	return r[at:min(at+to-from, size)]
}

// line returns the line that begins at a position, with its newline, or if it is not whole what there is
// of it.
func (r ring) line(from, to uint64) (line []byte, whole bool) {
	line = r.piece(from, to)
	if end := bytes.IndexByte(line, '\n'); end >= 0 {
		return line[:end+1], true
	}
	rest := r.piece(from+uint64(len(line)), to)
	end := bytes.IndexByte(rest, '\n')
	if end >= 0 {
		rest = rest[:end+1]
	}
	return append(line[:len(line):len(line)], rest...), end >= 0
}
