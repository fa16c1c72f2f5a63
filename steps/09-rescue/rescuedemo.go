//go:build linux

package main

// The demonstration: a hundred clients, and a server that is killed under them again and again.

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// runDemo starts a keeper and plays its clients. It returns nil only if each of them received what it
// had sent.
func runDemo() error {
	said, in := io.Pipe()
	cmd := exec.Command("/proc/self/exe", "-addr", "127.0.0.1:0")
	cmd.Args[0] = os.Args[0]
	cmd.Stderr = in
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGTERM} // at which it ends its servers too
	if err := cmd.Start(); err != nil {
		return err
	}
	defer cmd.Wait()
	defer cmd.Process.Signal(unix.SIGTERM)
	lines := bufio.NewScanner(said)
	server, addr := nextServer(lines)
	var all sync.WaitGroup
	var stop atomic.Bool
	results := make(chan result, 100)
	for range cap(results) {
		all.Go(func() { results <- talk(addr, &stop) })
	}
	for i := range 21 {
		time.Sleep(50 * time.Millisecond) // so that there is something to lose
		strike := unix.SIGKILL
		if i == 20 { // and now it hangs
			strike = unix.SIGSTOP
		}
		log.Printf("kill -%d %d", strike, server)
		unix.Kill(server, strike) // fails if it is dead
		server, _ = nextServer(lines)
	}
	go io.Copy(io.Discard, said)
	stop.Store(true)
	all.Wait()
	close(results)
	var sum result
	for r := range results {
		sum.lines, sum.gap, sum.err = sum.lines+r.lines, max(sum.gap, r.gap), errors.Join(sum.err, r.err)
	}
	if sum.err != nil {
		return fmt.Errorf("verdict: BAD: %w", sum.err)
	}
	log.Printf("verdict: good: 100 clients, 22 servers, and every client received each of %d lines once and in order; the longest wait for one was %v", sum.lines, sum.gap.Round(time.Millisecond))
	return nil
}

// nextServer shows what the keeper says, until it says that a server has everything.
func nextServer(lines *bufio.Scanner) (pid int, addr string) {
	for addr == "" && lines.Scan() {
		fmt.Fprintln(os.Stderr, lines.Text())
		_, said, _ := strings.Cut(lines.Text(), "]: ")
		fmt.Sscanf(said, "server pid %d has everything: connections %d; listening on %s", &pid, new(int), &addr) // fails on others
	}
	return pid, addr
}

type result struct {
	lines int
	gap   time.Duration // the longest between a line and its echo
	err   error
}

// talk is a client that sends lines and compares what comes back, until stop.
func talk(addr string, stop *atomic.Bool) (r result) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return result{err: err}
	}
	defer c.Close()
	for in := bufio.NewReader(c); !stop.Load(); r.lines++ {
		line := []byte(rand.Text() + rand.Text() + "\n")
		began := time.Now()
		c.SetDeadline(began.Add(time.Minute))
		c.Write(line) // fails if it has been cut off: then the line does not come back
		got, err := in.ReadSlice('\n')
		if err != nil || !bytes.Equal(got, line) {
			return result{err: fmt.Errorf("client %v sent %q and received %q: %w", c.LocalAddr(), line, got, err)}
		}
		r.gap = max(r.gap, time.Since(began))
	}
	return r
}
