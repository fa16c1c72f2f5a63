//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The tests run the step as real processes: the test binary starts itself again, and with
// asStep in the environment it is the step. So -race reaches both sides, and the tests need
// no compiler where they run.
const (
	asStep = "STEP_TEST_AS_STEP"
	killAt = "STEP_TEST_KILL_AT" // a pattern: die the moment such a line is to be logged
	stopAt = "STEP_TEST_STOP_AT" // a pattern: stop the moment such a line is to be logged
	asRole = "STEP_TEST_AS_ROLE" // be one of roles instead
)

// roles are other processes that a test may need.
var roles = map[string]func(){}

// patience bounds every wait for an event. Nothing waits for it to pass.
const patience = 2 * time.Minute

func TestMain(m *testing.M) {
	if os.Getenv(asStep) != "" {
		os.Exit(command(func(ctx context.Context, args []string, stdout, stderr io.Writer) error {
			stderr = signalAt(os.Getenv(killAt), unix.SIGKILL, stderr)
			stderr = signalAt(os.Getenv(stopAt), unix.SIGSTOP, stderr)
			return run(ctx, args, stdout, stderr)
		}))
	}
	if role := roles[os.Getenv(asRole)]; role != nil {
		role()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// fateful passes lines on until one matches. Then the process sends itself a signal before that
// line is out, so what it was about to do next does not happen: not before SIGCONT after
// SIGSTOP, and never after SIGKILL.
type fateful struct {
	io.Writer
	at     *regexp.Regexp
	signal unix.Signal
}

func signalAt(pattern string, s unix.Signal, w io.Writer) io.Writer {
	if pattern == "" {
		return w
	}
	return fateful{w, regexp.MustCompile(pattern), s}
}

func (f fateful) Write(line []byte) (int, error) {
	if f.at.Match(line) {
		// To this very thread: it cannot return from the call as if nothing had been.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		_ = unix.Tgkill(os.Getpid(), unix.Gettid(), f.signal)
	}
	return f.Writer.Write(line)
}

// long is the switch of the tests that take long: STEAL_LONG=1.
var long = os.Getenv("STEAL_LONG") != ""

// short reports whether a part of a long test must do.
func short() bool { return testing.Short() || !long }

// waits skips a test that waits for seconds until a process gives up.
func waits(t *testing.T) {
	t.Helper()
	if !long {
		t.Skip("it waits for seconds: set STEAL_LONG=1")
	}
	t.Parallel()
}

// process is one run of the step.
type process struct {
	t           testing.TB
	cmd         *exec.Cmd
	out, err    *lines
	done        chan struct{} // closed when it has ended and its output has been read
	exitFailure error         // what Wait said; valid after done
}

// start runs the step, and ends it with the test.
func start(t testing.TB, args ...string) *process {
	t.Helper()
	return startWith(t, nil, args...)
}

// startWith is start with a last word on the command, such as its environment.
func startWith(t testing.TB, adjust func(*exec.Cmd), args ...string) *process {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, args...)
	// The race detector would have every process sleep for a second before it exits.
	cmd.Env = append(os.Environ(), asStep+"=1", "GORACE=atexit_sleep_ms=0")
	p := &process{t: t, cmd: cmd, out: newLines(), err: newLines(), done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p.out, p.err
	if adjust != nil {
		adjust(cmd)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.exitFailure = cmd.Wait()
		p.out.end()
		p.err.end()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("%v\nstdout:\n%s\nstderr:\n%s", args, p.out, p.err)
		}
	})
	return p
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// kill ends the process with SIGKILL, if it has not ended yet, and waits until it is gone.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended by itself
	p.status()
}

func (p *process) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatalf("signal %v to pid %d: %v", s, p.pid(), err)
	}
}

// stop sends SIGSTOP, and waits for its effect.
func (p *process) stop() {
	p.t.Helper()
	p.signal(unix.SIGSTOP)
	p.stopped()
}

// stopped waits until every thread has stopped: the signal takes its time.
func (p *process) stopped() {
	p.t.Helper()
	eventually(p.t, fmt.Sprintf("pid %d stops", p.pid()), func() bool {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.pid()))
		for _, thread := range threads {
			if stat, err := os.ReadFile(thread); err != nil || !strings.Contains(string(stat), ") T ") {
				return false
			}
		}
		return err == nil && len(threads) > 0
	})
}

// status waits for the end of the process and returns its exit status, -1 after a signal.
func (p *process) status() int {
	p.t.Helper()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(patience):
		p.t.Fatalf("pid %d has not ended:\n%s", p.pid(), p.err)
		return -1
	}
}

