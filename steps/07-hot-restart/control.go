//go:build linux

package main

// The unix socket where two processes of one user meet. To copy: this file and borrow.go, with
// golang.org/x/sys/unix and github.com/mdlayher/socket. It promises that whoever listens is
// the only one on that path, that a path left behind by a killed process is no obstacle, and
// that nothing is ever removed that another process put there.

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

const (
	// maxPath is what sun_path holds: 108 bytes on Linux, and the last one is NUL (unix(7)).
	maxPath = len(unix.RawSockaddrUnix{}.Path) - 1

	// backlog is how many processes may wait to be accepted. More than a few is a mistake.
	backlog = 16

	// Whoever holds the folder's lock holds it for a few system calls.
	lockTries = 200
	lockWait  = 10 * time.Millisecond
)

// controlPath returns the path to meet at: the given one, or if that is empty one named name
// in a folder that only this user can enter, which it makes if need be.
func controlPath(given, name string) (string, error) {
	path := given
	if path == "" {
		folder := filepath.Join(os.TempDir(), fmt.Sprintf("steal-%d", os.Geteuid()))
		if runtime := os.Getenv("XDG_RUNTIME_DIR"); runtime != "" {
			folder = filepath.Join(runtime, "steal")
		}
		if err := privateFolder(folder); err != nil {
			return "", err
		}
		path = filepath.Join(folder, name)
	}
	if strings.HasPrefix(path, "@") {
		path = "./" + path // x/sys would take a leading @ for the abstract namespace
	}
	if len(path) > maxPath {
		return "", fmt.Errorf("control path %s: %d bytes, and sun_path holds %d: choose a shorter one with -control", path, len(path), maxPath)
	}
	return path, nil
}

// privateFolder makes a folder of mode 0700, or checks that the one that is there is ours and
// closed to others. In a shared folder such as /tmp anybody could have made it before us.
func privateFolder(folder string) error {
	if err := os.Mkdir(folder, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("folder of the control socket: %w", err)
	}
	var stat unix.Stat_t
	if err := unix.Lstat(folder, &stat); err != nil { // not Stat: a link is not a folder of ours
		return &fs.PathError{Op: "lstat", Path: folder, Err: err}
	}
	switch mode := stat.Mode; {
	case mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("%s is not a folder: move it away, or choose a path with -control", folder)
	case int(stat.Uid) != os.Geteuid():
		return fmt.Errorf("%s belongs to uid %d, not to uid %d: choose a path with -control", folder, stat.Uid, os.Geteuid())
	case mode&0o077 != 0:
		return fmt.Errorf("%s has mode %04o and lets others in: chmod 700 %[1]s", folder, mode&0o777)
	}
	return nil
}

// controlListener is a listening control socket. Close removes its path.
type controlListener struct {
	*socket.Conn
	path   string
	file   fileID
	folder *folder
	once   sync.Once // a second Close would find another's file at the path
}

// fileID tells one file from all others, as long as somebody has it open.
type fileID struct{ dev, ino uint64 }

// listenControl listens on path. A path whose owner died is replaced. One whose owner lives,
// and anything that is not a socket, is left alone, with an error that says what is there.
// The caller closes the listener.
func listenControl(ctx context.Context, path string) (*controlListener, error) {
	// Looking, removing and binding are three system calls. The folder's lock makes them one,
	// so that of two processes that start together one finds the other. Locking the folder
	// itself leaves no lock file behind.
	f, err := openFolder(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	l := &controlListener{path: path, folder: f}
	if err := f.locked(ctx, l.listen); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return l, nil
}

func (l *controlListener) listen() error {
	if err := clearPath(l.path); err != nil {
		return err
	}
	c, err := socket.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET, 0, "control", nil)
	if err != nil {
		return err
	}
	l.Conn = c
	if err := l.bind(); err != nil {
		return errors.Join(fmt.Errorf("control path %s: %w", l.path, err), c.Close())
	}
	return nil
}

func (l *controlListener) bind() error {
	if err := l.Bind(&unix.SockaddrUnix{Name: l.path}); err != nil {
		return err
	}
	var err error
	if l.file, err = statPath(l.path); err != nil {
		return err
	}
	// Until this call, whoever connects is refused, and would take the path for a stale one.
	return l.Listen(backlog)
}

// accept waits for the next process to connect. The caller closes the connection.
func (l *controlListener) accept(ctx context.Context) (*socket.Conn, error) {
	c, _, err := l.Accept(ctx, 0)
	return c, err
}

