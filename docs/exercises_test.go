//go:build linux

package docs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"go/format"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// An exercise stands in a chapter's section Exercises, under a heading such as "### 1. Title". It
// has a task, the command that checks it, and a folded solution, which is a unified diff. Its
// check is a test in docs/testdata/exercises: it must fail on the untouched step, at an assertion
// of its own, and pass once the solution is applied.
func TestExercises(t *testing.T) {
	chapters, err := filepath.Glob("docs/[0-9][0-9]-*.md")
	if err != nil || len(chapters) < 4 {
		t.Fatalf("chapters: %v, %v", chapters, err)
	}
	for _, chapter := range chapters {
		text, err := os.ReadFile(chapter)
		if err != nil {
			t.Fatal(err)
		}
		step := strings.TrimSuffix(filepath.Base(chapter), ".md")
		all, err := exercises(step, string(text))
		if err != nil {
			t.Errorf("%s: %v", chapter, err)
		}
		for _, e := range all {
			t.Run(fmt.Sprintf("%s/%d", step, e.number), func(t *testing.T) {
				t.Parallel()
				if err := e.prove(t.Context(), t.TempDir(), os.DirFS("steps/"+step), os.DirFS(checksFolder)); err != nil {
					t.Errorf("%s, exercise %d: %v", chapter, e.number, err)
				}
			})
		}
	}
}

// checksFolder is where the checks are, in a folder for each step.
const checksFolder = "docs/testdata/exercises"

// leastExercises is how many a chapter has.
const leastExercises = 2

type exercise struct {
	step     string // the folder's name
	number   int    // in its chapter, from 1
	solution string // a unified diff
}

func (e exercise) test() string  { return fmt.Sprintf("TestExercise%d", e.number) }
func (e exercise) check() string { return fmt.Sprintf("%s/%d_test.go", e.step, e.number) }

// command is how the page says to check it: the check goes beside the step's own tests.
func (e exercise) command() string {
	return fmt.Sprintf("cp %s/%s steps/%s/\ngo test -run %s ./steps/%[3]s\n", checksFolder, e.check(), e.step, e.test())
}

var (
	exerciseSection  = regexp.MustCompile(`(?ms)^## Exercises\n(.*?)(?:^## |^Man pages:|\z)`)
	exerciseHeading  = regexp.MustCompile(`(?m)^### (.*)\n`)
	exerciseSolution = regexp.MustCompile("(?s)\n<details><summary>Solution</summary>\n\n(?:.*?\n\n)?```diff\n(.*?)```\n\n</details>\n")
)

// exercises reads those of a step's chapter. After an error it returns what could be read.
func exercises(step, text string) (all []exercise, err error) {
	match := exerciseSection.FindStringSubmatch(text)
	if match == nil {
		return nil, errors.New("no section Exercises")
	}
	starts := exerciseHeading.FindAllStringSubmatchIndex(match[1], -1)
	for i, at := range starts {
		end := len(match[1])
		if i+1 < len(starts) {
			end = starts[i+1][0]
		}
		title, body := match[1][at[2]:at[3]], match[1][at[1]:end]
		e := exercise{step: step, number: i + 1}
		if !strings.HasPrefix(title, fmt.Sprintf("%d. ", e.number)) {
			err = errors.Join(err, fmt.Errorf("%q should be number %d", title, e.number))
		}
		if !strings.Contains(body, "\n```sh\n"+e.command()+"```\n") {
			err = errors.Join(err, fmt.Errorf("%q: the command to check it is not:\n%s", title, e.command()))
		}
		diffs := exerciseSolution.FindAllStringSubmatch(body, -1)
		if len(diffs) != 1 {
			err = errors.Join(err, fmt.Errorf("%q has %d solutions, want one", title, len(diffs)))
			continue
		}
		e.solution = diffs[0][1]
		all = append(all, e)
	}
	if len(starts) < leastExercises {
		err = errors.Join(err, fmt.Errorf("%d exercises, want %d at least", len(starts), leastExercises))
	}
	return all, err
}

