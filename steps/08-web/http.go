//go:build linux

package main

// net/http over one request. To copy: this file, web.go and request.go, with those of step 07 and a state of
// your own. What net/http is given is a net.Conn that begins with a request and ends behind the answer. It
// reads no further, and so there is nothing in its hands when it is done.
//
//	answerOne   has one request answered, in the session's goroutine, and returns when the session is its own again
//	web         is the http.Server: set its Handler, and call web.Serve(exchanges) before anybody connects
//	leave       is for the old process, when the next one has everything
//	hijack      takes the connection from net/http, for a mode
//
// Meanwhile the session waits, and cannot stand still. The handler goes on where it is; when it has
// returned, the session moves, with as much of the answer as its client has not read.

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// exchange is one request and its answer: the net.Conn. Until that is closed, the session waits, and its In and Out
// are the exchange's. Read and Write may be called at the same time, but each by one goroutine, as net/http does.
type exchange struct {
	*session
	ending
	kept     atomic.Bool     // net/http has answered, and would read the next request: StateIdle comes before it does
	hijacked bool            // by a mode or a library: no deadline is net/http's any more
	enough   chan struct{}   // net/http wants to read no more: a Read that waits behind the request returns
	over     context.Context // done when it is closed
	close    func()
	calls    sync.RWMutex // held by each Read and Write: they end before the session goes on
}

// answerOne has net/http answer the request that has been read up to its end e, as far as it has come.
func (s *session) answerOne(e ending) {
	x := &exchange{session: s, ending: e, enough: make(chan struct{}, 1)}
	x.over, x.close = context.WithCancel(context.Background())
	if s.remote == nil {
		s.local, s.remote = address(unix.Getsockname(s.fd)), address(unix.Getpeername(s.fd))
	}
	exchanges <- x
	<-x.over.Done()
	if !x.calls.TryLock() { // a library still reads or writes: this ends that, and serve sets another deadline
		s.conn.SetDeadline(past)
		x.calls.Lock()
	}
	x.calls.Unlock()
	again := x.kept.Load() && x.clear() && !leaving.Load()
	if !again && s.mode() == nil {
		s.Bye = &farewell{}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked != nil { // to stand still: now it hears that
		s.conn.SetDeadline(past)
	}
}

// exchanges is the listener from which net/http accepts.
var exchanges = make(listener)

type listener chan *exchange

func (l listener) Accept() (net.Conn, error) { return <-l, nil }
func (l listener) Close() error              { return nil }
func (l listener) Addr() net.Addr            { return &net.TCPAddr{} }

// web is net/http's server. It says itself that a head is too long: its limit is 4 KiB below what it reads.
var web = &http.Server{MaxHeaderBytes: bufferSize - 4<<10, ConnState: func(c net.Conn, is http.ConnState) {
	switch x := c.(*exchange); is {
	case http.StateIdle: // it has answered, and would keep the connection
		x.kept.Store(true)
	case http.StateHijacked: // for a mode; or for a library, which may read all that comes, and stays here
		x.then, x.hijacked = unclear, true
	}
}}

// leaving is that another process has everything but what is still being answered here.
var leaving atomic.Bool

// leave has clients told to come again, which are still answered, and ends their connections.
func leave() {
	leaving.Store(true)
	web.SetKeepAlivesEnabled(false)
}

// hijack takes the connection from net/http, for a mode. The caller closes the exchange when the mode is set. If it is
// not ok, the request has been answered.
func hijack(w http.ResponseWriter, r *http.Request) (x *exchange, ok bool) {
	if refused(w, r) {
		return nil, false
	}
	c, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return nil, false
	}
	return c.(*exchange), true
}

// refused answers a request for a mode that cannot begin here, and reports whether it is one.
func refused(w http.ResponseWriter, r *http.Request) bool {
	switch {
	case r.Method != http.MethodGet: // such as HEAD
		w.Header().Set("Allow", http.MethodGet)
		http.Error(w, "GET, not "+r.Method, http.StatusMethodNotAllowed)
	case leaving.Load(): // it could not move any more
		http.Error(w, "another process serves this now: come again", http.StatusServiceUnavailable)
	default:
		return false
	}
	return true
}

