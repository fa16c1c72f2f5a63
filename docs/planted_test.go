package docs

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const plantedFolder = "docs/testdata/pitfalls"

// What a pitfall looks like when our code falls into it (docs_test.go). The change is made in a copy of
// steps/, and the test is run there: that of the step that is changed, or else that of the suite. It must
// fail for certain, in its short form, not by losing a race.
func TestPlanted(t *testing.T) {
	used := map[string]bool{}
	for _, p := range pages(t) {
		_, _ = p.rewrite("text", func(b block) (string, error) {
			if arg, marked := strings.CutPrefix(b.mark, "planted: "); marked {
				number, test, _ := strings.Cut(arg, " ")
				used[number+".diff"] = true
				t.Run(number, func(t *testing.T) {
					onlyLong(t)
					t.Parallel()
					if err := plant(t, read(t, filepath.Join(plantedFolder, number+".diff")), test, b.text); err != nil {
						t.Errorf("%s:%d: %v", p.path, b.line, err)
					}
				})
			}
			return b.text, nil
		})
	}
	changes, err := os.ReadDir(plantedFolder)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range changes {
		if !used[c.Name()] {
			t.Errorf("%s: no page shows what it does", c.Name())
		}
	}
}

var plantedStep = regexp.MustCompile(`(?m)^\+\+\+ b/(steps/[\w-]+)/`)

func plant(t *testing.T, change, test, says string) error {
	m := plantedStep.FindStringSubmatch(change)
	if m == nil {
		return fmt.Errorf("a change of no step:\n%s", change)
	}
	dir, name := t.TempDir(), strings.Split(test, "/")
	if err := os.CopyFS(filepath.Join(dir, "steps"), os.DirFS("steps")); err != nil {
		return err
	}
	writeModule(t, dir)
	if out, err := runIn(t, dir, change, "git", "apply", "-"); err != nil {
		return fmt.Errorf("the change cannot be made: %w\n%s", err, out)
	}
	tested := "./steps"
	if declaredIn(m[1], "func "+name[0]+"(") {
		tested = "./" + m[1]
	}
	out, err := runIn(t, dir, "", "go", "test", "-count=1", "-vet=off", "-run", "^"+strings.Join(name, "$/^")+"$", tested)
	if err == nil || !strings.Contains(out, "--- FAIL: "+test) {
		return fmt.Errorf("%s of %s does not fail with the change: %w\n%s", test, tested, err, out)
	}
	for line := range strings.Lines(says) {
		if line = strings.TrimSpace(line); !alike(line).MatchString(out) {
			return fmt.Errorf("the page says %q, and %s:\n%s", line, test, out)
		}
	}
	return nil
}

var (
	plantedTime   = regexp.MustCompile(`\d+(?:\\\.\d+)?(?:µs|ms|s)\b`)
	plantedNumber = regexp.MustCompile(`\d+`)
)

// alike matches a line with any pids, ports, times and temporary folders in it.
func alike(line string) *regexp.Regexp {
	form := regexp.QuoteMeta(line)
	form = plantedTime.ReplaceAllString(form, "\x00") // first, as 210.001µs may be 1ms next time
	form = plantedNumber.ReplaceAllString(form, `\d+`)
	form = strings.ReplaceAll(form, "\x00", `[\d.]+(?:µs|ms|s)`)
	return regexp.MustCompile(strings.ReplaceAll(form, "/tmp/", `\S*/`))
}
