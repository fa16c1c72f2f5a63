//go:build linux

package main

import (
	"bufio"
	"bytes"
	"io"
	"math/rand"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func testMemory(t *testing.T) memory {
	t.Helper()
	m, err := createMemory()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(m.bytes); unix.Close(m.fd) })
	return m
}

func pages(t *testing.T, m memory) int64 {
	t.Helper()
	var stat unix.Stat_t
	if err := unix.Fstat(m.fd, &stat); err != nil {
		t.Fatal(err)
	}
	return stat.Blocks * 512 / int64(unix.Getpagesize())
}

// TestRing: bytes that go through a ring come out as they went in, line by line, wherever it wraps.
func TestRing(t *testing.T) {
	r, source := ring(make([]byte, ringSize)), rand.New(rand.NewSource(1))
	var in, out []byte
	var written, decided, read uint64
	for len(out) < 50*ringSize {
		free := r.piece(read, written+ringSize)
		if len(free) > 0 {
			n := 1 + source.Intn(len(free))
			for i := range free[:n] {
				free[i] = byte(source.Intn(300)) // a newline now and then
			}
			in = append(in, free[:n]...)
			read += uint64(n)
		}
		for decided < read {
			line, whole := r.line(decided, read)
			if want, _, found := bytes.Cut(in[decided:], []byte("\n")); found != whole || !bytes.Equal(bytes.TrimSuffix(line, []byte("\n")), want) {
				t.Fatalf("at %d: a line of %d bytes, whole: %v; want %d, %v", decided, len(line), whole, len(want), found)
			}
			if !whole && len(line) < ringSize {
				break
			}
			decided += uint64(len(line))
		}
		for written < decided {
			piece := r.piece(written, decided)
			out = append(out, piece...)
			written += uint64(len(piece))
		}
	}
	if !bytes.Equal(in[:len(out)], out) {
		t.Error("other bytes came out than went in")
	}
}

// TestMemory: it cannot be made shorter, costs nothing where nothing is, and gives back what it had.
func TestMemory(t *testing.T) {
	m := testMemory(t)
	if err := unix.Ftruncate(m.fd, 0); err != unix.EPERM {
		t.Errorf("made shorter: %v, want EPERM", err)
	}
	if n := pages(t, m); n != 0 {
		t.Errorf("%d pages at first", n)
	}
	for slot := 1; slot < 4; slot++ {
		copy(m.ring(slot), bytes.Repeat([]byte("x"), ringSize))
	}
	m.word(slots - 1).Store(1)
	before := pages(t, m)
	m.release(2)
	if n := before - pages(t, m); n != int64(ringSize/unix.Getpagesize()) {
		t.Errorf("%d pages were given back", n)
	}
	for slot, want := range map[int]byte{1: 'x', 2: 0, 3: 'x'} {
		if r := m.ring(slot); r[0] != want || r[ringSize-1] != want {
			t.Errorf("slot %d holds %q and %q, want %q", slot, r[0], r[ringSize-1], want)
		}
	}
	if m.word(slots-1).Load() != 1 {
		t.Error("the last word is lost")
	}
	fd, err := unix.Dup(m.fd)
	if err != nil {
		t.Fatal(err)
	}
	again, err := mapMemory(fd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(again.bytes); unix.Close(fd) })
	if again.word(slots-1).Load() != 1 || again.ring(3)[0] != 'x' {
		t.Error("mapped twice, and not the same")
	}
}

// TestForeignMemory: memory that could kill us is refused.
func TestForeignMemory(t *testing.T) {
	for name, c := range map[string]struct{ size, seals int }{
		"unsealed": {memSize, 0}, "no seal on the seals": {memSize, unix.F_SEAL_GROW | unix.F_SEAL_SHRINK},
		"can be shorter": {memSize, unix.F_SEAL_GROW | unix.F_SEAL_SEAL}, "short": {memSize - 1, seals}, "empty": {0, seals},
	} {
		fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := unix.Ftruncate(fd, int64(c.size)); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, c.seals); err != nil {
			t.Fatal(err)
		}
		if _, err := mapMemory(fd); err == nil {
			t.Errorf("%s: mapped", name)
		}
	}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer closeFDs(p[:])
	if _, err := mapMemory(p[0]); err == nil {
		t.Error("a pipe: mapped")
	}
}

// TestIdle: a silent client's pages are given back, and not those of one that is in the middle of a line.
func TestIdle(t *testing.T) {
	p := connected(t, "127.0.0.1:0", 1)
	fd, err := unix.Dup(p.fd)
	if err != nil {
		t.Fatal(err)
	}
	unix.SetNonblock(fd, true)
	c := os.NewFile(uintptr(fd), "tcp")
	s := &server{idle: time.Millisecond}
	s.memory = testMemory(t)
	ended := make(chan error)
	go func() { ended <- s.echo(c, 7, progress{open: true}) }()
	in := bufio.NewReader(p.client)
	for range 3 {
		p.send([]byte("hel"))
		time.Sleep(20 * time.Millisecond) // longer than idle: on a slow machine this proves less
		p.send([]byte("lo\n"))
		if line, err := in.ReadString('\n'); line != "hello\n" {
			t.Fatalf("got %q and %v", line, err)
		}
		for end := time.Now().Add(30 * time.Second); pages(t, s.memory) != 1; time.Sleep(time.Millisecond) { // that of the word
			if time.Now().After(end) {
				t.Fatalf("%d pages, and the client is silent", pages(t, s.memory))
			}
		}
	}
	p.client.Close()
	if err := <-ended; err != io.EOF {
		t.Error(err)
	}
	c.Close()
}

