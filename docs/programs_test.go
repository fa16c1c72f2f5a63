package docs

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Programs (docs_test.go) are what a reader copies: they are built and run in an empty folder. The
// short form tries those of chapter 04.
func TestPrograms(t *testing.T) {
	check(t, "go", func(t *testing.T, b block) (string, error) {
		files, marked := strings.CutPrefix(b.mark, "program: ")
		if !marked || !long && !strings.HasPrefix(files, "04-") {
			return b.text, nil
		}
		return b.text, runProgram(t, strings.Fields(files), b.text)
	})
}

// TestChangedPrograms: so are those that a chapter prints as a diff to chapter 04's.
func TestChangedPrograms(t *testing.T) {
	base := regexp.MustCompile("(?s)<!-- program: 04-steal [^>]*-->\n```go\n(.*?)```").FindStringSubmatch(read(t, "docs/04-steal.md"))
	check(t, "diff", func(t *testing.T, b block) (string, error) {
		files, marked := strings.CutPrefix(b.mark, "program: ")
		if !marked || !long {
			return b.text, nil
		}
		dir := t.TempDir()
		write(t, dir, "main.go", base[1])
		if out, err := runIn(t, dir, b.text, "git", "apply", "-"); err != nil {
			return b.text, fmt.Errorf("%w: %s", err, out)
		}
		program, err := os.ReadFile(filepath.Join(dir, "main.go"))
		if err != nil {
			return b.text, err
		}
		err = runProgram(t, strings.Fields(files), string(program))
		if err != nil && !kernelTLS() && strings.Contains(err.Error(), "it printed") { // it was built, and nothing moves
			err = nil
		}
		return b.text, err
	})
}

// runProgram builds and runs a program beside files[1:] of the step files[0], after their tests.
func runProgram(t *testing.T, files []string, program string) error {
	dir := t.TempDir()
	write(t, dir, "main.go", program)
	writeModule(t, dir)
	tested := false
	for _, file := range files[1:] {
		if strings.HasSuffix(file, "_test.go") {
			write(t, dir, file, read(t, filepath.Join("docs/testdata/programs", files[0], file)))
			tested = true
			continue
		}
		name, without, _ := strings.Cut(file, "-")
		source := read(t, filepath.Join("steps", files[0], name))
		if without != "" {
			var err error
			if source, err = withoutDeclarations(source, strings.Split(without, "-")); err != nil {
				return err
			}
		}
		write(t, dir, name, source)
	}
	if tested {
		if out, err := runIn(t, dir, "", "go", "test", "."); err != nil {
			return fmt.Errorf("%w:\n%s", err, out)
		}
	}
	out, err := runIn(t, dir, "", "go", "run", ".")
	if err != nil {
		return fmt.Errorf("%w:\n%s", err, out)
	}
	_, want, promised := strings.Cut(program, "// Output: ")
	want, _, _ = strings.Cut(want, "\n")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if got := lines[len(lines)-1]; !promised || got != want {
		return fmt.Errorf("it printed %q at the end, and promised %q", got, want)
	}
	return nil
}

// withoutDeclarations removes some from a source, and then the imports that nothing needs any more.
func withoutDeclarations(source string, names []string) (string, error) {
	for _, name := range names {
		d, err := declaration(source, name)
		if err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
		source = strings.Replace(source, d, "", 1)
	}
	return regexp.MustCompile(`(?m)^\t"(?:[\w.]+/)*(\w+)"\n`).ReplaceAllStringFunc(source, func(line string) string {
		if name := filepath.Base(strings.Trim(line, "\t\"\n")); !strings.Contains(source, name+".") {
			return ""
		}
		return line
	}), nil
}

// writeModule makes dir a module with our dependencies, so that nothing has to be looked up.
func writeModule(t *testing.T, dir string) {
	t.Helper()
	write(t, dir, "go.mod", strings.Replace(read(t, "go.mod"), "module steal", "module mine", 1))
	write(t, dir, "go.sum", read(t, "go.sum"))
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
