package docs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// A part of a page between <!-- generated: NAME --> and <!-- end --> is written by a generator.
var generated = regexp.MustCompile(`(?s)(<!-- generated: ([^\n]*) -->\n)(.*?)(<!-- end -->)`)

var generators = map[string]func(arg string) (string, error){
	"changes": changes,
	"kills":   func(string) (string, error) { return kills() },
}

func TestGenerated(t *testing.T) {
	for _, p := range pages(t) {
		now, wrong := p.generate()
		for _, err := range wrong {
			t.Error(err)
		}
		switch {
		case now == p:
		case *update:
			if err := os.WriteFile(p.path, []byte(now.text), 0o644); err != nil {
				t.Fatal(err)
			}
		default:
			t.Errorf("%s: a generated part has changed (-update writes it):\n%s", p.path, difference(p.text, now.text))
		}
	}
}

// generate writes all generated parts of a page.
func (p page) generate() (now page, wrong []error) {
	now = p
	now.text = generated.ReplaceAllStringFunc(p.text, func(part string) string {
		m := generated.FindStringSubmatch(part)
		name, arg, _ := strings.Cut(m[2], " ")
		generator := generators[name]
		if generator == nil {
			wrong = append(wrong, fmt.Errorf("%s: no generator %q", p.path, name))
			return part
		}
		text, err := generator(arg)
		if err != nil {
			wrong = append(wrong, fmt.Errorf("%s: %s: %w", p.path, m[2], err))
			return part
		}
		return m[1] + text + m[4]
	})
	return now, wrong
}

// changes tells what is new in a step since the one before it, file by file.
func changes(step string) (string, error) {
	steps, err := filepath.Glob("steps/[0-9][0-9]-*")
	if err != nil {
		return "", err
	}
	seen := map[string]string{} // a file's name to its content in the last step that had it
	for _, dir := range steps {
		added, changed, same, left := []string{}, []string{}, []string{}, map[string]bool{}
		for name := range seen {
			left[name] = true
		}
		files, err := filepath.Glob(dir + "/*.go")
		if err != nil {
			return "", err
		}
		for _, file := range files {
			name := filepath.Base(file)
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			content, err := os.ReadFile(file)
			if err != nil {
				return "", err
			}
			delete(left, name)
			link := fmt.Sprintf("[`%s`](../%s)", name, file)
			switch last, known := seen[name]; {
			case !known:
				added = append(added, link)
			case last != string(content):
				changed = append(changed, link)
			default:
				same = append(same, "`"+name+"`")
			}
			seen[name] = string(content)
		}
		if filepath.Base(dir) == step {
			return "| | files |\n| --- | --- |\n" +
				row("new", added) + row("changed", changed) + row("the same, byte for byte", same), nil
		}
	}
	return "", errors.New("no such step")
}

func row(title string, files []string) string {
	if len(files) == 0 {
		files = []string{"none"}
	}
	return fmt.Sprintf("| %s | %s |\n", title, strings.Join(files, ", "))
}

// kills makes a table of the rows that the kill test runs.
func kills() (string, error) {
	const file = "steps/04-steal/kill_test.go"
	source, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	rows := regexp.MustCompile("(?m)^\t\\{\"(.*)\", \"(.*)\", `(sending|sent|received) .*\"type\":\"(\\w+)\".*`, \"(\\w+)\"\\},$").FindAllStringSubmatch(string(source), -1)
	if rows == nil {
		return "", fmt.Errorf("%s: no rows", file)
	}
	moments := map[string]string{"sending": "before it sends", "sent": "after it has sent", "received": "after it has received"}
	table := "| the new process | killed | when | the connection is then served by |\n| --- | --- | --- | --- |\n"
	for _, r := range rows {
		table += fmt.Sprintf("| %s | %s | %s `%s` | %s |\n", r[1], r[2], moments[r[3]], r[4], r[5])
	}
	return table, nil
}

// Planted errors: a generated part that somebody has edited, and one that nobody generates.
func TestEditedPartsAreNoticed(t *testing.T) {
	right, wrong := page{"docs/page.md", "a\n<!-- generated: changes 02-unix-socket -->\n<!-- end -->\nb\n"}.generate()
	if len(wrong) > 0 || !strings.Contains(right.text, "control.go") {
		t.Errorf("got %q, %v", right.text, wrong)
	}
	edited := page{right.path, strings.Replace(right.text, "control.go", "uncontrolled.go", 1)}
	if now, _ := edited.generate(); now != right {
		t.Errorf("got %q", now.text)
	}
	if _, wrong := (page{"docs/page.md", "<!-- generated: gossip -->\n<!-- end -->"}).generate(); len(wrong) != 1 {
		t.Errorf("got %v", wrong)
	}
	if table, err := kills(); err != nil || strings.Count(table, "\n") < 12 {
		t.Errorf("%q, %v", table, err)
	}
}
