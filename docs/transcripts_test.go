package docs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// A console block is a script, with the output that it had. Its terminals have names:
//
//	old$ go run ./steps/04-steal      starts a command in the terminal old; in the one named
//	                                  shell, commands end before the story goes on
//	client> hello                     types a line into what runs in the terminal client
//	old:                              goes on showing what the terminal old prints
//	...                               stands for any lines
//
// Every other line is output of the terminal named last. Numbers that differ from run to run,
// such as pids, need only be used alike: one number on the page, one number in the run.
//
// A step is ready (it listens, or waits) and nc is connected before the story goes on. Everything
// else that must have happened has to be shown: the order of events is what the page waits for. A terminal
// whose last lines nobody shows ends with "...".
//
// The short form plays the README, the chapters 01 to 05 and what they link to; not what builds or traces.
func TestTranscripts(t *testing.T) {
	bin := t.TempDir()
	build := []string{"build", "-ldflags=-s -w", "-o", bin}
	for _, step := range append(steps(t), "mistakes") {
		if long || step < "07" || step == "mistakes" {
			build = append(build, "./steps/"+step)
		}
	}
	if out, err := exec.Command("go", build...).CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	old := syscall.Umask(0o022) // it shows in the modes of files
	t.Cleanup(func() { syscall.Umask(old) })
	check(t, "console", func(t *testing.T, b block) (string, error) {
		if !long && takesLong.MatchString(b.text) {
			return b.text, nil
		}
		if needs := map[string]bool{"needs: a kernel with TLS": true, "needs: a kernel without TLS": false}; b.mark != "" {
			if has, known := needs[b.mark]; known && has != kernelTLS() {
				t.Logf("line %d %s", b.line, b.mark)
				return b.text, nil
			}
		}
		truth, err := newStage(t, bin).play(b.text)
		if tool := new(missingTool); errors.As(err, tool) && os.Getenv("DOCS_TOOLS") == "" {
			t.Logf("line %d: %v", b.line, err) // .ci/run installs them, and sets DOCS_TOOLS
			return b.text, nil
		}
		return truth, err
	})
}

// kernelTLS reports whether the module is loaded: a user's process cannot do that.
func kernelTLS() bool {
	available, err := os.ReadFile("/proc/sys/net/ipv4/tcp_available_ulp")
	return err == nil && slices.Contains(strings.Fields(string(available)), "tls")
}

var takesLong = regexp.MustCompile(`(?m)^\w*\$ .*(go build|strace|steps/(0[6-9]|10))`)

// quiet is how long a terminal must have been still before its output is taken for complete,
// once it is known to differ from the page.
const quiet = 500 * time.Millisecond

// patience bounds the wait for a line that the page promises. Who is about to write the page has less.
func patience() time.Duration {
	if *update {
		return 8 * time.Second
	}
	return 30 * time.Second
}

// stage is where one transcript is played.
type stage struct {
	bin       string // the steps, built
	run       string // XDG_RUNTIME_DIR
	terminals map[string]*terminal
	names     *renaming
}

// newStage ends, with all that runs on it, with the test.
func newStage(t *testing.T, bin string) *stage {
	s := &stage{bin: bin, run: t.TempDir(), terminals: map[string]*terminal{}, names: newRenaming()}
	if err := os.Chmod(s.run, 0o700); err != nil { // or no step would trust it
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, term := range s.terminals {
			term.kill()
		}
	})
	return s
}

var (
	starts = regexp.MustCompile(`^([a-z]*)\$ (.*)$`)
	types  = regexp.MustCompile(`^([a-z]*)> (.*)$`)
	shows  = regexp.MustCompile(`^([a-z]+):$`)
)

