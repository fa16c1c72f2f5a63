package docs

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
)

// A term of the glossary has a heading, a man page, and the place where one meets it first. The
// terms are in alphabetical order.
func TestGlossary(t *testing.T) {
	text, err := os.ReadFile("docs/glossary.md")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := listTerms(string(text)); err != nil {
		t.Error(err)
	}
}

var (
	term       = regexp.MustCompile(`(?ms)^## ([^\n]*)\n(.*?)(?:\n## |\z)`)
	termSource = regexp.MustCompile(`(?s)\n\nMan page: \[[\w ]+\(\d\w*\)\]\(https://.*First\s+seen:\s`)
)

// listTerms makes the list at the top of the page. After an error it lists what it can.
func listTerms(text string) (list string, wrong error) {
	last := ""
	for _, m := range sections(term, text) {
		if !termSource.MatchString(m[2]) {
			wrong = errors.Join(wrong, fmt.Errorf("%q: where is its man page, or where it is seen first?", m[1]))
		}

		if order := strings.ToLower(m[1]); order < last {
			wrong = errors.Join(wrong, fmt.Errorf("%q is not in its place", m[1]))
		} else {
			last = order
		}
		if list != "" {
			list += " ·\n"
		}
		list += fmt.Sprintf("[%s](#%s)", m[1], anchorOf(m[1]))
	}
	if list == "" {
		return "", errors.Join(wrong, errors.New("no terms"))
	}
	return list + "\n", wrong
}

// Planted errors: each of these is wrong in one way.
func TestWrongTermsAreNoticed(t *testing.T) {
	const page = "# Glossary\n\n## Accept queue\n\nText.\n\nMan page: [listen(2)](https://example.com).\nFirst seen: step 01.\n\n" +
		"## epoll\n\nText.\n\nMan page: [epoll(7)](https://example.com). First\nseen: step 01.\n"
	if list, err := listTerms(page); err != nil || list != "[Accept queue](#accept-queue) ·\n[epoll](#epoll)\n" {
		t.Errorf("%q, %v", list, err)
	}
	for old, planted := range map[string]string{
		"## Accept":            "## Queue of accept",
		"Man page: [listen(2)": "See [listen",
		"First\nseen":          "Seen",
		"## ":                  "### ",
	} {
		if _, err := listTerms(strings.ReplaceAll(page, old, planted)); err == nil {
			t.Errorf("%q for %q: nothing noticed", planted, old)
		}
	}
}
