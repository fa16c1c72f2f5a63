package docs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// A chapter is docs/NN-name.md, and explains the step steps/NN-name. Each has what the last one
// had, so that a reader finds it.
func TestChapters(t *testing.T) {
	chapters, err := filepath.Glob("docs/[0-9][0-9]-*.md")
	if err != nil || len(chapters) < 4 {
		t.Fatalf("chapters: %v, %v", chapters, err)
	}
	for _, path := range chapters {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := checkChapter(page{path, string(text)}); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		readme, err := os.ReadFile("docs/README.md")
		if err != nil || !regexp.MustCompile(`(?m)^\| \[.*\]\(`+filepath.Base(path)+`\) \| .* \| \d+ minutes \|$`).Match(readme) {
			t.Errorf("docs/README.md does not say how long %s takes: %v", path, err)
		}
	}
}

// A chapter walks through this many snippets.
const fewestSnippets, mostSnippets = 3, 5

// A chapter's length, in lines that are not folded away: it is read in one sitting.
const shortestChapter, longestChapter = 150, 300

func checkChapter(p page) (wrong error) {
	miss := func(format string, args ...any) { wrong = errors.Join(wrong, fmt.Errorf(format, args...)) }
	step := strings.TrimSuffix(filepath.Base(p.path), ".md")
	if !strings.HasPrefix(p.text, "# "+step[:2]+": ") {
		miss("it does not begin with its number")
	}
	for what, form := range map[string]string{
		"what you need, and what you will see": `^\*\*You need\*\* [^§]*?\*\*You will\s+see\*\* `,
		"a sequence diagram":                   "```mermaid\nsequenceDiagram\n",
		"a picture of the descriptor tables":   "```mermaid\nflowchart ",
		"what is new":                          "## What is new\n\n<!-- generated: changes " + step + " -->\n",
		"a program to copy":                    "## Copy this into your project\n[^§]*?<!-- program: " + step + " ",
		"what the articles say":                `## What the articles say\n`,
		"exercises":                            `## Exercises\n`,
		"man pages":                            `Man pages: \[`,
	} {
		if !regexp.MustCompile("(?m)^" + strings.TrimPrefix(form, "^")).MatchString(p.text) {
			miss("it lacks %s", what)
		}
	}
	for _, heading := range []string{"Run it", "What goes wrong"} {
		_, section, _ := strings.Cut(p.text, "\n## "+heading+"\n")
		section, _, _ = strings.Cut(section, "\n## ")
		if !strings.Contains(section, "\n```console\n") {
			miss("%s: it shows no real output", heading)
		}
	}
	if n := strings.Count(p.text, "\n<!-- source: "); n < fewestSnippets || n > mostSnippets {
		miss("it walks through %d snippets, and not %d to %d", n, fewestSnippets, mostSnippets)
	}
	if n := strings.Count(folded.ReplaceAllString(p.text, ""), "\n"); n < shortestChapter || n > longestChapter {
		miss("it has %d lines", n)
	}
	// No chapter needs a later one: there is a link to the next where this one ends, and no other.
	text, _, _ := strings.Cut(p.text, "Next: [")
	links := regexp.MustCompile(`\]\((\d\d)-[\w-]+\.md`).FindAllStringSubmatch(text, -1)
	if slices.ContainsFunc(links, func(m []string) bool { return m[1] > step[:2] }) {
		miss("it needs a later one")
	}
	return wrong
}

var folded = regexp.MustCompile(`(?s)<details>.*?</details>\n`)

// Planted errors: a chapter that lacks something.
func TestIncompleteChaptersAreNoticed(t *testing.T) {
	text, err := os.ReadFile("docs/02-unix-socket.md")
	if err != nil {
		t.Fatal(err)
	}
	whole := page{"docs/02-unix-socket.md", string(text)}
	if err := checkChapter(whole); err != nil {
		t.Fatal(err)
	}
	for old, planted := range map[string]string{
		"# 02: ":                     "# ",
		"**You need**":               "You need",
		"sequenceDiagram":            "flowchart LR",
		"flowchart LR":               "sequenceDiagram",
		"<!-- generated: changes 02": "<!-- generated: changes 01",
		"## Run it\n\n```console":    "## Run it\n\n```text",
		"## What goes wrong":         "## What can go wrong",
		"<!-- program: 02":           "<!-- program: 01",
		"\n<!-- source: ":            "\n<!-- from: ",
		"## What the articles say":   "## Articles",
		"## Exercises":               "## Homework",
		"Man pages: ":                "See ",
		"## What to see\n":           "## What to see\n\n[Later](04-steal.md#what-to-see)\n",
		"## What to see\n\n":         "## What to see\n" + strings.Repeat("\n", longestChapter),
	} {
		if !strings.Contains(whole.text, old) {
			t.Errorf("%q is not there", old)
		}
		if err := checkChapter(page{whole.path, strings.ReplaceAll(whole.text, old, planted)}); err == nil {
			t.Errorf("%q for %q: nothing noticed", planted, old)
		}
	}
}
