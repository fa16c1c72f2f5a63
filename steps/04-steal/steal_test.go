//go:build linux

package main

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// The stories: what clients see when their connections move, told by real processes.

func startOld(t testing.TB, path string, more ...string) *process {
	t.Helper()
	p := start(t, append([]string{"-addr", "127.0.0.1:0", "-control", path}, more...)...)
	p.addr() // is what it says when it is ready
	return p
}

func startNew(t testing.TB, path string, more ...string) *process {
	t.Helper()
	p := start(t, append([]string{"-c", "-control", path}, more...)...)
	p.logged(`waiting on `)
	return p
}

func startBoth(t testing.TB) (old, new *process, addr string) {
	t.Helper()
	path := meetingPlace(t)
	old = startOld(t, path)
	return old, startNew(t, path), old.addr()
}

// stolenLine is what a client reads in answer to STEAL, where connections can move at all.
func stolenLine(old, new *process) string {
	mayCarry(old.t)
	return fmt.Sprintf("* stolen: pid %d -> pid %d", old.pid(), new.pid())
}

func TestThreeTerminals(t *testing.T) {
	path := meetingPlace(t)
	old := startOld(t, path)
	c := dial(t, old.addr())
	c.echoed("to the old process")
	old.printed(`^"to the old process\\n"$`)

	new := startNew(t, path)
	c.send("STEAL\n")
	c.expect(stolenLine(old, new))
	c.echoed("to the new process")
	new.printed(`^"to the new process\\n"$`)
	if said := old.out.all(`new process`); said != nil {
		t.Errorf("the old process read %q as well", said)
	}

	old.kill()
	c.echoed("and the old one is gone")
	new.logged(`pid \d+ .* is gone; connections to serve to their end: 1$`)
	c.finish("")
	if status := new.status(); status != 0 {
		t.Errorf("new: exit status %d, want 0", status)
	}
}

// Clients and the new process in any order; the new one keeps waiting, the old one accepting.
func TestAnyOrder(t *testing.T) {
	path := meetingPlace(t)
	old := startOld(t, path)
	early, stays := dial(t, old.addr()), dial(t, old.addr())
	early.echoed("before")
	new := startNew(t, path)
	late := dial(t, old.addr())
	for _, c := range []*client{late, early} {
		c.send("STEAL\n")
		c.expect(stolenLine(old, new))
	}
	latest := dial(t, old.addr())
	latest.send("STEAL\n")
	latest.expect(stolenLine(old, new))
	stays.echoed("with the old one")
	old.printed(`^"with the old one\\n"$`)

	// The next new process takes over from the same old one.
	new.kill()
	early.ended()
	old.logged(`pid \d+ .* no longer waits$`)
	second := startNew(t, path)
	stays.send("STEAL\n")
	stays.expect(stolenLine(old, second))
	stays.echoed("with the second")
}

func TestSpellings(t *testing.T) {
	old, new, addr := startBoth(t)
	for _, spelling := range []string{"STEAL\n", "steal\n", "Steal\r\n", " \tSTEAL \n"} {
		c := dial(t, addr)
		c.send(spelling)
		c.expect(stolenLine(old, new))
		c.finish("")
	}
	c := dial(t, addr)
	c.echoed("STEALING")
	c.echoed("do not STEAL")
	c.echoed("")
	c.echoed("\u017fteal")                            // folds to the same letters
	tail := strings.Repeat("x", bufferSize) + "STEAL" // the last piece is no line of its own
	c.echoed(tail)
	c.send("ST")
	eventually(t, "the old process reads half a command", func() bool { return serverEnds(t)[c.ports()].unread == 0 })
	c.send("EAL\n")
	c.expect(stolenLine(old, new))
	c.send("STEAL\n")
	c.expect(fmt.Sprintf("* not stolen: pid %d has it already, and nobody waits for it there", new.pid()))
	c.echoed("goes on")
}

// What is behind STEAL in the same segment was read by the old process, and is answered by
// the new one.
func TestOneWrite(t *testing.T) {
	old, new, addr := startBoth(t)
	c := dial(t, addr)
	c.send("one\nSTEAL\ntwo\nthree\nand a half")
	for _, want := range []string{"one", stolenLine(old, new), "two", "three"} {
		c.expect(want)
	}
	old.printed(`^"one\\n"$`)
	new.printed(`^"two\\n"$`)
	new.printed(`^"three\\n"$`)
	c.finish("and a half")
	if said := old.out.all(``); len(said) != 1 {
		t.Errorf("the old process answered %d lines, want 1", len(said))
	}
}

