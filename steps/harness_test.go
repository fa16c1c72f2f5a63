//go:build linux

// Package steps tests the steps from outside: real processes, real clients, real kills. Every
// promise is a test written once, and run against each step that makes it. See the table below.
//
//	go test ./steps                            # some seconds
//	go test -short ./steps                     # still less of each: for slow machines
//	STEAL_LONG=1 go test ./steps               # long: more rounds, and whatever takes its time
//	go test ./steps -args -prebuild DIR        # build the programs into DIR, and test nothing
//	STEPS_BIN=DIR ./steps.test                 # test those, where there is no Go
package steps

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// step is a column of the table: a program, and what it promises.
type step struct {
	name     string
	tcp      bool // it serves TCP clients
	meets    bool // two of it meet at a control path
	steals   bool // and a connection moves between them
	pulls    bool // the new process fetches the descriptor: an offer dies with the old one
	restarts bool // started again, it takes over the listeners
	moves    bool // and the connections
	web      bool // it speaks HTTP, and not lines
	encrypts bool // its clients speak TLS, and to steal it needs a kernel that does too
	rescues  bool // its server may die at any moment, and another one goes on
}

var steps = []step{
	{name: "01-echo", tcp: true},
	{name: "02-unix-socket", meets: true},
	{name: "03-scm-rights", meets: true},
	{name: "04-steal", tcp: true, meets: true, steals: true},
	{name: "05-pidfd", tcp: true, meets: true, steals: true, pulls: true},
	{name: "06-listeners", tcp: true, restarts: true},
	{name: "07-hot-restart", tcp: true, restarts: true, moves: true},
	{name: "08-web", restarts: true, moves: true, web: true},
	{name: "09-rescue", tcp: true, rescues: true},
	{name: "10-tls", tcp: true, meets: true, steals: true, encrypts: true},
}

func servesTCP(s step) bool { return s.tcp }
func meets(s step) bool     { return s.meets }
func steals(s step) bool    { return s.steals }
func pulls(s step) bool     { return s.pulls }
func restarts(s step) bool  { return s.restarts && !s.web }
func drains(s step) bool    { return s.restarts && !s.moves }
func moves(s step) bool     { return s.moves }
func rescues(s step) bool   { return s.rescues }

func stealing() []step {
	return slices.DeleteFunc(slices.Clone(steps), func(s step) bool { return !s.steals })
}

// each runs a test for every step that it is about. With -short, a row of a table, which is a
// subtest, is run for one of them: always for the same one.
func each(t *testing.T, about func(step) bool, test func(t *testing.T, s step)) {
	var chosen []step
	for _, s := range steps {
		if about(s) {
			chosen = append(chosen, s)
		}
	}
	if testing.Short() && strings.Contains(t.Name(), "/") {
		if len(chosen) > 1 { // rather one that would not be skipped
			chosen = slices.DeleteFunc(chosen, step.lacksTLS)
		}
		i := int(crc32.ChecksumIEEE([]byte(t.Name())) % uint32(len(chosen)))
		chosen = chosen[i : i+1]
	}
	every(t, chosen, about, test)
}

// every runs a test for these steps. Where the kernel has no TLS, nothing is stolen from who needs it.
func every(t *testing.T, chosen []step, about func(step) bool, test func(t *testing.T, s step)) {
	t.Parallel()
	for _, s := range chosen {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			if s.lacksTLS() {
				if s.steals = false; !about(s) {
					t.Skip(kernelTLS())
				}
			}
			test(t, s)
		})
	}
}

// patience bounds every wait for an event. Nothing waits for it to pass, and no test passes or
// fails by how fast the machine is.
const patience = time.Minute

var isLong = os.Getenv("STEAL_LONG") != ""

// rounds is how often to do something, or how many take part: with -short, a fifth of what is usual.
func rounds(usual, long int) int {
	switch {
	case isLong:
		return long
	case testing.Short():
		return (usual + 4) / 5
	}
	return usual
}

var crowds sync.Mutex

// crowd is called by a test that has thousands of clients: one of these at a time, or this process has too few
// descriptors.
func crowd(t *testing.T) {
	crowds.Lock()
	t.Cleanup(crowds.Unlock) // when its clients are closed
}

// deadline is when a client gives up.
func deadline() time.Time {
	if isLong {
		return time.Now().Add(20 * patience)
	}
	return time.Now().Add(5 * patience)
}