// prove copies the step and the check into dir, and runs the check without and with the solution.
func (e exercise) prove(ctx context.Context, dir string, step, checks fs.FS) error {
	check, err := fs.ReadFile(checks, e.check())
	if err != nil {
		return fmt.Errorf("the check: %w", err)
	}
	if err := copyAlone(dir, step); err != nil {
		return err
	}
	name := filepath.Base(e.check())
	if err := os.WriteFile(filepath.Join(dir, name), check, 0o600); err != nil {
		return err
	}
	// A failure counts if it is reported at a line of the check. With -trimpath what has been built
	// in another folder need not be built again.
	asserts := regexp.MustCompile(`(?m)^ +` + name + `:\d+: `)
	out, err := runIn(ctx, dir, "", "go", "test", "-trimpath", "-count=1", "-vet=off", "-v", "-run", "^"+e.test()+"$", ".")
	switch {
	case err == nil:
		return fmt.Errorf("the check does not fail on the untouched step:\n%s", out)
	case !strings.Contains(out, "\n--- FAIL: "+e.test()+" ") || strings.Contains(out, "\npanic: ") || !asserts.MatchString(out):
		return fmt.Errorf("on the untouched step the check fails, but at no assertion of its own: %w\n%s", err, out)
	}
	if out, err := runIn(ctx, dir, e.solution, "git", "apply", "-"); err != nil {
		return fmt.Errorf("the solution does not apply: %w\n%s", err, out)
	}
	out, err = runIn(ctx, dir, "", "go", "test", "-trimpath", "-count=1", "-v", "-run", "^"+e.test()+"$", ".")
	if err == nil && !strings.Contains(out, "\n--- PASS: "+e.test()+" ") {
		err = errors.New("it is skipped")
	}
	if err != nil {
		return fmt.Errorf("the check does not pass with the solution: %w\n%s", err, out)
	}
	return formatted(os.DirFS(dir))
}

// formatted reports a source that gofmt would change.
func formatted(dir fs.FS) error {
	files, err := fs.Glob(dir, "*.go")
	if err != nil {
		return err
	}
	for _, file := range files {
		source, err := fs.ReadFile(dir, file)
		if err != nil {
			return err
		}
		if tidy, err := format.Source(source); err != nil || !bytes.Equal(tidy, source) {
			return errors.Join(fmt.Errorf("gofmt would change the solution's %s", file), err)
		}
	}
	return nil
}

// copyAlone copies a step alone, to a folder with a fresh go.mod. The versions come from this
// module, so that nothing has to be looked up.
func copyAlone(dir string, step fs.FS) error {
	if err := os.CopyFS(dir, step); err != nil {
		return err
	}
	goMod, err := os.ReadFile("go.mod")
	if err != nil {
		return err
	}
	goMod = regexp.MustCompile(`(?m)^module .*$`).ReplaceAll(goMod, []byte("module copied"))
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), goMod, 0o600); err != nil {
		return err
	}
	goSum, err := os.ReadFile("go.sum")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "go.sum"), goSum, 0o600)
}

