//go:build linux

package main

import (
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// asProgram makes the test binary behave as the program: for runChild, and for the tests below.
const asProgram = "MISTAKES_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	for name, value := range map[string]string{
		asProgram: "1",
		"GORACE":  "atexit_sleep_ms=0 " + os.Getenv("GORACE"), // or each child sleeps for a second
	} {
		if err := os.Setenv(name, value); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// outcomes are what each mistake must measure, the wrong way and the right way.
var outcomes = map[string]struct{ wrong, right string }{
	"short-buffer": {
		fmt.Sprintf(`room for 1 \(%d bytes\): recvmsg gets %d of 3 descriptors, MSG_CTRUNC true, error <nil>`, unix.CmsgSpace(4), roomForOne),
		fmt.Sprintf(`room for 253 \(%d bytes\): recvmsg gets 3 of 3 descriptors, MSG_CTRUNC false, error <nil>`, unix.CmsgSpace(4*253)),
	},
	"nofile-limit": {
		`1 number left: recvmsg gets 1 of 4 descriptors, MSG_CTRUNC true, error <nil>; the check says: <nil>`,
		`1 number left: recvmsg gets 1 of 4 descriptors, MSG_CTRUNC true, error <nil>; the check says: descriptors are missing`,
	},
	"no-cloexec": {
		`close-on-exec false; descriptor \d+ here: (socket:\[\d+\]); in a child process: (socket:\[\d+\])`,
		`close-on-exec true; descriptor \d+ here: (socket:\[\d+\]); in a child process: (.+)`,
	},
	"peek": {
		`1 descriptor sent: 3 peeks with room for 253 install 3, receiving it installs 1`,
		`1 descriptor sent: 3 peeks with room for 0 install 0, receiving it installs 1`,
	},
	"plain-read": {
		`payload "connection" and 0 of 1 descriptors; the client reads end-of-file`,
		`payload "connection" and 1 of 1 descriptors; the client reads nothing yet \(EAGAIN\)`,
	},
	"too-many": {
		`254 descriptors in one message: sendmsg: invalid argument`,
		`254 descriptors in 2 messages: \[253 1\] arrive`,
	},
	"no-payload": {
		`SOCK_STREAM: error <nil>, .* received: \[\]; SOCK_SEQPACKET: error <nil>, received: \[""\+1\]`,
		`SOCK_STREAM: error <nil>, .* received: \["x"\+1\]; SOCK_SEQPACKET: error <nil>, received: \["x"\+1\]`,
	},
	"stream-coalescing": {
		`.* sent: \["AAAA"\+0 "aaaa"\+0 "BBBB"\+1 "CCCC"\+1\]; received: \["AAAAaaaaBBBB"\+1 "CCCC"\+1\]`,
		`.* sent: \["AAAA"\+0 "aaaa"\+0 "BBBB"\+1 "CCCC"\+1\]; received: \["AAAA"\+0 "aaaa"\+0 "BBBB"\+1 "CCCC"\+1\]`,
	},
	"readahead": {
		`the old process reads "one\\n", the new one gets ""`,
		`the old process reads "one\\n", the new one gets "two\\nthree\\n"`,
	},
	"forgotten-dup": {
		`closed by both processes, the client reads nothing yet \(EAGAIN\); with the duplicate closed too: end-of-file`,
		`closed by both processes, the client reads end-of-file`,
	},
	"nonblock": {
		`a child has called File\(\)\.Fd\(\): O_NONBLOCK is false here; a read past its deadline ends after [\dms.]+: end-of-file`,
		`a child has called SyscallConn\(\)\.Control\(\): O_NONBLOCK is true here; a read past its deadline ends after [\dms.]+: i/o timeout`,
	},
}

// roomForOne is how many descriptors fit into a buffer for one: two, where a word has 8 bytes.
var roomForOne = (unix.CmsgSpace(4) - unix.CmsgLen(0)) / 4

func TestOutcomes(t *testing.T) {
	if len(outcomes) != len(mistakes) {
		t.Errorf("%d outcomes of %d mistakes", len(outcomes), len(mistakes))
	}
	// The runtime opens its poller, and what it needs to start a child, only once.
	_, err := withSockets(func(*sockets) (string, error) { return runChild("child-no-cloexec", "0") })
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mistakes {
		t.Run(m.name+"/wrong", func(t *testing.T) {
			got := measure(t, m.wrong, outcomes[m.name].wrong)
			if m.name == "no-cloexec" && got[1] != got[2] {
				t.Errorf("a child inherits %s, want %s", got[2], got[1])
			}
		})
		t.Run(m.name+"/right", func(t *testing.T) {
			got := measure(t, m.right, outcomes[m.name].right)
			if m.name == "no-cloexec" && got[1] == got[2] {
				t.Errorf("a child inherits %s", got[2])
			}
		})
	}
}

// measure runs way, which must say want and leave no descriptor open. It returns the submatches.
func measure(t *testing.T, way func(*sockets) (string, error), want string) []string {
	t.Helper()
	var limit, limitAfter unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	before := openFDs(t)
	result, err := withSockets(way)
	if err != nil {
		t.Fatal(err)
	}
	if after := openFDs(t); after != before {
		t.Errorf("%d descriptors are open afterwards, and %d before", after, before)
	}
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limitAfter); err != nil || limitAfter != limit {
		t.Errorf("RLIMIT_NOFILE is %v afterwards (error %v), and %v before", limitAfter, err, limit)
	}
	got := regexp.MustCompile(`^` + want + `$`).FindStringSubmatch(result)
	if got == nil {
		t.Fatalf("\ngot  %s\nwant %s", result, want)
	}
	return got
}

func openFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// program runs the program, and returns its output and its exit status.
func program(t *testing.T, stdout io.Writer, args ...string) (stderr string, status int) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var errors strings.Builder
	cmd := exec.CommandContext(t.Context(), self, args...)
	cmd.Stdout, cmd.Stderr = stdout, &errors
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return errors.String(), cmd.ProcessState.ExitCode()
}

//go:embed main.go
var mainSource string

func TestList(t *testing.T) {
	var out strings.Builder
	if stderr, status := program(t, &out, "list"); status != 0 || stderr != "" {
		t.Fatalf("exit status %d, %q", status, stderr)
	}
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(lines) != len(outcomes) {
		t.Errorf("%d lines, want %d", len(lines), len(outcomes))
	}
	for _, line := range lines {
		name, about, _ := strings.Cut(line, " ")
		about = strings.TrimSpace(about)
		if _, ok := outcomes[name]; !ok || about == "" {
			t.Errorf("unexpected line %q", line)
		}
		inDoc := fmt.Sprintf(`(?m)^//\t%s +%s$`, strings.ReplaceAll(name, "-", "_")+`\.go`, regexp.QuoteMeta(about))
		if !regexp.MustCompile(inDoc).MatchString(mainSource) {
			t.Errorf("the doc comment of main.go has no line for %q", line)
		}
	}
}

func TestProgram(t *testing.T) {
	var out strings.Builder
	if stderr, status := program(t, &out, "nonblock"); status != 0 || stderr != "" {
		t.Fatalf("exit status %d, %q", status, stderr)
	}
	want := `^nonblock: .*\nwrong: ` + outcomes["nonblock"].wrong + `\nright: ` + outcomes["nonblock"].right + `\n$`
	if !regexp.MustCompile(want).MatchString(out.String()) {
		t.Errorf("\ngot  %s\nwant %s", out.String(), want)
	}
}

func TestWrongUsage(t *testing.T) {
	for _, args := range [][]string{nil, {""}, {"nonsense"}, {"list", "peek"}, {"peek", "peek"}, {"-h"}} {
		var out strings.Builder
		stderr, status := program(t, &out, args...)
		if status != 2 || strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "mistakes: usage: ") || out.String() != "" {
			t.Errorf("%q: exit status %d, stdout %q, stderr %q", args, status, out.String(), stderr)
		}
	}
}

// What fails is one line with the system call and its errno, and exit status 1.
func TestFailure(t *testing.T) {
	readOnly, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer readOnly.Close()
	if stderr, status := program(t, readOnly, "list"); status != 1 || stderr != "mistakes: write /dev/stdout: bad file descriptor\n" {
		t.Errorf("exit status %d, %q", status, stderr)
	}
	if stderr, status := program(t, io.Discard, "child-nonblock", ""); status != 1 || strings.Count(stderr, "\n") != 1 {
		t.Errorf("a child without descriptor 3: exit status %d, %q", status, stderr)
	}
	_, err = runChild("child-nonblock", "", readOnly)
	if err == nil || !regexp.MustCompile(`^child-nonblock: exit status 1: mistakes: .*recvmsg: .*`).MatchString(err.Error()) {
		t.Errorf("a child whose descriptor 3 is no socket: %v", err)
	}
	_, err = withSockets(func(s *sockets) (string, error) {
		_, _, err := receiveOne(s.receiver, 0)
		return "", err
	})
	if !errors.Is(err, unix.EAGAIN) {
		t.Errorf("receiving what was not sent: %v, want EAGAIN", err)
	}
}
