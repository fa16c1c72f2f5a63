//go:build linux

package main

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// runDemo starts an old and a new process and plays their client. It returns nil only if the
// client received what it should have. Its control path is one of its own.
func runDemo(string) error {
	folder, err := os.MkdirTemp("", "steal-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	path := filepath.Join(folder, "control")
	old, address, err := startChild("listening on ", "-addr", "127.0.0.1:0", "-control", path, "-timeout", "20s")
	if err != nil {
		return err
	}
	defer old.end()
	client, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true}) // its certificate is self-made
	if err != nil {
		return err
	}
	in := bufio.NewScanner(client)
	heard := ""
	say := func(text string, answers int) {
		log.Printf("the client sends %q", text)
		client.SetDeadline(time.Now().Add(20 * time.Second))
		fmt.Fprint(client, text) // what fails here is not heard below
		for ; answers > 0 && in.Scan(); answers-- {
			log.Printf("the client receives %q", in.Text())
			heard += in.Text() + "\n"
		}
	}
	say("one\n", 1)
	young, _, err := startChild("waiting on ", "-c", "-control", path)
	if err != nil {
		return err
	}
	defer young.end()
	say("two\nSTEAL\nthree\n", 3)
	if strings.Contains(heard, "the kernel has no TLS") {
		return errors.New("nothing can move here: as root, modprobe tls")
	}
	log.Printf("kill -9 %d: the old process goes, its client stays", old.Pid)
	old.end()
	say("four\n", 1)
	young.end() // and has said its last word, so that the verdict comes last

	want := fmt.Sprintf("one\ntwo\n* stolen: pid %d -> pid %d\nthree\nfour\n", old.Pid, young.Pid)
	if heard != want {
		return fmt.Errorf("verdict: BAD: the client received %q, not %q (%v)", heard, want, in.Err())
	}
	log.Print("verdict: good: one connection, two processes, and the client received every line once and in order")
	return nil
}

// child is this program once more, in another role.
type child struct {
	*os.Process
	silent chan struct{} // closed when it will say no more
}

// startChild starts a child, shows what it says, and waits until it has said mark. It returns the
// rest of that line too.
func startChild(mark string, args ...string) (c child, rest string, err error) {
	out, in, err := os.Pipe()
	if err != nil {
		return c, "", err
	}
	cmd := exec.Command(os.Args[0], args...)
	cmd.Stdout, cmd.Stderr = in, in
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL} // not to outlive the demo
	if err := cmd.Start(); err != nil {
		return c, "", err
	}
	in.Close()
	c = child{cmd.Process, make(chan struct{})}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		fmt.Fprintln(os.Stderr, lines.Text())
		if _, rest, found := strings.Cut(lines.Text(), mark); found {
			go func() {
				defer close(c.silent)
				for lines.Scan() {
					fmt.Fprintln(os.Stderr, lines.Text())
				}
			}()
			return c, rest, nil
		}
	}
	return c, "", fmt.Errorf("verdict: BAD: %v ended before it was %s", cmd.Args, mark)
}

func (c child) end() {
	c.Kill() // if it lives
	<-c.silent
	c.Wait()
}
