//go:build linux

package main

// The unix socket where two processes of one user meet: unix(7). To copy: this file, with
// golang.org/x/sys/unix and github.com/mdlayher/socket. It promises that of all processes that
// call listenControl on a path, one listens; that a path left behind by a killed one is no
// obstacle; that nothing is removed that another program put there; and that you know whom you
// are talking to.

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

const (
	maxPath = len(unix.RawSockaddrUnix{}.Path) - 1 // bytes: sun_path has 108, the last is NUL (unix(7))
	backlog = 16                                   // so many may wait to be accepted, and one more; then EAGAIN
)

// controlPath returns the path to meet at: the given one, or if that is empty one called name in a
// folder that only this user can enter. It is absolute, so that it means the same from whatever
// folder the other process is started.
func controlPath(given, name string) (path string, err error) {
	if given == "" {
		folder := filepath.Join(os.TempDir(), fmt.Sprintf("steal-%d", os.Geteuid()))
		// Under sudo or su this may name another user's folder, or one that is not there.
		if runtime := os.Getenv("XDG_RUNTIME_DIR"); private(runtime) {
			folder = filepath.Join(runtime, "steal")
		}
		if err := os.Mkdir(folder, 0o700); !private(folder) { // in /tmp anybody could have made it before us
			return "", fmt.Errorf("%s must be a folder of mode 0700 that uid %d owns (%v): choose a path with -control", folder, os.Geteuid(), err)
		}
		given = filepath.Join(folder, name)
	}
	path, err = filepath.Abs(given)
	if err == nil && len(path) > maxPath {
		err = fmt.Errorf("control path %s: %d bytes, and sun_path holds %d: choose a shorter one with -control", path, len(path), maxPath)
	}
	return path, err
}

// private reports whether folder is one of this user's that nobody else may enter. To connect to a
// unix socket takes leave to write to its file, and to enter the folders on the way (unix(7)): so
// the folder's mode is the first lock on the door. peerOf is the second.
func private(folder string) bool {
	var stat unix.Stat_t
	err := unix.Lstat(folder, &stat) // not Stat: a symbolic link is not a folder of ours
	return err == nil && int(stat.Uid) == os.Geteuid() && stat.Mode&(unix.S_IFMT|0o077) == unix.S_IFDIR
}

// errForeign is that something at the path is not ours to remove.
var errForeign = errors.New("another program's file or socket is there: choose another path with -control")

// controlSocket is a control path that this process listens on.
type controlSocket struct {
	*socket.Conn // the listener
	path         string
	file         fs.FileInfo // what bind(2) has made there
	lock         int         // a descriptor of path.lock
}

// listenControl listens on path. The error says what stands in the way. The caller owns the listener,
// and calls remove when it ends. Closed or not, the path stays this process's until it has ended, so
// that nobody can listen there again before, itself included.
func listenControl(path string) (*controlSocket, error) {
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() != fs.ModeSocket {
		return nil, fmt.Errorf("control path %s: %w", path, errForeign)
	}
	// To see that nobody listens at path any more, to remove what is there, and to bind are three
	// system calls: two processes that start together could each remove the other's socket. So
	// whoever listens holds a lock for life, which the kernel frees when it dies (flock(2)). Nobody
	// closes this descriptor, and the lock file stays.
	lock, err := unix.Open(path+".lock", unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	err = os.NewSyscallError("open", err)
	if err == nil {
		err = os.NewSyscallError("flock", unix.Flock(lock, unix.LOCK_EX|unix.LOCK_NB))
	}
	if err != nil {
		unix.Close(lock) // or -1, which is harmless
		return nil, fmt.Errorf("lock %s.lock: %w: if another process holds it, stop it or join it, or choose another path with -control", path, err)
	}
	listener, file, err := bind(path)
	if err != nil {
		unix.Close(lock)
		return nil, fmt.Errorf("control path %s: %w", path, err)
	}
	return &controlSocket{listener, path, file, lock}, nil
}

// remove removes the socket's file, and nothing else: removing is by name, and another program's
// file may have come into its place.
func (c *controlSocket) remove() {
	if now, err := os.Lstat(c.path); err == nil && os.SameFile(now, c.file) {
		os.Remove(c.path)
	}
}

// bind listens at path, where it removes a socket whose owner is gone, and nothing else. It returns
// the file that bind(2) has made, too.
func bind(path string) (c *socket.Conn, file fs.FileInfo, err error) {
	if info, err := os.Lstat(path); err == nil {
		// A socket's file outlives its process, and bind(2) fails with EADDRINUSE as long as it is
		// there. If nobody listens, connect(2) says ECONNREFUSED; but so it does of a plain file.
		probe, err := dialControl(path)
		if err == nil {
			probe.Close()
		}
		if info.Mode().Type() != fs.ModeSocket || !errors.Is(err, unix.ECONNREFUSED) {
			return nil, nil, errForeign
		}
		os.Remove(path) // if it fails, so does Bind
	}
	c, err = socket.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET, 0, "control", nil)
	if err != nil {
		return nil, nil, err
	}
	err = c.Bind(&unix.SockaddrUnix{Name: path})
	if err == nil {
		err = c.Listen(backlog)
	}
	if err == nil {
		file, err = os.Lstat(path)
	}
	if err != nil {
		c.Close()
	}
	return c, file, err
}

// dialControl connects to the process that listens on path. The caller closes the connection.
// On a unix socket connect(2) does not wait: there is room in the accept queue, or EAGAIN.
func dialControl(path string) (*socket.Conn, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("control path %s: connect: %w: is the old process running?", path, err)
	}
	return socket.New(fd, "control")
}

// peer is the process at the other end of a unix socket: the one that connected, or for the one
// that connected, the one that called listen(2). The kernel says so (SO_PEERCRED in unix(7)).
type peer struct{ *unix.Ucred }

func (p peer) String() string { return fmt.Sprintf("pid %d (uid %d)", p.Pid, p.Uid) }

// peerOf asks who is at the other end. It is an error if that is neither this user nor root.
func peerOf(c *socket.Conn) (p peer, err error) {
	err = c.ReadFunc(context.Background(), "getsockopt SO_PEERCRED", func(fd int) (err error) {
		p.Ucred, err = unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
		return err
	})
	// A process that is given a descriptor has it, and nothing takes it back. So ask before.
	if own := os.Geteuid(); err == nil && p.Uid != 0 && int(p.Uid) != own {
		err = fmt.Errorf("%v is another user's process, and this one is uid %d's", p, own)
	}
	return p, err
}
