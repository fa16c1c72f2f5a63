//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// meetingPlace is a control path of the test's own, short enough for sun_path.
func meetingPlace(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "step")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return filepath.Join(dir, "control")
}

func startOld(t *testing.T, path string) *process {
	t.Helper()
	old := start(t, "-control", path)
	old.logged(`listening on `)
	return old
}

// dying is for startWith: the process dies instead of logging a line that matches.
func dying(pattern string) func(*exec.Cmd) {
	return func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, killAt+"="+pattern) }
}

func exits(t *testing.T, p *process, want int) {
	t.Helper()
	if status := p.status(); status != want {
		t.Errorf("pid %d: exit status %d, want %d:\n%s", p.pid(), status, want, p.err)
	}
}

// tellsAll expects that a new process hears both stories.
func tellsAll(t *testing.T, path string) {
	t.Helper()
	newcomer := start(t, "-c", "-control", path)
	newcomer.logged(`reads "line two\\n"$`)
	newcomer.printed(`^"who is there\?\\n"$`)
	exits(t, newcomer, 0)
}

func TestBothStories(t *testing.T) {
	path := meetingPlace(t)
	old := startOld(t, path)
	newcomer := start(t, "-c", "-control", path)
	exits(t, newcomer, 0)
	newcomer.logged(`^new\[\d+\]: waiting on ` + path + `$`)
	old.logged(fmt.Sprintf(`^old\[%d\]: both stories are told, with pid %d; listening on %s$`, old.pid(), newcomer.pid(), path))

	for _, side := range []struct {
		p        *process
		lines    []string // that it read from the file
		received string   // by TCP
	}{
		{old, []string{`at offset 0, reads "line one\n"`, `at offset 18, reads "line three\n"`}, fmt.Sprintf("pid %d\n", newcomer.pid())},
		{newcomer, []string{`at offset 9, reads "line two\n"`}, "who is there?\n"},
	} {
		if got := side.p.err.all(` reads `); len(got) != len(side.lines) {
			t.Errorf("read %d lines of the file, want %d", len(got), len(side.lines))
		}
		for _, line := range side.lines {
			side.p.logged(`^\w+\[\d+\]: descriptor \d+, ` + regexp.QuoteMeta(line) + `$`)
		}
		if got, want := side.p.out.String(), fmt.Sprintf("%q\n", side.received); got != want {
			t.Errorf("stdout is %s, want %s", got, want)
		}
	}
}

// The numbers differ, and what they stand for does not.
func TestWhatIsSharedAndWhatIsNot(t *testing.T) {
	path := meetingPlace(t)
	old := startOld(t, path)
	newcomer := start(t, "-c", "-control", path)
	exits(t, newcomer, 0)

	sent := old.logged(`sending the listener: descriptor (\d+), (inode \d+, cookie \d+)$`)
	received := newcomer.logged(`received the listener: descriptor (\d+), (inode \d+, cookie \d+)$`)
	if sent[2] != received[2] {
		t.Errorf("sent %s, received %s", sent[2], received[2])
	}

	// Each side's control message holds its own number, and apart from that the same bytes.
	for _, side := range []struct {
		p    *process
		verb string
	}{{old, "sending"}, {newcomer, "received"}} {
		number, err := strconv.Atoi(side.p.logged(side.verb + ` descriptor (\d+) in this control message:$`)[1])
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range dump(rights(number)) {
			side.p.logged(`^\w+\[\d+\]: ` + regexp.QuoteMeta(line) + `$`)
		}
	}
}

// Whoever comes hears both stories, and the old process keeps nothing of it.
func TestManyNewcomers(t *testing.T) {
	path := meetingPlace(t)
	old := startOld(t, path)
	tellsAll(t, path)
	before := idle(t, old, 1)
	var all []*process
	for range 5 {
		all = append(all, start(t, "-c", "-control", path))
	}
	for _, p := range all {
		exits(t, p, 0)
	}
	if now := idle(t, old, 1+len(all)); now != before {
		t.Errorf("%d descriptors, want %d", now, before)
	}
}

// idle waits until the old process has told both stories so many times and closed what it
// then closes, and returns how many descriptors it has left.
func idle(t *testing.T, old *process, told int) int {
	t.Helper()
	eventually(t, "all are told", func() bool { return len(old.err.all(`both stories are told`)) == told })
	left := 0
	eventually(t, "connections are closed", func() bool {
		sockets := 0
		open := old.descriptors()
		for _, what := range open {
			if strings.HasPrefix(what, "socket:") {
				sockets++
			}
		}
		left = len(open)
		return sockets == 1 // the listening one
	})
	return left
}