// runIn runs a command in dir, and returns all that it prints.
func runIn(ctx context.Context, dir, stdin, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Stdin = strings.NewReader(stdin)
	// In a folder below some repository's, git apply would look for that repository's files.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=mod", "GOWORK=off", "GIT_CEILING_DIRECTORIES="+filepath.Dir(dir))
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// What is wrong with an exercise is noticed: each of these is wrong in one way.
func TestWrongExercisesAreNoticed(t *testing.T) {
	const (
		step = "package main\n\nfunc main() {}\n\nfunc answer() int { return 41 }\n"
		good = "--- a/step.go\n+++ b/step.go\n@@ -5 +5 @@ func main() {}\n-func answer() int { return 41 }\n+func answer() int { return 42 }\n"
	)
	check := func(body string) string {
		return "package main\n\nimport \"testing\"\n\nfunc TestExercise1(t *testing.T) {\n\t" + body + "\n}\n"
	}
	right := check("if answer() != 42 {\n\t\tt.Error(answer())\n\t}")
	for name, wrong := range map[string]struct{ check, solution, notice string }{
		"nothing":               {right, good, ""},
		"no check":              {"", good, "the check: open 00-planted/1_test.go"},
		"passes untouched":      {check(""), good, "does not fail on the untouched step"},
		"is not there":          {"package main\n", good, "does not fail on the untouched step"},
		"is skipped":            {check(`t.Skip("not here")`), good, "does not fail on the untouched step"},
		"does not compile":      {check(`t.Error(question())`), good, "at no assertion of its own"},
		"panics":                {check(`panic("oh")`), good, "at no assertion of its own"},
		"solution goes stale":   {right, strings.ReplaceAll(good, "41", "40"), "the solution does not apply"},
		"solution is cut off":   {right, good[:len(good)-50], "the solution does not apply"},
		"solution is wrong":     {right, strings.ReplaceAll(good, "42", "43"), "does not pass with the solution"},
		"solution is no Go":     {right, strings.ReplaceAll(good, "42", "forty-two"), "does not pass with the solution"},
		"solution skips":        {check("if answer() == 42 {\n\t\tt.Skip()\n\t}\n\tt.Error(answer())"), good, "does not pass with the solution"},
		"solution is unaligned": {right, strings.ReplaceAll(good, "return 42", "return  42"), "gofmt would change the solution's step.go"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			checks := t.TempDir()
			e := exercise{step: "00-planted", number: 1, solution: wrong.solution}
			if wrong.check != "" {
				if err := os.MkdirAll(filepath.Join(checks, e.step), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(checks, e.check()), []byte(wrong.check), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			planted := t.TempDir()
			if err := os.WriteFile(filepath.Join(planted, "step.go"), []byte(step), 0o600); err != nil {
				t.Fatal(err)
			}
			err := e.prove(t.Context(), t.TempDir(), os.DirFS(planted), os.DirFS(checks))
			if wrong.notice == "" && err != nil || wrong.notice != "" && (err == nil || !strings.Contains(err.Error(), wrong.notice)) {
				t.Errorf("noticed: %v, want %q", err, wrong.notice)
			}
		})
	}
}

func TestWrongExercisePagesAreNoticed(t *testing.T) {
	one := func(n int) string {
		e := exercise{step: "00-planted", number: n}
		return fmt.Sprintf("### %d. Title\n\nTask.\n\n```sh\n%s```\n\n<details><summary>Solution</summary>\n\n```diff\n+x\n```\n\n</details>\n\n", n, e.command())
	}
	page := "# Chapter\n\n## Exercises\n\n" + one(1) + one(2) + "Man pages: none.\n"
	for name, wrong := range map[string]struct{ old, new, notice string }{
		"nothing":         {"", "", ""},
		"no section":      {"## Exercises", "## Excuses", "no section Exercises"},
		"only one":        {one(2), "", "1 exercises, want 2"},
		"none":            {one(1) + one(2), "", "0 exercises, want 2"},
		"after the end":   {one(2) + "Man pages: none.\n", "Man pages: none.\n\n" + one(2), "1 exercises, want 2"},
		"out of order":    {"### 2. ", "### 3. ", `"3. Title" should be number 2`},
		"no solution":     {"```diff\n+x\n```", "none", `"1. Title" has 0 solutions`},
		"not folded":      {"<details>", "", `has 0 solutions`},
		"another command": {"-run TestExercise2", "-run TestExercise1", `"2. Title": the command to check it is not`},
	} {
		t.Run(name, func(t *testing.T) {
			all, err := exercises("00-planted", strings.Replace(page, wrong.old, wrong.new, 1))
			if wrong.notice == "" && (err != nil || len(all) != 2 || all[1].solution != "+x\n") {
				t.Errorf("read %+v, %v", all, err)
			}
			if wrong.notice != "" && (err == nil || !strings.Contains(err.Error(), wrong.notice)) {
				t.Errorf("noticed: %v, want %q", err, wrong.notice)
			}
		})
	}
}
