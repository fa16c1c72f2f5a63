//go:build linux

package docs

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// What a pitfall looks like when our code falls into it: a text block that is marked
// <!-- planted: 05 TestThreeTerminals --> shows what that test says once the change in
// docs/testdata/pitfalls/05.diff is made. It is made in a copy of the step, and the test run.
func TestPlanted(t *testing.T) {
	if testing.Short() {
		t.Skip("builds and runs a test for each change")
	}
	used := map[string]bool{}
	for _, p := range pages(t) {
		_, _ = p.rewrite("text", func(b block) (string, error) {
			if arg, marked := strings.CutPrefix(b.mark, "planted: "); marked {
				number, test, _ := strings.Cut(arg, " ")
				used[number+".diff"] = true
				t.Run(number, func(t *testing.T) {
					t.Parallel()
					change, err := os.ReadFile(filepath.Join(plantedFolder, number+".diff"))
					if err != nil {
						t.Fatal(err)
					}
					if err := plant(t.Context(), t.TempDir(), string(change), os.DirFS("."), test, b.text); err != nil {
						t.Errorf("%s:%d: %v", p.path, b.line, err)
					}
				})
			}
			return b.text, nil
		})
	}
	changes, err := os.ReadDir(plantedFolder)
	if err != nil || len(changes) == 0 {
		t.Fatal(err)
	}
	for _, c := range changes {
		if !used[c.Name()] {
			t.Errorf("%s: no page shows what it does", c.Name())
		}
	}
}

const plantedFolder = "docs/testdata/pitfalls"

var plantedStep = regexp.MustCompile(`(?m)^\+\+\+ b/(steps/[\w-]+)/`)

// plant makes a change in a copy of its step, in dir, and wants the test to fail and to say this.
func plant(ctx context.Context, dir, change string, repository fs.FS, test, says string) error {
	m := plantedStep.FindStringSubmatch(change)
	if m == nil {
		return fmt.Errorf("a change of no step:\n%s", change)
	}
	step, err := fs.Sub(repository, m[1])
	if err != nil {
		return err
	}
	if err := copyAlone(dir, step); err != nil {
		return err
	}
	if out, err := runIn(ctx, dir, change, "git", "apply", "-p3", "-"); err != nil {
		return fmt.Errorf("the change cannot be made: %w\n%s", err, out)
	}
	// Some of them lose a race only, so it has more than one try.
	out, err := runIn(ctx, dir, "", "go", "test", "-trimpath", "-count=20", "-failfast", "-vet=off", "-run", "^"+test+"$", ".")
	if err == nil || !strings.Contains(out, "--- FAIL: "+test+" ") {
		return fmt.Errorf("%s does not fail with the change: %w\n%s", test, err, out)
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

// What is wrong with a change is noticed: each of these is wrong in one way.
func TestWrongPlantsAreNoticed(t *testing.T) {
	repository := os.DirFS(t.TempDir())
	folder := filepath.Join(fmt.Sprint(repository), "steps", "00-planted")
	if err := os.MkdirAll(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"step.go":      "package main\n\nfunc main() {}\n\nfunc answer() int { return 42 }\n",
		"step_test.go": "package main\n\nimport \"testing\"\n\nfunc TestAnswer(t *testing.T) {\n\tif answer() != 42 {\n\t\tt.Errorf(\"port %d after 2.5ms\", answer())\n\t}\n}\n",
	} {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const good = "--- a/steps/00-planted/step.go\n+++ b/steps/00-planted/step.go\n@@ -5 +5 @@\n-func answer() int { return 42 }\n+func answer() int { return 41 }\n"
	for name, wrong := range map[string]struct{ change, test, says, notice string }{
		"nothing":              {good, "TestAnswer", "port 777 after 10µs\n", ""},
		"other words":          {good, "TestAnswer", "host 41\n", `the page says "host 41"`},
		"harmless":             {strings.ReplaceAll(good, "41", "40 + 2"), "TestAnswer", "port 41\n", "does not fail"},
		"no such test":         {good, "TestQuestion", "port 41\n", "does not fail"},
		"not Go":               {strings.ReplaceAll(good, "41", "forty-one"), "TestAnswer", "port 41\n", "does not fail"},
		"stale":                {strings.ReplaceAll(good, "42", "43"), "TestAnswer", "port 41\n", "cannot be made"},
		"a change of no step.": {strings.ReplaceAll(good, "steps/", "docs/"), "TestAnswer", "port 41\n", "a change of no step"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := plant(t.Context(), t.TempDir(), wrong.change, repository, wrong.test, wrong.says)
			if wrong.notice == "" && err != nil || wrong.notice != "" && (err == nil || !strings.Contains(err.Error(), wrong.notice)) {
				t.Errorf("noticed: %v, want %q", err, wrong.notice)
			}
		})
	}
}