// The client's end-of-file travels: it is in the socket, not in the process.
func TestStealBeforeHalfClose(t *testing.T) {
	old, new, addr := startBoth(t)
	for _, ending := range []string{"STEAL\n", "STEAL", "STEAL\nthe rest\n", "STEAL\nno newline"} {
		c := dial(t, addr)
		c.send("first\n" + ending)
		_, rest, _ := strings.Cut(ending, "\n")
		c.finish("first\n" + stolenLine(old, new) + "\n" + rest)
	}
}

func TestLongAndBinaryLines(t *testing.T) {
	old, new, addr := startBoth(t)
	random := make([]byte, 300_000)
	_, _ = rand.NewChaCha8([32]byte{2}).Read(random) // never fails
	before := strings.ReplaceAll(string(random), "\n", "") + "\n"
	after := before[1000:]
	c := dial(t, addr)
	go func() { _, _ = io.WriteString(c, before+"STEAL\n"+after) }() // the reader notices
	want := before + stolenLine(old, new) + "\n" + after
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c.in, got); err != nil {
		t.Fatalf("%d of %d bytes came back: %v", n, len(want), err)
	}
	if string(got) != want {
		t.Error("other bytes came back")
	}
	c.finish("")
}

func TestNotStolen(t *testing.T) {
	path := meetingPlace(t)
	old := startOld(t, path)
	c := dial(t, old.addr())
	c.send("STEAL\nnext\n")
	c.expect("* not stolen: no new process is waiting")
	c.expect("next")

	first := startNew(t, path)
	second := start(t, "-c", "-control", path)
	second.logged(fmt.Sprintf(`it refused: "pid %d waits already, and one new process waits at a time"$`, first.pid()))
	if said := second.err.all(``); len(said) != 1 || second.status() != 1 {
		t.Errorf("the second new process: %d lines and exit status %d, want 1 and 1", len(said), second.status())
	}
	c.send("STEAL\n")
	c.expect(stolenLine(old, first))
}

func TestNobodyThere(t *testing.T) {
	p := start(t, "-c", "-control", meetingPlace(t))
	p.logged(`connect: no such file or directory: nobody listens there; start the old process first`)
	if said := p.err.all(``); len(said) != 1 || p.status() != 1 {
		t.Errorf("%d lines and exit status %d, want 1 and 1", len(said), p.status())
	}
}

// Both ports in use: no control path stays behind, and each is one line.
func TestPortInUse(t *testing.T) {
	path := meetingPlace(t)
	old := startOld(t, path)
	second := start(t, "-addr", old.addr(), "-control", path+"2")
	second.logged(`bind: address already in use: stop the process`)
	if status := second.status(); status != 1 {
		t.Errorf("exit status %d, want 1", status)
	}
	if _, err := os.Lstat(path + "2"); !os.IsNotExist(err) {
		t.Errorf("it left its control path behind: %v", err)
	}
}

func TestSignalsEndBoth(t *testing.T) {
	path := meetingPlace(t)
	old := startOld(t, path)
	new := startNew(t, path)
	kept, moved := dial(t, old.addr()), dial(t, old.addr())
	kept.echoed("hello")
	moved.send("STEAL\n")
	moved.expect(stolenLine(old, new))

	old.signal(unix.SIGTERM)
	kept.ended()
	if status := old.status(); status != 0 {
		t.Errorf("old: exit status %d, want 0", status)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the control path is still there: %v", err)
	}
	moved.echoed("still served")
	new.signal(unix.SIGINT)
	moved.ended()
	if status := new.status(); status != 0 {
		t.Errorf("new: exit status %d, want 0", status)
	}
}

