//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// patience is how long a test waits for what must come.
const patience = 30 * time.Second

func long() bool { return os.Getenv("STEAL_LONG") != "" }

// roles are what this test binary does where a test starts it as another process.
var roles = map[string]func(path string) error{
	"listen": func(path string) error {
		io.Copy(io.Discard, os.NewFile(3, "gate")) // until the test closes it; exec.Cmd.ExtraFiles begin at 3
		if _, err := listenControl(path); err != nil {
			return err
		}
		fmt.Println("listening")
		return nil
	},
	"connect": func(path string) error {
		c, err := dialControl(path)
		if err != nil {
			return err
		}
		p, err := peerOf(c)
		fmt.Println(p)
		io.Copy(io.Discard, os.Stdin)
		c.Close()
		return err
	},
	"listen(2)": func(string) error {
		err := unix.Listen(3, 1)
		fmt.Println("listening")
		return err
	},
}

func TestMain(m *testing.M) {
	role, found := roles[os.Getenv("TEST_ROLE")]
	if !found {
		os.Exit(m.Run())
	}
	if err := role(os.Args[1]); err != nil {
		fmt.Println(err)
	}
	io.Copy(io.Discard, os.Stdin) // stays until the test closes it, or ends
}

// process is this binary in a role.
type process struct {
	*exec.Cmd
	in  io.Closer
	out *bufio.Reader
}

func startRole(t *testing.T, role, path string, adjust func(*exec.Cmd)) process {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", path)
	cmd.Dir, cmd.Stderr = "/", os.Stderr
	cmd.Env = append(os.Environ(), "TEST_ROLE="+role, "GORACE=atexit_sleep_ms=0")
	if adjust != nil {
		adjust(cmd)
	}
	in, inErr := cmd.StdinPipe()
	out, outErr := cmd.StdoutPipe()
	if err := errors.Join(inErr, outErr, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	out.(*os.File).SetReadDeadline(time.Now().Add(patience))
	p := process{cmd, in, bufio.NewReader(out)}
	t.Cleanup(p.kill)
	return p
}

func (p process) kill() {
	p.Process.Kill() // it may have ended
	p.Wait()
}

// line is the next line that it prints.
func (p process) line(t *testing.T) string {
	t.Helper()
	line, err := p.out.ReadString('\n')
	if err != nil {
		t.Fatalf("read from the other process: %q, %v", line, err)
	}
	return strings.TrimSuffix(line, "\n")
}

// shortPath is a path in a folder of the test's own, which fits into a socket's address.
func shortPath(t *testing.T) string {
	t.Helper()
	folder, err := os.MkdirTemp("", "t")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(folder) })
	return filepath.Join(folder, "control")
}

// listens expects that this process can listen at path, and that whoever dials is heard.
func listens(t *testing.T, path string) (remove func()) {
	t.Helper()
	l, err := listenControl(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	c, err := dialControl(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	accepted, _, err := l.Accept(context.Background(), 0)
	if err != nil {
		t.Fatal(err)
	}
	accepted.Close()
	return l.remove
}

// isBarred expects that it cannot, and that what is there stays there.
func isBarred(t *testing.T, path, why string) {
	t.Helper()
	before, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := listenControl(path); err == nil || !strings.Contains(err.Error(), why) || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %v, want one line with %q", err, why)
	}
	if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("%s is gone or another file: %v", path, err)
	}
}

// unix(7): SOCK_SEQPACKET keeps the borders between records, SOCK_STREAM knows none. Both say when
// the other end is gone.
func TestRecords(t *testing.T) {
	for kind, want := range map[int][]string{
		unix.SOCK_SEQPACKET: {"one", "two", "thr"}, // what does not fit the buffer is lost
		unix.SOCK_STREAM:    {"onetwothre", "e"},
	} {
		fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		from, fromErr := socket.New(fds[0], "from")
		to, toErr := socket.New(fds[1], "to")
		if err := errors.Join(fromErr, toErr); err != nil {
			t.Fatal(err)
		}
		for _, record := range []string{"one", "two", "three"} {
			if _, err := from.Write([]byte(record)); err != nil {
				t.Fatal(err)
			}
		}
		from.Close()
		room := map[int][]int{unix.SOCK_SEQPACKET: {10, 10, 3}, unix.SOCK_STREAM: {10, 10}}[kind]
		for i, want := range want {
			record := make([]byte, room[i])
			if n, err := to.Read(record); string(record[:n]) != want || err != nil {
				t.Errorf("type %d: read %q, %v, want %q", kind, record[:n], err, want)
			}
		}
		if n, err := to.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("type %d: read %d, %v, want io.EOF", kind, n, err)
		}
		to.Close()
	}
}

