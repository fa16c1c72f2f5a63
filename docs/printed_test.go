package docs

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// A reader of the chapters 01 to 05 need not open the folder: each prints nearly all code that is new
// in its step, with words between. The chapters 06 and 07 print at least half.
const leastPrinted, leastPrintedOfRestarts, leastWords = 0.8, 0.5, 3.0

func TestChaptersPrintTheirCode(t *testing.T) {
	known := map[string]bool{} // the files of earlier steps, by what is in them
	for _, step := range steps(t) {
		fresh := newCode(t, step, known)
		text, err := os.ReadFile("docs/" + step + ".md")
		if err != nil {
			t.Fatal(err)
		}
		var shown []string
		_, _ = page{text: string(text)}.rewrite("go", func(b block) (string, error) {
			shown = append(shown, codeLines(b.text)...)
			return b.text, nil
		})
		printed := 0
		for _, line := range fresh {
			if slices.Contains(shown, line) {
				printed++
			}
		}
		words := len(strings.Fields(fenced.ReplaceAllString(string(text), "")))
		share, each := float64(printed)/float64(len(fresh)), float64(words)/float64(len(fresh))
		t.Logf("%s: %.2f of %d new lines are printed, with %.1f words for each", step, share, len(fresh), each)
		least := leastPrinted
		if step >= "06" {
			least = leastPrintedOfRestarts
		}
		if share < least || each < leastWords {
			t.Errorf("%s: too little, want %v and %v", step, least, leastWords)
		}
	}
}

var imports = regexp.MustCompile(`(?s)^.*?\nimport \(.*?\n\)\n`)

// newCode is the code in files of a step that no step before had, without imports, lone brackets,
// and demonstrations.
func newCode(t *testing.T, step string, known map[string]bool) (lines []string) {
	for _, file := range sources(t, step) {
		if content := read(t, file); !strings.HasSuffix(file, "demo.go") && !known[content] {
			known[content] = true
			lines = append(lines, codeLines(imports.ReplaceAllString(content, ""))...)
		}
	}
	return slices.DeleteFunc(lines, func(line string) bool { return len(line) <= 2 })
}

// codeLines are those that are neither blank nor a comment.
func codeLines(source string) (lines []string) {
	for line := range strings.Lines(source) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "//") {
			lines = append(lines, line)
		}
	}
	return lines
}

var countsRow = regexp.MustCompile("(?m)^(\\| \\[`(\\d\\d-[\\w-]+)`\\]\\(steps/.* \\| )\\d+, \\d+( \\| .*)$")

// TestCounts: the README's table of steps says how many code lines a step has, and how many of them
// are in files that no step before had.
func TestCounts(t *testing.T) {
	counts, known := map[string]string{}, map[string]bool{}
	for _, step := range steps(t) {
		all, fresh := 0, 0
		for _, file := range sources(t, step) {
			content := read(t, file)
			n := len(codeLines(content))
			if all += n; !known[content] {
				fresh += n
			}
			known[content] = true
		}
		counts[step] = fmt.Sprintf("%d, %d", all, fresh)
	}
	p := page{"README.md", read(t, "README.md")}
	p.settle(t, func() (now page, wrong []error) {
		now.path = p.path
		now.text = countsRow.ReplaceAllStringFunc(p.text, func(row string) string {
			m := countsRow.FindStringSubmatch(row)
			row, counts[m[2]] = m[1]+counts[m[2]]+m[3], ""
			return row
		})
		for step, count := range counts {
			if count != "" {
				wrong = append(wrong, fmt.Errorf("%s: no row for %s, %s", p.path, step, count))
			}
		}
		if now != p {
			wrong = append(wrong, fmt.Errorf("%s: %w:\n%s", p.path, errStale, difference(p.text, now.text)))
		}
		return now, wrong
	})
}

// steps are the folders' names, in order.
func steps(t *testing.T) (names []string) {
	t.Helper()
	if err := sayWhere(); err != nil {
		t.Fatal(err)
	}
	folders, err := filepath.Glob("steps/[0-9][0-9]-*")
	if err != nil || len(folders) < 5 {
		t.Fatalf("%v, %v", folders, err)
	}
	for _, f := range folders {
		names = append(names, filepath.Base(f))
	}
	return names
}

// sources are the files of a step, without its tests.
func sources(t *testing.T, step string) []string {
	t.Helper()
	files, err := filepath.Glob("steps/" + step + "/*.go")
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(files, func(f string) bool { return strings.HasSuffix(f, "_test.go") })
}

func read(t *testing.T, file string) string {
	t.Helper()
	if err := sayWhere(); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}
