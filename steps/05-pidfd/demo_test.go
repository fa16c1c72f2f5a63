//go:build linux

package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

func TestDemo(t *testing.T) {
	mayCarry(t)
	demo := start(t, "-demo")
	demo.logged(`^demo\[\d+\]: verdict: good: `)
	demo.printed(`^old\[\d+\] prints "two\\n"$`)
	demo.printed(`^new\[\d+\] prints "five\\n"$`)
	if status := demo.status(); status != 0 {
		t.Errorf("exit status %d, want 0", status)
	}
}

// The verdict is computed: when the old process dies with the connection, it is bad.
func TestDemoCanFail(t *testing.T) {
	demo := startWith(t, func(cmd *exec.Cmd) {
		cmd.Env = append(cmd.Env, killAt+"=old.*offering it to")
	}, "-demo")
	demo.logged(`^demo\[\d+\]: verdict: BAD: `)
	if status := demo.status(); status != 1 {
		t.Errorf("exit status %d, want 1", status)
	}
}

// A demo that is killed in the middle leaves nobody behind.
func TestDemoTakesItsActorsAlong(t *testing.T) {
	demo := startWith(t, func(cmd *exec.Cmd) {
		cmd.Env = append(cmd.Env, killAt+`=demo.*client receives "\* stolen`)
	}, "-demo")
	old, new := demo.logged(`^old\[(\d+)\]`)[1], demo.logged(`^new\[(\d+)\]`)[1]
	demo.status()
	for _, pid := range []string{old, new} {
		eventually(t, "the end of "+pid, func() bool {
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%s/stat", pid))
			return err != nil || strings.Contains(string(stat), ") Z ") // nobody may have waited for it yet
		})
	}
}
