//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// What is too much for a message travels in a file that exists only in memory, and is sealed:
// memfd_create(2), F_ADD_SEALS in fcntl(2). To copy: this file, with golang.org/x/sys/unix. It
// promises that what was read is what will stay there: the sender cannot change it any more.

const (
	// seals: nothing can be written, it can be made neither longer nor shorter, and that is final.
	seals = unix.F_SEAL_WRITE | unix.F_SEAL_GROW | unix.F_SEAL_SHRINK | unix.F_SEAL_SEAL

	// maxSealed bounds what a sender can make us read: 252 connections with full buffers, in
	// base64, are 11 MiB.
	maxSealed = 16 << 20
)

// sealValue writes a value as JSON into a new sealed file, which the caller closes. name is
// what /proc/PID/fd shows.
func sealValue(name string, value any) (*os.File, error) {
	text, err := json.Marshal(value)
	if err != nil {
		return nil, err
	}
	f, err := createMemfd(name)
	if err != nil {
		return nil, err
	}
	_, err = f.Write(text)
	if err == nil {
		err = borrow(f, func(fd int) error {
			_, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals)
			return os.NewSyscallError("fcntl F_ADD_SEALS", err)
		})
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// createMemfd makes the file. It is not to be executed, which Linux 6.3 and later want to be told
// (and may insist on: vm.memfd_noexec in sysctl). Older kernels do not know the flag.
func createMemfd(name string) (*os.File, error) {
	flags := unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate(name, flags|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate(name, flags)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// unsealValue reads such a file into value. The file stays the caller's.
func unsealValue(f *os.File, value any) error {
	err := borrow(f, func(fd int) error {
		has, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
		if err != nil {
			return fmt.Errorf("not a memfd: %w", os.NewSyscallError("fcntl F_GET_SEALS", err))
		}
		if has&seals != seals {
			return fmt.Errorf("its sender could still change it: its seals are %#x, not %#x", has, seals)
		}
		return nil
	})
	if err != nil {
		return err
	}
	stat, err := f.Stat()
	if err != nil {
		return err
	}
	if stat.Size() > maxSealed {
		return fmt.Errorf("%d bytes are more than %d", stat.Size(), maxSealed)
	}
	text := make([]byte, stat.Size())
	if _, err := f.ReadAt(text, 0); err != nil {
		return err
	}
	return json.Unmarshal(text, value)
}
