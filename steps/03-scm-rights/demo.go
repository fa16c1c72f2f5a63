//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// demoTime bounds the demo. It takes some tens of milliseconds.
const demoTime = 20 * time.Second

// runDemo starts an old and a new process, shows what they say, and judges by it.
func runDemo(ctx context.Context, stdout, stderr io.Writer) (err error) {
	nameProcess("demo", stderr)
	ctx, cancel := context.WithTimeout(ctx, demoTime)
	defer cancel()
	folder, err := os.MkdirTemp("", "03-scm-rights-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	path := filepath.Join(folder, "control")

	// One pipe for all that both write keeps it in order.
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer closeQuietly(r)
	defer closeQuietly(w)
	said := linesOf(r)
	told := &story{stdout: stdout, stderr: stderr}

	log.Printf("starting the old process: -control %s", path)
	older, err := startChild(ctx, w, "-control", path)
	if err != nil {
		return err
	}
	told.until("listening on ", said, older.ended)
	log.Printf("starting the new process: -c -control %s", path)
	newer, err := startChild(ctx, w, "-c", "-control", path)
	if err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	go func() {
		// The new process leaves when the old one has hung up, and then both stories are told.
		<-newer.ended
		_ = older.Process.Signal(unix.SIGTERM) // it fails if that has ended too, and wait says how
	}()
	for line := range said {
		told.pass(line)
	}
	if err := errors.Join(older.wait(), newer.wait()); err != nil {
		return fmt.Errorf("verdict: bad: %v of the old process, %v of the new one", older.ProcessState, newer.ProcessState)
	}
	return told.judge(older.Process.Pid, newer.Process.Pid)
}

// linesOf reads lines until end-of-file.
func linesOf(r io.Reader) <-chan string {
	lines := make(chan string)
	go func() {
		defer close(lines)
		for in := bufio.NewScanner(r); in.Scan(); {
			lines <- in.Text()
		}
	}()
	return lines
}

// story is what the two processes have said.
type story struct {
	stdout, stderr io.Writer
	lines          []string
}

// pass shows a line: on stdout what was received, which is quoted, and the rest on stderr.
func (s *story) pass(line string) {
	s.lines = append(s.lines, line)
	out := s.stderr
	if strings.HasPrefix(line, `"`) {
		out = s.stdout
	}
	fmt.Fprintln(out, line)
}

// until passes lines up to one that contains mark, or to the end of the process that says it.
func (s *story) until(mark string, lines <-chan string, ended <-chan struct{}) {
	for {
		select {
		case line := <-lines:
			s.pass(line)
			if strings.Contains(line, mark) {
				return
			}
		case <-ended:
			return
		}
	}
}

// judge looks for what only a shared offset and a shared accept queue can bring about: who
// read which line, and who answered the old process's client.
func (s *story) judge(older, newer int) error {
	for _, want := range []struct{ who, what string }{
		{fmt.Sprintf("old[%d]: ", older), fmt.Sprintf("reads %q", fileLines[0])},
		{fmt.Sprintf("new[%d]: ", newer), fmt.Sprintf("reads %q", fileLines[1])},
		{fmt.Sprintf("old[%d]: ", older), fmt.Sprintf("reads %q", fileLines[2])},
		{"", fmt.Sprintf("%q", answerOf(newer))},
	} {
		found := slices.ContainsFunc(s.lines, func(line string) bool {
			return strings.HasPrefix(line, want.who) && strings.HasSuffix(line, want.what)
		})
		if !found {
			return fmt.Errorf("verdict: bad: nowhere stands %s%s", want.who, want.what)
		}
	}
	log.Printf("verdict: good: pid %d went on reading where pid %d had stopped, and answered the client that had waited for pid %[2]d", newer, older)
	return nil
}
