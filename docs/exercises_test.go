package docs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// An exercise is under a heading "### 1. Title" in a chapter's section "## Exercises". It has a task, a
// block (sh) with the two commands that check it, and folded: a hint, if it is one of five minutes, and
// the solution, a unified diff that git apply takes in the step's folder.
//
//	<details><summary>Hint</summary>
//	<details><summary>Solution</summary>
//
// Its check is TestExercise1 in testdata/exercises/STEP/1_test.go. It must fail on the untouched step,
// at an assertion of its own, and pass once the solution is applied. The short form only looks whether
// all of that is on the page.
func TestExercises(t *testing.T) {
	for _, step := range steps(t) {
		all, err := exercises(step, read(t, "docs/"+step+".md"))
		if err != nil {
			t.Errorf("%s: %v", step, err)
		}
		for _, e := range all {
			t.Run(fmt.Sprintf("%s/%d", step, e.number), func(t *testing.T) {
				onlyLong(t)
				t.Parallel()
				if err := e.prove(t, "steps/"+step, read(t, e.check())); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

type exercise struct {
	step     string // the folder's name
	number   int    // in its chapter, from 1
	solution string // a unified diff
}

func (e exercise) test() string { return fmt.Sprintf("TestExercise%d", e.number) }

func (e exercise) check() string {
	return fmt.Sprintf("docs/testdata/exercises/%s/%d_test.go", e.step, e.number)
}

// command is how the page says to check it: the check goes beside the step's own tests.
func (e exercise) command() string {
	return fmt.Sprintf("cp %s steps/%s/\ngo test -run %s ./steps/%[2]s\n", e.check(), e.step, e.test())
}

var (
	exerciseSection  = regexp.MustCompile(`(?ms)^## Exercises\n(.*?)(?:^## |^Man pages:|\z)`)
	exerciseHeading  = regexp.MustCompile(`(?m)^### (\d+)\. .*\n`)
	exerciseSolution = regexp.MustCompile("(?s)\n<details><summary>Solution</summary>\n\n(?:.*?\n\n)?```diff\n(.*?)```\n\n</details>\n")
)

// exercises reads the two to four of a chapter.
func exercises(step, text string) (all []exercise, err error) {
	section := exerciseSection.FindString(text)
	starts := exerciseHeading.FindAllStringIndex(section, -1)
	if len(starts) < 2 || len(starts) > 4 {
		return nil, fmt.Errorf("%d exercises, want two to four", len(starts))
	}
	for i, at := range starts {
		body := section[at[0]:]
		if i+1 < len(starts) {
			body = section[at[0]:starts[i+1][0]]
		}
		e := exercise{step: step, number: i + 1}
		solution := exerciseSolution.FindStringSubmatch(body)
		switch {
		case !strings.HasPrefix(body, fmt.Sprintf("### %d. ", e.number)):
			err = errors.Join(err, fmt.Errorf("exercise %d has another number", e.number))
		case !strings.Contains(body, "\n```sh\n"+e.command()+"```\n"):
			err = errors.Join(err, fmt.Errorf("exercise %d: the commands to check it are not\n%s", e.number, e.command()))
		case solution == nil:
			err = errors.Join(err, fmt.Errorf("exercise %d has no folded solution", e.number))
		default:
			e.solution = solution[1]
			all = append(all, e)
		}
	}
	return all, err
}

// prove copies the step and the check, and runs the check without and with the solution.
func (e exercise) prove(t *testing.T, step, check string) error {
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(step)); err != nil {
		return err
	}
	writeModule(t, dir)
	write(t, dir, "check_test.go", check)
	test := func() (string, error) {
		return runIn(t, dir, "", "go", "test", "-count=1", "-v", "-run", "^"+e.test()+"$", ".")
	}
	out, err := test()
	asserts := regexp.MustCompile(`(?m)^ +check_test\.go:\d+: `)
	if err == nil || !strings.Contains(out, "\n--- FAIL: "+e.test()+" ") || strings.Contains(out, "\npanic: ") || !asserts.MatchString(out) {
		return fmt.Errorf("on the untouched step the check does not fail at an assertion of its own: %w\n%s", err, out)
	}
	if out, err := runIn(t, dir, e.solution, "git", "apply", "-"); err != nil {
		return fmt.Errorf("the solution does not apply: %w\n%s", err, out)
	}
	if out, err := test(); err != nil || !strings.Contains(out, "\n--- PASS: "+e.test()+" ") {
		return fmt.Errorf("the check does not pass with the solution: %w\n%s", err, out)
	}
	if out, err := runIn(t, dir, "", "gofmt", "-l", "."); err != nil || out != "" {
		return fmt.Errorf("gofmt would change %s: %w", out, err)
	}
	return nil
}

// runIn runs a command in dir, and returns all that it prints.
func runIn(t *testing.T, dir, stdin, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	cmd.Stdin = strings.NewReader(stdin)
	// -trimpath: what was built in another folder need not be built again. In a folder below some
	// repository's, git apply would look for that repository's files.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=mod -trimpath", "GOWORK=off",
		"GIT_CEILING_DIRECTORIES="+filepath.Dir(dir), "XDG_RUNTIME_DIR="+dir, "TMPDIR="+filepath.Dir(dir), "STEAL_LONG=")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// What is wrong with an exercise is noticed: each of these is wrong in one way.
func TestWrongExercisesAreNoticed(t *testing.T) {
	onlyLong(t)
	step := t.TempDir()
	write(t, step, "step.go", "package main\n\nfunc main() {}\n\nfunc answer() int { return 41 }\n")
	const (
		good  = "--- a/step.go\n+++ b/step.go\n@@ -5 +5 @@ func main() {}\n-func answer() int { return 41 }\n+func answer() int { return 42 }\n"
		check = "package main\n\nimport \"testing\"\n\nfunc TestExercise1(t *testing.T) {\n\tif answer() != 42 {\n\t\tt.Error(answer())\n\t}\n}\n"
	)
	for name, wrong := range map[string]struct{ check, solution, notice string }{
		"nothing":              {check, good, ""},
		"passes untouched":     {strings.Replace(check, "42", "41", 1), good, "does not fail at an assertion"},
		"does not compile":     {strings.Replace(check, "answer", "question", 1), good, "does not fail at an assertion"},
		"solution goes stale":  {check, strings.ReplaceAll(good, "41", "40"), "the solution does not apply"},
		"solution is wrong":    {check, strings.ReplaceAll(good, "42", "43"), "does not pass with the solution"},
		"solution is unformed": {check, strings.ReplaceAll(good, "return 42", "return  42"), "gofmt would change step.go"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := exercise{"00-planted", 1, wrong.solution}.prove(t, step, wrong.check)
			if wrong.notice == "" && err != nil || wrong.notice != "" && (err == nil || !strings.Contains(err.Error(), wrong.notice)) {
				t.Errorf("noticed: %v, want %q", err, wrong.notice)
			}
		})
	}
}
