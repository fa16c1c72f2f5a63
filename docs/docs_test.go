// Package docs keeps the book true: what its pages show is compared with the source, and what
// they claim to print is run.
//
//	go test ./docs            # says what has rotted
//	go test ./docs -update    # writes what is true now into the pages; read the diff
//
// A page is plain Markdown. These of its blocks are checked:
//
//   - go blocks behind a comment such as <!-- source: steps/04-steal/steal.go giver.withdraw -->
//     show that declaration (snippets_test.go); behind <!-- program: ... --> they are built and run
//     (programs_test.go);
//   - console blocks are run (transcripts_test.go);
//   - diff blocks in an exercise are its solution, and are tried (exercises_test.go);
//   - mermaid blocks are pictures that a browser can draw (diagrams_test.go).
//
// Links, anchors, proofs and commands are checked in pages_test.go, generated tables in
// generated_test.go; what a chapter must have in chapters_test.go, and of the pages across the
// chapters the articles, the pitfalls and the glossary in files named for them.
package docs

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write what is true now into the pages")

// page is a Markdown file, by its path from the repository's root, where the tests run.
type page struct {
	path string
	text string
}

// block is a fenced block.
type block struct {
	kind string // the word behind the fence, such as go
	mark string // the HTML comment on the line before it, without its signs
	text string // the lines between the fences
	line int    // of the opening fence, for messages
}

func TestMain(m *testing.M) {
	if err := os.Chdir(".."); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// pages reads the book and the README.
func pages(t *testing.T) []page {
	t.Helper()
	paths, err := filepath.Glob("docs/*.md")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no pages: %v", err)
	}
	var all []page
	for _, path := range append([]string{"README.md"}, paths...) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, page{path, string(text)})
	}
	return all
}

var fenced = regexp.MustCompile("(?m)^(?:<!-- (.*) -->\n)?```([a-z]*)\n((?s).*?)^```$")

// rewrite replaces the text of each block of a kind by what is true, and returns the page, and
// what was not as it should be.
func (p page) rewrite(kind string, truth func(block) (string, error)) (page, []error) {
	var wrong []error
	var out strings.Builder
	end := 0
	for _, at := range fenced.FindAllStringSubmatchIndex(p.text, -1) {
		b := block{kind: p.text[at[4]:at[5]], text: p.text[at[6]:at[7]], line: strings.Count(p.text[:at[4]], "\n") + 1}
		if at[2] >= 0 {
			b.mark = p.text[at[2]:at[3]]
		}
		if b.kind != kind {
			continue
		}
		text, err := truth(b)
		if err != nil {
			wrong = append(wrong, fmt.Errorf("%s:%d: %w", p.path, b.line, err))
			text = b.text
		} else if text != b.text {
			wrong = append(wrong, fmt.Errorf("%s:%d: not true any more:\n%s", p.path, b.line, difference(b.text, text)))
		}
		out.WriteString(p.text[end:at[6]] + text)
		end = at[7]
	}
	out.WriteString(p.text[end:])
	return page{p.path, out.String()}, wrong
}

// check compares all blocks of a kind, or with -update writes the truth into the pages.
func check(t *testing.T, kind string, truth func(*testing.T, block) (string, error)) {
	for _, p := range pages(t) {
		t.Run(p.path, func(t *testing.T) {
			now, wrong := p.rewrite(kind, func(b block) (string, error) { return truth(t, b) })
			if *update && now.text != p.text {
				if err := os.WriteFile(p.path, []byte(now.text), 0o644); err != nil {
					t.Fatal(err)
				}
				t.Logf("%s: updated", p.path)
				return
			}
			for _, err := range wrong {
				t.Error(err)
			}
		})
	}
}

// difference shows the lines that only one of two texts has.
func difference(page, truth string) string {
	var out strings.Builder
	pageLines, truthLines := strings.SplitAfter(page, "\n"), strings.SplitAfter(truth, "\n")
	for _, line := range pageLines {
		if !slices.Contains(truthLines, line) {
			out.WriteString("  page:  " + line)
		}
	}
	for _, line := range truthLines {
		if !slices.Contains(pageLines, line) {
			out.WriteString("  truth: " + line)
		}
	}
	return out.String()
}