func TestStalePathIsReplaced(t *testing.T) {
	path := shortPath(t)
	for _, kind := range []string{"unix", "unixpacket"} {
		l, err := net.ListenUnix(kind, &net.UnixAddr{Name: path, Net: kind})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false) // as after kill -9
		l.Close()
		if kind == "unixpacket" {
			break // the next one replaces it
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	remove := listens(t, path)
	remove()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the path is still there: %v", err)
	}
	if _, err := os.Lstat(path + ".lock"); err != nil {
		t.Errorf("the lock file must stay: whoever waits for it would lock a file that nobody else finds: %v", err)
	}
}

// Another program, which knows nothing of our lock, listens there, or has put something else there.
func TestAnotherProgramsFileStays(t *testing.T) {
	const why = "another program's file or socket"
	for _, kind := range []string{"unix", "unixpacket"} {
		path := shortPath(t)
		l, err := net.Listen(kind, path)
		if err != nil {
			t.Fatal(err)
		}
		isBarred(t, path, why)
		l.Close()
	}

	path := shortPath(t)
	full, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(full)
	if err := errors.Join(unix.Bind(full, &unix.SockaddrUnix{Name: path}), unix.Listen(full, 0)); err != nil {
		t.Fatal(err)
	}
	fillQueue(t, path)
	isBarred(t, path, why) // it answers nobody, and lives all the same

	for name, create := range map[string]func(path string) error{
		"file":              func(path string) error { return os.WriteFile(path, []byte("precious"), 0o600) },
		"folder":            func(path string) error { return os.Mkdir(path, 0o700) },
		"fifo":              func(path string) error { return unix.Mkfifo(path, 0o600) },
		"symlink":           func(path string) error { return os.Symlink("/dev/null", path) },
		"symlink to no-one": func(path string) error { return os.Symlink("nothing", path) },
	} {
		t.Run(name, func(t *testing.T) {
			path := shortPath(t)
			if err := create(path); err != nil {
				t.Fatal(err)
			}
			isBarred(t, path, why)
		})
	}
	if _, err := listenControl(filepath.Join(shortPath(t), "no", "folder")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("in a folder that is not there: %v", err)
	}
}

// remove leaves alone what another program has put there meanwhile.
func TestRemoveOnlyItsOwn(t *testing.T) {
	path := shortPath(t)
	remove := listens(t, path)
	if err := errors.Join(os.WriteFile(path+".new", []byte("precious"), 0o600), os.Rename(path+".new", path)); err != nil {
		t.Fatal(err)
	}
	remove()
	if text, err := os.ReadFile(path); string(text) != "precious" {
		t.Errorf("read %q, %v", text, err)
	}
	os.Remove(path)
	remove() // there is nothing
}

