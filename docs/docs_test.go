// Package docs keeps the book true: what its pages show is compared with the source, and what
// they claim to print is run.
//
//	go test ./docs                                  # says what has rotted
//	go test ./docs -update                          # writes what is true now; read the diff
//	go test ./docs -run /docs/04-steal              # one page alone
//	STEAL_LONG=1 go test -timeout 20m ./docs        # all of it: what must be built takes minutes
//
// A page is plain Markdown. A comment on the line before a fenced block says what the block is:
//
//	<!-- source: steps/04-steal/steal.go -->                   go: that file, whole
//	<!-- source: steps/04-steal/steal.go giver.give state -->  go: these declarations, with comments,
//	                                                           or parts between //begin:NAME and //end:NAME
//	<!-- program: 03-scm-rights -->                            go: a whole program, built and run in an empty folder;
//	<!-- program: 03-scm-rights fdpass.go socket.go -->        the same, beside copies of these files of the step.
//	                                                           Its last line of output is its comment // Output: ...
//	<!-- program: 10-tls ktls.go web_test.go -->               and this test of it, of testdata/programs/10-tls, is run
//	<!-- program: 08-web web.go-mode-T.f -->                   a file without these declarations: the program has its own
//	<!-- program: 10-tls ktls.go -->                           diff: the same, of what it makes of chapter 04's program;
//	                                                           where the kernel has no TLS, it is only built
//	<!-- planted: 05 TestStory/04 -->                          text: what that test says (each line, with any numbers)
//	                                                           once testdata/pitfalls/05.diff is applied
//
//	<!-- needs: a kernel with TLS -->    console: played only where there is one; likewise without
//
// Without a comment, go blocks are sketches that nobody checks, and console blocks are transcripts:
// they are run (transcripts_test.go says how). One with commands only is filled in by -update. So is a
// table or list between two comments:
//
//	<!-- generated: files 04-steal -->  the step's files, from its doc comment: read, copy or skip
//	<!-- generated: kills 04-steal -->  who survives what, from var kills in steps/kills_test.go
//	<!-- generated: kills-that-differ -->  those that end otherwise where descriptors are pulled
//	<!-- generated: restart-kills -->  who has the listeners, from var restartKills in steps/restart_test.go
//	<!-- generated: hot-kills -->       who has what, from var hotKills in steps/hot_restart_test.go
//	<!-- generated: pitfalls -->        the headings of that page; likewise glossary
//	<!-- generated: copy -->            what to take of which step (copy_test.go)
//	<!-- end -->
//
// So are the code lines in the README's table of steps. An exercise is described in
// exercises_test.go. Links, and names of tests, functions and commands, must lead somewhere
// (pages_test.go); the chapters 01 to 05 must print nearly all their code, and those after them half of it (printed_test.go).
package docs

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

var update = flag.Bool("update", false, "write what is true now into the pages")

// long is the one switch of whatever takes long.
var long = os.Getenv("STEAL_LONG") != ""

func onlyLong(t *testing.T) {
	t.Helper()
	if !long {
		t.Skip("it takes minutes: set STEAL_LONG=1")
	}
}

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

// sayWhere says once more where the tests run. TestMain changes the folder before go test listens, which
// then looks in docs/ for the files that they read, finds none changed, and shows an old result (cached).
var sayWhere = sync.OnceValue(func() error { return os.Chdir(".") })

// pages reads the book and the README.
func pages(t *testing.T) []page {
	t.Helper()
	if err := sayWhere(); err != nil {
		t.Fatal(err)
	}
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

// errStale is what -update mends.
var errStale = errors.New("not true any more (-update writes what is)")

// rewrite replaces the text of each block of a kind by what is true, and returns the page, and
// what was not as it should be.
func (p page) rewrite(kind string, truth func(block) (string, error)) (now page, wrong []error) {
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
		if err == nil && text != b.text {
			err = fmt.Errorf("%w:\n%s", errStale, difference(b.text, text))
		} else if err != nil {
			text = b.text
		}
		if err != nil {
			wrong = append(wrong, fmt.Errorf("%s:%d: %w", p.path, b.line, err))
		}
		out.WriteString(p.text[end:at[6]] + text)
		end = at[7]
	}
	return page{p.path, out.String() + p.text[end:]}, wrong
}

// check compares all blocks of a kind, or with -update writes the truth into the pages.
func check(t *testing.T, kind string, truth func(*testing.T, block) (string, error)) {
	for _, p := range pages(t) {
		t.Run(p.path, func(t *testing.T) {
			t.Parallel()
			p.settle(t, func() (page, []error) {
				return p.rewrite(kind, func(b block) (string, error) { return truth(t, b) })
			})
		})
	}
}

// settle reports what is wrong, or with -update mends it.
func (p page) settle(t *testing.T, rewrite func() (page, []error)) {
	t.Helper()
	now, wrong := rewrite()
	if *update && now != p {
		if err := os.WriteFile(p.path, []byte(now.text), 0o644); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: updated", p.path)
	}
	for _, err := range wrong {
		if !*update || !errors.Is(err, errStale) {
			t.Error(err)
		}
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
