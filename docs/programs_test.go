package docs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// A go block marked <!-- program: 03-scm-rights fdpass.go borrow.go --> is a whole program, to be
// put beside copies of those files of that step. It is built in an empty folder, and run. It
// must print what stands in its comment "// Output: ...", as a last line.
func TestPrograms(t *testing.T) {
	programs := 0
	for _, p := range pages(t) {
		_, _ = p.rewrite("go", func(b block) (string, error) {
			if arg, marked := strings.CutPrefix(b.mark, "program: "); marked {
				programs++
				t.Run(filepath.Base(p.path), func(t *testing.T) {
					if err := runProgram(t.TempDir(), strings.Fields(arg), b.text); err != nil {
						t.Errorf("%s:%d: %v", p.path, b.line, err)
					}
				})
			}
			return b.text, nil
		})
	}
	if programs < 4 {
		t.Errorf("only %d programs: each chapter has one to copy", programs)
	}
}

// runProgram builds and runs a program in dir, with files[1:] of the step files[0].
func runProgram(dir string, files []string, program string) error {
	goMod, err := os.ReadFile("go.mod")
	if err != nil {
		return err
	}
	goSum, err := os.ReadFile("go.sum")
	if err != nil {
		return err
	}
	content := map[string]string{
		"main.go": program,
		"go.mod":  strings.Replace(string(goMod), "module steal", "module mine", 1),
		"go.sum":  string(goSum),
	}
	for _, name := range files[1:] {
		source, err := os.ReadFile(filepath.Join("steps", files[0], name))
		if err != nil {
			return err
		}
		content[name] = string(source)
	}
	for name, text := range content {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	cmd := exec.Command("go", "run", ".")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "CGO_ENABLED=0", "XDG_RUNTIME_DIR="+dir)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w:\n%s", err, out)
	}
	_, want, promised := strings.Cut(program, "// Output: ")
	want, _, _ = strings.Cut(want, "\n")
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if got := lines[len(lines)-1]; !promised || got != want {
		return fmt.Errorf("it printed %q at the end, and promised %q", got, want)
	}
	return nil
}

// Planted errors: a program that breaks its promise, and one that does not compile.
func TestBrokenProgramsAreNoticed(t *testing.T) {
	const good = "package main\n\nfunc main() { println(shownBytes) }\n\n// Output: 80\n"
	files := []string{"01-echo", "show.go"}
	if err := runProgram(t.TempDir(), files, good); err != nil {
		t.Error(err)
	}
	for _, broken := range []string{
		strings.Replace(good, "80", "79", 1),
		strings.Replace(good, "shownBytes", "hiddenBytes", 1),
	} {
		if err := runProgram(t.TempDir(), files, broken); err == nil {
			t.Errorf("nothing wrong with %q", broken)
		}
	}
}
