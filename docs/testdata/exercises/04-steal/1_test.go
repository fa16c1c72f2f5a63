//go:build linux

package main

import (
	"fmt"
	"regexp"
	"testing"
)

// STATUS is answered by whoever serves, with the names that the kernel knows the socket by.
func TestExercise1(t *testing.T) {
	old, new, addr := startBoth(t)
	c := dial(t, addr)
	answer := regexp.MustCompile(`^\* pid (\d+): descriptor (\d+), inode (\d+), (cookie \d+)$`)
	servedBy := func(p *process) (inode, cookie string) {
		t.Helper()
		line := c.line()
		match := answer.FindStringSubmatch(line)
		if match == nil {
			t.Fatalf("STATUS is answered with %q", line)
		}
		if match[1] != fmt.Sprint(p.pid()) || p.descriptors()[match[2]] != "socket:["+match[3]+"]" {
			t.Errorf("%q is not true of pid %d", line, p.pid())
		}
		return match[3], match[4]
	}
	c.send("STATUS\n")
	inode, cookie := servedBy(old)
	c.send(" status\r\n")
	servedBy(old)
	c.echoed("STATUSES")

	c.send("STEAL\nSTATUS\n") // what is read ahead is for the new process to answer
	c.expect(stolenLine(old, new))
	if nowInode, nowCookie := servedBy(new); nowInode != inode || nowCookie != cookie {
		t.Errorf("inode %s and %s were inode %s and %s before", nowInode, nowCookie, inode, cookie)
	}
	c.echoed("goes on")
	c.finish("")
}