// play performs a transcript and returns it as it really went. Where the page is right, its own
// words stay.
func (s *stage) play(script string) (string, error) {
	var truth strings.Builder
	lines := strings.SplitAfter(strings.TrimSuffix(script, "\n"), "\n")
	isCommand := func(line string) bool {
		line = strings.TrimSuffix(line, "\n")
		return starts.MatchString(line) || types.MatchString(line) || shows.MatchString(line)
	}
	// With -update, a page may at first have the commands only.
	fill := *update && !slices.ContainsFunc(lines, func(line string) bool { return !isCommand(line) })
	for i := 0; i < len(lines); {
		line := strings.TrimSuffix(lines[i], "\n")
		term, err := s.perform(line)
		if err != nil {
			return "", fmt.Errorf("%s: %w", line, err)
		}
		truth.WriteString(line + "\n")
		var expected []string
		for i++; i < len(lines) && !isCommand(lines[i]); i++ {
			expected = append(expected, strings.TrimSuffix(lines[i], "\n"))
		}
		shown := term.show(expected, s.names)
		if fill {
			shown = term.truth(s.names)
		}
		if !*update && !slices.Equal(shown, expected) { // what follows would be wrong as well
			return "", fmt.Errorf("%s: %w:\n%s", line, errStale, difference(strings.Join(expected, "\n")+"\n", strings.Join(shown, "\n")+"\n"))
		}
		truth.WriteString(strings.Join(append(shown, ""), "\n"))
		term.elided = len(expected) > 0 && expected[len(expected)-1] == "..."
	}
	if *update {
		time.Sleep(quiet) // so that who writes a page sees what comes late
	}
	for name, term := range s.terminals {
		if more := term.unshown(); len(more) > 0 && !term.elided {
			return "", fmt.Errorf("terminal %q prints more than the page says (say so with ...): %q", name, more)
		}
	}
	return truth.String(), nil
}

// perform does what a line of the script says, and returns the terminal that it is about.
func (s *stage) perform(line string) (*terminal, error) {
	if m := starts.FindStringSubmatch(line); m != nil {
		if old := s.terminals[m[1]]; old != nil {
			old.kill()
		}
		command := s.names.toRun(m[2])
		term, err := s.start(command)
		if err != nil {
			return nil, err
		}
		s.terminals[m[1]] = term
		if m[1] == "shell" {
			term.reading.Wait()
		}
		err = term.awaitReady(command)
		first := firstPort
		if strings.Contains(command, "10-tls") {
			first.value = "8443"
		}
		if m := listening.FindStringSubmatch(strings.Join(term.unshown(), "\n")); m != nil && s.names.run[first] == "" {
			s.names.page[number{"port", m[1]}], s.names.run[first] = first.value, m[1] // also if no line says so
		}
		return term, err
	}
	name, typed := "", ""
	if m := types.FindStringSubmatch(line); m != nil {
		name, typed = m[1], m[2]+"\n"
	} else if m := shows.FindStringSubmatch(line); m != nil {
		name = m[1]
	}
	term := s.terminals[name]
	if term == nil {
		return nil, errors.New("nothing has been started in that terminal")
	}
	_, err := io.WriteString(term.stdin, typed)
	if errors.Is(err, syscall.EPIPE) {
		err = fmt.Errorf("it has ended, and its last words were %q", term.unshown())
	}
	return term, err
}

var (
	getsReady = regexp.MustCompile(`^go run \./steps/(?:0[1-9]|10)-[\w-]+( -c\b| -(?:control|addr|timeout|drain|batch) \S+)*$`)
	plainNC   = regexp.MustCompile(`^nc [^|<>;&]*$`)
	ready     = regexp.MustCompile(`(?m)(listening|waiting) on \S+$`)
	connected = regexp.MustCompile(`(?m)^ *\d+: \S+ \S+ 01 (?:\S+ +){5}(\d+) `) // proc_pid_net(5): state 01, inode
)

// firstPort is what the pages call the first port that somebody listens on.
var (
	firstPort = number{"port", "8080"}
	listening = regexp.MustCompile(`listening on 127\.0\.0\.1:(\d+)`)
)

