//go:build linux

package main

import (
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// What a supervisor such as systemd wants to know, and what it brings: sd_notify(3),
// sd_listen_fds(3). To copy: this file, and listeners.go for activated.

// supervisor tells whoever started this process what it is doing, if it wants to know.
func supervisor(lines ...string) {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"}) // @: abstract
	if err == nil {
		_, err = c.Write([]byte(strings.Join(lines, "\n")))
		err = errors.Join(err, c.Close())
	}
	if err != nil {
		log.Printf("notify %s: %v", name, err) // it is not a reason to stop serving
	}
}

// monotonic says when a reload began: Type=notify-reload wants to know (systemd.service(5)).
func monotonic() string {
	return fmt.Sprintf("MONOTONIC_USEC=%d", uptime().Microseconds())
}

// uptime is a time that means the same to all processes of a machine: CLOCK_MONOTONIC.
func uptime() time.Duration {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // it cannot fail (clock_gettime(2))
	return time.Duration(now.Nano())
}

// firstInherited is where inherited listeners begin (SD_LISTEN_FDS_START).
const firstInherited = 3

// activated returns the listeners with which this process was started, as by a socket unit. The
// caller closes them.
func activated() (listeners []*listener, err error) {
	if pid, _ := strconv.Atoi(os.Getenv("LISTEN_PID")); pid != os.Getpid() {
		return nil, nil // not for us: perhaps for the process that started us
	}
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil || n < 0 {
		return nil, fmt.Errorf("LISTEN_FDS=%q is not a number of descriptors", os.Getenv("LISTEN_FDS"))
	}
	for fd := firstInherited; fd < firstInherited+n; fd++ {
		unix.CloseOnExec(fd)
		l, err := adoptListener(os.NewFile(uintptr(fd), "LISTEN_FDS"), "")
		if err != nil {
			return nil, errors.Join(fmt.Errorf("descriptor %d of LISTEN_FDS: %w", fd, err), closeAll(listeners))
		}
		listeners = append(listeners, l)
	}
	return listeners, nil
}

// watchSignals answers SIGUSR1 with a line of state, and SIGUSR2 by starting this program again,
// which then takes over: so a supervisor need only send a signal. (Not SIGHUP, which also says that
// a terminal has been closed.)
func (s *server) watchSignals() (stop func()) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGUSR1, unix.SIGUSR2)
	go func() {
		for received := range signals {
			switch received {
			case unix.SIGUSR1:
				log.Print(s.state())
			case unix.SIGUSR2:
				startAgain()
			}
		}
	}()
	return func() {
		signal.Stop(signals)
		close(signals)
	}
}

// startAgain runs the same command once more: with a new program, if there is one at its path. The
// supervisor hears of it if that comes to nothing: it waits for word since it sent the signal.
func startAgain() {
	supervisor("RELOADING=1", monotonic())
	cmd, err := startCommand()
	if err != nil {
		log.Printf("start again: %v", err)
		supervisor("READY=1")
		return
	}
	log.Printf("started pid %d", cmd.Process.Pid)
	go func() {
		if err := cmd.Wait(); err != nil {
			log.Printf("pid %d has not taken over, or has failed since: %v", cmd.Process.Pid, err)
			supervisor("READY=1")
		}
	}()
}

func startCommand() (*exec.Cmd, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(exe, os.Args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd, cmd.Start()
}
