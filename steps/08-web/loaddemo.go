//go:build linux

package main

import (
	"bufio"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const demoRestarts = 5

// runDemo restarts a server again and again while its clients talk. It returns nil only if each of
// them is content: talk counts what it has received, until over, and says what was wrong with it.
func runDemo() error {
	folder, err := os.MkdirTemp("", "steal-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	path := filepath.Join(folder, "control")
	server, addr, err := startServer("-addr", "127.0.0.1:0", "-control", path)
	if err != nil {
		return err
	}
	defer func() { server.Kill() }()
	var clients sync.WaitGroup
	var received atomic.Int64
	over, failures := make(chan struct{}), make(chan error, demoClients)
	for id := range demoClients {
		clients.Go(func() {
			if err := talk(addr, id, &received, over); err != nil {
				failures <- fmt.Errorf("verdict: BAD: client %d: %w", id, err)
			}
		})
	}
	log.Printf("%d clients talk to pid %d", demoClients, server.Pid)
	for range demoRestarts {
		for enough := received.Load() + 20*demoClients; received.Load() < enough && len(failures) == 0; {
			time.Sleep(time.Millisecond)
		}
		next, _, err := startServer("-control", path)
		if err != nil {
			return err
		}
		server.Wait()
		server = next
	}
	close(over)
	clients.Wait()
	if len(failures) > 0 {
		return <-failures
	}
	log.Printf("verdict: good: %d restarts, %d clients, %d "+demoVerdict, demoRestarts, demoClients, received.Load())
	return nil
}

// startServer starts this program once more, shows what it says, and waits until it serves.
func startServer(args ...string) (p *os.Process, addr string, err error) {
	cmd := exec.Command(os.Args[0], append(args, "-timeout", "20s")...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL} // not to outlive the demo
	out, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, "", err
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		fmt.Fprintln(os.Stderr, lines.Text())
		if _, addr, found := strings.Cut(lines.Text(), "listening on "); found {
			go io.Copy(os.Stderr, out) // what else it says
			return cmd.Process, addr, nil
		}
	}
	return nil, "", fmt.Errorf("verdict: BAD: %v ended before it was listening", cmd.Args)
}