func TestNewIsKilled(t *testing.T) {
	for _, point := range []string{
		`waiting on`, `received descriptor`, `at offset 9`, `received the listener`, `accepted the client`,
	} {
		t.Run(point, func(t *testing.T) {
			path := meetingPlace(t)
			old := startOld(t, path)
			newcomer := startWith(t, dying(point), "-c", "-control", path)
			exits(t, newcomer, -1)
			old.logged(fmt.Sprintf(`^old\[%d\]: pid %d \(.*\) is gone: .*; listening on %s$`, old.pid(), newcomer.pid(), path))
			tellsAll(t, path)
		})
	}
}

func TestOldIsKilled(t *testing.T) {
	for point, stage := range map[string]string{
		`sending descriptor`:   `receive the file: EOF`,
		`at offset 18`:         `receive the listener: EOF`,
		`sending the listener`: `receive the listener: EOF`,
	} {
		t.Run(point, func(t *testing.T) {
			path := meetingPlace(t)
			old := startWith(t, dying(point), "-control", path)
			old.logged(`listening on `)
			newcomer := start(t, "-c", "-control", path)
			exits(t, old, -1)
			newcomer.logged(fmt.Sprintf(`^new\[%d\]: pid %d \(.*\) is gone: %s$`, newcomer.pid(), old.pid(), stage))
			exits(t, newcomer, 1)
		})
	}
}

// A new process that lives and does nothing is waited for, but not for ever.
func TestSilentNewcomer(t *testing.T) {
	path := meetingPlace(t)
	old := startOld(t, path)
	c, err := dialControl(path)
	if err != nil {
		t.Fatal(err)
	}
	defer closeQuietly(c)
	if _, err := greet(t.Context(), c, sameUserOrRoot); err != nil {
		t.Fatal(err)
	}
	tellsAll(t, path)
	old.logged(fmt.Sprintf(`pid %d \(.*\): wait until the other one has read its line: .*deadline exceeded`, os.Getpid()))
}

// A record that is not what the story needs is refused, and nothing of it stays open.
func TestReceiveFileRefuses(t *testing.T) {
	b := testBench(t)
	for _, refused := range []struct {
		payload string
		fds     []int
		want    error
	}{
		{"file", nil, errMissingFDs},
		{"file", []int{b.null, b.null}, errSurplusFDs},
		{"", []int{b.null}, errEmptyPayload},
		{"a payload longer than any of the story's", []int{b.null}, errPayloadTruncated},
	} {
		before := openFDs(t)
		if _, err := sendRaw(t.Context(), b.from, []byte(refused.payload), rights(refused.fds...)); err != nil {
			t.Fatal(err)
		}
		if err := receiveFile(t.Context(), b.to); !errors.Is(err, refused.want) {
			t.Errorf("got %v, want %v", err, refused.want)
		}
		if now := openFDs(t); now != before {
			t.Errorf("%v: %d descriptors are open, want %d", refused.want, now, before)
		}
	}
	if err := b.from.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if err := receiveFile(t.Context(), b.to); !errors.Is(err, io.EOF) {
		t.Errorf("got %v, want end-of-file", err)
	}
}

func TestSignalsEndBoth(t *testing.T) {
	path := meetingPlace(t)
	old := startOld(t, path)
	tellsAll(t, path)
	old.signal(unix.SIGTERM)
	exits(t, old, 0)
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", path, err)
	}
}

func TestUsage(t *testing.T) {
	for _, wrong := range [][]string{{"-nonsense"}, {"stray"}, {"-break", "nonsense"}, {"-break", "peek", "-c"}} {
		p := start(t, wrong...)
		exits(t, p, 2)
		if said := p.err.all(``); len(said) != 1 {
			t.Errorf("%v: %d lines, want one:\n%s", wrong, len(said), p.err)
		}
	}
	lonely := start(t, "-c", "-control", meetingPlace(t))
	lonely.logged(`nobody listens there; start the old process first`)
	exits(t, lonely, 1)
}

func TestNothingStaysBehind(t *testing.T) {
	dir := filepath.Dir(meetingPlace(t))
	inDir := func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, "TMPDIR="+dir) }
	exits(t, startWith(t, inDir, "-demo"), 0)
	exits(t, startWith(t, inDir, "-break", "nofile-limit"), 0)
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
