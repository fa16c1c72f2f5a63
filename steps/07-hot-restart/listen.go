//go:build linux

package main

import (
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// listen opens a TCP listener. The caller closes it.
func listen(addr string) (*net.TCPListener, error) {
	tcpAddr, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("-addr %s: %w", addr, err)
	}
	l, err := net.ListenTCP("tcp", tcpAddr)
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return nil, fmt.Errorf("%w: stop the process that has it (ss -ltnp shows it), or choose another port with -addr", err)
	case errors.Is(err, unix.EACCES):
		return nil, fmt.Errorf("%w: ports below 1024 need CAP_NET_BIND_SERVICE; choose another with -addr", err)
	case err != nil:
		return nil, err
	}
	return l, nil
}