// long skips what is only for the long run.
func long(t *testing.T) {
	t.Helper()
	if !isLong {
		t.Skip("only with STEAL_LONG=1")
	}
}

// bin is the folder of the programs: each step's by its name, and in hooked those with hooks.
var bin = os.Getenv("STEPS_BIN")

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	prebuild := flag.String("prebuild", "", "build the programs into this `folder`, and test nothing")
	if err := flag.Set("test.parallel", "6"); err != nil { // they wait more than they work; -parallel says otherwise
		panic(err)
	}
	flag.Parse()
	if *prebuild != "" {
		if err := build(*prebuild); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	}
	if bin == "" {
		var err error
		if bin, err = os.MkdirTemp("", "steps-"); err == nil {
			defer os.RemoveAll(bin)
			err = build(bin)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return m.Run()
}

// build builds every step, and those that steal or restart once more with hooks: under the names that
// hook_test.go takes over for itself, and with that file beside theirs.
func build(dir string) error {
	temp, err := os.MkdirTemp("", "steps-hooked-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	here, err := os.Getwd()
	if err != nil {
		return err
	}
	var all, hooked []string
	overlay := map[string]string{}
	for _, s := range steps {
		all = append(all, "./"+s.name)
		if !s.steals && !s.restarts {
			continue
		}
		hooked = append(hooked, "./"+s.name)
		source, err := os.ReadFile(filepath.Join(s.name, "protocol.go"))
		if err != nil {
			return err
		}
		renamed := source
		for name, other := range map[string]string{"sendMessage": "realSendMessage", "receiveMessage": "realReceiveMessage"} {
			if bytes.Count(renamed, []byte("\nfunc "+name+"(")) != 1 {
				return fmt.Errorf("%s/protocol.go: where is the function %s?", s.name, name)
			}
			renamed = bytes.Replace(renamed, []byte("\nfunc "+name+"("), []byte("\nfunc "+other+"("), 1)
		}
		copied := filepath.Join(temp, s.name+".go")
		if err := os.WriteFile(copied, renamed, 0o600); err != nil {
			return err
		}
		overlay[filepath.Join(here, s.name, "protocol.go")] = copied
		overlay[filepath.Join(here, s.name, "hook.go")] = filepath.Join(here, "hook_test.go")
	}
	replace, err := json.Marshal(map[string]any{"Replace": overlay})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(temp, "overlay.json"), replace, 0o600); err != nil {
		return err
	}
	if err := goBuild(dir, all...); err != nil {
		return err
	}
	args := append([]string{"-tags", "hooked", "-overlay", filepath.Join(temp, "overlay.json")}, hooked...)
	if err := goBuild(filepath.Join(dir, "hooked"), args...); err != nil {
		return err
	}
	return os.Chmod(dir, 0o755) // for the tests with another user's processes
}

// goBuild builds programs into dir, with the race detector if this test has it.
func goBuild(dir string, args ...string) error {
	env := append(os.Environ(), "CGO_ENABLED=0")
	if info, ok := debug.ReadBuildInfo(); ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		env, args = append(env, "CGO_ENABLED=1"), append([]string{"-race"}, args...)
	}
	cmd := exec.Command("go", append([]string{"build", "-ldflags=-w", "-o", dir + "/"}, args...)...)
	cmd.Env = env
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w\n%s", cmd, err, out)
	}
	return nil
}

// process is one run of a step, or of another program.
type process struct {
	t        *testing.T
	cmd      *exec.Cmd
	pid      int
	out, err *text
	encrypts bool          // it speaks TLS
	done     chan struct{} // closed when it has ended and its output has been read
}

// how changes the command of a process before it starts.
type how func(*exec.Cmd)

func args(more ...string) how {
	return func(cmd *exec.Cmd) { cmd.Args = append(cmd.Args, more...) }
}

func env(more ...string) how {
	return func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, more...) }
}

// as runs the process as another user, from a folder where anybody may be.
func as(uid uint32) how {
	return func(cmd *exec.Cmd) {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uid, Gid: uid}
		cmd.Dir = "/"
	}
}

// hook makes the process do what hook_test.go says at a message.
func hook(specs ...string) how {
	return func(cmd *exec.Cmd) {
		cmd.Path = filepath.Join(filepath.Dir(cmd.Path), "hooked", filepath.Base(cmd.Path))
		cmd.Env = append(cmd.Env, "STEAL_HOOK="+strings.Join(specs, ","))
	}
}

