package docs

import (
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// A link such as [`fetch`, pidfd.go:26](../steps/05-pidfd/pidfd.go#L26) leads to the line on
// which that declaration begins. -update writes the line that it is now.
func TestLines(t *testing.T) {
	for _, p := range pages(t) {
		now, wrong := p.renumber()
		if *update && now != p {
			if err := os.WriteFile(p.path, []byte(now.text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if now != p && !*update {
			wrong = append(wrong, fmt.Errorf("%s: declarations have moved (-update writes it):\n%s", p.path, difference(p.text, now.text)))
		}
		for _, err := range wrong {
			t.Error(err)
		}
	}
}

var lineLink = regexp.MustCompile("\\[`([\\w.]+)`, (\\w+\\.go):\\d+\\]\\(([^)\\s#]+)#L\\d+\\)")

func (p page) renumber() (now page, wrong []error) {
	now = p
	now.text = lineLink.ReplaceAllStringFunc(p.text, func(whole string) string {
		m := lineLink.FindStringSubmatch(whole)
		line, err := lineOf(filepath.Join(filepath.Dir(p.path), m[3]), m[1])
		if err == nil && filepath.Base(m[3]) != m[2] {
			err = fmt.Errorf("%s and %s are two files", m[2], m[3])
		}
		if err != nil {
			wrong = append(wrong, fmt.Errorf("%s: %w", p.path, err))
			return whole
		}
		return fmt.Sprintf("[`%s`, %s:%d](%s#L%[3]d)", m[1], m[2], line, m[3])
	})
	return now, wrong
}

// lineOf is where a declaration begins. A method may go by its name alone.
func lineOf(file, name string) (int, error) {
	files := token.NewFileSet()
	parsed, err := parser.ParseFile(files, file, nil, 0)
	if err != nil {
		return 0, err
	}
	for _, d := range parsed.Decls {
		names, _ := declared(d)
		for n := range strings.FieldsSeq(names) {
			if n == name || strings.HasSuffix(n, "."+name) {
				return files.Position(d.Pos()).Line, nil
			}
		}
	}
	return 0, fmt.Errorf("%s: %q: %w", file, name, errNoSuchName)
}

// Every numbered statement of the articles has a row, and every row says where it is shown, by
// what it is proved, and whether it holds.
func TestConcordance(t *testing.T) {
	text, err := os.ReadFile("docs/articles.md")
	if err != nil {
		t.Fatal(err)
	}
	for heading, last := range map[string]int{"Article 1": 14, "Article 2": 7, "Envoy's": 7} {
		if err := concordance(string(text), heading, last); err != nil {
			t.Error(err)
		}
	}
}

var (
	shown   = regexp.MustCompile(`^(?:\[\d\d\]\(\d\d-[\w-]+\.md(?:#[\w-]+)?\): .*` + lineLink.String() + `|Not in this repository|No step needs it|\[How others do it\])`)
	proved  = regexp.MustCompile("^(?:.*" + proof.String() + "|Source: )")
	verdict = regexp.MustCompile(`^(?:Holds|\*\*Outdated\*\*|In part \*\*was wrong\*\*)`)
)

// concordance checks the table below a heading, whose rows are numbered from 1 to last; a
// statement of several parts may have several, such as 13a and 13b.
func concordance(text, heading string, last int) (wrong error) {
	_, section, _ := strings.Cut(text, "\n## "+heading)
	section, _, _ = strings.Cut(section, "\n## ")
	number := 0
	for _, m := range regexp.MustCompile(`(?m)^\| (\d+)([a-z]?) \| (.*) \|$`).FindAllStringSubmatch(section, -1) {
		name := fmt.Sprintf("%s, %s%s", heading, m[1], m[2])
		if m[2] == "" || m[2] == "a" {
			number++
		}
		if m[1] != fmt.Sprint(number) {
			wrong = errors.Join(wrong, fmt.Errorf("%s: should be number %d", name, number))
		}
		cells := strings.Split(m[3], " | ")
		if len(cells) != 4 {
			wrong = errors.Join(wrong, fmt.Errorf("%s: %d cells", name, len(cells)))
			continue
		}
		for i, want := range map[int]*regexp.Regexp{1: shown, 2: proved, 3: verdict} {
			if !want.MatchString(cells[i]) {
				wrong = errors.Join(wrong, fmt.Errorf("%s: %q does not say where, by what proof or whether it holds", name, cells[i]))
			}
		}
	}
	if number != last {
		wrong = errors.Join(wrong, fmt.Errorf("%s: %d statements, and not %d", heading, number, last))
	}
	return wrong
}

// Planted errors: a line that has moved, a name that is gone; and a statement with no row, no
// place, no proof or no verdict.
func TestWrongConcordanceIsNoticed(t *testing.T) {
	link := func(name, file string, line int) string {
		return fmt.Sprintf("[`%s`, %s:%d](../steps/01-echo/show.go#L%[3]d)", name, file, line)
	}
	moved := page{"docs/page.md", link("shownBytes", "show.go", 1)}
	right, wrong := moved.renumber()
	if len(wrong) > 0 || right == moved {
		t.Errorf("got %q, %v", right.text, wrong)
	}
	if again, wrong := right.renumber(); len(wrong) > 0 || again != right {
		t.Errorf("got %q, %v", again.text, wrong)
	}
	for _, bad := range []string{link("hidden", "show.go", 1), link("shownBytes", "echo.go", 1)} {
		if _, wrong := (page{"docs/page.md", bad}).renumber(); len(wrong) != 1 {
			t.Errorf("%s: %v", bad, wrong)
		}
	}

	place, test := "[01](01-echo.md): "+right.text, "[`TestUsage`](../steps/01-echo/echo_test.go)"
	good := "\n## Text\n\n| 1 | x | " + place + " | " + test + " | Holds. |\n| 2a | x | Not in this repository. | Source: y | Holds. |\n| 2b | x | No step needs it. | Source: y | Holds, but. |\n"
	if err := concordance(good, "Text", 2); err != nil {
		t.Error(err)
	}
	for old, planted := range map[string]string{
		"| 1 |":     "| 3 |",
		place:       right.text,
		right.text:  "somewhere",
		test:        "trust us",
		"Holds, ":   "Perhaps, ",
		"| 2a":      "| 2b",
		"Source: y": "y",
	} {
		if err := concordance(strings.Replace(good, old, planted, 1), "Text", 2); err == nil {
			t.Errorf("%q for %q: nothing noticed", planted, old)
		}
	}
	if err := concordance(good, "Text", 3); err == nil {
		t.Error("a missing statement is not noticed")
	}
}
