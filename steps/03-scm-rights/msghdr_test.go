//go:build linux

package main

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func testBench(t *testing.T) *bench {
	t.Helper()
	b, err := newBench(unix.SOCK_SEQPACKET, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.close)
	return b
}

// Built by hand, the control message is what x/sys/unix builds.
func TestRightsAreUnixRights(t *testing.T) {
	var fds []int
	for n := range maxFDs + 1 { // an even number of descriptors needs no padding
		if got, want := rights(fds...), unix.UnixRights(fds...); !bytes.Equal(got, want) {
			t.Errorf("%d descriptors:\ngot  % x\nwant % x", n, got, want)
		}
		fds = append(fds, 1000*n+7)
	}
}

// sendmsg and recvmsg by hand: what one sends is what the other gets, under other numbers.
func TestRawRoundTrip(t *testing.T) {
	b := testBench(t)
	for _, fds := range [][]int{nil, {b.null}, {b.null, b.null}, {b.null, b.null, b.null}} {
		before := openFDs(t)
		n, err := sendRaw(t.Context(), b.from, []byte("payload"), rights(fds...))
		if err != nil || n != len("payload") {
			t.Fatalf("sent %d, %v", n, err)
		}
		payload, control := make([]byte, 64), make([]byte, unix.CmsgSpace(4*maxFDs))
		n, filled, flags, err := receiveRaw(t.Context(), b.to, payload, control, unix.MSG_CMSG_CLOEXEC)
		if err != nil || string(payload[:n]) != "payload" || flags&^unix.MSG_CMSG_CLOEXEC != 0 {
			t.Fatalf("received %q, flags %#x, %v", payload[:n], flags, err)
		}
		got, err := parseControl(filled)
		if err != nil || len(got) != len(fds) {
			t.Fatalf("received %v, %v; sent %v", got, err, fds)
		}
		if len(fds) > 0 && !bytes.Equal(filled, rights(got...)) {
			t.Errorf("received % x\nwant     % x", filled, rights(got...))
		}
		for _, fd := range got {
			if inode(t, fd) != inode(t, b.null) || !closesOnExec(t, fd) {
				t.Errorf("descriptor %d is another file, or not close-on-exec", fd)
			}
		}
		if err := closeFDs(got); err != nil {
			t.Fatal(err)
		}
		if now := openFDs(t); now != before {
			t.Errorf("%d descriptors are open, want %d", now, before)
		}
	}
}

func TestRawErrorsAreTheKernels(t *testing.T) {
	b := testBench(t)
	if _, err := sendRaw(t.Context(), b.from, []byte("x"), rights(-1)); !is(err, unix.EBADF) {
		t.Errorf("a number that is not open: %v", err)
	}
	if _, err := sendRaw(t.Context(), b.from, []byte("x"), rights(make([]int, maxFDs+1)...)); !is(err, unix.EINVAL) {
		t.Errorf("254 descriptors: %v", err)
	}
}

func TestDump(t *testing.T) {
	control := rights(3, 4, 5)
	lines := dump(control)

	// The bytes of all lines, one after the other, are the buffer.
	var shown []string
	for _, line := range lines {
		shown = append(shown, strings.TrimSpace(line[6:29]))
	}
	if got, want := strings.Join(shown, " "), hexOf(control); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	for i, meaning := range []string{"cmsg_len: ", "cmsg_level: 1 SOL_SOCKET", "cmsg_type: 1 SCM_RIGHTS", "descriptor 3", "descriptor 4", "descriptor 5"} {
		if !strings.Contains(lines[i], meaning) {
			t.Errorf("%q does not mean %q", lines[i], meaning)
		}
	}
	for _, wrong := range [][]byte{nil, {1, 2, 3}, bytes.Repeat([]byte{0xff}, 64)} {
		if got := dump(wrong); len(got) != 1 || !strings.HasPrefix(got[0], "no control message") {
			t.Errorf("dump of % x: %q", wrong, got)
		}
	}
}
