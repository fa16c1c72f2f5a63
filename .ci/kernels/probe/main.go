// Probe asks the running kernel for what the book speaks of, and prints a line for each feature: yes,
// or the errno that refuses it. The settings that it tries are those of a machine of its own.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) > 1 {
		connect(os.Args[1])
		return
	}
	for _, f := range []struct {
		name string
		ask  func() error
	}{
		{"`SO_PEERCRED`", get(unix.SO_PEERCRED)},
		{"`SO_DOMAIN`", get(unix.SO_DOMAIN)},
		{"`SO_PROTOCOL`", get(unix.SO_PROTOCOL)},
		{"`SO_COOKIE`", func() error {
			_, err := unix.GetsockoptUint64(sockets[0], unix.SOL_SOCKET, unix.SO_COOKIE)
			return err
		}},
		{"Multipath TCP", func() error {
			_, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP)
			return err
		}},
		{"sealing a memfd", seal},
		{"`CLONE_PIDFD`", func() error { _, _, err := child("-"); return err }},
		{"`pidfd_open`", func() error { _, err := unix.PidfdOpen(os.Getpid(), 0); return err }},
		{"`pidfd_getfd`", getfd},
		{"`pidfd_getfd` of a zombie", zombie},
		{"`kcmp`", func() error {
			_, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(os.Getpid()), uintptr(os.Getpid()), 0, 0, 0, 0)
			return number(errno)
		}},
		{"`SO_PASSPIDFD`", set(unix.SO_PASSPIDFD, 1)},
		{"`SO_PEERPIDFD`", get(unix.SO_PEERPIDFD)},
		{"`SO_PEERPIDFD` of a reaped peer", reapedPeer},
		{"`fcntl` `F_DUPFD_QUERY`", func() error { _, err := unix.FcntlInt(0, unix.F_DUPFD_QUERY, 0); return err }},
		{"`PIDFD_GET_INFO`", func() error {
			pidfd, err := unix.PidfdOpen(os.Getpid(), 0)
			return errorOf(err, info(pidfd, unix.PIDFD_INFO_CREDS))
		}},
		{"`PIDFD_INFO_EXIT` of a reaped process", reaped},
		{"`SO_PASSRIGHTS`", set(unix.SO_PASSRIGHTS, 0)},
		{"`SO_RIGHTS_NOTRUNC`", set(85, 1)}, // of <asm-generic/socket.h>; x/sys does not have it
		{"`net.ipv4.tcp_migrate_req`, the setting", func() error { _, err := os.Stat(migrateReq); return err }},
		{"`net.ipv4.tcp_migrate_req`, its effect", migrate},
		{"TLS in the kernel", func() error { _, err := tlsSocket(); return err }},
		{"TLS in the kernel, AES-128-GCM", tlsKeys(51, 40, 1)},
		{"TLS in the kernel, AES-256-GCM", tlsKeys(52, 56, 1)},
		{"TLS in the kernel, ChaCha20-Poly1305", tlsKeys(54, 56, 1)},
		{"TLS in the kernel, a second key", tlsKeys(51, 40, 2)},
		{"TLS in the kernel, `getsockopt` of the key", tlsKey},
		{"`PR_SET_PTRACER`", func() error { return unix.Prctl(unix.PR_SET_PTRACER, uintptr(os.Getppid()), 0, 0, 0) }},
	} {
		answer := "yes"
		var errno unix.Errno
		if err := f.ask(); errors.As(err, &errno) {
			answer = unix.ErrnoName(errno)
		} else if err != nil {
			answer = err.Error()
		}
		fmt.Printf("feature %s: %s\n", f.name, answer)
	}
}

// sockets are two connected ones, to ask for options.
var sockets = func() [2]int {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		panic(err)
	}
	return pair
}()

func get(option int) func() error { return func() error { return getOf(sockets[0], option) } }

func getOf(socket, option int) error {
	var value [3]int32
	size := uint32(unsafe.Sizeof(value))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(socket), unix.SOL_SOCKET, uintptr(option), uintptr(unsafe.Pointer(&value)), uintptr(unsafe.Pointer(&size)), 0)
	return number(errno)
}

func set(option, value int) func() error {
	return func() error { return unix.SetsockoptInt(sockets[0], unix.SOL_SOCKET, option, value) }
}

// number is errno as an error, or nil.
func number(errno unix.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}

