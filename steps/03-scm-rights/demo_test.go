//go:build linux

package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

func TestDemo(t *testing.T) {
	p := start(t, "-demo")
	exits(t, p, 0)
	newer := p.logged(`^new\[(\d+)\]: received the listener`)[1]
	older := p.logged(`^old\[(\d+)\]: sending the listener`)[1]
	p.logged(fmt.Sprintf(`^demo\[%d\]: verdict: good: pid %s went on reading where pid %s had stopped`, p.pid(), newer, older))
	if got, want := p.out.String(), fmt.Sprintf(`"who is there?\n"%s"pid %s\n"%[1]s`, "\n", newer); got != want {
		t.Errorf("stdout is\n%swant\n%s", got, want)
	}
}

// The verdict is about what happened: let either process fail, and it is bad.
func TestDemoVerdictCanBeBad(t *testing.T) {
	for _, point := range []string{`^new.*received descriptor`, `^new.*accepted the client`, `^old.*sending the listener`, `^old.*hears:`, `^old.*listening on`} {
		p := startWith(t, dying(point), "-demo")
		p.logged(`^demo\[\d+\]: verdict: bad: `)
		exits(t, p, 1)
	}
}

func TestJudge(t *testing.T) {
	good := []string{
		`old[1]: descriptor 9, at offset 0, reads "line one\n"`,
		`new[2]: descriptor 8, at offset 9, reads "line two\n"`,
		`old[1]: descriptor 9, at offset 18, reads "line three\n"`,
		`"pid 2\n"`,
	}
	if err := (&story{lines: good}).judge(1, 2); err != nil {
		t.Error(err)
	}
	for i, wrong := range []string{
		`old[1]: descriptor 9, at offset 0, reads "line two\n"`,
		`old[1]: descriptor 9, at offset 9, reads "line two\n"`,
		`new[2]: descriptor 8, at offset 18, reads "line three\n"`,
		`"pid 1\n"`,
	} {
		bad := slices.Clone(good)
		bad[i] = wrong
		if err := (&story{lines: bad}).judge(1, 2); err == nil {
			t.Errorf("%s: that is no good story", wrong)
		}
	}
}

// Nothing outlives the demo, even when it has no chance to clean up.
func TestDemoIsKilled(t *testing.T) {
	dir := meetingPlace(t)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", dir) // so that what the killed one leaves behind is the test's
	p := startWith(t, dying(`^demo.*starting the new process`), "-demo")
	older := p.logged(`^old\[(\d+)\]: listening on`)[1]
	exits(t, p, -1)
	eventually(t, "the old process ends too", func() bool {
		stat, err := os.ReadFile("/proc/" + older + "/stat")
		return os.IsNotExist(err) || strings.Contains(string(stat), ") Z ")
	})
}
