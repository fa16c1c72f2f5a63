//go:build linux

package main

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSameSocketTwice: what a supervisor passes to each process, and the one before has too, is served
// once, and is no surplus.
func TestSameSocketTwice(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	other, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	inherited, second := l.(*net.TCPListener), other.(*net.TCPListener)
	for _, addrs := range []string{"", l.Addr().String() + "," + other.Addr().String()} {
		copied := -1
		err := borrow(inherited, func(fd int) (err error) {
			copied, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		offered, err := adoptListener(copied)
		if err != nil {
			t.Fatal(err)
		}
		all, surplus, err := arrange(addrs, []*net.TCPListener{inherited}, []*net.TCPListener{offered, second})
		if err != nil || len(all) != 2 || all[0] != inherited || all[1] != second || len(surplus) != 0 {
			t.Errorf("%q: got %v, %v, %v", addrs, all, surplus, err)
		}
		if err := offered.Close(); err == nil {
			t.Error("the copy was still open")
		}
	}
}
