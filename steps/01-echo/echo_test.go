//go:build linux

package main

import (
	"bytes"
	"fmt"
	"hash/maphash"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func startEcho(t *testing.T) (server *process, addr string) {
	t.Helper()
	p := start(t, "-addr", "127.0.0.1:0")
	return p, p.addr()
}

func TestEveryByteComesBack(t *testing.T) {
	server, addr := startEcho(t)
	c := dial(t, addr)
	var all strings.Builder
	for b := range 256 {
		all.WriteByte(byte(b))
	}
	text := "hello\n\n\xff\xfe not UTF-8 \r\n" + all.String() + strings.Repeat("x", 3*bufferSize) + "\nno newline at the end"
	c.send(text)
	c.finish(text)
	server.printed(`^"hello\\n"$`)
	server.printed(`^"\\n"$`)
	server.printed(`^"\\xff\\xfe not UTF-8 \\r\\n"$`)
	server.printed(`^"x{80}"\.\.\. \(16384 bytes\)$`)
	server.printed(`^"no newline at the end"$`)
	server.logged(`closing descriptor \d+: after the client's end-of-file$`)
}

// A line of 100 MiB must not cost 100 MiB.
func TestEndlessLineCostsNoMemory(t *testing.T) {
	size := int64(100 << 20)
	if testing.Short() {
		size = 20 << 20
	}
	server, addr := startEcho(t)
	c := dial(t, addr)
	before := peakMemory(t, server)

	var sent, got maphash.Hash
	got.SetSeed(sent.Seed())
	failed := make(chan error, 1)
	go func() {
		random := io.LimitReader(rand.NewChaCha8([32]byte{1}), size)
		_, err := io.Copy(io.MultiWriter(c, &sent), noNewlines{random})
		failed <- errorOr(err, c.CloseWrite())
	}()
	n, err := io.Copy(&got, c)
	if err := errorOr(err, <-failed); err != nil {
		t.Fatal(err)
	}
	if n != size || sent.Sum64() != got.Sum64() {
		t.Errorf("%d of %d bytes came back, or others", n, size)
	}
	if grown := peakMemory(t, server) - before; grown > 16<<20 {
		t.Errorf("a line of %d bytes cost %d bytes of memory", size, grown)
	}
}

// noNewlines is a reader whose newlines are something else.
type noNewlines struct{ io.Reader }

func (r noNewlines) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b)
	copy(b, bytes.ReplaceAll(b[:n], []byte("\n"), []byte("N")))
	return n, err
}

func errorOr(err, other error) error {
	if err != nil {
		return err
	}
	return other
}

// peakMemory is the most that the process has ever had in memory, in bytes.
func peakMemory(t *testing.T, p *process) int64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid()))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	var kib int64
	if _, err := fmt.Sscanf(rest, "%d kB", &kib); err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

// What the server says of a connection is what the kernel says of it.
func TestIdentityIsTheKernels(t *testing.T) {
	server, addr := startEcho(t)
	c := dial(t, addr)
	match := server.logged(`client (\S+) -> (\S+) is descriptor (\d+), inode (\d+), cookie ([1-9]\d*)$`)
	if match[1] != c.LocalAddr().String() || match[2] != addr {
		t.Errorf("the server says %s -> %s, the client is %v -> %v", match[1], match[2], c.LocalAddr(), addr)
	}
	if link := server.descriptors()[match[3]]; link != "socket:["+match[4]+"]" {
		t.Errorf("descriptor %s is %s, the server says inode %s", match[3], link, match[4])
	}
	listener := server.logged(`descriptor (\d+), inode (\d+), cookie \d+, listening`)
	if link := server.descriptors()[listener[1]]; link != "socket:["+listener[2]+"]" {
		t.Errorf("descriptor %s is %s, the server says inode %s", listener[1], link, listener[2])
	}
}

