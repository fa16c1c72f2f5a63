//go:build linux

package main

import "testing"

// What is different, in the other tests, about a descriptor that is pushed.

// survivesInFlight: once an offer is in the queue, the death of its sender does not matter.
const survivesInFlight = true

// carrying makes m carry a descriptor of this process.
func carrying(m message, fd int) (message, []int) {
	m.FD = fd
	return m, []int{fd}
}

// lateAnswer is what the new process says to an offer that was withdrawn while it slept.
func lateAnswer(testing.TB) string { return `"taken"` }

// mayCarry skips a test where no descriptor gets across: this way is open to everybody.
func mayCarry(testing.TB) {}

// letPeerFetch lets a process take the descriptors of this one. Whom they are sent to has them.
func letPeerFetch(*testing.T, peer) {}

// carriageLies are offers of a live connection with something wrong in how it comes.
func carriageLies(cookie uint64, live int) []lie {
	offer := message{Type: "offer", content: content{FD: live, Cookie: cookie}}
	return []lie{
		{"no descriptor", offer, nil, `fewer descriptors than expected: 0, not 1`},
		{"two", offer, []int{live, live}, `more descriptors than expected: 2, not 1`},
		{"253", offer, many(live, maxFDs), `more descriptors than expected: 253, not 1`},
	}
}

func many(fd, n int) []int {
	fds := make([]int, n)
	for i := range fds {
		fds[i] = fd
	}
	return fds
}
