//go:build linux

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a test waits for what must come.
const patience = 30 * time.Second

// roles are what this test binary does where a test starts it as another process.
var roles = map[string]func() error{
	"step":  func() error { main(); return nil },
	"floor": answerFloor,
}

func TestMain(m *testing.M) {
	role, found := roles[os.Getenv("TEST_ROLE")]
	if !found {
		log.SetOutput(io.Discard) // what the functions under test log
		os.Exit(m.Run())
	}
	if err := role(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// command is this test binary in a role.
func command(role string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "TEST_ROLE="+role, "GORACE=atexit_sleep_ms=0")
	return cmd
}

// startStep starts the step as a process, and returns what its log says behind mark.
func startStep(t testing.TB, mark string, args ...string) (cmd *exec.Cmd, rest string) {
	t.Helper()
	cmd = command("step", args...)
	out, outErr := cmd.StderrPipe()
	if err := errors.Join(outErr, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if _, rest, found := strings.Cut(lines.Text(), mark); found {
			go func() {
				for lines.Scan() { // so that it never waits for a reader
				}
			}()
			return cmd, rest
		}
	}
	t.Fatalf("%v ended, and never said %q", cmd.Args, mark)
	return nil, ""
}

// shortPath is a path in a folder of the test's own, which fits into a socket's address.
func shortPath(t testing.TB) string {
	t.Helper()
	folder, err := os.MkdirTemp("", "t")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(folder) })
	return filepath.Join(folder, "control")
}

// BenchmarkSteal measures how long a client waits: from sending STEAL to reading the answer. In turn
// with that it measures the floor: what it costs at least to get one descriptor to another process
// and to know that it is there, in plain blocking system calls. Compare the two, as on a busy
// machine both grow.
func BenchmarkSteal(b *testing.B) {
	path := shortPath(b)
	old, addr := startStep(b, "listening on ", "-addr", "127.0.0.1:0", "-control", path)
	young, _ := startStep(b, "waiting on ", "-c", "-control", path)
	want := fmt.Sprintf("* stolen: pid %d -> pid %d\n", old.Process.Pid, young.Process.Pid)
	floor := startFloor(b)
	var pauses, floors []time.Duration
	for b.Loop() {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			b.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(patience))
		in := bufio.NewReader(c)
		ask := func(text, want string) {
			io.WriteString(c, text) // what fails here is not answered
			if got, err := in.ReadString('\n'); got != want {
				b.Fatalf("got %q, %v, want %q", got, err, want)
			}
		}
		ask("hello\n", "hello\n")
		begin := time.Now()
		ask("STEAL\n", want)
		pauses = append(pauses, time.Since(begin))
		c.Close()

		begin = time.Now()
		err = unix.Sendmsg(floor, []byte("x"), unix.UnixRights(0), nil, 0)
		if err == nil {
			_, err = unix.Read(floor, make([]byte, 1))
		}
		if err != nil {
			b.Fatal(err)
		}
		floors = append(floors, time.Since(begin))
	}
	slices.Sort(pauses)
	slices.Sort(floors)
	microseconds := func(sorted []time.Duration, percent int) float64 {
		return float64(sorted[(len(sorted)-1)*percent/100].Nanoseconds()) / 1000
	}
	b.ReportMetric(microseconds(pauses, 50), "pause-p50-µs")
	b.ReportMetric(microseconds(pauses, 99), "pause-p99-µs")
	b.ReportMetric(microseconds(floors, 50), "floor-p50-µs")
	b.ReportMetric(microseconds(floors, 99), "floor-p99-µs")
	b.ReportMetric(microseconds(pauses, 50)/microseconds(floors, 50), "pause/floor")
	b.ReportMetric(0, "ns/op") // dialling and closing are in it: it says nothing
}

// startFloor starts a process that takes descriptors, and returns the socket to it.
func startFloor(b *testing.B) int {
	b.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "floor")
	defer theirs.Close()
	cmd := command("floor")
	cmd.ExtraFiles = []*os.File{theirs}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { unix.Close(pair[0]); cmd.Wait() }) // without the other end it has nothing more to do
	return pair[0]
}

// answerFloor is the other process: one byte for each descriptor, until end-of-file.
func answerFloor() error {
	const socket = 3 // exec.Cmd.ExtraFiles begin there
	payload, control := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	for {
		n, controlLen, _, _, err := unix.Recvmsg(socket, payload, control, unix.MSG_CMSG_CLOEXEC)
		if n == 0 || err != nil {
			return err
		}
		messages, err := unix.ParseSocketControlMessage(control[:controlLen])
		if err != nil {
			return err
		}
		fds, err := unix.ParseUnixRights(&messages[0])
		if err != nil {
			return err
		}
		unix.Close(fds[0])
		if _, err := unix.Write(socket, payload); err != nil {
			return err
		}
	}
}
