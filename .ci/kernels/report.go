package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// report is what one guest has said.
type report struct {
	facts          []string // for the golden file
	passed, failed int
}

func (r report) summary() string {
	skipped := 0
	for _, f := range r.facts {
		if strings.HasPrefix(f, "skip ") {
			skipped++
		}
	}
	return fmt.Sprintf("%d passed, %d failed, %d skipped", r.passed, r.failed, skipped)
}

// report boots a guest and reads what it says. Its error is errEmulator, or which tests failed.
func (g guest) report() (report, error) {
	console, err := g.console()
	if err != nil {
		return report{}, err
	}
	return read(g.version, g.user, string(console))
}

// run of one program, on a guest's console.
var programs = regexp.MustCompile(`(?ms)^guest: begin (\d) (\S+)\n(.*?)^guest: end (\d+)$`)

func read(version, user, console string) (r report, err error) {
	var errs []error
	for _, p := range programs.FindAllStringSubmatch(console, -1) {
		mode, name, output, status := p[1], p[2], p[3], p[4]
		fail := func(what, output string) {
			r.failed++
			errs = append(errs, fmt.Errorf("%s as %s, Yama %s, %s: %s\n%s", version, user, mode, name, what, tail(output)))
		}
		failed := r.failed
		if name == "probe" {
			for _, f := range features.FindAllStringSubmatch(output, -1) {
				r.facts = append(r.facts, fmt.Sprintf("feature %s %s", user, f[1]))
			}
		} else {
			results, err := events(output)
			if err != nil {
				return r, err
			}
			for _, t := range results {
				switch t.action {
				case "pass":
					r.passed++
				case "fail":
					fail(t.name, t.output)
				case "skip":
					r.facts = append(r.facts, fmt.Sprintf("skip %s %s %s %s: %s", user, mode, name, t.name, t.said()))
				}
				for _, f := range relations.FindAllStringSubmatch(t.output, -1) {
					r.facts = append(r.facts, fmt.Sprintf("relation %s %s %s", user, mode, f[1]))
				}
			}
		}
		if status != "0" && r.failed == failed {
			fail("exit status "+status, output)
		}
	}
	return r, errors.Join(errs...)
}

var (
	features  = regexp.MustCompile(`(?m)^feature (.*: .*)$`)
	relations = regexp.MustCompile(`(?m)_test\.go:\d+: relation (.*: .*)$`)
	logged    = regexp.MustCompile(`(?m)^ *\w+_test\.go:\d+: (.*)$`)
	varying   = regexp.MustCompile(`\b\d{3,}\b`)
)

// tail is the end of a text that may be very long.
func tail(text string) string { return text[max(0, len(text)-4000):] }

// result is how one test ended.
type result struct{ name, action, output string }

// said is the last thing that a test has logged, with numbers that vary made alike.
func (t result) said() string {
	all := logged.FindAllStringSubmatch(t.output, -1)
	if all == nil {
		return "no reason given"
	}
	return varying.ReplaceAllString(all[len(all)-1][1], "N")
}

// events understands the output of a test program (-test.v=test2json), in the order in which
// the tests ended.
func events(output string) (ended []result, err error) {
	cmd := exec.Command("go", "tool", "test2json")
	cmd.Stdin = strings.NewReader(output)
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go tool test2json: %w", err)
	}
	said := map[string]string{}
	for line := range bytes.Lines(out) {
		var e struct{ Action, Test, Output string }
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, fmt.Errorf("go tool test2json: %w", err)
		}
		switch {
		case e.Test == "":
		case e.Action == "output":
			said[e.Test] += e.Output
		case e.Action == "pass", e.Action == "fail", e.Action == "skip":
			ended = append(ended, result{e.Test, e.Action, said[e.Test]})
		}
	}
	return ended, nil
}

// compare says how facts differ from those of the golden file, or with -update writes them there.
func compare(version string, facts []string, tests []test) error {
	slices.Sort(facts)
	now := strings.Join(facts, "\n") + "\n"
	path := filepath.Join(folder, "golden", version+".txt")
	if *update {
		return os.WriteFile(path, []byte(now), 0o644)
	}
	golden, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return differences(version, asked(string(golden), tests), now)
}

var skip = regexp.MustCompile(`^skip (\S+) (\d) (\S+) ([^:/]+)`)

// asked is what a golden file says of the tests that were asked for.
func asked(golden string, tests []test) string {
	lines := slices.DeleteFunc(strings.Split(golden, "\n"), func(line string) bool {
		m := skip.FindStringSubmatch(line)
		if m == nil {
			return false
		}
		user, mode, name, what := m[1], m[2], m[3], m[4]
		return slices.ContainsFunc(tests, func(t test) bool {
			if t.name != name {
				return false
			}
			otherMode := mode != "0" && (t.yama == "" || !regexp.MustCompile(t.yama).MatchString(what))
			return otherMode || t.notRoot && user == "root"
		})
	})
	return strings.Join(lines, "\n")
}

func differences(version, golden, now string) error {
	var errs []error
	before, after := strings.Split(golden, "\n"), strings.Split(now, "\n")
	for _, line := range before {
		if !slices.Contains(after, line) {
			errs = append(errs, fmt.Errorf("%s: no longer so: %s", version, line))
		}
	}
	for _, line := range after {
		if !slices.Contains(before, line) {
			errs = append(errs, fmt.Errorf("%s: not in the golden file: %s", version, line))
		}
	}
	return errors.Join(errs...)
}
