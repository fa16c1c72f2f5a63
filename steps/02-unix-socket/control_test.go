//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

func startOld(t *testing.T, path string) *process {
	t.Helper()
	old := start(t, "-control", path)
	old.logged(`listening on `)
	return old
}

func startNew(t *testing.T, path string) *process {
	t.Helper()
	p := start(t, "-c", "-control", path)
	p.logged(`waiting on `)
	return p
}

// fails expects exit status 1 and one line on stderr, which matches.
func fails(t *testing.T, p *process, pattern string) {
	t.Helper()
	if status := p.status(); status != 1 {
		t.Errorf("exit status %d, want 1", status)
	}
	if said := p.err.all(``); len(said) != 1 {
		t.Errorf("%d lines on stderr, want one", len(said))
	}
	p.logged(pattern)
}

func TestEachSideLearnsWhoTheOtherIs(t *testing.T) {
	path := meetingPlace(t)
	old := startOld(t, path)
	first, second := startNew(t, path), startNew(t, path)
	for _, p := range []*process{first, second} {
		who := `pid %d \(uid %d, gid %d\): we speak version 1$`
		p.logged(fmt.Sprintf(`^new\[%d\]: met `+who, p.pid(), old.pid(), os.Getuid(), os.Getgid()))
		old.logged(fmt.Sprintf(`^old\[%d\]: met `+who, old.pid(), p.pid(), os.Getuid(), os.Getgid()))
	}

	first.kill()
	old.logged(fmt.Sprintf(`pid %d .* is gone: EOF$`, first.pid()))
	old.kill()
	second.logged(fmt.Sprintf(`pid %d .* is gone: EOF$`, old.pid()))
	if status := second.status(); status != 0 {
		t.Errorf("new: exit status %d, want 0", status)
	}
}

func TestSignalsEndBothAndRemoveThePath(t *testing.T) {
	path := meetingPlace(t)
	old := startOld(t, path)
	p := startNew(t, path)
	p.signal(unix.SIGINT)
	old.signal(unix.SIGTERM)
	if status := []int{p.status(), old.status()}; status[0] != 0 || status[1] != 0 {
		t.Errorf("exit status of new and old: %d, want 0", status)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", path, err)
	}
}

func TestStalePathIsReplaced(t *testing.T) {
	path := meetingPlace(t)
	startOld(t, path).kill()
	if _, err := os.Lstat(path); err != nil {
		t.Fatalf("SIGKILL should have left the path behind: %v", err)
	}
	startOld(t, path)
	startNew(t, path)
}

func TestLivePathIsLeftAlone(t *testing.T) {
	path := meetingPlace(t)
	old := startOld(t, path)
	fails(t, start(t, "-control", path), fmt.Sprintf(`%s: pid %d listens there already`, path, old.pid()))
	startNew(t, path)
	old.logged(`met pid`)
	if said := old.err.all(``); len(said) != 2 { // listening, met
		t.Errorf("the question whether it lives is worth no line:\n%s", old.err)
	}
}

// Of many that start together one wins, and the others know which: on a path that is stale, and
// on one whose owner is just leaving.
func TestStartingTogether(t *testing.T) {
	t.Run("stale", func(t *testing.T) { startTogether(t, (*process).kill) })
	t.Run("leaving", func(t *testing.T) {
		startTogether(t, func(p *process) { p.signal(unix.SIGTERM) })
	})
}

func startTogether(t *testing.T, leave func(*process)) {
	rounds := 10
	if testing.Short() {
		rounds = 2
	}
	path := meetingPlace(t)
	last := startOld(t, path)
	for range rounds {
		leave(last)
		var all []*process
		for range 6 {
			all = append(all, start(t, "-control", path))
		}
		var winner *process
		for _, p := range all {
			if len(p.logged(`listening on |listens there already`)[0]) == len("listening on ") {
				if winner != nil {
					t.Fatalf("pids %d and %d both listen", winner.pid(), p.pid())
				}
				winner = p
			}
		}
		if winner == nil { // all of them found the last one, which had not left yet
			last.status()
			winner = startOld(t, path)
		}
		for _, p := range all {
			if p != winner {
				fails(t, p, fmt.Sprintf(`pid (%d|%d) listens there already`, winner.pid(), last.pid()))
			}
		}
		startNew(t, path).kill()
		last = winner
	}
}

// A process that lets everybody wait is alive all the same.
func TestFullAcceptQueue(t *testing.T) {
	path := meetingPlace(t)
	old := startOld(t, path)
	old.stop()
	for full := false; !full; {
		fd, err := connect(path)
		if full = errors.Is(err, unix.EAGAIN); !full && err != nil {
			t.Fatal(err)
		}
		if err == nil {
			t.Cleanup(func() { _ = unix.Close(fd) }) // nothing to lose
		}
	}
	fails(t, start(t, "-control", path), `a process listens there, and has let its accept queue fill up`)
	fails(t, start(t, "-c", "-control", path), `connect: resource temporarily unavailable: its accept queue is full`)
}

