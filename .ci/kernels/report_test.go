package main

import (
	"strings"
	"testing"
)

// A console as a guest writes it; \x16 is how test programs mark their lines for test2json.
const console = "guest: begin 0 probe\nfeature `SO_COOKIE`: yes\nguest: end 0\n" +
	"guest: begin 1 05-pidfd\n" +
	"\x16=== RUN   TestSkips\n    a_test.go:7: pid 4711: EPERM\n\x16--- SKIP: TestSkips (0.00s)\n" +
	"\x16=== RUN   TestPasses\n    a_test.go:9: relation any user, parent -> child: yes\n\x16--- PASS: TestPasses (0.00s)\n" +
	"\x16PASS\nguest: end 0\nguest: done 6.1\n"

func TestRead(t *testing.T) {
	r, err := read("6.1", "nobody", console)
	want := "feature nobody `SO_COOKIE`: yes\nskip nobody 1 05-pidfd TestSkips: pid N: EPERM\nrelation nobody 1 any user, parent -> child: yes"
	if got := strings.Join(r.facts, "\n"); got != want || err != nil || r.passed != 1 {
		t.Errorf("%d passed, %v, and\n%s", r.passed, err, got)
	}
	for what, broken := range map[string]string{
		"a test that fails":           strings.ReplaceAll(console, "--- PASS", "--- FAIL"),
		"a program that only crashes": strings.Replace(console, "\x16PASS\nguest: end 0", "\x16FAIL\npanic: no\nguest: end 2", 1),
	} {
		if r, err := read("6.1", "nobody", broken); err == nil || r.failed != 1 {
			t.Errorf("%s: %d failed, %v", what, r.failed, err)
		}
	}
}

// What was not asked for is not missed.
func TestAsked(t *testing.T) {
	const golden = "skip root 0 05-pidfd TestA: why\nskip root 1 05-pidfd TestA/a: why\nskip root 1 05-pidfd TestB: why\n"
	for pattern, want := range map[string]string{
		".":            golden,
		"^(TestA|Te)$": strings.Replace(golden, "skip root 1 05-pidfd TestB: why\n", "", 1),
		"^(TestNone)$": "skip root 0 05-pidfd TestA: why\n",
	} {
		if got := asked(golden, []test{{name: "05-pidfd", yama: pattern}}); got != want {
			t.Errorf("%s: got %q, want %q", pattern, got, want)
		}
	}
	const users = "skip nobody 0 suite TestA: why\nskip root 0 suite TestA: why\nskip root 0 05-pidfd TestA: why\n"
	want := strings.Replace(users, "skip root 0 suite TestA: why\n", "", 1)
	if got := asked(users, []test{{name: "05-pidfd"}, {name: "suite", notRoot: true}}); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// A skip too many and a skip too few are both noticed.
func TestDifferences(t *testing.T) {
	const golden = "skip a\nskip b\n"
	if err := differences("6.1", golden, golden); err != nil {
		t.Error(err)
	}
	for now, want := range map[string]string{
		"skip a\n":                 "6.1: no longer so: skip b",
		"skip a\nskip b\nskip c\n": "6.1: not in the golden file: skip c",
	} {
		if err := differences("6.1", golden, now); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}