// fillQueue connects until the accept queue is full, and returns how many waited there then.
func fillQueue(t *testing.T, path string) int {
	t.Helper()
	for n := 0; ; n++ {
		c, err := dialControl(path)
		if errors.Is(err, unix.EAGAIN) {
			if !strings.HasPrefix(err.Error(), "control path "+path+": connect: ") || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %q, want one line that says what failed", err)
			}
			return n
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
}

// A full accept queue makes nobody wait: neither it nor the listener's silence. The kernel takes one
// more than listen(2) was told.
func TestFullAcceptQueue(t *testing.T) {
	path := shortPath(t)
	l, err := listenControl(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if n := fillQueue(t, path); n != 16 && n != 17 {
		t.Errorf("%d could wait, want 16 or 17", n)
	}
	c, _, err := l.Accept(context.Background(), 0)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if n := fillQueue(t, path); n != 1 {
		t.Errorf("one was accepted, and %d more could wait", n)
	}
}

func TestNobodyListens(t *testing.T) {
	path := shortPath(t)
	if _, err := dialControl(path); !errors.Is(err, unix.ENOENT) {
		t.Errorf("got %v, want ENOENT", err)
	}
	p := startListeners(t, path, 1)[0]
	p.line(t)
	p.kill()
	if _, err := dialControl(path); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("got %v, want ECONNREFUSED", err)
	}
}

// startListeners starts processes that all call listenControl at the same moment.
func startListeners(t *testing.T, path string, n int) []process {
	t.Helper()
	gate, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer gate.Close()
	var all []process
	for range n {
		all = append(all, startRole(t, "listen", path, func(cmd *exec.Cmd) { cmd.ExtraFiles = []*os.File{gate} }))
	}
	out.Close()
	return all
}

// Whoever listens bars the path for all others of ours, until it is dead.
func TestLockEndsWithItsOwner(t *testing.T) {
	path := shortPath(t)
	first := startListeners(t, path, 1)[0]
	if got := first.line(t); got != "listening" {
		t.Fatal(got)
	}
	lock, err := os.Lstat(path + ".lock")
	if err != nil {
		t.Fatal(err)
	}
	isBarred(t, path, path+".lock: flock: resource temporarily unavailable: if another process holds it")
	first.kill()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("kill -9 should have left the path: %v", err)
	}
	listens(t, path)
	isBarred(t, path, "resource temporarily unavailable") // also within one process
	if now, err := os.Lstat(path + ".lock"); err != nil || !os.SameFile(lock, now) {
		t.Errorf("another lock file: %v", err)
	}
}

// Of several that start together on a path that a dead one has left, exactly one listens there.
func TestStartingTogether(t *testing.T) {
	rounds, racers := 2, 4
	if long() {
		rounds = 100
	}
	path := shortPath(t)
	for range rounds {
		all := startListeners(t, path, racers)
		winners := 0
		for _, p := range all {
			switch said := p.line(t); {
			case said == "listening":
				winners++
			case !strings.Contains(said, "if another process holds it"):
				t.Errorf("another one said %q", said)
			}
		}
		c, err := dialControl(path)
		if err != nil || winners != 1 {
			t.Fatalf("%d of %d listen, and dialling says %v", winners, racers, err)
		}
		c.Close()
		for _, p := range all {
			p.kill()
		}
	}
}