func TestClientThatNeverReadsBlocksNobody(t *testing.T) {
	_, addr := startEcho(t)
	deaf := dial(t, addr)
	// Send until nothing fits any more: both directions are full, the server hangs in Write.
	if err := deaf.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	for line := bytes.Repeat([]byte("deaf\n"), 2000); ; {
		if _, err := deaf.Write(line); err != nil {
			break
		}
	}
	for i := range 3 {
		c := dial(t, addr)
		c.echoed(fmt.Sprint("still here ", i))
		c.finish("")
	}
}

// Descriptors run out while clients knock: one line, no spinning, and everybody is served in
// the end.
func TestOutOfDescriptors(t *testing.T) {
	server, addr := startEcho(t)
	first := dial(t, addr)
	first.echoed("hello")
	limit := uint64(len(server.descriptors()) + 2)
	if err := unix.Prlimit(server.pid(), unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: limit, Max: limit}, nil); err != nil {
		t.Fatal(err)
	}
	clients := []*client{first}
	for range 10 {
		clients = append(clients, dial(t, addr))
	}
	server.logged(`accept4: too many open files: clients wait`)

	before := cpuTime(t, server)
	time.Sleep(time.Second) // not to be lucky: the window in which it must not spin
	if spent := cpuTime(t, server) - before; spent > 300*time.Millisecond {
		t.Errorf("waiting for a descriptor cost %v of a second", spent)
	}
	first.echoed("still served")
	for _, c := range clients {
		c.echoed("my turn")
		c.finish("")
	}
	// They ran out again with each of them but the last few.
	if said := server.err.all(`too many open files`); len(said) != 1 {
		t.Errorf("said %d times that descriptors ran out", len(said))
	}
}

// cpuTime is what the process has used of the processors, in user and kernel mode.
func cpuTime(t *testing.T, p *process) time.Duration {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid()))
	if err != nil {
		t.Fatal(err)
	}
	// proc_pid_stat(5): utime and stime are fields 14 and 15; the name, in brackets, is 2.
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	var ticks int
	for _, field := range fields[11:13] {
		n, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / 100) // USER_HZ is 100
}

func TestPortInUse(t *testing.T) {
	_, addr := startEcho(t)
	second := start(t, "-addr", addr)
	if status := second.status(); status != 1 {
		t.Errorf("exit status %d, want 1", status)
	}
	if said := second.err.all(``); len(said) != 1 {
		t.Errorf("%d lines, want one", len(said))
	}
	second.logged(`^echo\[\d+\]: listen tcp \S+: bind: address already in use: stop the process`)
}

func TestSignalsEndIt(t *testing.T) {
	for _, signal := range []unix.Signal{unix.SIGINT, unix.SIGTERM} {
		t.Run(signal.String(), func(t *testing.T) {
			server, addr := startEcho(t)
			c := dial(t, addr)
			c.echoed("hello")
			server.signal(signal)
			c.ended()
			if status := server.status(); status != 0 {
				t.Errorf("exit status %d, want 0", status)
			}
			if c, err := net.Dial("tcp", addr); err == nil {
				t.Error("somebody still listens", c.Close())
			}
		})
	}
}

func TestUsage(t *testing.T) {
	for _, wrong := range [][]string{{"-nonsense"}, {"stray"}} {
		p := start(t, wrong...)
		if status := p.status(); status != 2 {
			t.Errorf("%v: exit status %d, want 2", wrong, status)
		}
		if said := p.err.all(``); len(said) != 1 {
			t.Errorf("%v: %d lines, want one:\n%s", wrong, len(said), p.err)
		}
	}
	help := start(t, "-h")
	help.printed(`-addr host:port`)
	if status := help.status(); status != 0 {
		t.Errorf("-h: exit status %d, want 0", status)
	}
	bad := start(t, "-addr", "nonsense")
	bad.logged(`-addr nonsense: .*missing port`)
	if status := bad.status(); status != 1 {
		t.Errorf("bad address: exit status %d, want 1", status)
	}
}
