package docs

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
)

// leastPitfalls is how many docs/pitfalls.md has.
const leastPitfalls = 25

// A pitfall stands under a heading such as "### 7. Title", and those of a group under a heading
// "## Group". In its four paragraphs it says how one notices it, why it is so, how to see it, with
// the test that proves it, and what to do.
func TestPitfalls(t *testing.T) {
	text, err := os.ReadFile("docs/pitfalls.md")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := listPitfalls(string(text)); err != nil {
		t.Error(err)
	}
}

var (
	pitfallGroup = regexp.MustCompile(`(?ms)^## ([^\n]*)\n(.*?)(?:\n## |\z)`)
	pitfall      = regexp.MustCompile(`(?ms)^### (\d+)\. ([^\n]*)\n(.*?)(?:\n### |\z)`)
	pitfallParts = regexp.MustCompile(`(?s)^\n\*\*Symptom\.\*\* .+\n\n\*\*Cause\.\*\* .+\n\n\*\*See it\.\*\* (.+)\n\n\*\*Fix\.\*\* .+$`)
)

// listPitfalls makes the list at the top of the page. After an error it lists what it can.
func listPitfalls(text string) (list string, wrong error) {
	number := 0
	for _, group := range sections(pitfallGroup, text) {
		var links []string
		for _, p := range sections(pitfall, group[2]) {
			number++
			name := p[1] + ". " + p[2]
			if p[1] != fmt.Sprint(number) {
				wrong = errors.Join(wrong, fmt.Errorf("%q should be number %d", name, number))
			}
			if parts := pitfallParts.FindStringSubmatch(p[3]); parts == nil {
				wrong = errors.Join(wrong, fmt.Errorf("%q: want Symptom, Cause, See it, Fix", name))
			} else if !proof.MatchString(parts[1]) {
				wrong = errors.Join(wrong, fmt.Errorf("%q: which test proves it?", name))
			}
			links = append(links, fmt.Sprintf("[%s %s](#%s)", p[1], p[2], anchorOf(name)))
		}
		if links != nil {
			list += fmt.Sprintf("- **%s:**\n  %s\n", group[1], strings.Join(links, " ·\n  "))
		}
	}
	if number < leastPitfalls {
		wrong = errors.Join(wrong, fmt.Errorf("%d pitfalls, want %d at least", number, leastPitfalls))
	}
	return list, wrong
}

// sections are the matches of a heading and what stands below it, up to the next such heading.
func sections(heading *regexp.Regexp, text string) (all [][]string) {
	for {
		at := heading.FindStringSubmatchIndex(text)
		if at == nil {
			return all
		}
		all = append(all, heading.FindStringSubmatch(text))
		text = text[at[len(at)-1]:]
	}
}

// Planted errors: each of these is wrong in one way.
func TestWrongPitfallsAreNoticed(t *testing.T) {
	var page strings.Builder
	for i := range leastPitfalls {
		if i%20 == 0 {
			fmt.Fprintf(&page, "## Group %d\n\n", i/20)
		}
		fmt.Fprintf(&page, "### %d. Fall (it hurts)\n\n**Symptom.** s\n\n**Cause.** c\n\n**See it.** [`TestUsage`](x_test.go).\n\n**Fix.** f\n\n", i+1)
	}
	page.WriteString("## Another section\n\nText.\n")
	list, err := listPitfalls(page.String())
	if err != nil || strings.Count(list, "](#") != leastPitfalls || strings.Count(list, "- **") != 2 || !strings.Contains(list, "[7 Fall (it hurts)](#7-fall-it-hurts) ·\n") {
		t.Errorf("%v, list:\n%s", err, list)
	}
	for old, planted := range map[string]string{
		"### 2. ":        "### 3. ",
		"### 25. ":       "#### 25. ",
		"**Symptom.**":   "",
		"**Fix.**":       "Fix:",
		"[`TestUsage`]":  "[`Usage`]",
		"### 9. Fall":    "Fall",
		"**See it.** [`": "**Hear it.** [`",
	} {
		if _, err := listPitfalls(strings.Replace(page.String(), old, planted, 1)); err == nil {
			t.Errorf("%q for %q: nothing noticed", planted, old)
		}
	}
}

// What the chapters say of -break is about mistakes that there are, and step 03's chapter has
// all of them.
func TestMistakesAreListed(t *testing.T) {
	source, err := os.ReadFile("steps/03-scm-rights/break.go")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{"list": true, "NAME": true}
	for _, m := range regexp.MustCompile(`(?m)^\t\{"([a-z-]+)", "`).FindAllStringSubmatch(string(source), -1) {
		known[m[1]] = true
	}
	for _, p := range pages(t) {
		for _, m := range regexp.MustCompile("-break ([A-Za-z-]+)").FindAllStringSubmatch(p.text, -1) {
			if !known[m[1]] {
				t.Errorf("%s: -break %s: no such mistake", p.path, m[1])
			}
		}
		if p.path == "docs/03-scm-rights.md" {
			for name := range known {
				if name != "list" && name != "NAME" && !strings.Contains(p.text, "\n| `"+name+"` | ") {
					t.Errorf("%s has no row for -break %s", p.path, name)
				}
			}
		}
	}
	if len(known) < 12 {
		t.Errorf("only %v", known)
	}
}
