package docs

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// What a page points at must be there: files, headings, tests, functions, and what its commands name.
func TestReferences(t *testing.T) {
	for _, p := range pages(t) {
		for _, err := range p.dangling() {
			t.Errorf("%s: %v", p.path, err)
		}
	}
}

var (
	link      = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	namesIn   = regexp.MustCompile("((?:`[\\w.]+`(?:,|,? and)?\\s)+)in\\s+\\[`[\\w.]+\\.go`\\]\\(([^)\\s#]+)\\)")
	proof     = regexp.MustCompile("\\[(`(?:Test|Fuzz|Benchmark)\\w+`)\\]\\(([^)\\s#]+)\\)")
	quoted    = regexp.MustCompile("`([\\w.]+)`")
	goCommand = regexp.MustCompile("go (?:run|test|build|vet)\\b[^`\n#]*?(\\./steps(?:/[\\w-]+)?)\\b([^`\n#]*)")
	testName  = regexp.MustCompile(`-(?:run|bench) '?\^?((?:Test|Benchmark)\w+)`)
	mistake   = regexp.MustCompile(`^ ([a-z-]+)`)
)

func (p page) dangling() (wrong []error) {
	miss := func(format string, args ...any) { wrong = append(wrong, fmt.Errorf(format, args...)) }
	in := func(file string) string { return filepath.Join(filepath.Dir(p.path), file) }
	for _, m := range link.FindAllStringSubmatch(fenced.ReplaceAllString(p.text, ""), -1) {
		if strings.Contains(m[1], "://") {
			continue // not ours to keep alive
		}
		file, anchor, _ := strings.Cut(m[1], "#")
		where := in(file)
		if file == "" {
			where = p.path
		}
		if _, err := os.Stat(where); err != nil {
			if file != "" {
				miss("link to %s: %w", m[1], err)
				continue
			}
		}
		text := p.text
		if file != "" && anchor != "" {
			content, err := os.ReadFile(where)
			if err != nil {
				miss("link to %s: %w", m[1], err)
			}
			text = string(content)
		}
		if anchor != "" && !anchors(text)[anchor] {
			miss("link to %s: no such heading", m[1])
		}
	}
	// [`TestName`](file), and `f` and `T.g` in [`file.go`](file): there is such a declaration.
	for _, m := range append(proof.FindAllStringSubmatch(p.text, -1), namesIn.FindAllStringSubmatch(p.text, -1)...) {
		source, err := os.ReadFile(in(m[2]))
		if err != nil {
			miss("%w", err)
			continue
		}
		for _, name := range quoted.FindAllStringSubmatch(m[1], -1) {
			if _, err := declaration(string(source), name[1]); err != nil {
				miss("%s: %w", m[2], err)
			}
		}
	}
	for _, m := range goCommand.FindAllStringSubmatch(p.text, -1) {
		dir := m[1]
		if _, err := os.Stat(dir); err != nil {
			miss("%s: %w", m[0], err)
		}
		if test := testName.FindStringSubmatch(m[0]); test != nil && !strings.HasPrefix(test[1], "TestExercise") && !declaredIn(dir, "func "+test[1]+"(") {
			miss("%s: no such test", m[0])
		}
		if name := mistake.FindStringSubmatch(m[2]); dir == "./steps/mistakes" && name != nil && name[1] != "list" && !declaredIn(dir, `{"`+name[1]+`", `) {
			miss("%s: no such mistake", m[0])
		}
	}
	return wrong
}

// declaredIn reports whether a Go file of a folder contains a text.
func declaredIn(dir, text string) bool {
	files, err := filepath.Glob(dir + "/*.go")
	for _, file := range files {
		source, readErr := os.ReadFile(file)
		if err == nil && readErr == nil && strings.Contains(string(source), text) {
			return true
		}
	}
	return false
}

// anchors are the names that forges give to headings: small letters, hyphens for spaces, and
// nothing but letters, digits, hyphens and underscores.
func anchors(text string) map[string]bool {
	names := map[string]bool{}
	for _, heading := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(fenced.ReplaceAllString(text, ""), -1) {
		names[anchorOf(heading[1])] = true
	}
	return names
}

func anchorOf(heading string) string {
	name := strings.ReplaceAll(strings.ToLower(heading), " ", "-")
	return regexp.MustCompile(`[^\p{L}\p{N}_-]`).ReplaceAllString(name, "")
}

// Planted errors: one in each line but the first.
func TestDanglingIsNoticed(t *testing.T) {
	p := page{"docs/page.md", "# A heading, `quoted`\n" +
		"[ok](#a-heading-quoted) [ok](01-echo.md) [ok](../steps/01-echo) [ok](https://example.com/x) `identify` in [`socket.go`](../steps/01-echo/socket.go)\n" +
		"[dead](#nowhere)\n[dead](nowhere.md)\n[dead](01-echo.md#nowhere)\n" +
		"```go\nx[i](y) // ok\n```\n" +
		"[`TestNothing`](../steps/mistakes/mistakes_test.go)\n" +
		"`borrow` and `lend` in [`socket.go`](../steps/01-echo/socket.go)\n" +
		"`go run ./steps/00-nothing`\n" +
		"`go test -run TestNothing ./steps/mistakes`\n" +
		"```sh\ngo run ./steps/mistakes peek\ngo run ./steps/mistakes poke\n```\n"}
	if wrong := p.dangling(); len(wrong) != 8 {
		t.Errorf("got %v, want eight", wrong)
	}
}