// awaitReady waits for what a reader sees, or gives time to with their fingers, before they type on.
func (t *terminal) awaitReady(command string) error {
	is := func() bool { return true }
	if getsReady.MatchString(command) {
		is = func() bool { return ready.MatchString(strings.Join(t.unshown(), "\n")) }
	} else if plainNC.MatchString(command) {
		is = t.connected
	} else if pid, stops := strings.CutPrefix(command, "kill -STOP "); stops {
		for end := time.Now().Add(patience()); !hasStopped(pid) && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			continue
		}
	}
	for end := time.Now().Add(patience()); !is() && !t.over.Load(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("it is not ready; it printed %q", t.unshown())
		}
	}
	return nil // or it has ended, and the page says how
}

// connected reports whether the command has a TCP connection.
func (t *terminal) connected() bool {
	proc := fmt.Sprintf("/proc/%d/", t.cmd.Process.Pid)
	table, _ := os.ReadFile(proc + "net/tcp")
	fds, _ := filepath.Glob(proc + "fd/*")
	for _, fd := range fds {
		target, _ := os.Readlink(fd)
		for _, m := range connected.FindAllStringSubmatch(string(table), -1) {
			if target == "socket:["+m[1]+"]" {
				return true
			}
		}
	}
	return false
}

// hasStopped reports whether each thread of a process has. The signal takes its time.
func hasStopped(pid string) bool {
	threads, _ := filepath.Glob("/proc/" + pid + "/task/*/stat")
	return len(threads) > 0 && !slices.ContainsFunc(threads, func(thread string) bool {
		stat, err := os.ReadFile(thread)
		return err != nil || !strings.Contains(string(stat), ") T ")
	})
}

var (
	goRun = regexp.MustCompile(`go run \./steps/(\S+)`)
	inTmp = regexp.MustCompile(`/tmp/( |\d\d-)`) // go build -o /tmp/ ./steps/01-echo, /tmp/01-echo, /tmp/01-trace
)

// start runs a command as the page shows it, with the steps built already, a control path of
// its own, and ports of the kernel's choice.
func (s *stage) start(command string) (*terminal, error) {
	serves := regexp.MustCompile(`go run \./steps/(01-echo|04-steal|05-pidfd|06-listeners|07-hot-restart|08-web|09-rescue|10-tls)( -(?:control|timeout|drain|batch) \S+)*$`).MatchString(command)
	command = inTmp.ReplaceAllString(command, s.run+"/$1") // a built step
	command = strings.ReplaceAll(command, pageRun, s.run)
	if tool, _, _ := strings.Cut(command, " "); tool != "go" {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, missingTool{err}
		}
	}
	if goRun.MatchString(command) || plainNC.MatchString(command) {
		// exec, so that the shell is not there to comment on how the step ended.
		command = "exec " + goRun.ReplaceAllString(command, filepath.Join(s.bin, "$1"))
	}
	if serves {
		command += " -addr 127.0.0.1:0"
	}
	term := &terminal{cmd: exec.Command("sh", "-c", command), ended: make(chan struct{})}
	term.cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+s.run)
	term.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // to end all of it
	term.hide, term.chorus = s.run, strings.HasSuffix(command, " -demo")
	stdin, typed, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe() // one for both keeps the lines in order
	if err != nil {
		return nil, err
	}
	term.stdin, term.cmd.Stdin = typed, stdin
	term.cmd.Stdout, term.cmd.Stderr = w, w
	if err := errors.Join(term.cmd.Start(), stdin.Close(), w.Close()); err != nil {
		return nil, err
	}
	term.reading.Go(func() { // until all that write to it have ended
		_, _ = io.Copy(term, r)
		term.over.Store(true)
	})
	go func() {
		_ = term.cmd.Wait() // killed, mostly; and others may want to know that it has been waited for
		close(term.ended)
	}()
	return term, nil
}

// pageRun is how the pages call XDG_RUNTIME_DIR.
const pageRun = "/run/user/1000"

// missingTool is a command that this machine does not have.
type missingTool struct{ error }