// patient is a time-out that never comes, unless the test says something else behind it.
var patient = args("-timeout", "1h")

// start starts a step, and ends it with the test.
func (s step) start(t *testing.T, with ...how) *process {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(bin, s.name))
	if err != nil {
		t.Fatal(err)
	}
	if s.steals || s.restarts {
		with = append([]how{patient}, with...)
	}
	if s.restarts || s.rescues {
		with = append([]how{intoFile(t)}, with...)
	}
	if s.rescues {
		return startGroup(t, path, with...)
	}
	p := start(t, path, with...)
	p.encrypts = s.encrypts
	return p
}

// intoFile has a process log into a file, and not through a pipe of ours: the processes that it starts
// have that open too, and outlive it.
func intoFile(t *testing.T) how {
	t.Helper()
	f, err := os.CreateTemp("", "steal-log-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close(); os.Remove(f.Name()) })
	return func(cmd *exec.Cmd) {
		cmd.Stderr.(*text).file = f.Name()
		cmd.Stdout, cmd.Stderr = f, f
	}
}

func start(t *testing.T, path string, with ...how) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.Command(path), out: &text{}, err: &text{}, done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.err
	p.cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0") // by default it sleeps for a second
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	for _, change := range with {
		change(p.cmd)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.pid = p.cmd.Process.Pid
	go func() {
		_ = p.cmd.Wait() // ProcessState has it
		close(p.done)
	}()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("%v\nstdout:\n%.1000s\nstderr:\n%.4000s", p.cmd, p.out, p.err)
		}
	})
	return p
}

// old starts a step's old process, and waits until it listens.
func (s step) old(t *testing.T, path string, with ...how) *process {
	t.Helper()
	var usual []string
	if s.tcp {
		usual = append(usual, "-addr", "127.0.0.1:0")
	}
	if s.meets || s.restarts {
		usual = append(usual, "-control", path)
	}
	p := s.start(t, append([]how{args(usual...)}, with...)...)
	p.logged(`listening on `)
	if s.encrypts {
		p.addr() // for dial
	}
	return p
}

// young starts a step's new process, and waits until it waits.
func (s step) young(t *testing.T, path string, with ...how) *process {
	t.Helper()
	p := s.start(t, append([]how{args("-c", "-control", path)}, with...)...)
	p.logged(`waiting on `)
	return p
}

// kill ends the process with SIGKILL, if it has not ended yet, and waits until it is gone.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended by itself
	p.wait()
}

// wait waits for the end of the process.
func (p *process) wait() syscall.WaitStatus {
	p.t.Helper()
	select {
	case <-p.done:
		return p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	case <-time.After(patience):
		p.t.Fatalf("%v has not ended:\n%s", p.cmd, p.err)
		return 0
	}
}

// exits waits for the end of the process, and checks its exit status.
func (p *process) exits(status int) {
	p.t.Helper()
	if got := p.wait(); !got.Exited() || got.ExitStatus() != status {
		p.t.Errorf("%v: %v, want exit status %d\n%s", p.cmd, p.cmd.ProcessState, status, p.err)
	}
}

// fails waits for the process to fail with one line that matches.
func (p *process) fails(pattern string) {
	p.t.Helper()
	p.exits(1)
	if !regexp.MustCompile(`\A\w+\[\d+\]: .*(` + pattern + `).*\n\z`).MatchString(p.err.String()) {
		p.t.Errorf("%v: want one line with %q, got:\n%s", p.cmd, pattern, p.err)
	}
}

// died waits for the process to be killed, as it should be.
func (p *process) died() {
	p.t.Helper()
	if got := p.wait(); !got.Signaled() || got.Signal() != unix.SIGKILL {
		p.t.Fatalf("%v: %v, want it killed\n%s", p.cmd, p.cmd.ProcessState, p.err)
	}
}

func (p *process) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatalf("signal %v to pid %d: %v", s, p.pid, err)
	}
}

// stop sends SIGSTOP, and waits for its effect.
func (p *process) stop() {
	p.t.Helper()
	p.signal(unix.SIGSTOP)
	p.stopped()
}

