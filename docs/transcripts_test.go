//go:build linux

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
func TestTranscripts(t *testing.T) {
	bin := t.TempDir()
	if out, err := exec.Command("go", "build", "-o", bin, "./steps/...").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	defer syscall.Umask(syscall.Umask(0o022)) // it shows in the modes of files
	check(t, "console", func(t *testing.T, b block) (string, error) {
		truth, err := newStage(t, bin).play(b.text)
		if tool := new(missingTool); errors.As(err, tool) && os.Getenv("DOCS_TOOLS") == "" {
			t.Skip(err) // .ci/run installs them, and sets DOCS_TOOLS
		}
		return truth, err
	})
}

// quiet is how long a terminal must have been still before its output is taken for complete,
// once it is known to differ from the page.
const quiet = 500 * time.Millisecond

// patience bounds the wait for a line that the page promises.
const patience = 20 * time.Second

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
	for i := 0; i < len(lines); {
		line := strings.TrimSuffix(lines[i], "\n")
		term, err := s.perform(line)
		if err != nil {
			return "", fmt.Errorf("%s: %w", line, err)
		}
		truth.WriteString(line + "\n")
		var expected []string
		for i++; i < len(lines); i++ {
			next := strings.TrimSuffix(lines[i], "\n")
			if starts.MatchString(next) || types.MatchString(next) || shows.MatchString(next) {
				break
			}
			expected = append(expected, next)
		}
		for _, line := range term.show(expected, s.names) {
			truth.WriteString(line + "\n")
		}
		term.elided = len(expected) > 0 && expected[len(expected)-1] == "..."
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
		if pid, stops := strings.CutPrefix(command, "kill -STOP "); stops {
			return term, awaitStop(pid)
		}
		return term, nil
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
	return term, err
}

// awaitStop waits until each thread of a process has stopped. The signal takes its time, which a
// reader's fingers give it.
func awaitStop(pid string) error {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		threads, err := filepath.Glob("/proc/" + pid + "/task/*/stat")
		if err != nil {
			return err
		}
		runs := func(thread string) bool {
			stat, err := os.ReadFile(thread)
			return err != nil || !strings.Contains(string(stat), ") T ")
		}
		if len(threads) > 0 && !slices.ContainsFunc(threads, runs) {
			return nil
		}
	}
	return fmt.Errorf("pid %s has not stopped", pid)
}

var (
	goRun = regexp.MustCompile(`go run \./steps/(\S+)`)
	inTmp = regexp.MustCompile(`/tmp/( |\d\d-)`) // go build -o /tmp/ ./steps/01-echo, /tmp/01-echo, /tmp/01-trace
)

// start runs a command as the page shows it, with the steps built already, a control path of
// its own, and ports of the kernel's choice.
func (s *stage) start(command string) (*terminal, error) {
	if tool, _, _ := strings.Cut(command, " "); tool != "go" {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, missingTool{err}
		}
	}
	serves := regexp.MustCompile(`go run \./steps/(01-echo|04-steal|05-pidfd|06-hot-restart)( -v| -takeover-timeout 1m)*$`).MatchString(command)
	command = inTmp.ReplaceAllString(command, s.run+"/$1") // a built step
	command = strings.ReplaceAll(command, pageRun, s.run)
	if goRun.MatchString(command) {
		// exec, so that the shell is not there to comment on how the step ended.
		command = "exec " + goRun.ReplaceAllString(command, filepath.Join(s.bin, "$1"))
	}
	if serves {
		command += " -addr 127.0.0.1:0"
	}
	term := &terminal{cmd: exec.Command("sh", "-c", command), ended: make(chan struct{})}
	term.cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+s.run)
	term.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // to end all of it
	term.hide = s.run
	term.columns = regexp.MustCompile(`^(ss|lsof|tail) `).MatchString(command)
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
	term.reading.Go(func() { _, _ = io.Copy(term, r) }) // until all that write to it have ended
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
	columns bool   // it prints columns, as wide as the numbers of this run
	elided  bool   // the page does not show all that follows
	reading sync.WaitGroup
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
	return t.narrow(lines[t.shown : len(lines)-1]) // behind the last newline is no line yet
}

