//go:build linux

package main

// Listening sockets that change their process. To copy: this file, with socket.go.

import (
	"cmp"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const defaultAddr = "127.0.0.1:8080"

// adoptListener makes a listener of a descriptor, which it owns.
func adoptListener(fd int) (*net.TCPListener, error) {
	f := os.NewFile(uintptr(fd), "listener")
	defer f.Close() // package net makes a duplicate of its own, close-on-exec
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		return nil, fmt.Errorf("%v is not one for TCP", l.Addr())
	}
	return tcp, nil
}

// waiting reports whether a client waits in a listener's accept queue: poll(2).
func waiting(l *net.TCPListener) bool {
	n := 0
	err := borrow(l, func(fd int) (err error) {
		n, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return err
	})
	return err == nil && n > 0
}

// arrange sorts listeners. all are those to serve: the inherited ones, which somebody has asked for
// in another way; those of the offered ones that are asked for; and new ones for what else is asked
// for. surplus are the offered ones that nobody asks for any more. Without addresses, all is whatever
// there is, or else defaultAddr.
//
// What is compared is sockets, not text. Port 0 is any port of that host.
func arrange(addrs string, inherited, offered []*net.TCPListener) (all, surplus []*net.TCPListener, err error) {
	// What a supervisor passes to each process, the one before has too.
	offered = slices.DeleteFunc(offered, func(l *net.TCPListener) bool {
		twice := slices.ContainsFunc(inherited, func(other *net.TCPListener) bool { return same(l, other) })
		return twice && l.Close() == nil
	})
	if addrs == "" && len(inherited)+len(offered) > 0 {
		return append(inherited, offered...), nil, nil
	}
	all, surplus = inherited, offered
	for _, addr := range split(cmp.Or(addrs, defaultAddr)) {
		tcp, err := net.ResolveTCPAddr("tcp", addr)
		if err != nil {
			return nil, nil, fmt.Errorf("-addr: %w", err)
		}
		is := func(l *net.TCPListener) bool {
			have := l.Addr().(*net.TCPAddr)
			return have.IP.Equal(tcp.IP) && (have.Port == tcp.Port || tcp.Port == 0) &&
				(have.Zone == tcp.Zone || have.Zone == "") // a Multipath TCP listener does not tell it
		}
		if tcp.Port != 0 && slices.ContainsFunc(all, is) {
			continue
		}
		if i := slices.IndexFunc(surplus, is); i >= 0 {
			all = append(all, surplus[i])
			surplus = slices.Delete(surplus, i, i+1)
			continue
		}
		network := "tcp6" // one that is for IPv6 only: of "tcp" and [::] package net makes one for both
		if tcp.IP.To4() != nil {
			network = "tcp4"
		}
		l, err := net.ListenTCP(network, tcp)
		if err != nil {
			return nil, nil, fmt.Errorf("%w: choose another with -addr, or stop what has it (ss -ltnp)", err)
		}
		all = append(all, l)
	}
	return all, surplus, nil
}

// same reports whether two listeners are one socket.
func same(a, b *net.TCPListener) bool {
	_, cookie, err := identify(a)
	_, other, failed := identify(b)
	return err == nil && failed == nil && cookie == other
}

// split splits addresses at the commas. One without a host becomes two, IPv4's wildcard and IPv6's,
// if this machine has that: so no socket serves a part of what another one serves, and addresses
// need only be compared.
func split(addrs string) (all []string) {
	_, noIPv6 := os.Stat("/proc/net/if_inet6")
	for addr := range strings.SplitSeq(addrs, ",") {
		switch addr = strings.TrimSpace(addr); {
		case !strings.HasPrefix(addr, ":"):
			all = append(all, addr)
		case noIPv6 != nil:
			all = append(all, "0.0.0.0"+addr)
		default:
			all = append(all, "0.0.0.0"+addr, "[::]"+addr)
		}
	}
	return all
}
