//go:build linux

package main

import (
	"bytes"
	"testing"
)

// TestBegin: a connection finds zeros in its slot, whatever was there. And if one after the other has a
// slot, and each look finds a first line that is being worked on, that is no line that does not end.
func TestBegin(t *testing.T) {
	k := &keeper{estate: estate{memory: testMemory(t), held: map[int]int{}}}
	const slot = slots - 1
	word, ring, last := k.memory.word(slot), k.memory.ring(slot), make([]uint64, slots)
	for range looks + 1 {
		for i := range ring {
			ring[i] = 0xff
		}
		k.begin(slot, -1)
		if got := word.Load(); got != 0 || !bytes.Equal(ring, make([]byte, ringSize)) {
			t.Fatalf("the last connection's word is %#x, and of its bytes there are %d", got, bytes.Count(ring, []byte{0xff}))
		}
		word.Store(busy)
		k.look(last)
		if got := k.same[slot].Load(); got > 1 {
			t.Fatalf("looks that have shown this connection's line: %d", got)
		}
	}
	for range looks {
		k.look(last)
	}
	if got := k.same[slot].Load(); got < looks {
		t.Errorf("a line that does not end has been seen %d times", got)
	}
}
