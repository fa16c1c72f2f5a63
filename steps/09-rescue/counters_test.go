//go:build linux

package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// pair is a connection of which the server's end is like one that the keeper has accepted.
type pair struct {
	t      *testing.T
	fd     int // the server's end
	client *net.TCPConn
}

func connected(t *testing.T, addr string, inline int) *pair {
	t.Helper()
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	config.Control = func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_OOBINLINE, inline) })
	}
	l, err := config.Listen(context.Background(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	fd := -1
	raw, err := s.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(number uintptr) { fd, err = unix.FcntlInt(number, unix.F_DUPFD_CLOEXEC, 0) })
	if err == nil {
		err = unix.SetNonblock(fd, false) // this test waits in read(2)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return &pair{t, fd, c.(*net.TCPConn)}
}

// is checks what the kernel says.
func (p *pair) is(what string, want progress) {
	p.t.Helper()
	if got, err := progressOf(p.fd); err != nil || got != want {
		p.t.Errorf("%s: %+v, %v; want %+v", what, got, err, want)
	}
}

func (p *pair) read(n int) {
	p.t.Helper()
	for b := make([]byte, n); n > 0; {
		got, err := unix.Read(p.fd, b[:n])
		if err != nil || got == 0 {
			p.t.Fatalf("read: %d, %v", got, err)
		}
		n -= got
	}
}

// arrived waits until the server's end has something that poll(2) calls by that name.
func (p *pair) arrived(event int16) {
	p.t.Helper()
	ready := []unix.PollFd{{Fd: int32(p.fd), Events: event}}
	for ready[0].Revents&event == 0 {
		if _, err := unix.Poll(ready, 30_000); err != nil && err != unix.EINTR {
			p.t.Fatal(err)
		}
	}
}

// has waits until so many bytes have arrived and are not read.
func (p *pair) has(n int) {
	p.t.Helper()
	b := make([]byte, n)
	if got, _, err := unix.Recvfrom(p.fd, b, unix.MSG_PEEK|unix.MSG_WAITALL); err != nil || got != n {
		p.t.Fatalf("peek: %d, %v; want %d", got, err, n)
	}
}

func (p *pair) send(b []byte) {
	p.t.Helper()
	if _, err := p.client.Write(b); err != nil {
		p.t.Fatal(err)
	}
}

// TestProgress: the counters are those of read(2) and write(2), at every stage of a connection's life.
func TestProgress(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(addr, func(t *testing.T) {
			p := connected(t, addr, 1)
			p.is("just accepted", progress{open: true})
			p.send(make([]byte, 1000))
			p.has(1000)
			p.is("unread", progress{open: true})
			p.read(300)
			p.is("read in part", progress{read: 300, open: true})
			if _, err := unix.Write(p.fd, make([]byte, 500)); err != nil {
				t.Fatal(err)
			}
			p.is("written, acknowledged or not", progress{read: 300, written: 500, open: true})
			if _, err := io.ReadFull(p.client, make([]byte, 500)); err != nil {
				t.Fatal(err)
			}
			p.is("received by the client", progress{read: 300, written: 500, open: true})

			written := uint64(500)
			for { // until the send queue is full
				n, err := unix.SendmsgN(p.fd, make([]byte, 100_000), nil, nil, unix.MSG_DONTWAIT)
				if err == unix.EAGAIN {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				written += uint64(n)
			}
			p.is("with a full send queue", progress{read: 300, written: written, open: true})
			if _, err := io.ReadFull(p.client, make([]byte, 100_000)); err != nil {
				t.Fatal(err)
			}
			p.is("while the queue gets shorter", progress{read: 300, written: written, open: true})

			if err := p.client.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			p.arrived(unix.POLLRDHUP)
			p.is("after FIN, with unread bytes", progress{read: 300, written: written, open: true})
			p.read(699)
			p.is("after FIN, with one unread byte", progress{read: 999, written: written, open: true})
			p.read(1)
			p.is("after FIN, all read", progress{read: 1000, written: written, open: true})
			if n, err := unix.Read(p.fd, make([]byte, 1)); n != 0 || err != nil {
				t.Fatalf("read %d, %v", n, err)
			}
			p.is("after FIN, and end-of-file read", progress{read: 1000, written: written, open: true})

			if err := unix.Shutdown(p.fd, unix.SHUT_WR); err != nil {
				t.Fatal(err)
			}
			if now, err := progressOf(p.fd); err != nil || now.open {
				t.Errorf("ended by us: %+v, %v", now, err)
			}
		})
	}
}

// TestProgressConnected: of a connection that this side has made, the kernel counts one byte more as written
// than was. This is the reason why it must have been accepted.
func TestProgressConnected(t *testing.T) {
	p := connected(t, "127.0.0.1:0", 1)
	raw, err := p.client.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		if got, err := progressOf(int(fd)); err != nil || got != (progress{written: 1, open: true}) {
			t.Errorf("nothing is written: %+v, %v", got, err)
		}
	})
}

