//go:build linux

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// kept is how many descriptors the other process has that are to be moved all at once.
const kept = 10_000

// BenchmarkPushPull measures both ways between the same two processes and in turn, in plain
// blocking system calls: what a busy machine adds, it adds to both.
//
// One descriptor, until this process has it and has closed it: one-push asks for it with a byte
// and receives it; one-told asks for its number, and pulls it; one-pull knows the number. Then
// ten thousand of them: all-push, 253 in a message; all-pull, one by one. And finding the number
// of a connection of which only the addresses are known: find by its inode (sock_diag(7), and
// then every link in /proc/PID/fd); try by pulling every number and looking at the cookie.
func BenchmarkPushPull(b *testing.B) {
	k := startKeeper(b)
	measure := map[string]func(){
		"one-push": func() { k.receive(b, 'o') },
		"one-told": func() { k.pull(b, k.ask(b)) },
		"one-pull": func() { k.pull(b, k.last) },
		"all-push": func() { k.receive(b, 'a') },
		"all-pull": func() {
			for n := range kept {
				k.pull(b, k.first+n)
			}
		},
		"find": func() { k.expect(b, k.find(b)) },
		"try":  func() { k.expect(b, k.try(b)) },
	}
	times := map[string][]time.Duration{}
	for range b.N {
		for name, do := range measure {
			rounds := 1
			if strings.HasPrefix(name, "one-") {
				rounds = 100
			}
			for range rounds {
				begin := time.Now()
				do()
				times[name] = append(times[name], time.Since(begin))
			}
		}
	}
	median := func(name string) float64 {
		slices.Sort(times[name])
		return float64(times[name][len(times[name])/2].Nanoseconds())
	}
	for _, one := range []string{"one-push", "one-told", "one-pull"} {
		b.ReportMetric(median(one)/1000, one+"-µs")
	}
	for _, all := range []string{"all-push", "all-pull"} {
		b.ReportMetric(median(all)/kept, all+"-ns/fd")
	}
	for _, search := range []string{"find", "try"} {
		b.ReportMetric(median(search)/1e6, search+"-ms")
	}
	b.ReportMetric(0, "ns/op") // an operation is a round of everything: its time says nothing
}

// keeper is a process with many descriptors. The last one is a connection.
type keeper struct {
	target
	socket      int
	first, last int
	connection  *net.TCPConn // here; its descriptor there is last
	inode       uint64
	cookie      uint64
}

func startKeeper(b *testing.B) keeper {
	b.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "keeper")
	server, _ := serverSide(b)
	connection, err := server.File()
	if err != nil {
		b.Fatal(err)
	}
	id, err := identify(server)
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), asRole+"=keeper")
	cmd.ExtraFiles = []*os.File{theirs, connection}
	cmd.Stderr = os.Stderr
	if err := errorOf(cmd.Start(), theirs.Close(), connection.Close()); err != nil {
		b.Fatal(err)
	}
	pidfd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		b.Fatal(err)
	}
	k := keeper{target: target{pidfd, cmd.Process.Pid}, socket: pair[0], connection: server, inode: id.inode, cookie: id.cookie}
	b.Cleanup(func() {
		// Without the other end it has nothing more to do.
		if err := errorOf(k.Close(), unix.Close(k.socket), cmd.Wait()); err != nil {
			b.Error(err)
		}
	})
	k.last = k.ask(b)
	k.first = k.last - kept
	return k
}

// ask asks for the number of the connection.
func (k keeper) ask(b *testing.B) int {
	b.Helper()
	answer := make([]byte, 8)
	if _, err := unix.Write(k.socket, []byte{'n'}); err != nil {
		b.Fatal(err)
	}
	if n, err := unix.Read(k.socket, answer); n != len(answer) || err != nil {
		b.Fatalf("%d bytes, %v", n, err)
	}
	return int(binary.NativeEndian.Uint64(answer))
}

// pull takes a descriptor, and closes it.
func (k keeper) pull(b *testing.B, number int) {
	b.Helper()
	fd, err := k.fetch(number)
	if err := errorOf(err, unix.Close(fd)); err != nil {
		b.Fatal(err)
	}
}

// receive asks for one descriptor or all, and closes what comes.
func (k keeper) receive(b *testing.B, what byte) {
	b.Helper()
	if _, err := unix.Write(k.socket, []byte{what}); err != nil {
		b.Fatal(err)
	}
	wanted := map[byte]int{'o': 1, 'a': kept}[what]
	payload, control := make([]byte, 1), make([]byte, unix.CmsgSpace(4*maxFDs))
	for wanted > 0 {
		_, controlLen, _, _, err := unix.Recvmsg(k.socket, payload, control, unix.MSG_CMSG_CLOEXEC)
		if err != nil {
			b.Fatal(err)
		}
		fds, err := parseControl(control[:controlLen])
		if err := errorOf(err, closeFDs(fds)); err != nil || len(fds) == 0 {
			b.Fatalf("%d descriptors, %v", len(fds), err)
		}
		wanted -= len(fds)
	}
}

func (k keeper) expect(b *testing.B, number int) {
	b.Helper()
	if number != k.last {
		b.Fatalf("found %d, want %d", number, k.last)
	}
}