// terminal is where one command runs.
type terminal struct {
	cmd     *exec.Cmd
	stdin   io.WriteCloser
	hide    string // the folder that the page calls pageRun
	chorus  bool   // it shows what several processes print, and their order is nobody's
	elided  bool   // the page does not show all that follows
	reading sync.WaitGroup
	over    atomic.Bool   // nothing more will come
	ended   chan struct{} // closed when the command itself has

	mu    sync.Mutex
	text  bytes.Buffer
	shown int // lines
}

func (t *terminal) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text.Write(b)
}

// unshown is what the command has printed since the page last showed something of it.
func (t *terminal) unshown() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	text := strings.ReplaceAll(t.text.String(), t.hide, pageRun)
	lines := strings.Split(text, "\n")
	return lines[t.shown : len(lines)-1] // behind the last newline is no line yet
}

func (t *terminal) kill() {
	if !t.over.Load() { // it runs, or what it has started does
		_ = syscall.Kill(-t.cmd.Process.Pid, syscall.SIGKILL) // its whole group, if there is one
	}
	<-t.ended
	t.reading.Wait()
	_ = t.stdin.Close() // nobody reads it any more
}

// show waits for the expected output. It returns that, if it comes, and else what came instead.
func (t *terminal) show(expected []string, names *renaming) []string {
	for end := time.Now().Add(patience()); ; time.Sleep(5 * time.Millisecond) {
		over := t.over.Load() // asked first: then these are all lines
		lines := t.unshown()
		if t.chorus {
			if !over && time.Now().Before(end) {
				continue
			}
			lines = inOrderOf(expected, lines, names)
		}
		trial := names.clone()
		used, verdict := matches(expected, lines, trial)
		if verdict == same {
			*names = *trial
			t.shown += used
			return expected
		}
		if verdict == different || time.Now().After(end) || over {
			return t.truth(names)
		}
	}
}

// truth is all that the terminal prints until it is quiet, as the page should show it.
func (t *terminal) truth(names *renaming) []string {
	for before := -1; before != len(t.unshown()); time.Sleep(quiet) {
		before = len(t.unshown())
	}
	var truth []string
	for _, line := range t.unshown() {
		truth = append(truth, names.toPage(line))
	}
	t.shown += len(truth)
	return truth
}

// inOrderOf puts lines into the order of those that they are compared with, as far as they are the same.
func inOrderOf(expected, lines []string, names *renaming) (sorted []string) {
	names, rest := names.clone(), slices.Clone(lines)
	gap := -1
	for _, want := range expected {
		if want == "..." && gap < 0 {
			gap = len(sorted)
		}
		for i, line := range rest {
			if trial := names.clone(); trial.same(want, line) {
				names, sorted, rest = trial, append(sorted, line), slices.Delete(rest, i, i+1)
				break
			}
		}
	}
	if gap < 0 {
		gap = len(sorted)
	}
	return slices.Insert(sorted, gap, rest...)
}

const (
	same = iota
	different
	incomplete // so far it is the same
)

// matches compares lines with what is expected, and returns how many of them that took.
func matches(expected, lines []string, names *renaming) (used, verdict int) {
	for i, want := range expected {
		if want == "..." {
			for skip := 0; used+skip <= len(lines); skip++ {
				trial := names.clone()
				if n, verdict := matches(expected[i+1:], lines[used+skip:], trial); verdict == same {
					*names = *trial
					return used + skip + n, same
				}
			}
			return used, incomplete
		}
		if used == len(lines) {
			return used, incomplete
		}
		if !names.same(want, lines[used]) {
			return used, different
		}
		used++
	}
	return used, same
}

// renaming remembers which number on the page stands for which number of the run.
type renaming struct {
	page, run map[number]string // from the run's to the page's, and back
}

// number is a number of a kind: pid 7 and descriptor 7 have nothing to do with each other.
type number struct{ kind, value string }

func newRenaming() *renaming {
	return &renaming{map[number]string{}, map[number]string{}}
}