// stopped waits until every thread has stopped.
func (p *process) stopped() {
	p.t.Helper()
	eventually(p.t, fmt.Sprintf("pid %d stops", p.pid), func() bool {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.pid))
		return err == nil && len(threads) > 0 && !slices.ContainsFunc(threads, func(thread string) bool {
			stat, err := os.ReadFile(thread)
			return err != nil || !bytes.Contains(stat, []byte(") T "))
		})
	})
}

// logged waits for a line on stderr that matches, and returns the submatches of the first.
func (p *process) logged(pattern string) []string {
	p.t.Helper()
	re := regexp.MustCompile(`(?m:` + pattern + `)`)
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		over := time.Now().After(end)
		select {
		case <-p.done:
			over = true
		default:
		}
		whole := p.err.String() // after the look at done
		if match := re.FindStringSubmatch(whole[:strings.LastIndex(whole, "\n")+1]); match != nil {
			return match
		}
		if over {
			p.t.Fatalf("%v: no line matches %q in:\n%s", p.cmd, pattern, whole)
		}
	}
}

// addr is where the process serves TCP.
func (p *process) addr() string {
	p.t.Helper()
	addr := p.logged(`listening on (\S+:\d+)$`)[1]
	if p.encrypts {
		wantsTLS(p.t, addr)
	}
	return addr
}

// fds is what the process has open: number to what /proc/PID/fd says it is.
func (p *process) fds() map[int]string {
	p.t.Helper()
	entries, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", p.pid))
	if err != nil || len(entries) == 0 {
		p.t.Fatalf("descriptors of pid %d: %d, %v", p.pid, len(entries), err)
	}
	open := map[int]string{}
	for _, entry := range entries {
		number, err := strconv.Atoi(filepath.Base(entry))
		if err != nil {
			p.t.Fatal(err)
		}
		if what, err := os.Readlink(entry); err == nil { // otherwise it is closed by now
			open[number] = what
		}
	}
	return open
}

// has reports whether the process has that socket open.
func (p *process) has(inode string) bool {
	for _, what := range p.fds() {
		if what == "socket:["+inode+"]" {
			return true
		}
	}
	return false
}

// keepsFDs returns a check that the process has no more descriptors than now. (It may have less: a
// client hears of the end of its connection before the server closes its descriptor.)
func (p *process) keepsFDs() func() {
	p.t.Helper()
	before := p.fds()
	return func() {
		p.t.Helper()
		eventually(p.t, fmt.Sprintf("pid %d has no more descriptors than it had: %v", p.pid, before), func() bool {
			return len(p.fds()) <= len(before)
		})
	}
}

// limitFDs lets the process open only so many descriptors: beyond those that it has. It returns
// what undoes that.
func (p *process) limitFDs(more int) (restore func()) {
	p.t.Helper()
	limit := 0
	for open := p.fds(); more >= 0; limit++ {
		if open[limit] == "" {
			more--
		}
	}
	var before unix.Rlimit
	if err := unix.Prlimit(p.pid, unix.RLIMIT_NOFILE, nil, &before); err != nil {
		p.t.Fatal(err)
	}
	set := func(limit unix.Rlimit) {
		p.t.Helper()
		if err := unix.Prlimit(p.pid, unix.RLIMIT_NOFILE, &limit, nil); err != nil {
			p.t.Fatal(err)
		}
	}
	set(unix.Rlimit{Cur: uint64(limit - 1), Max: before.Max})
	return func() { p.t.Helper(); set(before) }
}

// eventually waits until ok, which it asks again and again.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never happened: %s", what)
		}
	}
}

// text collects what a process writes.
type text struct {
	mu   sync.Mutex
	all  bytes.Buffer
	file string // if it goes there
}

func (l *text) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.Write(b)
}

func (l *text) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != "" {
		whole, _ := os.ReadFile(l.file) // it is there as long as the test
		return string(whole)
	}
	return l.all.String()
}

// client is a TCP client that fails its test instead of returning errors. It speaks TLS where the server
// does.
type client struct {
	t *testing.T
	stream
	in *bufio.Reader
}

func dial(t *testing.T, addr string) *client {
	t.Helper()
	c, err := connect(addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = wire(c).Close() }) // most tests have closed it
	if err := c.SetDeadline(deadline()); err != nil {
		t.Fatal(err)
	}
	return &client{t, c, bufio.NewReader(c)}
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
		c.t.Fatalf("client %v read %q and then: %v", c.LocalAddr(), text, err)
	}
	return strings.TrimSuffix(text, "\n")
}