// Close removes the path, unless somebody has put another file there, and closes the socket.
// In this order: while the socket is open the kernel keeps its file's inode number from being
// given to another, and whoever looks at the path finds it alive.
func (l *controlListener) Close() (err error) {
	l.once.Do(func() {
		err = l.folder.locked(context.Background(), func() error {
			if file, err := statPath(l.path); err != nil || file != l.file {
				return nil // it is not ours any more
			}
			return os.Remove(l.path)
		})
		err = errors.Join(err, l.Conn.Close(), l.folder.Close())
	})
	return err
}

func statPath(path string) (fileID, error) {
	var stat unix.Stat_t
	if err := unix.Lstat(path, &stat); err != nil {
		return fileID{}, os.NewSyscallError("lstat", err)
	}
	return fileID{uint64(stat.Dev), stat.Ino}, nil
}

// clearPath makes room at path: it removes a socket that nobody listens on any more.
func clearPath(path string) error {
	var stat unix.Stat_t
	err := unix.Lstat(path, &stat)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case err != nil:
		return fmt.Errorf("control path %s: %w", path, os.NewSyscallError("lstat", err))
	case stat.Mode&unix.S_IFMT != unix.S_IFSOCK:
		return fmt.Errorf("control path %s exists and is not a socket: move it away, or choose another with -control", path)
	}

	fd, err := connect(path)
	switch {
	case errors.Is(err, unix.ECONNREFUSED): // bound once, and its owner is gone
		return os.Remove(path)
	case errors.Is(err, unix.EAGAIN):
		return fmt.Errorf("control path %s: a process listens there, and has let its accept queue fill up: stop it first", path)
	case err != nil:
		return fmt.Errorf("control path %s: %w: another program's socket is there; choose another path with -control", path, err)
	}
	defer unix.Close(fd) // only asked a question; nothing can be lost
	owner, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return os.NewSyscallError("getsockopt SO_PEERCRED", err)
	}
	return fmt.Errorf("control path %s: pid %d listens there already: stop it, join it with -c, or choose another path with -control", path, owner.Pid)
}

// dialControl connects to the process that listens on path. The caller closes the connection.
func dialControl(path string) (*socket.Conn, error) {
	fd, err := connect(path)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED):
		return nil, fmt.Errorf("control path %s: %w: nobody listens there; start the old process first (the same command without -c)", path, err)
	case errors.Is(err, unix.EACCES):
		return nil, fmt.Errorf("control path %s: %w: it belongs to another user", path, err)
	case errors.Is(err, unix.EAGAIN):
		return nil, fmt.Errorf("control path %s: %w: its accept queue is full; is the old process stopped?", path, err)
	case err != nil:
		return nil, fmt.Errorf("control path %s: %w", path, err)
	}
	return socket.New(fd, "control")
}

// connect returns a connected SOCK_SEQPACKET socket, which the caller closes. On a unix socket
// connect(2) never has to wait: it succeeds, or fails, or says EAGAIN when the queue is full.
func connect(path string) (fd int, err error) {
	fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return -1, errors.Join(os.NewSyscallError("connect", err), os.NewSyscallError("close", unix.Close(fd)))
	}
	return fd, nil
}

// folder is an open folder with an advisory lock (flock(2)), which the kernel frees when its
// holder dies. It is open all the time, so that a process out of descriptors can clean up.
type folder struct {
	fd   int
	path string
}

func openFolder(path string) (*folder, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return &folder{fd, path}, nil
}

func (f *folder) Close() error { return os.NewSyscallError("close", unix.Close(f.fd)) }

// locked calls do while nobody else has the lock.
func (f *folder) locked(ctx context.Context, do func() error) error {
	err := unix.Flock(f.fd, unix.LOCK_EX|unix.LOCK_NB)
	for try := 1; errors.Is(err, unix.EWOULDBLOCK) && try < lockTries; try++ {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(lockWait):
		}
		err = unix.Flock(f.fd, unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		return fmt.Errorf("lock folder %s: %w", f.path, os.NewSyscallError("flock", err))
	}
	return errors.Join(do(), os.NewSyscallError("flock", unix.Flock(f.fd, unix.LOCK_UN)))
}

// credentials asks the kernel who is at the other end of a unix socket: pid, uid and gid, as
// they were when that process connected, or called listen (unix(7), SO_PEERCRED).
func credentials(c syscall.Conn) (cred *unix.Ucred, err error) {
	err = borrow(c, func(fd int) (err error) {
		cred, err = unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
		return os.NewSyscallError("getsockopt SO_PEERCRED", err)
	})
	return cred, err
}