// 200 connections send numbered, checksummed lines as fast as they can, and each is stolen in
// the middle. The kernel's names for the sockets are compared from outside: by the client's
// port, which is the same, the new process has the very sockets that the old one had.
func TestManyUnderLoad(t *testing.T) {
	clients := 200
	if testing.Short() {
		clients = 5
	}
	old, new, addr := startBoth(t)
	var all []*client
	for range clients {
		c := dial(t, addr)
		c.echoed("hello")
		all = append(all, c)
	}
	before := identitiesIn(t, old, all)
	failures, want := make(chan error, clients), stolenLine(old, new)
	var pumps sync.WaitGroup
	for i, c := range all {
		pumps.Go(func() { failures <- pump(c, i, want) })
	}
	pumps.Wait()
	for range all {
		if err := <-failures; err != nil {
			t.Error(err)
		}
	}
	after := identitiesIn(t, new, all)
	for _, c := range all {
		was, is := before[c], after[c]
		if was.inode != is.inode || was.cookie != is.cookie {
			t.Errorf("client %v: %v in the old process, %v in the new", c.LocalAddr(), was, is)
		}
		c.echoed("goodbye")
		c.finish("")
	}
	eventually(t, "the old process has closed every stolen descriptor", func() bool {
		open := old.sockets()
		for _, id := range before {
			if _, has := open[id.inode]; has {
				return false
			}
		}
		return true
	})
}

// pump sends lines and a STEAL somewhere between them without waiting for answers, and checks
// that all of it comes back once and in order, with the answer in STEAL's place.
func pump(c *client, number int, stolen string) error {
	const count = 300
	random := rand.New(rand.NewPCG(uint64(number), 0))
	var want []string
	for i := range count {
		body := strings.Repeat(string(rune('a'+random.IntN(26))), random.IntN(400))
		text := fmt.Sprintf("%d/%d %s", number, i, body)
		want = append(want, fmt.Sprintf("%s %x", text, sha256.Sum256([]byte(text))))
	}
	steal := 1 + random.IntN(count-2)
	toSend := slices.Clone(want)
	toSend[steal], want[steal] = "STEAL", stolen
	sent := make(chan error, 1)
	go func() {
		out := bufio.NewWriterSize(c, 1+random.IntN(8000)) // cut into segments anywhere
		for _, line := range toSend {
			_, _ = out.WriteString(line + "\n") // Flush says what went wrong
		}
		sent <- out.Flush()
	}()
	for i, line := range want {
		got, err := c.in.ReadString('\n')
		if err != nil || got != line+"\n" {
			return fmt.Errorf("client %v, line %d of %d (STEAL is %d): got %.60q and %w, want %.60q", c.LocalAddr(), i, count, steal, got, err, line)
		}
	}
	return <-sent
}

// identitiesIn is what the kernel calls the server's ends of the clients' connections, looked
// up from outside in the process that should have them: the inode in its descriptor table, the
// cookie through a duplicate of the descriptor. It waits until the process has them all.
func identitiesIn(t testing.TB, p *process, clients []*client) map[*client]identity {
	t.Helper()
	found := map[*client]identity{}
	eventually(t, fmt.Sprintf("pid %d has %d connections", p.pid(), len(clients)), func() bool {
		ends, open := serverEnds(t), p.sockets()
		for _, c := range clients {
			fd, has := open[ends[c.ports()].inode]
			if !has {
				return false
			}
			copied := duplicate(t, p, fd)
			id, err := identifyFD(copied)
			if err := errorOf(err, unix.Close(copied)); err != nil {
				t.Fatal(err)
			}
			found[c] = id
		}
		return true
	})
	return found
}

// sockets is the process's descriptor table, by the inodes of the sockets in it.
func (p *process) sockets() map[uint64]int {
	p.t.Helper()
	open := map[uint64]int{}
	for number, link := range p.descriptors() {
		var inode uint64
		if _, err := fmt.Sscanf(link, "socket:[%d]", &inode); err != nil {
			continue // a file, a pipe, epoll
		}
		fd, err := strconv.Atoi(number)
		if err != nil {
			p.t.Fatal(err)
		}
		open[inode] = fd
	}
	return open
}

// duplicate copies a descriptor out of another process (pidfd_getfd(2), Linux 5.6).
func duplicate(t testing.TB, p *process, fd int) int {
	t.Helper()
	pidfd, err := unix.PidfdOpen(p.pid(), 0)
	if errors.Is(err, unix.ENOSYS) {
		t.Skip("pidfd_open: ENOSYS: this kernel is older than 5.3")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd) // nothing to lose
	copied, err := unix.PidfdGetfd(pidfd, fd, 0)
	if errors.Is(err, unix.ENOSYS) {
		t.Skip("pidfd_getfd: ENOSYS: this kernel is older than 5.6")
	}
	if errors.Is(err, unix.EPERM) {
		t.Skip("pidfd_getfd of a child: EPERM: Yama's mode 2 or 3 (kernel.yama.ptrace_scope), or a container's filter")
	}
	if err != nil {
		t.Fatalf("pidfd_getfd of pid %d, descriptor %d: %v", p.pid(), fd, err)
	}
	return copied
}