// expect reads lines and compares them.
func (c *client) expect(lines ...string) {
	c.t.Helper()
	for _, want := range lines {
		if got := c.line(); got != want {
			c.t.Fatalf("client %v got %.200q, want %.200q", c.LocalAddr(), got, want)
		}
	}
}

// matches reads a line that matches.
func (c *client) matches(pattern string) {
	c.t.Helper()
	if got := c.line(); !regexp.MustCompile(`^` + pattern + `$`).MatchString(got) {
		c.t.Fatalf("client %v got %.300q, want %q", c.LocalAddr(), got, pattern)
	}
}

// echoed sends a line and expects it back.
func (c *client) echoed(text string) {
	c.t.Helper()
	c.send(text + "\n")
	c.expect(text)
}

// stolen asks for STEAL, and expects to get it.
func (c *client) stolen(old, young *process) {
	c.t.Helper()
	c.send("STEAL\n")
	c.expect(stolenLine(old, young))
	c.echoed("after STEAL")
}

func stolenLine(old, young *process) string {
	return fmt.Sprintf("* stolen: pid %d -> pid %d", old.pid, young.pid)
}

const nobodyWaits = "* not stolen: no new process is waiting"

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
	if errors.Is(err, io.ErrUnexpectedEOF) { // of TLS without close_notify: a process was killed
		err = nil
	}
	if len(rest) > 0 || err != nil && !errors.Is(err, unix.ECONNRESET) {
		c.t.Fatalf("client %v got %.200q and %v, want the end", c.LocalAddr(), rest, err)
	}
}

// inode is the kernel's name for the server's end of the connection.
func (c *client) inode() string {
	c.t.Helper()
	return inodes(c.t, c)[0]
}

// inodes looks for the server's ends of connections in /proc/net/tcp (proc_net(5)).
func inodes(t *testing.T, clients ...*client) []string {
	t.Helper()
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	found := map[[2]string]string{} // the two ports to the inode
	for row := range strings.Lines(string(table)) {
		// number, local address, remote address, state, queues, timer, retransmits, uid, timeout, inode
		f := strings.Fields(row)
		_, local, _ := strings.Cut(f[1], ":")
		_, remote, _ := strings.Cut(f[2], ":")
		if f[9] != "0" {
			found[[2]string{local, remote}] = f[9]
		}
	}
	port := func(a net.Addr) string { return fmt.Sprintf("%04X", a.(*net.TCPAddr).Port) }
	var all []string
	for _, c := range clients {
		inode := found[[2]string{port(c.RemoteAddr()), port(c.LocalAddr())}]
		if inode == "" {
			t.Fatalf("the server's end of %v is not in /proc/net/tcp", c.LocalAddr())
		}
		all = append(all, inode)
	}
	return all
}

// meetingPlace is a control path of the test's own, short enough for sun_path.
func meetingPlace(t *testing.T) string {
	t.Helper()
	return filepath.Join(folder(t), "control")
}

func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "steal-")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // in the temp folder, no harm is done
	return dir
}

// needsRoot skips what needs another user.
func needsRoot(t *testing.T) {
	t.Helper()
	if uid := os.Geteuid(); uid != 0 {
		t.Skipf("uid %d cannot start another user's process", uid)
	}
}

const nobody = 65534

// yamaMode is Yama's ptrace_scope, and 0 without Yama, which allows the same.
func yamaMode(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile("/proc/sys/kernel/yama/ptrace_scope")
	if errors.Is(err, os.ErrNotExist) {
		return 0
	}
	mode, convErr := strconv.Atoi(strings.TrimSpace(string(text)))
	if err := errors.Join(err, convErr); err != nil {
		t.Fatal(err)
	}
	return mode
}

// forbidden is what a step that pulls says if Yama's mode is above upTo, which is as far as an ordinary
// user's processes may look into each other, or root's. Otherwise it is empty.
func forbidden(t *testing.T, s step, upTo int) string {
	t.Helper()
	mode := yamaMode(t)
	if os.Geteuid() == 0 { // with CAP_SYS_PTRACE
		upTo = 2
	}
	if !s.pulls || mode <= upTo {
		return ""
	}
	return fmt.Sprintf("operation not permitted: its user is no obstacle; Yama's ptrace_scope is %d", mode)
}

func matches(pattern, text string) bool { return regexp.MustCompile(pattern).MatchString(text) }