func TestForeignFilesAreNeverTouched(t *testing.T) {
	path := meetingPlace(t)
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	fails(t, start(t, "-control", path), `exists and is not a socket`)
	if text, err := os.ReadFile(path); err != nil || string(text) != "precious" {
		t.Errorf("the file is %q, %v", text, err)
	}

	// Another program's live socket, of another type.
	stream := path + ".stream"
	l, err := net.Listen("unix", stream)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // the test's own
	fails(t, start(t, "-control", stream), `connect: protocol wrong type for socket: another program's socket`)
	fails(t, start(t, "-c", "-control", stream), `connect: protocol wrong type for socket`)

	// What somebody else put at the path while we were listening.
	moved := path + ".moved"
	old := startOld(t, moved)
	if err := os.Rename(path, moved); err != nil {
		t.Fatal(err)
	}
	old.signal(unix.SIGTERM)
	if status := old.status(); status != 0 {
		t.Errorf("exit status %d, want 0", status)
	}
	if text, err := os.ReadFile(moved); err != nil || string(text) != "precious" {
		t.Errorf("the file is %q, %v", text, err)
	}
}

func TestPathLength(t *testing.T) {
	path := meetingPlace(t)
	longest := path + strings.Repeat("x", maxPath-len(path))
	startOld(t, longest)
	startNew(t, longest)
	for _, args := range [][]string{{}, {"-c"}} {
		fails(t, start(t, append(args, "-control", longest+"x")...), `108 bytes, and sun_path holds 107`)
	}
}

// A path that begins with @ is a file like any other, not a name in the abstract namespace.
func TestPathWithAt(t *testing.T) {
	dir := filepath.Dir(meetingPlace(t))
	inDir := func(cmd *exec.Cmd) { cmd.Dir = dir }
	startWith(t, inDir, "-control", "@x").logged(`listening on \./@x$`)
	if _, err := os.Lstat(filepath.Join(dir, "@x")); err != nil {
		t.Error(err)
	}
}

func TestNobodyThere(t *testing.T) {
	path := meetingPlace(t)
	fails(t, start(t, "-c", "-control", path), `connect: no such file or directory: nobody listens there; start the old process first`)
	startOld(t, path).kill()
	fails(t, start(t, "-c", "-control", path), `connect: connection refused: nobody listens there; start the old process first`)
	fails(t, start(t, "-control", path+"/no/folder"), `open \S+: no such file or directory|not a directory`)
}

// The default folder is made with mode 0700, and taken only as ours and closed to others.
func TestDefaultFolder(t *testing.T) {
	dir := filepath.Dir(meetingPlace(t))
	inDir := func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, "XDG_RUNTIME_DIR=", "TMPDIR="+dir) }
	folder := filepath.Join(dir, fmt.Sprintf("steal-%d", os.Geteuid()))

	first := startWith(t, inDir)
	first.logged(`listening on ` + folder + `/02-unix-socket$`)
	startWith(t, inDir, "-c").logged(`waiting on ` + folder)
	if stat, err := os.Stat(folder); err != nil || stat.Mode() != os.ModeDir|0o700 {
		t.Errorf("the folder's mode is %v, %v", stat.Mode(), err)
	}
	first.kill()

	xdg := func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, "XDG_RUNTIME_DIR="+dir) }
	startWith(t, xdg).logged(`listening on ` + dir + `/steal/02-unix-socket$`)

	if err := os.Chmod(folder, 0o750); err != nil {
		t.Fatal(err)
	}
	fails(t, startWith(t, inDir), `has mode 0750 and lets others in: chmod 700 `+folder)
	if err := os.RemoveAll(folder); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(t.TempDir(), folder); err != nil {
		t.Fatal(err)
	}
	fails(t, startWith(t, inDir), `is not a folder`)

	if os.Geteuid() != 0 {
		return // only root can give a folder away
	}
	if err := errorOf(os.Remove(folder), os.Mkdir(folder, 0o700), os.Chown(folder, 65534, 65534)); err != nil {
		t.Fatal(err)
	}
	fails(t, startWith(t, inDir), `belongs to uid 65534, not to uid 0`)
}

// The folder's mode is the first lock. With that one open, and the socket's own too, the
// second holds: what the kernel says of the other's uid.
func TestAnotherUserIsRefused(t *testing.T) {
	path := meetingPlace(t)
	old := startOld(t, path)
	fails(t, asNobody(t, "-c", "-control", path), `connect: permission denied: it belongs to another user`)

	if err := errorOf(os.Chmod(filepath.Dir(path), 0o755), os.Chmod(path, 0o666)); err != nil {
		t.Fatal(err)
	}
	fails(t, asNobody(t, "-c", "-control", path), fmt.Sprintf(`hello from pid %d .*: it refused: "another user's process: uid 65534, not uid 0"$`, old.pid()))
	old.logged(`refused pid \d+ \(uid 65534, gid 65534\): another user's process: uid 65534, not uid 0$`)
	startNew(t, path)
}