// TestBlame: a connection is given up when servers have died three times of the same line, and not when
// there was another line in between, or it was not being worked on.
func TestBlame(t *testing.T) {
	const at5, at9 = 5*position | busy, 9*position | busy
	for name, c := range map[string]struct {
		words   []uint64 // at the deaths
		givenUp bool
	}{
		"three times":         {[]uint64{at5, at5, at5}, true},
		"from the beginning":  {[]uint64{busy, busy, busy}, true},
		"inside a line":       {[]uint64{at5 | inside, at5 | inside | strike, at5 | inside}, true},
		"two times":           {[]uint64{at5, at5}, false},
		"another in between":  {[]uint64{at5, at5, at9, at5, at5}, false},
		"not its turn":        {[]uint64{at5, at5, 5 * position, 5*position | strike}, false},
		"not, and then again": {[]uint64{at5, at5, 5 * position, at5}, true},
		"never":               {[]uint64{0, 5 * position, 5*position | inside}, false},
	} {
		t.Run(name, func(t *testing.T) { // which unmaps the memory: a process of 32 bits has room for two
			p := connected(t, "127.0.0.1:0", 1)
			fd, err := unix.Dup(p.fd)
			if err != nil {
				t.Fatal(err)
			}
			k := &keeper{free: make(chan int, slots)}
			k.memory, k.held = testMemory(t), map[int]int{7: fd}
			for _, word := range c.words {
				last := k.memory.word(7).Load()
				if last/position == word/position { // it has kept its strikes
					word |= last & (3 * strike)
				}
				k.memory.word(7).Store(word)
				k.blame()
				now := k.memory.word(7).Load()
				if _, held := k.held[7]; held && word&busy != 0 && now != word-busy+strike && word&(3*strike) != 3*strike {
					t.Errorf("the word %#x is now %#x", word, now)
				}
			}
			if _, held := k.held[7]; held == c.givenUp {
				t.Errorf("given up: %v", !held)
			} else if held {
				unix.Close(fd)
			} else if n, err := p.client.Read(make([]byte, 1)); n != 0 || err == nil {
				t.Errorf("the client reads %d, %v", n, err)
			}
		})
	}
}

// TestAdd: what another process says is checked before it is used.
func TestAdd(t *testing.T) {
	tcp := func() int {
		fd, err := unix.Dup(connected(t, "127.0.0.1:0", 1).fd)
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	unixSocket := func() int {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fds[1]) })
		return fds[0]
	}
	for name, c := range map[string]struct {
		m   message
		fds []int
	}{
		"the server's own slot": {message{Type: "connections", Slots: []int{0}}, []int{tcp()}},
		"a negative one":        {message{Type: "connections", Slots: []int{-1}}, []int{tcp()}},
		"one too high":          {message{Type: "connections", Slots: []int{slots}}, []int{tcp()}},
		"one in use":            {message{Type: "connections", Slots: []int{9}}, []int{tcp()}},
		"twice the same":        {message{Type: "connections", Slots: []int{3, 3}}, []int{tcp(), tcp()}},
		"no descriptor":         {message{Type: "connections", Slots: []int{3}}, nil},
		"one too many":          {message{Type: "connections", Slots: []int{3}}, []int{tcp(), tcp()}},
		"no TCP socket":         {message{Type: "connections", Slots: []int{3}}, []int{unixSocket()}},
		"all, with some more":   {message{Type: "all"}, []int{tcp(), tcp()}},
		"another word":          {message{Type: "done", Slots: []int{3}}, []int{tcp()}},
	} {
		e := estate{held: map[int]int{9: 1 << 20}}
		if err := e.add(c.m, c.fds); err == nil {
			t.Errorf("%s: added", name)
		}
		closeFDs(c.fds)
	}
}

// TestBegin: a connection finds zeros in its slot, whatever was there. And if one after the other has a
// slot, and each look finds a first line that is being worked on, that is no line that does not end.
func TestBegin(t *testing.T) {
	k := &keeper{estate: estate{memory: testMemory(t), held: map[int]int{}}}
	const slot = slots - 1
	word, ring, last := k.memory.word(slot), k.memory.ring(slot), make([]uint64, slots)
	for range looks + 1 {
		for i := range ring {
			ring[i] = 0xff
		}
		k.begin(slot, -1)
		if got := word.Load(); got != 0 || !bytes.Equal(ring, make([]byte, ringSize)) {
			t.Fatalf("the last connection's word is %#x, and of its bytes there are %d", got, bytes.Count(ring, []byte{0xff}))
		}
		word.Store(busy)
		k.look(last)
		if got := k.same[slot].Load(); got > 1 {
			t.Fatalf("looks that have shown this connection's line: %d", got)
		}
	}
	for range looks {
		k.look(last)
	}
	if got := k.same[slot].Load(); got < looks {
		t.Errorf("a line that does not end has been seen %d times", got)
	}
}