// Read reads the request, and not a byte more. Behind its end net/http reads to learn that the client has
// gone: so there it waits, until net/http has enough of that, or the client has gone.
func (x *exchange) Read(b []byte) (int, error) {
	x.calls.RLock()
	defer x.calls.RUnlock()
	for {
		if x.over.Err() != nil {
			return 0, net.ErrClosed
		}
		if n := copy(b, x.In[:x.own(x.In)]); n > 0 {
			x.left -= int64(n)
			x.In = shrink(x.In, n)
			return n, nil
		}
		switch {
		case x.ended():
			return 0, x.wait()
		case x.Ended:
			return 0, io.EOF
		}
		if err := x.insist(x.read); err != nil {
			return 0, err
		}
	}
}

// wait waits behind the request.
func (x *exchange) wait() error {
	for !x.kept.Load() {
		select {
		case <-x.enough:
			return os.ErrDeadlineExceeded
		case <-x.over.Done():
			return net.ErrClosed
		case <-time.After(time.Second):
			n, _, err := unix.Recvfrom(x.fd, make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
			if n == 0 || n < 0 && err != unix.EAGAIN && err != unix.EINTR {
				return io.EOF // and the request's context is cancelled
			}
		}
	}
	return io.EOF
}

// maxUnsent is how many bytes of an answer are kept for a client that does not read. A handler that says more
// waits. It is far below maxBytes, so that a session that has moved fits an offer.
const maxUnsent = 1 << 20

// Write hands to the kernel what that accepts, and keeps the rest. It takes one part after the other: what a handler
// says at once may be long.
func (x *exchange) Write(b []byte) (n int, err error) {
	x.calls.RLock()
	defer x.calls.RUnlock()
	for part := range slices.Chunk(b, bufferSize) {
		if x.over.Err() != nil {
			return n, net.ErrClosed
		}
		x.say(part)
		n += len(part)
		if err := x.insist(x.flush); err != nil {
			return n, err
		}
	}
	return n, nil
}

// flush returns when no more than maxUnsent is kept.
func (x *exchange) flush() (err error) {
	failed := x.raw.Write(func(fd uintptr) (done bool) {
		var n int
		n, err = unix.Write(int(fd), x.Out)
		x.Out = shrink(x.Out, max(n, 0))
		if err == unix.EAGAIN || err == unix.EINTR {
			err = nil
		}
		return err != nil || len(x.Out) <= maxUnsent // otherwise the poller calls again when there is room
	})
	return errors.Join(failed, os.NewSyscallError("write", err))
}

// insist does something also while the session is asked to stand still, which it does when this is over.
func (x *exchange) insist(do func() error) error {
	err := do()
	for errors.Is(err, os.ErrDeadlineExceeded) {
		x.conn.SetDeadline(time.Time{})
		if x.over.Err() != nil {
			x.conn.SetDeadline(past) // there may be another one that is to end
			return net.ErrClosed
		}
		err = do()
	}
	return err
}

// Close ends the exchange, and not the connection: net/http calls it at the end, and whoever hijacks must. A Read or
// Write that waits returns net.ErrClosed, soon afterwards, and the session goes on when it has.
func (x *exchange) Close() error {
	x.close()
	return nil
}

// SetReadDeadline is only what net/http itself needs: one that is over ends the Read that waits behind the request. Any
// other would be lost at a standstill: session.go.
func (x *exchange) SetReadDeadline(t time.Time) error {
	if time.Until(t) > 0 || x.hijacked && !t.IsZero() {
		return http.ErrNotSupported
	}
	select { // there is room for one
	case <-x.enough:
	default:
	}
	if !t.IsZero() {
		x.enough <- struct{}{}
	}
	return nil
}

// SetWriteDeadline can only say that there is none.
func (x *exchange) SetWriteDeadline(t time.Time) error {
	if t.IsZero() {
		return nil
	}
	return http.ErrNotSupported
}

func (x *exchange) SetDeadline(t time.Time) error { return x.SetReadDeadline(t) }
func (x *exchange) LocalAddr() net.Addr           { return x.local }
func (x *exchange) RemoteAddr() net.Addr          { return x.remote }

// address is a socket's address, or none if its client has gone.
func address(a unix.Sockaddr, _ error) net.Addr {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return &net.TCPAddr{IP: a.Addr[:], Port: a.Port}
	case *unix.SockaddrInet6:
		zone := "" // of a link-local address: the interface
		if i, err := net.InterfaceByIndex(int(a.ZoneId)); err == nil {
			zone = i.Name
		}
		return &net.TCPAddr{IP: a.Addr[:], Port: a.Port, Zone: zone}
	}
	return &net.TCPAddr{}
}

// hangUp tells the client that nothing more comes.
func (s *session) hangUp() { unix.Shutdown(s.fd, unix.SHUT_WR) } // fails if the client has ended it
