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
	"kills":   kills,

	"pitfalls": func(string) (string, error) { return fromPage("docs/pitfalls.md", listPitfalls) },
	"glossary": func(string) (string, error) { return fromPage("docs/glossary.md", listTerms) },

	"kills-that-differ": func(string) (string, error) { return killsThatDiffer() },
	"kernel-features":   func(string) (string, error) { return features() },
	"kernel-relations":  func(string) (string, error) { return relations() },
}

// fromPage generates a part of a page from the rest of it.
func fromPage(path string, list func(text string) (string, error)) (string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	return list(string(text))
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
		var added, changed, same []string
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

// kills makes a table of the rows that a step's kill test runs.
func kills(step string) (string, error) {
	rows, err := killRows(step)
	table := "| the new process | killed | when | the connection is then served by |\n| --- | --- | --- | --- |\n"
	for _, r := range rows {
		table += fmt.Sprintf("| %s | %s |\n", r.when, r.survives)
	}
	return table, err
}

// killsThatDiffer makes a table of those that end otherwise when descriptors are pulled.
func killsThatDiffer() (string, error) {
	pushed, pushErr := killRows("04-steal")
	pulled, pullErr := killRows("05-pidfd")
	if err := errors.Join(pushErr, pullErr); err != nil {
		return "", err
	}
	table := "| the new process | killed | when | pushed (04), it is served by | pulled (05), by |\n| --- | --- | --- | --- | --- |\n"
	for i, r := range pulled {
		if i < len(pushed) && pushed[i].when == r.when && pushed[i].survives != r.survives {
			table += fmt.Sprintf("| %s | %s | %s |\n", r.when, pushed[i].survives, r.survives)
		}
	}
	return table, nil
}

// killRow is one kill: three columns that say when, and who survives it.
type killRow struct{ when, survives string }

func killRows(step string) ([]killRow, error) {
	folder := "steps/" + step
	source, err := os.ReadFile(folder + "/kill_test.go")
	if err != nil {
		return nil, err
	}
	inFlight, err := inFlight(folder)
	if err != nil {
		return nil, err
	}
	moments := map[string]string{"sending": "before it sends", "sent": "after it has sent", "received": "after it has received"}
	var rows []killRow
	for _, r := range killSource.FindAllStringSubmatch(string(source), -1) {
		survives := r[5]
		if survives == "inFlight" {
			survives = inFlight
		}
		rows = append(rows, killRow{fmt.Sprintf("%s | %s | %s `%s`", r[1], r[2], moments[r[3]], r[4]), survives})
	}
	if rows == nil {
		return nil, fmt.Errorf("%s: no rows", folder)
	}
	return rows, nil
}

var killSource = regexp.MustCompile("(?m)^\t\\{\"(.*)\", \"(.*)\", `(sending|sent|received) .*\"type\":\"(\\w+)\".*`, \"?(\\w+)\"?\\},$")

// inFlight is who has a connection whose sender has died, as the step's tests say.
func inFlight(folder string) (string, error) {
	for _, file := range []string{"push_test.go", "pidfd_test.go"} {
		source, err := os.ReadFile(folder + "/" + file)
		switch {
		case err != nil: // the step has the other one
		case strings.Contains(string(source), "const survivesInFlight = true"):
			return "new", nil
		case strings.Contains(string(source), "const survivesInFlight = false"):
			return "nobody", nil
		}
	}
	return "", fmt.Errorf("%s: what becomes of a descriptor in flight?", folder)
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
	if table, err := kills("04-steal"); err != nil || strings.Count(table, "\n") < 12 {
		t.Errorf("%q, %v", table, err)
	}
}