// TestProgressAfterReset: there is nothing to go on with.
func TestProgressAfterReset(t *testing.T) {
	p := connected(t, "127.0.0.1:0", 1)
	if err := p.client.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	p.client.Close()
	p.arrived(unix.POLLHUP)
	if now, err := progressOf(p.fd); err != nil || now.open {
		t.Errorf("%+v, %v", now, err)
	}
}

// TestProgressUrgent: an urgent byte is one like all others, because of SO_OOBINLINE. Without that, the
// counters would be wrong: this is the reason.
func TestProgressUrgent(t *testing.T) {
	for inline, want := range []uint64{0: 4, 1: 5} { // "ab!cd" in all
		p := connected(t, "127.0.0.1:0", inline)
		raw, err := p.client.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		p.send([]byte("ab"))
		if lendErr := raw.Control(func(fd uintptr) { err = unix.Sendto(int(fd), []byte("!"), unix.MSG_OOB, nil) }); err != nil || lendErr != nil {
			t.Fatal(err, lendErr)
		}
		p.send([]byte("cd"))
		if err := p.client.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		p.arrived(unix.POLLRDHUP)
		var all []byte
		for b := make([]byte, 10); ; {
			n, err := unix.Read(p.fd, b)
			if err != nil {
				t.Fatal(err)
			}
			if n == 0 {
				break
			}
			all = append(all, b[:n]...)
			if now, err := progressOf(p.fd); inline == 1 && (err != nil || now.read != uint64(len(all))) {
				t.Errorf("read %q: %+v, %v", all, now, err)
			}
		}
		if now, err := progressOf(p.fd); err != nil || uint64(len(all)) != want || now.read != 5 {
			t.Errorf("SO_OOBINLINE %d: read %q, and the kernel says %+v, %v", inline, all, now, err)
		}
	}
}

// TestProgressUnderFire: the counters are right while the client sends, and acknowledges.
func TestProgressUnderFire(t *testing.T) {
	p := connected(t, "127.0.0.1:0", 1)
	const total = 20 << 20
	var client sync.WaitGroup
	client.Go(func() {
		for range total / 1000 {
			if _, err := p.client.Write(make([]byte, 1000)); err != nil {
				return // and the server reads less than total
			}
		}
	})
	client.Go(func() { io.Copy(io.Discard, p.client) })
	want := progress{open: true}
	for b := make([]byte, 10_000); want.read < total/1000*1000; {
		n, err := unix.Read(p.fd, b)
		if err != nil || n == 0 {
			t.Fatalf("read %d: %v", n, err)
		}
		if want.read += uint64(n); want.read%3 == 0 {
			m, err := unix.Write(p.fd, b[:n])
			if err != nil {
				t.Fatal(err)
			}
			want.written += uint64(m)
		}
		if got, err := progressOf(p.fd); err != nil || got != want {
			t.Fatalf("%+v, %v; want %+v", got, err, want)
		}
	}
	unix.Shutdown(p.fd, unix.SHUT_RDWR)
	client.Wait()
}

// TestMultipath: on Multipath TCP, SIOCINQ is about the connection and TCP_INFO about one of its paths. By
// one path, too, the count is wrong once the client has ended its side. So the listener does not speak it.
func TestMultipath(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // by default it does
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var d net.Dialer
	d.SetMultipathTCP(true)
	c, err := d.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if yes, err := s.(*net.TCPConn).MultipathTCP(); err != nil || !yes {
		t.Skipf("this kernel makes it plain TCP: %v", err)
	}
	text := bytes.Repeat([]byte("x"), 1000)
	if _, err := c.Write(text); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(s, text); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Read(text); n != 0 || err != io.EOF {
		t.Fatalf("read %d, %v", n, err)
	}
	raw, err := s.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		if got, err := progressOf(int(fd)); err == nil && got.read == 1000 {
			t.Errorf("the counters are right, %+v: then the listener might speak it", got)
		}
	})
}
