//go:build linux

package main

// What a supervisor such as systemd wants to hear, and what it brings: sd_notify(3),
// sd_listen_fds(3). To copy: this file, and listeners.go for activated.

import (
	"fmt"
	"log"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// notify tells whoever started this process what it is doing, if it wants to know. It waits at most
// three seconds for a supervisor that does not read, which is no reason to stop serving.
func notify(lines ...string) {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"}) // @: abstract
	if err == nil {
		c.SetDeadline(time.Now().Add(3 * time.Second))
		_, err = c.Write([]byte(strings.Join(lines, "\n")))
		c.Close()
	}
	if err != nil {
		log.Printf("notify %s: %v: it has not been told %q", name, err, lines)
	}
}

func mainPID() string { return fmt.Sprintf("MAINPID=%d", os.Getpid()) }

// reloading is what Type=notify-reload waits for (systemd.service(5)), with the time of day that
// all processes of a machine share.
func reloading() string {
	var now unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // cannot fail: clock_gettime(2)
	return fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", now.Nano()/1000)
}

// activated returns the listeners with which this process was started, as by a socket unit. They
// begin at descriptor 3 (SD_LISTEN_FDS_START), and are not close-on-exec.
func activated() (all []*net.TCPListener, err error) {
	if os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return nil, nil // not for us: perhaps for the process that started us
	}
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil {
		return nil, fmt.Errorf("LISTEN_FDS: %w", err)
	}
	for fd := 3; fd < 3+n; fd++ {
		l, err := adoptListener(fd)
		if err != nil {
			return nil, fmt.Errorf("descriptor %d of LISTEN_FDS: %w", fd, err)
		}
		all = append(all, l)
	}
	return all, nil
}