// accept waits for the next one that connects.
func accept(t *testing.T, l *socket.Conn) *socket.Conn {
	t.Helper()
	l.SetReadDeadline(time.Now().Add(patience))
	c, _, err := l.Accept(context.Background(), 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// The kernel names the process at the other end, to both.
func TestPeer(t *testing.T) {
	path := shortPath(t)
	l, err := listenControl(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	other := startRole(t, "connect", path, nil)
	c := accept(t, l.Conn)
	if p, err := peerOf(c); err != nil || int(p.Pid) != other.Process.Pid || int(p.Uid) != os.Geteuid() {
		t.Errorf("got %v, %v, want pid %d", p, err, other.Process.Pid)
	}
	if got, want := other.line(t), fmt.Sprintf("pid %d (uid %d)", os.Getpid(), os.Geteuid()); got != want {
		t.Errorf("it has met %s, want %s", got, want)
	}
	other.kill()
	if n, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("it is dead: read %d, %v, want io.EOF", n, err)
	}
	if p, err := peerOf(c); err != nil || int(p.Pid) != other.Process.Pid {
		t.Errorf("it is dead: %v, %v", p, err)
	}
}

// Root may meet everybody, and nobody but root may meet another user.
func TestAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can start another user's process (setuid: EPERM)")
	}
	path := shortPath(t)
	l, err := listenControl(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := errors.Join(os.Chmod(filepath.Dir(path), 0o755), os.Chmod(path, 0o666)); err != nil {
		t.Fatal(err)
	}
	nobody := func(cmd *exec.Cmd) {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	other := startRole(t, "connect", path, nobody)
	want := fmt.Sprintf("pid %d (uid 65534) is another user's process, and this one is uid 0's", other.Process.Pid)
	if _, err := peerOf(accept(t, l.Conn)); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if got := other.line(t); !strings.HasSuffix(got, "(uid 0)") {
		t.Errorf("it has met %s", got)
	}
	other.in.Close()
	if rest, err := io.ReadAll(other.out); err != nil || len(rest) > 0 {
		t.Errorf("it does not like root: %q, %v", rest, err)
	}
}

// Whoever connects is told who called listen(2): here not who has bound the path, nor who accepts.
func TestPeerIsWhoCalledListen(t *testing.T) {
	path := shortPath(t)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	bound := os.NewFile(uintptr(fd), "bound")
	defer bound.Close()
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	other := startRole(t, "listen(2)", path, func(cmd *exec.Cmd) { cmd.ExtraFiles = []*os.File{bound} })
	if got := other.line(t); got != "listening" {
		t.Fatal(got)
	}
	c, err := dialControl(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	accepted, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(accepted)
	if p, err := peerOf(c); err != nil || int(p.Pid) != other.Process.Pid {
		t.Errorf("got %v, %v, want pid %d", p, err, other.Process.Pid)
	}
}

func TestPathLength(t *testing.T) {
	const longest = 107 // sun_path has 108 bytes, and the last is NUL
	path := shortPath(t)
	path += strings.Repeat("x", longest-len(path))
	if got, err := controlPath(path, ""); got != path || err != nil {
		t.Errorf("%d bytes: %s, %v", longest, got, err)
	}
	listens(t, path)
	if _, err := controlPath(path+"x", ""); err == nil || !strings.Contains(err.Error(), "108 bytes, and sun_path holds 107") {
		t.Errorf("%d bytes: %v", longest+1, err)
	}
	// A name that begins with @ is a file's, and none in the abstract namespace of unix(7).
	if got, err := controlPath("@x", ""); !filepath.IsAbs(got) || err != nil {
		t.Errorf("got %s, %v", got, err)
	}
}

// Without -control the path is in $XDG_RUNTIME_DIR if that is this user's alone, else in the
// temp folder, in a folder that nobody else may enter.
func TestDefaultPath(t *testing.T) {
	temp := filepath.Dir(shortPath(t))
	t.Setenv("TMPDIR", temp)
	folder := filepath.Join(temp, fmt.Sprintf("steal-%d", os.Geteuid()))
	runtime := filepath.Join(temp, "runtime")
	foreign := func(path string) error {
		if os.Geteuid() != 0 {
			return os.Mkdir(path, 0o750) // a stand-in: only root can give a folder away
		}
		return errors.Join(os.Mkdir(path, 0o700), os.Chown(path, 65534, 65534))
	}
	t.Setenv("XDG_RUNTIME_DIR", runtime)
	for name, create := range map[string]func(path string) error{
		"missing":      func(string) error { return nil },
		"0755":         func(path string) error { return errors.Join(os.Mkdir(path, 0o700), os.Chmod(path, 0o755)) },
		"another's":    foreign,
		"no folder":    func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"a link to it": func(path string) error { return os.Symlink(t.TempDir(), path) },
	} {
		t.Run(name, func(t *testing.T) {
			if err := create(runtime); err != nil {
				t.Fatal(err)
			}
			if got, err := controlPath("", "name"); got != folder+"/name" || err != nil {
				t.Errorf("got %s, %v, want it in %s", got, err, folder)
			}
			os.Remove(runtime)

			// And the same of the folder itself: then there is none to go to.
			if info, err := os.Lstat(folder); err != nil || info.Mode() != os.ModeDir|0o700 {
				t.Errorf("%s: %v, %v", folder, info, err)
			}
			os.Remove(folder)
			if name == "missing" {
				return
			}
			if err := create(folder); err != nil {
				t.Fatal(err)
			}
			if got, err := controlPath("", "name"); err == nil || !strings.Contains(err.Error(), folder+" must be a folder of mode 0700") {
				t.Errorf("got %s, %v, want that it is refused", got, err)
			}
			os.Remove(folder)
		})
	}
	if err := os.Mkdir(runtime, 0o700); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second finds it there
		if got, err := controlPath("", "name"); got != runtime+"/steal/name" || err != nil {
			t.Errorf("got %s, %v", got, err)
		}
	}
}