// serverEnd is what /proc/net/tcp says of the server's end of a connection (proc_net(5)).
type serverEnd struct {
	inode  uint64
	unread int64 // bytes that wait in the socket
}

// ports are the server's port and the client's.
type ports struct{ server, client int }

func (c *client) ports() ports {
	return ports{c.RemoteAddr().(*net.TCPAddr).Port, c.LocalAddr().(*net.TCPAddr).Port}
}

// serverEnds lists the TCP sockets on the loopback interface.
func serverEnds(t testing.TB) map[ports]serverEnd {
	t.Helper()
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	ends := map[ports]serverEnd{}
	for line := range strings.Lines(string(table)) {
		var p ports
		var written int64
		var end serverEnd
		f := strings.Fields(line) // slot, local, remote, state, queues, ..., inode
		line = strings.Join([]string{f[1], f[2], f[4], f[9]}, " ")
		if _, err := fmt.Sscanf(line, "0100007F:%X 0100007F:%X %X:%X %d", &p.server, &p.client, &written, &end.unread, &end.inode); err == nil {
			ends[p] = end
		}
	}
	return ends
}

// 500 connections come, are stolen, and go: both processes have as many descriptors as before.
func TestNothingLeaks(t *testing.T) {
	old, new, addr := startBoth(t)
	round := func() {
		c := dial(t, addr)
		c.send("STEAL\nhello\n")
		c.expect(stolenLine(old, new))
		c.expect("hello")
		c.finish("")
	}
	round() // what the runtime opens once, it opens now; and what it closes, it may close in a moment
	count := func() [2]int { return [2]int{len(old.descriptors()), len(new.descriptors())} }
	before := count()
	rounds := 500
	if testing.Short() {
		rounds = 30
	}
	for range rounds {
		round()
	}
	eventually(t, fmt.Sprintf("descriptors of old and new: no more than %v", before), func() bool {
		now := count()
		return now[0] <= before[0] && now[1] <= before[1]
	})
}

func TestAnotherUserIsRefused(t *testing.T) {
	path := meetingPlace(t)
	old := startOld(t, path)
	c := dial(t, old.addr())
	if err := errorOf(os.Chmod(filepath.Dir(path), 0o755), os.Chmod(path, 0o666)); err != nil {
		t.Fatal(err)
	}
	stranger := asNobody(t, "-c", "-control", path)
	stranger.logged(`it refused: "another user's process: uid 65534, not uid 0"$`)
	if said := stranger.err.all(``); len(said) != 1 || stranger.status() != 1 {
		t.Errorf("%d lines and exit status %d, want 1 and 1", len(said), stranger.status())
	}
	old.logged(`refused pid \d+ \(uid 65534, gid 65534\): another user's process: uid 65534, not uid 0$`)
	c.send("STEAL\n")
	c.expect("* not stolen: no new process is waiting")
}

func TestUnknownVersion(t *testing.T) {
	path := meetingPlace(t)
	old := startOld(t, path)
	c := dial(t, old.addr())
	stranger, err := dialControl(path)
	if err != nil {
		t.Fatal(err)
	}
	defer closeQuietly(stranger)
	if _, err := stranger.Write([]byte(`{"type":"hello","min":7,"max":9}`)); err != nil {
		t.Fatal(err)
	}
	old.logged(`it speaks versions 7 to 9 of the protocol, this process 1 to 1`)
	c.send("STEAL\n")
	c.expect("* not stolen: no new process is waiting")
	c.echoed("goes on")
}

func TestUsage(t *testing.T) {
	for _, wrong := range [][]string{{"-timeout", "0"}, {"-nonsense"}, {"stray"}} {
		p := start(t, wrong...)
		if status := p.status(); status != 2 || len(p.err.all(``)) != 1 {
			t.Errorf("%v: exit status %d, want 2 and one line:\n%s", wrong, status, p.err)
		}
	}
}
