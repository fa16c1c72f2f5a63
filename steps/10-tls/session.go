//go:build linux

package main

// The two processes, and what either of them does for one client: the same, whether it has accepted
// the connection or taken it over.

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// runOld serves TCP clients, and gives those away that type STEAL.
func runOld(addr, path string, timeout time.Duration) error {
	config, err := newConfig()
	if err != nil {
		return err
	}
	control, err := listenControl(path)
	if err != nil {
		return err
	}
	exitOnSignal(control.remove)
	log.Printf("control socket on %s", path)
	g := &giver{control: control, timeout: timeout}
	err = serveTCP(addr, func(c *net.TCPConn) {
		s := state{Remote: c.RemoteAddr().String(), Local: c.LocalAddr().String()}
		t, secrets, err := handshake(c, config)
		if err != nil {
			log.Printf("client %s: %v", s.Remote, err)
			c.Close()
			return
		}
		k, err := toKernel(c, secrets)
		if err != nil {
			log.Printf("client %s cannot move: %v", s.Remote, err)
			serve(userTLS{t, c}, s, func(state) error { return err })
			return
		}
		serve(k, s, func(s state) error { return g.give(k, s) })
	})
	control.remove()
	return err
}

// userTLS is a connection whose keys this process has, and crypto/tls uses: it cannot be stolen.
type userTLS struct {
	*tls.Conn
	socket syscall.Conn
}

func (u userTLS) SyscallConn() (syscall.RawConn, error) { return u.socket.SyscallConn() }

// runNew takes what the old process gives, and serves it to its end. It outlives the old process
// by as long as that takes.
func runNew(path string) error {
	from, err := dialControl(path)
	if err != nil {
		return err
	}
	old, err := peerOf(from)
	if err != nil {
		return err
	}
	exitOnSignal(func() {}) // the path is the old process's
	log.Printf("met %v", old)
	log.Printf("waiting on %s", path)
	var clients sync.WaitGroup
	for {
		c, s, err := take(from)
		if err != nil {
			log.Printf("%v %v; serving what it gave to its end", old, err)
			clients.Wait()
			if errors.Is(err, errGone) { // as in the end it should be
				return nil
			}
			return fmt.Errorf("the old process %w", err)
		}
		t := &kernelTLS{clientConn: c}
		clients.Go(func() {
			// The client has waited for an answer since it typed STEAL: that comes first.
			fmt.Fprintf(t, "* stolen: pid %d -> pid %d\n", old.Pid, os.Getpid()) // serve meets the same error
			serve(t, s, func(state) error {
				return fmt.Errorf("pid %d has it already, and nobody waits for it here", os.Getpid())
			})
		})
	}
}

// errStolen is how a session ends whose connection another process has now.
var errStolen = errors.New("the new process has it")

// serve echoes one client until it has nothing more to say, or steal has given it away.
func serve(c clientConn, s state, steal func(state) error) {
	defer c.Close()
	fd, cookie, err := identify(c)
	log.Printf("client %s -> %s is descriptor %d, cookie %d, with %d bytes read ahead", s.Remote, s.Local, fd, cookie, len(s.Unread))
	if err == nil {
		err = echo(c, s, steal)
	}
	log.Printf("closing descriptor %d: %v", fd, err)
	// A stolen connection is only closed: close(2) takes away this process's descriptor, shutdown(2)
	// would end the connection for the new process too. One that is ours we end for everybody: a
	// process that was offered it in vain, and sleeps, may still have a descriptor of it. Only an end
	// that is as it should be says close_notify: without it, the client knows that something may be missing.
	switch {
	case errors.Is(err, io.EOF):
		c.CloseWrite() // fails if the client has ended it
	case !errors.Is(err, errStolen):
		_ = borrow(c, func(fd int) error { return unix.Shutdown(fd, unix.SHUT_WR) }) // as above
	}
}

// echo sends every line back as it came, and shows it: first those in s.Unread, which another
// process had read, then those of c. A line that says STEAL goes to steal, with all that has been
// read behind it. It returns io.EOF after the client's end, errStolen if steal succeeds.
func echo(c io.ReadWriter, s state, steal func(state) error) error {
	in := bufio.NewReaderSize(io.MultiReader(bytes.NewReader(s.Unread), c), maxUnread)
	for inside := false; ; { // inside a line longer than the buffer, which is echoed in pieces
		line, err := in.ReadSlice('\n')
		full := errors.Is(err, bufio.ErrBufferFull)
		whole := !inside && !full
		answer := line // binary-exact: no byte is changed, and none is taken for text
		if whole && isSteal(line) {
			// The buffer may hold more than this line. Those bytes are in no queue of the kernel's
			// any more, and the new process cannot read them from the socket.
			s.Unread, _ = in.Peek(in.Buffered()) // what is buffered can be peeked at
			failure := steal(s)
			if failure == nil {
				return errStolen
			}
			answer = fmt.Appendf(nil, "* not stolen: %v\n", failure)
		} else if len(line) > 0 {
			// Quoted and cut: a client's bytes must not move the terminal's cursor, or worse.
			fmt.Printf("%q\n", line[:min(len(line), 80)])
		}
		if _, err := c.Write(answer); err != nil {
			return err
		}
		if err != nil && !full {
			return err
		}
		inside = full
	}
}

// isSteal reports whether a line asks for its connection to be moved.
func isSteal(line []byte) bool {
	word := bytes.Trim(line, " \t\r\n")
	// The length keeps out what folds to these letters and is none of them, such as U+017F.
	return len(word) == len("STEAL") && bytes.EqualFold(word, []byte("STEAL"))
}
