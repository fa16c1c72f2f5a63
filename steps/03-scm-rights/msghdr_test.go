//go:build linux

package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// Built by hand, the control message is what x/sys/unix builds.
func TestRightsAreUnixRights(t *testing.T) {
	var fds []int
	for n := range 254 { // an even number of descriptors needs no padding
		if got, want := rights(fds...), unix.UnixRights(fds...); !bytes.Equal(got, want) {
			t.Errorf("%d descriptors:\ngot  % x\nwant % x", n, got, want)
		}
		fds = append(fds, 1000*n+7)
	}
}

// For one descriptor, where a word has 8 bytes: a header of 16, a descriptor of 4, and 4 of padding.
func TestOneDescriptorsBytes(t *testing.T) {
	if unix.SizeofPtr != 8 {
		t.Skipf("a word has %d bytes here", unix.SizeofPtr)
	}
	if length, space := unix.CmsgLen(4), unix.CmsgSpace(4); length != 20 || space != 24 {
		t.Errorf("CmsgLen(4) is %d and CmsgSpace(4) is %d, want 20 and 24", length, space)
	}
	if two := unix.CmsgSpace(8); two != 24 {
		t.Errorf("a buffer for one has no room for two: %d bytes", two)
	}
	want := binary.NativeEndian.AppendUint64(nil, 20)                    // cmsg_len
	want = binary.NativeEndian.AppendUint32(want, 1)                     // cmsg_level: SOL_SOCKET
	want = binary.NativeEndian.AppendUint32(want, 1)                     // cmsg_type: SCM_RIGHTS
	want = append(binary.NativeEndian.AppendUint32(want, 7), 0, 0, 0, 0) // descriptor 7
	if got := rights(7); !bytes.Equal(got, want) {
		t.Errorf("got  % x\nwant % x", got, want)
	}
}

// What sendmsg(2) by hand sends, receiveFDs gets, and the kernel's errors are what it returns.
func TestSendRaw(t *testing.T) {
	for n := range 4 {
		noLeak(t)
		from, to := pair(t)
		sent := files(t, n)
		if err := sendRaw(from, []byte("payload"), rights(sent...)); err != nil {
			t.Fatal(err)
		}
		receives(t, to, "payload", sent...)
	}
	from, _ := pair(t)
	if err := sendRaw(from, []byte("x"), rights(-1)); !errors.Is(err, unix.EBADF) {
		t.Errorf("a number that is not open: %v", err)
	}
	if err := sendRaw(from, []byte("x"), rights(make([]int, 254)...)); !errors.Is(err, unix.EINVAL) {
		t.Errorf("254 descriptors: %v", err)
	}
}