// find looks the connection's inode up by its addresses, and then for that inode in the keeper's
// descriptor table.
func (k keeper) find(b *testing.B) int {
	b.Helper()
	inode, err := inodeOf(k.connection)
	if err != nil || uint64(inode) != k.inode {
		b.Fatalf("inode %d, %v, want %d", inode, err, k.inode)
	}
	want := fmt.Sprintf("socket:[%d]", inode)
	dir := fmt.Sprintf("/proc/%d/fd", k.pid)
	table, err := os.Open(dir)
	if err != nil {
		b.Fatal(err)
	}
	defer closeQuietly(table)
	names, err := table.Readdirnames(-1)
	if err != nil {
		b.Fatal(err)
	}
	for _, name := range names {
		if link, err := os.Readlink(dir + "/" + name); err == nil && link == want {
			number, err := strconv.Atoi(name)
			if err != nil {
				b.Fatal(err)
			}
			return number
		}
	}
	return -1
}

// try pulls every number there can be until one is the connection.
func (k keeper) try(b *testing.B) int {
	b.Helper()
	for number := 0; ; number++ {
		fd, err := unix.PidfdGetfd(k.pidfd, number, 0)
		if errors.Is(err, unix.EBADF) && number <= k.last {
			continue
		}
		if err != nil {
			b.Fatal(err)
		}
		cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
		if err := unix.Close(fd); err != nil {
			b.Fatal(err)
		}
		if err == nil && cookie == k.cookie {
			return number
		}
	}
}

// inodeOf asks the kernel for the inode of a connection, by its addresses alone (sock_diag(7)).
func inodeOf(c *net.TCPConn) (inode uint32, err error) {
	type request struct { // struct nlmsghdr, and struct inet_diag_req_v2
		header                        unix.NlMsghdr
		family, protocol, extended, _ uint8
		states                        uint32
		sourcePort, destinationPort   [2]byte
		source, destination           [16]byte
		device                        uint32
		cookie                        [2]uint32
	}
	local, remote := c.LocalAddr().(*net.TCPAddr), c.RemoteAddr().(*net.TCPAddr)
	r := request{family: unix.AF_INET, protocol: unix.IPPROTO_TCP, states: ^uint32(0), cookie: [2]uint32{^uint32(0), ^uint32(0)}}
	r.header = unix.NlMsghdr{Len: uint32(unsafe.Sizeof(r)), Type: unix.SOCK_DIAG_BY_FAMILY, Flags: unix.NLM_F_REQUEST}
	binary.BigEndian.PutUint16(r.sourcePort[:], uint16(local.Port))
	binary.BigEndian.PutUint16(r.destinationPort[:], uint16(remote.Port))
	copy(r.source[:], local.IP.To4())
	copy(r.destination[:], remote.IP.To4())
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd) // nothing to lose
	if _, err := unix.Write(fd, unsafe.Slice((*byte)(unsafe.Pointer(&r)), unsafe.Sizeof(r))); err != nil {
		return 0, err
	}
	answer := make([]byte, 4096)
	n, err := unix.Read(fd, answer)
	if err != nil {
		return 0, err
	}
	const inodeAt = unix.SizeofNlMsghdr + 68 // idiag_inode, the last field of struct inet_diag_msg
	if kind := binary.NativeEndian.Uint16(answer[4:]); kind != unix.SOCK_DIAG_BY_FAMILY || n < inodeAt+4 {
		return 0, fmt.Errorf("an answer of type %d and %d bytes", kind, n)
	}
	return binary.NativeEndian.Uint32(answer[inodeAt:]), nil
}

func init() {
	roles["keeper"] = func() {
		if err := keep(3, 4); err != nil { // exec.Cmd.ExtraFiles begin at 3
			log.Fatal(err)
		}
	}
}

// keep is the other process. It makes thousands of descriptors, and then does as it is told.
func keep(socket, connection int) error {
	first, err := unix.FcntlInt(uintptr(socket), unix.F_DUPFD_CLOEXEC, 100)
	if err != nil {
		return err
	}
	for n := 1; n < kept; n++ {
		if _, err := unix.FcntlInt(uintptr(socket), unix.F_DUPFD_CLOEXEC, first+n); err != nil {
			return fmt.Errorf("descriptor %d: %w", first+n, err)
		}
	}
	last, err := unix.FcntlInt(uintptr(connection), unix.F_DUPFD_CLOEXEC, first+kept)
	if err != nil {
		return err
	}
	if err := unix.Close(connection); err != nil { // it is to be there once, under the last number
		return err
	}
	request := make([]byte, 1)
	for {
		n, err := unix.Read(socket, request)
		if n == 0 || err != nil {
			return err
		}
		switch request[0] {
		case 'n':
			_, err = unix.Write(socket, binary.NativeEndian.AppendUint64(nil, uint64(last)))
		case 'o':
			err = unix.Sendmsg(socket, request, unix.UnixRights(last), nil, 0)
		case 'a':
			for from := first; from < first+kept && err == nil; from += maxFDs {
				var fds []int
				for fd := from; fd < min(from+maxFDs, first+kept); fd++ {
					fds = append(fds, fd)
				}
				err = unix.Sendmsg(socket, request, unix.UnixRights(fds...), nil, 0)
			}
		}
		if err != nil {
			return err
		}
	}
}
