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

// Every relative link leads to a file, and every anchor to a heading.
func TestLinks(t *testing.T) {
	for _, p := range pages(t) {
		for _, err := range deadLinks(p) {
			t.Error(err)
		}
	}
}

var link = regexp.MustCompile(`\]\(([^)\s]+)\)`)

func deadLinks(p page) (dead []error) {
	text := fenced.ReplaceAllString(p.text, "") // code may look like links
	text = lineLink.ReplaceAllString(text, "")  // TestLines looks at those; nobody at other lines
	for _, match := range link.FindAllStringSubmatch(text, -1) {
		target := match[1]
		if strings.Contains(target, "://") {
			continue // not ours to keep alive
		}
		file, anchor, _ := strings.Cut(target, "#")
		where := filepath.Join(filepath.Dir(p.path), file)
		if file == "" {
			where = p.path
		}
		content, err := os.ReadFile(where)
		if info, statErr := os.Stat(where); statErr == nil && info.IsDir() && anchor == "" {
			continue
		}
		if file == "" {
			content, err = []byte(p.text), nil
		}
		if err != nil {
			dead = append(dead, fmt.Errorf("%s: link to %s: %w", p.path, target, err))
		} else if anchor != "" && !anchors(string(content))[anchor] {
			dead = append(dead, fmt.Errorf("%s: link to %s: no such heading", p.path, target))
		}
	}
	return dead
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

// A test that a page names as a proof must exist in the file that it links to.
func TestProofsExist(t *testing.T) {
	for _, p := range pages(t) {
		for _, err := range missingProofs(p) {
			t.Error(err)
		}
	}
}

var proof = regexp.MustCompile("\\[`((?:Test|Fuzz|Benchmark)\\w+)`\\]\\(([^)\\s#]+)\\)")

func missingProofs(p page) (missing []error) {
	for _, match := range proof.FindAllStringSubmatch(p.text, -1) {
		name, file := match[1], filepath.Join(filepath.Dir(p.path), match[2])
		source, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(source), "func "+name+"(") {
			missing = append(missing, fmt.Errorf("%s: %s has no %s", p.path, file, name))
		}
	}
	return missing
}

// Where a page says `f` in [`file.go`](...), there is an f in that file.
func TestNamesExist(t *testing.T) {
	for _, p := range pages(t) {
		for _, err := range missingNames(p) {
			t.Error(err)
		}
	}
}

var (
	namesIn = regexp.MustCompile("((?:`[\\w.]+`(?:,|,? and)?\\s)+)in\\s+\\[`[\\w.]+\\.go`\\]\\(([^)\\s#]+)\\)")
	quoted  = regexp.MustCompile("`([\\w.]+)`")
)

func missingNames(p page) (missing []error) {
	for _, m := range namesIn.FindAllStringSubmatch(p.text, -1) {
		for _, name := range quoted.FindAllStringSubmatch(m[1], -1) {
			if _, err := lineOf(filepath.Join(filepath.Dir(p.path), m[2]), name[1]); err != nil {
				missing = append(missing, fmt.Errorf("%s: %w", p.path, err))
			}
		}
	}
	return missing
}

// A step or a test that a command on a page names must exist. (Transcripts are run; these are the
// commands beside them. The checks of the exercises are copied there first.)
func TestCommands(t *testing.T) {
	for _, p := range pages(t) {
		for _, err := range vainCommands(p) {
			t.Error(err)
		}
	}
}

var (
	goCommand = regexp.MustCompile("(?m)go (?:run|test|build|vet)\\b[^`\n#]*")
	stepPath  = regexp.MustCompile(`\./steps/[\w-]+`)
	testName  = regexp.MustCompile(`-(?:run|bench) '?\^?((?:Test|Benchmark)\w+)`)
)

func vainCommands(p page) (vain []error) {
	for _, command := range goCommand.FindAllString(p.text, -1) {
		dir := stepPath.FindString(command)
		if dir == "" {
			continue
		}
		sources, err := filepath.Glob(dir + "/*.go")
		if err != nil || sources == nil {
			vain = append(vain, fmt.Errorf("%s: %s: no such step", p.path, command))
			continue
		}
		test := testName.FindStringSubmatch(command)
		if test == nil || strings.HasPrefix(test[1], "TestExercise") {
			continue
		}
		if !slices.ContainsFunc(sources, func(file string) bool {
			source, err := os.ReadFile(file)
			return err == nil && strings.Contains(string(source), "func "+test[1]+"(")
		}) {
			vain = append(vain, fmt.Errorf("%s: %s: no such test", p.path, command))
		}
	}
	return vain
}

// Planted errors: dead links, and proofs, names and commands of what is not there.
func TestDeadLinksAreNoticed(t *testing.T) {
	p := page{"docs/page.md", "# A heading, `quoted`\n" +
		"[ok](#a-heading-quoted) [ok](01-echo.md) [ok](../steps/01-echo) [ok](https://example.com/x)\n" +
		"[dead](#nowhere) [dead](nowhere.md) [dead](01-echo.md#nowhere) [dead](../steps/01-echo/echo.go#L1)\n" +
		"```go\nx[i](y)\n```\n" +
		"[`TestUsage`](../steps/01-echo/echo_test.go) [`TestNothing`](../steps/01-echo/echo_test.go)\n"}
	if dead := deadLinks(p); len(dead) != 4 {
		t.Errorf("got %v, want four", dead)
	}
	if missing := missingProofs(p); len(missing) != 1 {
		t.Errorf("got %v, want one", missing)
	}
	p.text = "`reason` and `serve`\nin [`main.go`](../steps/01-echo/main.go), `echo`, `encore` in\n[`echo.go`](../steps/01-echo/echo.go)"
	if missing := missingNames(p); len(missing) != 1 {
		t.Errorf("got %v, want one", missing)
	}
	p.text = "```sh\ngo run ./steps/01-echo -addr :0\ngo run ./steps/00-nothing # dead\n```\n" +
		"`go test -run '^TestUsage$' ./steps/01-echo` `go test -v -run TestNothing ./steps/01-echo`\n"
	if vain := vainCommands(p); len(vain) != 2 {
		t.Errorf("got %v, want two", vain)
	}
}