// logged waits for a line on stderr that matches, and returns its submatches.
func (p *process) logged(pattern string) []string {
	p.t.Helper()
	return p.find(p.err, pattern)
}

// printed waits for a line on stdout that matches, and returns its submatches.
func (p *process) printed(pattern string) []string {
	p.t.Helper()
	return p.find(p.out, pattern)
}

func (p *process) find(from *lines, pattern string) []string {
	p.t.Helper()
	match := from.wait(regexp.MustCompile(pattern))
	if match == nil {
		p.t.Fatalf("pid %d: no line matches %q in:\n%s", p.pid(), pattern, from)
	}
	return match
}

// addr waits until the process serves TCP, and returns where.
func (p *process) addr() string {
	p.t.Helper()
	return p.logged(`listening on (127\.0\.0\.1:\d+)$`)[1]
}

// descriptors is what the process has open: number to what /proc says it is.
func (p *process) descriptors() map[string]string {
	p.t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", p.pid())
	entries, err := os.ReadDir(dir)
	if err != nil {
		p.t.Fatal(err)
	}
	open := map[string]string{}
	for _, e := range entries {
		// One that is closed meanwhile has no link to read, and is not open.
		if link, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			open[e.Name()] = link
		}
	}
	return open
}

// eventually waits until ok, which it asks again and again.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("never happened: %s", what)
}

// lines collects what a process writes, and lets tests wait for it.
type lines struct {
	mu    sync.Mutex
	more  *sync.Cond
	text  bytes.Buffer
	ended bool
}

func newLines() *lines {
	l := &lines{}
	l.more = sync.NewCond(&l.mu)
	return l
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.more.Broadcast()
	return l.text.Write(b)
}

func (l *lines) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	l.more.Broadcast()
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// all returns the submatches of every whole line that matches so far.
func (l *lines) all(pattern string) [][]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.matches(regexp.MustCompile(pattern))
}

func (l *lines) matches(re *regexp.Regexp) [][]string {
	var found [][]string
	text := l.text.String()
	for _, line := range strings.SplitAfter(text, "\n") {
		line, whole := strings.CutSuffix(line, "\n")
		if match := re.FindStringSubmatch(line); whole && match != nil {
			found = append(found, match)
		}
	}
	return found
}

// wait returns the submatches of the first line that matches, or nil when the process ended,
// or patience, without one.
func (l *lines) wait(re *regexp.Regexp) []string {
	late := false
	timer := time.AfterFunc(patience, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		late = true
		l.more.Broadcast()
	})
	defer timer.Stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if found := l.matches(re); found != nil {
			return found[0]
		}
		if l.ended || late {
			return nil
		}
		l.more.Wait()
	}
}

// client is a TCP client that fails its test instead of returning errors.
type client struct {
	t testing.TB
	*net.TCPConn
	in *bufio.Reader
}

func dial(t testing.TB, addr string) *client {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() }) // most tests have closed it
	if err := c.SetDeadline(time.Now().Add(2 * patience)); err != nil {
		t.Fatal(err)
	}
	return &client{t, c.(*net.TCPConn), bufio.NewReader(c)}
}

func (c *client) send(text string) {
	c.t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		c.t.Fatal(err)
	}
}

// line reads one line, without its newline.
func (c *client) line() string {
	c.t.Helper()
	text, err := c.in.ReadString('\n')
	if err != nil {
		c.t.Fatalf("client %v: read %q and then: %v", c.LocalAddr(), text, err)
	}
	return strings.TrimSuffix(text, "\n")
}

// echoed sends a line and expects it back.
func (c *client) echoed(text string) {
	c.t.Helper()
	c.send(text + "\n")
	c.expect(text)
}

// expect reads one line and compares it.
func (c *client) expect(want string) {
	c.t.Helper()
	if got := c.line(); got != want {
		c.t.Fatalf("client %v got %q, want %q", c.LocalAddr(), got, want)
	}
}

// finish half-closes, and expects the rest and then end-of-file.
func (c *client) finish(rest string) {
	c.t.Helper()
	if err := c.CloseWrite(); err != nil {
		c.t.Fatal(err)
	}
	got, err := io.ReadAll(c.in)
	if err != nil || string(got) != rest {
		c.t.Fatalf("client %v got %q and %v, want %q and end-of-file", c.LocalAddr(), got, err, rest)
	}
}

// ended expects that the server has ended the connection, with end-of-file or a reset.
func (c *client) ended() {
	c.t.Helper()
	rest, err := io.ReadAll(c.in)
	if len(rest) > 0 || err != nil && !errors.Is(err, unix.ECONNRESET) {
		c.t.Fatalf("client %v got %q and %v, want the end", c.LocalAddr(), rest, err)
	}
}
