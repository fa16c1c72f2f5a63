//go:build linux

package main

import "syscall"

// borrow lends f the number of c's descriptor, which stays c's. While f runs, the number can be
// neither closed nor given to another file. (File().Fd() would make a second descriptor and set
// the socket to blocking, for every process that has it.)
func borrow(c syscall.Conn, f func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failure error
	if err := raw.Control(func(fd uintptr) { failure = f(int(fd)) }); err != nil {
		return err
	}
	return failure
}