func (r *renaming) clone() *renaming { return &renaming{maps.Clone(r.page), maps.Clone(r.run)} }

// kinds are the numbers that differ from run to run, by what stands around them. What is
// measured, and what strace shows of threads and pointers, may differ within a run as well.
var kinds = []struct {
	kind, first string
	around      *regexp.Regexp
}{
	{"pid", "4711", regexp.MustCompile(`\b(?:old|new|echo|demo|client|look|server|keeper)\[(\d+)\]|"pid": ?(\d+)|(?:^|[^\[])\bpid (\d+)|kill -(?:9|STOP|CONT|USR1|USR2|TERM) (\d+)|/proc/(\d+)/|\bpid=(\d+)|lsof .*-p (\d+)|^\S+ +(\d+) .* IPv4 `)},
	{"port", "8080", regexp.MustCompile(`127\.0\.0\.[12][: ](\d+)|htons\((\d+)\)`)},
	{"inode", "20001", regexp.MustCompile(`inode (\d+)|socket:\[(\d+)\]|\d+u +IPv4 +(\d+)| ([1-9]\d*) \* (?:0|([1-9]\d*)) users`)},
	{"cookie", "501", regexp.MustCompile(`cookie"?[ :](\d+)`)},
	{"descriptor", "", regexp.MustCompile(`descriptor (\d+)|/fd/(\d+)|-fd (\d+)|"fd":(\d+)|here it is (\d+)|\bfd=(\d+)|(\d+)u +IPv4 |\bpidfd_getfd\((\d+), (\d+)|\b(?:bind|listen|accept4|epoll_ctl)\((\d+)|EPOLL_CTL_[A-Z]+, (\d+)| = (\d+)$`)},
	{"byte", "", regexp.MustCompile(`01 00 00 00 01 00 00 00 ([0-9a-f]{2}) 00 00 00`)},
	{"user", "", regexp.MustCompile(`[ug]id (\d+)|^\S+ +\d+ +(\S+) .* IPv4 `)},
	{"folder", "1", regexp.MustCompile(`(?:steal-demo-?|scm-rights-)(\d+)`)},
	{"measured", "", regexp.MustCompile(`after ([\d.]+m?s)\b|moved: \d+, in ([\d.]+[µm]?s)|longer than ([\d.]+[µm]?s)$|clients, (\d+) (?:lines|answers)|drained in ([\d.]+m?s)$|clients \d+ of (\d+);|VmRSS:\s+(\d+) kB|^(\d+ +)\w+\(|0x([0-9a-f]+)|u(?:32|64)=(\d+)`)},
}

// replace replaces each of these numbers in a line.
func replace(line string, by func(number) string) string {
	found := map[int]string{} // where one begins, to what stands there
	kindAt := map[int]string{}
	for _, k := range kinds {
		for _, m := range k.around.FindAllStringSubmatchIndex(line, -1) {
			for g := 2; g < len(m); g += 2 {
				if m[g] >= 0 {
					found[m[g]], kindAt[m[g]] = line[m[g]:m[g+1]], k.kind
				}
			}
		}
	}
	var out strings.Builder
	end := 0
	for _, at := range slices.Sorted(maps.Keys(found)) {
		out.WriteString(line[end:at] + by(number{kindAt[at], found[at]}))
		end = at + len(found[at])
	}
	return out.String() + line[end:]
}

// split cuts the numbers out of a line, and returns them with what is left.
func split(line string) (skeleton string, numbers []number) {
	line = strings.Join(strings.Fields(line), " ") // columns are as wide as the numbers of this run
	skeleton = replace(line, func(n number) string {
		numbers = append(numbers, n)
		return "#" + n.kind
	})
	return skeleton, numbers
}

