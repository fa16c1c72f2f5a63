//go:build linux

package main

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// unix(7), SCM_RIGHTS: a message carries at most SCM_MAX_FD = 253 descriptors, all its control
// messages together. With more, sendmsg(2) fails with EINVAL and sends nothing.

// Wrong: all of them in one message.
func tooManyWrong(s *sockets) (string, error) { return sendBatches(s, maxFDs+1) }

// Right: in messages of 253 and fewer.
func tooManyRight(s *sockets) (string, error) { return sendBatches(s, maxFDs) }

func sendBatches(s *sockets, batchSize int) (string, error) {
	var arrived []int
	for batch := range slices.Chunk(slices.Repeat([]int{stdin}, maxFDs+1), batchSize) {
		if err := send(s.sender, "batch", batch...); err != nil {
			return fmt.Sprintf("%d descriptors in one message: %v", len(batch), err), nil
		}
		m, err := receive(s.receiver, maxFDs, unix.MSG_CMSG_CLOEXEC)
		closeFDs(m.fds...)
		if err != nil {
			return "", err
		}
		arrived = append(arrived, len(m.fds))
	}
	return fmt.Sprintf("%d descriptors in %d messages: %d arrive", maxFDs+1, len(arrived), arrived), nil
}