// narrow leaves one blank between the columns of a table.
func (t *terminal) narrow(lines []string) []string {
	if !t.columns {
		return lines
	}
	var narrow []string
	for _, line := range lines {
		narrow = append(narrow, strings.Join(strings.Fields(line), " "))
	}
	return narrow
}

func (t *terminal) kill() {
	select {
	case <-t.ended:
	default:
		_ = syscall.Kill(-t.cmd.Process.Pid, syscall.SIGKILL) // with what it has started
	}
	<-t.ended
	t.reading.Wait()
	_ = t.stdin.Close() // nobody reads it any more
}

// show waits for the expected output. It returns that, if it comes, and else what came instead.
func (t *terminal) show(expected []string, names *renaming) []string {
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		lines := t.unshown()
		trial := names.clone()
		used, verdict := matches(t.narrow(expected), lines, trial)
		if verdict == same {
			*names = *trial
			t.shown += used
			return expected
		}
		if verdict == different || time.Now().After(end) {
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
	{"pid", "4711", regexp.MustCompile(`\b(?:old|new|echo|demo|break|client|look|server)\[(\d+)\]|(?:^|[^\[])\bpid (\d+)|kill -(?:9|STOP|CONT|USR1|USR2|TERM) (\d+)|/proc/(\d+)/|\bpid=(\d+)|lsof .*-p (\d+)|^\S+ +(\d+) .* IPv4 `)},
	{"port", "8080", regexp.MustCompile(`127\.0\.0\.[12][: ](\d+)|htons\((\d+)\)`)},
	{"inode", "20001", regexp.MustCompile(`inode (\d+)|socket:\[(\d+)\]|\d+u +IPv4 +(\d+)| ([1-9]\d*) \* (?:0|([1-9]\d*)) users`)},
	{"cookie", "501", regexp.MustCompile(`cookie"?[ :](\d+)`)},
	{"descriptor", "", regexp.MustCompile(`descriptor (\d+)|/fd/(\d+)|-fd (\d+)|"fd":(\d+)|here it is (\d+)|\bfd=(\d+)|(\d+)u +IPv4 |\b(?:bind|listen|accept4|epoll_ctl)\((\d+)|EPOLL_CTL_[A-Z]+, (\d+)| = (\d+)$`)},
	{"byte", "", regexp.MustCompile(`([0-9a-f]{2}) 00 00 00 {2,}descriptor`)},
	{"user", "", regexp.MustCompile(`[ug]id (\d+)|^\S+ +\d+ +(\S+) .* IPv4 `)},
	{"folder", "1", regexp.MustCompile(`(?:steal-demo|scm-rights-)(\d+)`)},
	{"measured", "", regexp.MustCompile(`after (\d+)ms|moved: \d+, in ([\d.]+[µm]?s)|longer than ([\d.]+[µm]?s)$|ended ([\d.]+m?s) later|clients, (\d+) lines|goroutines (\d+)|^(\d+ +)\w+\(|0x([0-9a-f]+)|u(?:32|64)=(\d+)`)},
}

// split cuts the numbers out of a line, and returns them with what is left.
func split(line string) (skeleton string, numbers []number, at [][2]int) {
	for _, k := range kinds {
		for _, m := range k.around.FindAllStringSubmatchIndex(line, -1) {
			for g := 2; g < len(m); g += 2 {
				if m[g] >= 0 {
					at = append(at, [2]int{m[g], m[g+1]})
					numbers = append(numbers, number{k.kind, line[m[g]:m[g+1]]})
				}
			}
		}
	}
	parts := slices.SortedFunc(slices.Values(at), func(a, b [2]int) int { return a[0] - b[0] })
	end := 0
	for _, p := range parts {
		skeleton += line[end:p[0]] + "#"
		end = p[1]
	}
	return skeleton + line[end:], numbers, at
}

// same reports whether a line of the page and one of the run differ in nothing but numbers,
// and these are used as before.
func (r *renaming) same(page, run string) bool {
	pageLeft, pageNumbers, _ := split(page)
	runLeft, runNumbers, _ := split(run)
	if pageLeft != runLeft || len(pageNumbers) != len(runNumbers) {
		return false
	}
	for i, p := range pageNumbers {
		n := runNumbers[i]
		if p.kind != n.kind {
			return false
		}
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

func replace(line string, by func(number) string) string {
	_, numbers, at := split(line)
	order := make([]int, len(at))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return at[a][0] - at[b][0] })
	var out strings.Builder
	end := 0
	for _, i := range order {
		out.WriteString(line[end:at[i][0]] + by(numbers[i]))
		end = at[i][1]
	}
	return out.String() + line[end:]
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
		{"descriptor 1, inode 5", "descriptor 9, inode 4", true},
		{"ends after 51ms", "ends after 52ms", true},
		{"ends after 51ms", "ends after 53ms", true},
		{"echo 2 you 1u IPv4 5 0t0", "echo 888 root 9u IPv4 4 0t0", true},
		{"echo 2 you 1u IPv4 5 0t0", "echo 888 root 9u IPv4 5 0t0", false},
		{`ESTAB users:(("echo",pid=2,fd=1))`, `ESTAB users:(("echo",pid=888,fd=9))`, true},
		{`u_seq /x 5 * 6 users:(("u",pid=2,fd=1))`, `u_seq /x 4 * 3 users:(("u",pid=888,fd=9))`, true},
		{`u_seq /x 6 * 0 users:(("u",pid=2,fd=1))`, `u_seq /x 4 * 0 users:(("u",pid=888,fd=9))`, false},
		{`ESTAB users:(("echo",pid=2,fd=1))`, `ESTAB users:(("echo",pid=888,fd=8))`, false},
	} {
		if got := r.same(c.page, c.run); got != c.same {
			t.Errorf("%q and %q: %v", c.page, c.run, got)
		}
	}
	for page, want := range map[string]string{"kill -9 2": "kill -9 888", "kill -STOP 2": "kill -STOP 888", "lsof -a -p 2 -i": "lsof -a -p 888 -i"} {
		if got := r.toRun(page); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if got := r.toPage("new[888] and old[999]"); got != "new[2] and old[4711]" {
		t.Errorf("got %q", got)
	}
}

// A table's columns may be wider than on the page. Other output may not.
func TestColumns(t *testing.T) {
	for _, columns := range []bool{true, false} {
		term := &terminal{columns: columns, hide: "/nowhere"}
		if _, err := term.Write([]byte("COMMAND   PID  \necho   77 \n")); err != nil {
			t.Fatal(err)
		}
		page := []string{"COMMAND PID", "echo     77"}
		if same := slices.Equal(term.show(page, newRenaming()), page) && len(term.unshown()) == 0; same != columns {
			t.Errorf("columns %v: same %v", columns, same)
		}
	}
}

// Planted errors: a wrong line, a line too many, a pid that is not the one before.
func TestWrongTranscriptsAreNoticed(t *testing.T) {
	play := func(script string) string {
		truth, err := newStage(t, "").play(script)
		if err != nil {
			t.Fatal(err)
		}
		return truth
	}
	for _, right := range []string{
		"$ printf 'one\\ntwo\\n'\none\ntwo\n",
		"$ printf 'one\\ntwo\\nthree\\n'\n...\nthree\n",
		"$ echo pid 77\npid 4711\n",
		"a$ cat\na> hello\nhello\nb$ echo x\nx\na> again\nagain\n",
	} {
		if truth := play(right); truth != right {
			t.Errorf("%q turned into %q", right, truth)
		}
	}
	for wrong, right := range map[string]string{
		"$ printf 'one\\ntwo\\n'\none\nthree\n":            "$ printf 'one\\ntwo\\n'\none\ntwo\n",
		"$ echo pid 77; echo pid 78\npid 4711\npid 4711\n": "$ echo pid 77; echo pid 78\npid 4711\npid 4712\n",
		"$ echo pid 77; echo pid 77\npid 4711\npid 4712\n": "$ echo pid 77; echo pid 77\npid 4711\npid 4711\n",
		"$ printf 'one\\n'; echo two\ntwo\none\n":          "$ printf 'one\\n'; echo two\none\ntwo\n",
	} {
		if truth := play(wrong); truth != right {
			t.Errorf("%q turned into %q, want %q", wrong, truth, right)
		}
	}
}