// same reports whether a line of the page and one of the run differ in nothing but numbers,
// and these are used as before.
func (r *renaming) same(page, run string) bool {
	pageLeft, pageNumbers := split(page)
	runLeft, runNumbers := split(run)
	if pageLeft != runLeft {
		return false
	}
	for i, p := range pageNumbers {
		n := runNumbers[i]
		if p.kind == "measured" {
			continue
		}
		known, seen := r.page[n]
		back, backSeen := r.run[p]
		if seen && known != p.value || backSeen && back != n.value {
			return false
		}
		r.page[n], r.run[p] = p.value, n.value
	}
	return true
}

// toRun replaces the page's numbers in a command by those of the run.
func (r *renaming) toRun(command string) string {
	return replace(command, func(n number) string {
		if value, known := r.run[n]; known {
			return value
		}
		return n.value
	})
}

// toPage replaces the run's numbers in a line by those of the page, and invents what is new.
func (r *renaming) toPage(line string) string {
	return replace(line, func(n number) string {
		if value, known := r.page[n]; known {
			return value
		}
		invented := n.value
		for _, k := range kinds {
			if k.kind == n.kind && k.first != "" {
				invented = k.first
			}
		}
		for r.run[number{n.kind, invented}] != "" {
			invented = successor(invented)
		}
		r.page[n], r.run[number{n.kind, invented}] = invented, n.value
		return invented
	})
}

func successor(value string) string {
	var n int
	if _, err := fmt.Sscan(value, &n); err != nil {
		return value + "x"
	}
	if n == 8080 {
		n = 40000 // clients' ports look like this
	}
	return fmt.Sprint(n + 1)
}

func TestRenaming(t *testing.T) {
	r := newRenaming()
	for _, c := range []struct {
		page, run string
		same      bool
	}{
		{"old[1]: pid 2 waits", "old[777]: pid 888 waits", true},
		{"new[2]: pid 1 is gone", "new[888]: pid 777 is gone", true},
		{"new[2]: pid 1 is gone", "new[777]: pid 888 is gone", false},
		{"old[1]: pid 2 waits", "old[777]: pid 888 sleeps", false},
		{"ends after 51ms", "ends after 1.5s", true},
		{"echo 2 you 1u IPv4 5 0t0", "echo 888 root 9u IPv4 4 0t0", true},
		{`ESTAB users:(("echo",pid=2,fd=1))`, `ESTAB users:(("echo",pid=888,fd=9))`, true},
		{`ESTAB users:(("echo",pid=2,fd=1))`, `ESTAB users:(("echo",pid=888,fd=8))`, false},
		{"pidfd_getfd(20, 21, 0) = 22", "pidfd_getfd(920, 921, 0) = 922", true},
		{"pidfd_getfd(20, 21, 0) = 22", "pidfd_getfd(920, 922, 0) = 921", false},
	} {
		if got := r.same(c.page, c.run); got != c.same {
			t.Errorf("%q and %q: %v", c.page, c.run, got)
		}
	}
	if got := r.toRun("kill -STOP 2") + r.toPage("new[888] and old[999]"); got != "kill -STOP 888new[2] and old[4711]" {
		t.Errorf("got %q", got)
	}
}

// Planted errors: a wrong line, a line too many, a pid that is not the one before.
func TestWrongTranscriptsAreNoticed(t *testing.T) {
	for script, right := range map[string]bool{
		"$ printf 'one\\ntwo\\n'\none\ntwo\n":             true,
		"$ printf 'one\\ntwo\\nthree\\n'\n...\nthree\n":   true,
		"a$ cat\na> hello\nhello\n$ echo x\nx\na> b\nb\n": true,
		"$ echo pid 77\npid 4711\n":                       true,
		"$ printf 'one\\ntwo\\n'\none\nthree\n":           false,
		"$ printf 'one\\ntwo\\n'\none\n":                  false,
		"$ echo pid 77; echo pid 78\npid 1\npid 1\n":      false,
		"$ echo pid 77; echo pid 77\npid 1\npid 2\n":      false,
	} {
		if truth, err := newStage(t, "").play(script); right != (err == nil && truth == script) {
			t.Errorf("%q turned into %q, %v", script, truth, err)
		}
	}
}