// Root may join anybody's process.
func TestRootMayJoin(t *testing.T) {
	path := meetingPlace(t)
	if err := os.Chmod(filepath.Dir(path), 0o777); err != nil {
		t.Fatal(err)
	}
	old := asNobody(t, "-control", path)
	old.logged(`listening on `)
	startNew(t, path).logged(`met pid \d+ \(uid 65534, gid 65534\)`)
	old.logged(`met pid \d+ \(uid 0, gid 0\)`)
}

// liar is a connection to the old process whose other end is this test.
func liar(t *testing.T, path string) *socket.Conn {
	t.Helper()
	c, err := dialControl(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeQuietly(c) })
	return c
}

func say(t *testing.T, c *socket.Conn, record string) {
	t.Helper()
	if _, err := c.Write([]byte(record)); err != nil {
		t.Fatal(err)
	}
}

func TestOldRefusesNonsense(t *testing.T) {
	path := meetingPlace(t)
	old := startOld(t, path)
	for _, lie := range []struct{ record, pattern string }{
		{`{"type":"hello","min":7,"max":9}`, `it speaks versions 7 to 9 of the protocol, this process 1 to 1`},
		{`{"type":"hello"}`, `it speaks versions 0 to 0 of the protocol`},
		{`{"type":"goodbye","min":1,"max":1}`, `it began with "goodbye"`},
		{"\x1b[31mgarbage", `"\\x1b\[31mgarbage" is not a hello`},
		{strings.Repeat("x", 5000), `hello from pid \d+ .*: longer than 4096 bytes`},
	} {
		c := liar(t, path)
		say(t, c, lie.record)
		old.logged(lie.pattern)
		// Its own hello is all that we get, and then the end.
		var h hello
		if _, err := readRecord(t, c, &h); err != nil || h.Type != "hello" {
			t.Errorf("%.40q: got %+v, %v", lie.record, h, err)
		}
		if _, err := readRecord(t, c, nil); err == nil {
			t.Errorf("%.40q: the connection goes on", lie.record)
		}
	}
	silent := liar(t, path)
	startNew(t, path) // nobody waits for the silent one
	old.logged(`deadline exceeded: it said nothing for 2s`)
	closeQuietly(silent)
	if n := len(old.err.all(`met`)); n != 1 {
		t.Errorf("%d were met, want one", n)
	}
}

func readRecord(t *testing.T, c *socket.Conn, to any) (record []byte, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	record = make([]byte, 1<<16)
	n, err := c.ReadContext(ctx, record)
	if err == nil && to != nil {
		err = json.NewDecoder(bytes.NewReader(record[:n])).Decode(to)
	}
	return record[:n], err
}

// An old process of another version, or one that refuses or lies: the new one ends with a line.
func TestNewRefusesNonsense(t *testing.T) {
	for _, lie := range []struct{ record, pattern string }{
		{`{"type":"hello","min":7,"max":9}`, `hello from pid \d+ .*: it speaks versions 7 to 9`},
		{`{"type":"refused","reason":"not \u001b[31m today"}`, `it refused: "not \\x1b\[31m today"`},
		{`nonsense`, `"nonsense" is not a hello`},
		{``, `recvmsg: EOF: it hung up without a word`},
	} {
		path := meetingPlace(t)
		l, err := listenControl(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		p := start(t, "-c", "-control", path)
		c, err := l.accept(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if lie.record != "" {
			say(t, c, lie.record)
		}
		// Closing with the hello unread is what gives the other side ECONNRESET first.
		if err := errorOf(c.Close(), l.Close()); err != nil {
			t.Fatal(err)
		}
		fails(t, p, lie.pattern)
	}
}

// Descriptors that come along with a hello are closed by the kernel; nothing leaks.
func TestGiftsWithHelloAreDropped(t *testing.T) {
	path := meetingPlace(t)
	old := startOld(t, path)
	before := len(old.descriptors())
	c := liar(t, path)
	record := []byte(`{"type":"hello","min":1,"max":1}`)
	if _, err := c.Sendmsg(t.Context(), record, unix.UnixRights(0, 1, 2), nil, 0); err != nil {
		t.Fatal(err)
	}
	old.logged(`met pid`)
	if now := len(old.descriptors()); now != before+1 {
		t.Errorf("%d descriptors, want %d and the connection", now, before)
	}
}

// A second Close must not remove the successor's path, whose file has the inode number of the
// first one's more often than not.
func TestClosingTwice(t *testing.T) {
	path := meetingPlace(t)
	for range 20 {
		first, err := listenControl(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		if err := first.Close(); err != nil {
			t.Fatal(err)
		}
		second, err := listenControl(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		closeQuietly(first)
		closeQuietly(liar(t, path))
		if err := second.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
