//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// demoTime is how long the story may take. It takes a fraction of that.
const demoTime = 10 * time.Second

// runDemo plays the old process, the new one and a client, and returns nil only if the client
// received what it should have.
func runDemo(ctx context.Context, stdout, stderr io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, demoTime)
	defer cancel()
	// The children die with the thread that started them (PR_SET_PDEATHSIG), so that one must
	// stay: a killed demo leaves nobody behind.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	folder, err := os.MkdirTemp("", "steal-demo")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder) // if it comes to nothing; there is already an error to report
	path := filepath.Join(folder, "control")

	old, err := startActor(ctx, "old", stdout, stderr, "-addr", "127.0.0.1:0", "-control", path)
	if err != nil {
		return err
	}
	defer old.end()
	addr, err := old.says("listening on ")
	if err != nil {
		return err
	}
	client, err := connectClient(ctx, addr)
	if err != nil {
		return err
	}
	defer closeQuietly(client.conn)
	port := client.conn.LocalAddr().String()

	client.say("one\n")
	client.hear(1)
	new, err := startActor(ctx, "new", stdout, stderr, "-c", "-control", path)
	if err != nil {
		return err
	}
	defer new.end()
	if _, err := new.says("waiting on "); err != nil {
		return err
	}
	if err := os.RemoveAll(folder); err != nil { // they have met; nothing is left to clean up
		return err
	}
	client.say("two\nSTEAL\nthree\nfour\n")
	client.hear(4)
	log.Printf("kill -9 %d: the old process goes, its client stays", old.pid())
	old.end()
	client.say("five\n")
	client.hear(1)

	want := []string{"one", "two", fmt.Sprintf("* stolen: pid %d -> pid %d", old.pid(), new.pid()), "three", "four", "five"}
	switch {
	case client.err != nil:
		return fmt.Errorf("verdict: BAD: the client: %w", client.err)
	case !slices.Equal(client.heard, want):
		return fmt.Errorf("verdict: BAD: the client received %q, want %q", client.heard, want)
	case client.conn.LocalAddr().String() != port:
		return errors.New("verdict: BAD: the client has another port")
	}
	log.Printf("verdict: good: the client at %s sent five lines and one STEAL, and received exactly that, in order, from two processes over one connection", port)
	return nil
}

// actor is a child process that plays a role.
type actor struct {
	cmd    *exec.Cmd
	output sync.WaitGroup
	lines  chan string // what it writes to stderr
}

// startActor starts this program again, and passes on what it prints.
func startActor(ctx context.Context, role string, stdout, stderr io.Writer, args ...string) (*actor, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	a := &actor{cmd: exec.CommandContext(ctx, exe, args...), lines: make(chan string, 100)}
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	out, outErr := a.cmd.StdoutPipe()
	log, logErr := a.cmd.StderrPipe()
	if err := errors.Join(outErr, logErr, a.cmd.Start()); err != nil {
		return nil, err
	}
	a.output.Go(func() {
		for in := bufio.NewScanner(out); in.Scan(); {
			fmt.Fprintf(stdout, "%s[%d] prints %s\n", role, a.pid(), in.Text())
		}
	})
	a.output.Go(func() {
		defer close(a.lines)
		for in := bufio.NewScanner(log); in.Scan(); {
			fmt.Fprintln(stderr, in.Text())
			a.lines <- in.Text()
		}
	})
	return a, nil
}

func (a *actor) pid() int { return a.cmd.Process.Pid }

// says waits for a line with a text in it, and returns what comes after the text.
func (a *actor) says(text string) (rest string, err error) {
	for line := range a.lines {
		if _, rest, found := strings.Cut(line, text); found {
			return rest, nil
		}
	}
	return "", fmt.Errorf("pid %d ended without saying %q", a.pid(), text)
}

// end kills the actor, if it lives, and waits until it is gone.
func (a *actor) end() {
	_ = a.cmd.Process.Kill() // it may be gone already
	for range a.lines {
		continue // it may be waiting for somebody to listen
	}
	a.output.Wait()
	_ = a.cmd.Wait() // killed, as it should be
}

// demoClient is a TCP client that remembers what it heard, and the first thing that went wrong.
type demoClient struct {
	conn  net.Conn
	in    *bufio.Reader
	heard []string
	err   error
}

func connectClient(ctx context.Context, addr string) (*demoClient, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	log.Printf("a client connects: %v -> %v", conn.LocalAddr(), conn.RemoteAddr())
	return &demoClient{conn: conn, in: bufio.NewReader(conn)}, conn.SetDeadline(time.Now().Add(demoTime))
}

// say sends text in a single write.
func (c *demoClient) say(text string) {
	if c.err == nil {
		log.Printf("the client sends %q", text)
		_, c.err = io.WriteString(c.conn, text)
	}
}

// hear reads n lines.
func (c *demoClient) hear(n int) {
	for ; n > 0 && c.err == nil; n-- {
		var line string
		line, c.err = c.in.ReadString('\n')
		c.heard = append(c.heard, strings.TrimSuffix(line, "\n"))
		log.Printf("the client receives %q", line)
	}
}