// errorOf is the first error.
func errorOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// tlsSocket is a connected socket with the kernel's TLS, and no key yet.
func tlsSocket() (int, error) {
	listener, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err := errorOf(err, unix.Bind(listener, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(listener, 1)); err != nil {
		return -1, err
	}
	addr, err := unix.Getsockname(listener)
	if err != nil {
		return -1, err
	}
	c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err := errorOf(err, unix.Connect(c, addr)); err != nil {
		return -1, err
	}
	return c, unix.SetsockoptString(c, unix.IPPROTO_TCP, unix.TCP_ULP, "tls")
}

// tlsKeys gives both directions a key, once or more: a struct of linux/tls.h, version and cipher and then zeros.
func tlsKeys(cipher byte, size, times int) func() error {
	return func() error {
		c, err := tlsSocket()
		for range times {
			for option := 1; option <= 2 && err == nil; option++ { // TLS_TX, TLS_RX
				info := append([]byte{4, 3, cipher}, make([]byte, size-3)...)
				err = unix.SetsockoptString(c, unix.SOL_TLS, option, string(info))
			}
		}
		return err
	}
}

// tlsKey asks for the key in both directions.
func tlsKey() error {
	c, err := tlsSocket()
	if err != nil {
		return err
	}
	info := append([]byte{4, 3, 51, 0}, "the iv..and the secret keysalt\x00\x00\x00\x00\x00\x00\x00\x00"...)[:40]
	for option := 1; option <= 2; option++ {
		if err := unix.SetsockoptString(c, unix.SOL_TLS, option, string(info)); err != nil {
			return err
		}
		got, size := make([]byte, len(info)), uint32(len(info))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(c), unix.SOL_TLS, uintptr(option), uintptr(unsafe.Pointer(&got[0])), uintptr(unsafe.Pointer(&size)), 0)
		if errno != 0 {
			return errno
		}
		if !bytes.Equal(got[12:28], info[12:28]) {
			return errors.New("no")
		}
	}
	return nil
}

func seal() error {
	fd, err := unix.MemfdCreate("probe", unix.MFD_ALLOW_SEALING|unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL)
	return err
}

func getfd() error {
	pidfd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return err
	}
	_, err = unix.PidfdGetfd(pidfd, 0, 0)
	return err
}

// child runs this program, which connects to a unix socket if that is not -, and ends. The
// caller waits for it.
func child(address string) (cmd *exec.Cmd, pidfd int, err error) {
	cmd = exec.Command("/proc/self/exe", address)
	cmd.SysProcAttr = &syscall.SysProcAttr{PidFD: &pidfd}
	if err := cmd.Start(); err != nil {
		return nil, -1, err
	}
	if pidfd < 0 {
		return cmd, -1, unix.EINVAL
	}
	var ended unix.Siginfo
	return cmd, pidfd, unix.Waitid(unix.P_PID, cmd.Process.Pid, &ended, unix.WEXITED|unix.WNOWAIT, nil)
}

func zombie() error {
	_, pidfd, err := child("-")
	if err != nil {
		return err
	}
	_, err = unix.PidfdGetfd(pidfd, 0, 0)
	return err
}

func reaped() error {
	cmd, pidfd, err := child("-")
	return errorOf(err, cmd.Wait(), info(pidfd, unix.PIDFD_INFO_EXIT))
}

// info asks for one thing about a process. ENODATA: the kernel knows the question, and not the answer.
func info(pidfd int, want uint64) error {
	about := unix.PidfdInfo{Mask: want}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(pidfd), unix.PIDFD_GET_INFO, uintptr(unsafe.Pointer(&about)))
	if errno == 0 && about.Mask&want == 0 {
		return unix.ENODATA
	}
	return number(errno)
}

// reapedPeer asks for the other end of a connection when that has been waited for.
func reapedPeer() error {
	address := fmt.Sprintf("@probe-%d", os.Getpid())
	listener, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err := errorOf(err, unix.Bind(listener, &unix.SockaddrUnix{Name: address}), unix.Listen(listener, 1)); err != nil {
		return err
	}
	cmd, _, err := child(address)
	if err := errorOf(err, cmd.Wait()); err != nil {
		return err
	}
	connection, _, err := unix.Accept(listener)
	return errorOf(err, getOf(connection, unix.SO_PEERPIDFD))
}

func connect(address string) {
	if address == "-" {
		return
	}
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err := errorOf(err, unix.Connect(socket, &unix.SockaddrUnix{Name: address})); err != nil {
		panic(err)
	}
}

const migrateReq = "/proc/sys/net/ipv4/tcp_migrate_req"

// migrate closes one of two listeners on a port, with clients waiting in its queue: do they
// all come to the other one?
func migrate() error {
	if err := os.WriteFile(migrateReq, []byte("1"), 0); err != nil {
		return err
	}
	const clients = 20
	one, port, err := listen(0)
	if err != nil {
		return err
	}
	other, _, err := listen(port)
	if err != nil {
		return err
	}
	for range clients {
		client, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err := errorOf(err, unix.Connect(client, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})); err != nil {
			return err
		}
	}
	if err := errorOf(unix.Close(one), unix.SetNonblock(other, true)); err != nil {
		return err
	}
	for range clients {
		if _, _, err := unix.Accept(other); errors.Is(err, unix.EAGAIN) {
			return errors.New("no")
		} else if err != nil {
			return err
		}
	}
	return nil
}

func listen(port int) (fd, at int, err error) {
	fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	err = errorOf(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1),
		unix.Bind(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 100))
	if err != nil {
		return -1, 0, err
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return -1, 0, err
	}
	return fd, name.(*unix.SockaddrInet4).Port, nil
}
