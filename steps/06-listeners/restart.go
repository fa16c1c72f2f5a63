//go:build linux

package main

// Signals, and the program started again.

import (
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// program is the path at which this program was started. Not os.Executable: that follows the file when
// it is renamed, as package managers do to put a new one in its place, and would start the old one.
var program = func() string {
	path, err := exec.LookPath(os.Args[0])
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		log.Printf("SIGUSR2 will not work: %v", err)
	}
	return path
}()

// signals are those that have come, and are not answered yet. A channel for each: a flood of one drowns
// no other.
type signals struct{ state, restart chan os.Signal }

// catchSignals is called before this process begins: by default these signals would end it.
func catchSignals() signals {
	s := signals{make(chan os.Signal, 1), make(chan os.Signal, 1)}
	signal.Notify(s.state, unix.SIGUSR1)
	signal.Notify(s.restart, unix.SIGUSR2)
	return s
}

// answerSignals answers SIGUSR1 with a line of state, and SIGUSR2 by starting this program again, which
// takes over: so a supervisor need only send a signal. (Not SIGHUP, which also says that a terminal
// has been closed.) SIGINT and SIGTERM end this process.
func (g *giver) answerSignals(come signals) {
	stop := make(chan struct{})
	exitOnSignal(func() {
		stop <- struct{}{}
		<-stop
	})
	go g.answer(come, stop)
}

// answer answers one signal after the other.
func (g *giver) answer(come signals, stop chan struct{}) {
	for {
		select {
		case <-come.state:
			log.Print(g.server)
		case <-come.restart:
			g.startAgain()
		case <-stop:
			// Was there a SIGUSR2 before it? The kernel may hand the two to two threads, of which the
			// second can be quicker.
			time.Sleep(50 * time.Millisecond)
			if len(come.restart) > 0 {
				g.startAgain()
			}
			g.mu.Lock()
			if g.control != nil {
				notify("STOPPING=1")
				g.control.remove()
				close(stop) // and keep mu: from here on nothing is offered
				return
			}
			g.mu.Unlock()
			log.Print("draining, and ending then; another signal ends it now")
			signal.Reset(unix.SIGINT, unix.SIGTERM)
		}
	}
}

// startAgain starts this program with the same flags, and returns when that has taken over, or has
// come to nothing. Other signals wait meanwhile: a SIGTERM behind a SIGUSR2 cuts off nobody.
func (g *giver) startAgain() {
	err := g.restore()
	if errors.Is(err, errGiven) {
		log.Printf("not started again: %v", err)
		return
	}
	if err != nil {
		log.Printf("control path: %v", err)
	}
	notify(reloading())
	var args []string
	flag.Visit(func(f *flag.Flag) { args = append(args, fmt.Sprintf("-%s=%s", f.Name, f.Value)) })
	cmd := exec.Command(program, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err = cmd.Start()
	if err == nil {
		log.Printf("started pid %d", cmd.Process.Pid)
		ended := make(chan struct{})
		go func() {
			cmd.Wait() // ProcessState says how
			close(ended)
		}()
		select {
		case <-g.taken:
			return
		case <-ended:
			err = errors.New(cmd.ProcessState.String())
		case <-time.After(10 * time.Second):
			err = fmt.Errorf("pid %d still runs, and may yet take over", cmd.Process.Pid)
		}
	}
	log.Printf("started again, and not taken over: %v", err)
	notify("READY=1") // of this process: systemctl reload returns
}

// restore makes the control path anew if somebody has removed it, as in tidying up /tmp. The lock is
// still this process's.
func (g *giver) restore() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.control == nil {
		return errGiven
	}
	if now, err := os.Lstat(g.control.path); err == nil && os.SameFile(now, g.control.file) {
		return nil
	}
	listener, file, err := bind(g.control.path)
	if err != nil {
		return err
	}
	g.control.Close()
	g.control = &controlSocket{listener, g.control.path, file, g.control.lock}
	go g.acceptAll(listener)
	return nil
}
