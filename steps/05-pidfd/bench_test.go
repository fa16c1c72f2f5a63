//go:build linux

package main

import (
	"fmt"
	"log"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// steals is how many connections one benchmark operation moves.
const steals = 1000

// BenchmarkSteal measures how long a client waits: from sending STEAL to reading the answer.
// Between the steals, in the same run, it measures the floor: what it costs at least to get
// one descriptor to another process and to know that it is there (sendmsg, recvmsg, close, and
// a byte back), in plain blocking system calls. Compare the two; on a busy machine both grow.
func BenchmarkSteal(b *testing.B) {
	old, new, addr := startBoth(b)
	floor := startFloor(b)
	want := stolenLine(old, new)
	var pauses, floors []time.Duration
	for range b.N {
		for range steals {
			c := dial(b, addr)
			c.echoed("hello")
			begin := time.Now()
			c.send("STEAL\n")
			c.expect(want)
			pauses = append(pauses, time.Since(begin))
			closeQuietly(c.TCPConn)
			floors = append(floors, floor.roundTrip(b))
		}
	}
	slices.Sort(pauses)
	slices.Sort(floors)
	microseconds := func(sorted []time.Duration, permille int) float64 {
		return float64(sorted[(len(sorted)-1)*permille/1000].Nanoseconds()) / 1000
	}
	b.ReportMetric(microseconds(pauses, 500), "p50-µs")
	b.ReportMetric(microseconds(pauses, 990), "p99-µs")
	b.ReportMetric(microseconds(pauses, 1000), "max-µs")
	b.ReportMetric(microseconds(floors, 500), "floor-p50-µs")
	b.ReportMetric(microseconds(floors, 990), "floor-p99-µs")
	b.ReportMetric(microseconds(pauses, 500)/microseconds(floors, 500), "p50/floor")
	b.ReportMetric(0, "ns/op") // an operation is a thousand steals: its time says nothing
}

// floorPeer is a process that takes descriptors and does nothing with them.
type floorPeer struct{ socket int }

func startFloor(b *testing.B) floorPeer {
	b.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "floor")
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), asRole+"=floor")
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = os.Stderr
	if err := errorOf(cmd.Start(), theirs.Close()); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		// Without the other end it has nothing more to do.
		if err := errorOf(unix.Close(pair[0]), cmd.Wait()); err != nil {
			b.Error(err)
		}
	})
	return floorPeer{pair[0]}
}

// roundTrip passes a descriptor and waits for the answer.
func (f floorPeer) roundTrip(b *testing.B) time.Duration {
	b.Helper()
	begin := time.Now()
	if err := unix.Sendmsg(f.socket, []byte("x"), unix.UnixRights(0), nil, 0); err != nil {
		b.Fatal(err)
	}
	if _, err := unix.Read(f.socket, make([]byte, 1)); err != nil {
		b.Fatal(err)
	}
	return time.Since(begin)
}

func init() {
	roles["floor"] = func() {
		if err := answerFloor(3); err != nil { // exec.Cmd.ExtraFiles begin at 3
			log.Fatal(err)
		}
	}
}

// answerFloor is the other process: one answer for each descriptor, until end-of-file.
func answerFloor(socket int) error {
	payload, control := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	for {
		n, controlLen, _, _, err := unix.Recvmsg(socket, payload, control, unix.MSG_CMSG_CLOEXEC)
		if n == 0 || err != nil {
			return err
		}
		fds, err := parseControl(control[:controlLen])
		if err := errorOf(err, closeFDs(fds)); err != nil {
			return err
		}
		if _, err := unix.Write(socket, payload); err != nil {
			return fmt.Errorf("answer: %w", err)
		}
	}
}
