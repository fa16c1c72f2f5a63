// Package steps guards what the ladder promises as a whole: shared files are identical, and
// every step can be copied and used on its own.
package steps

import (
	"bytes"
	"fmt"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// all lists the steps' folders.
func all(t *testing.T) []string {
	t.Helper()
	steps, err := filepath.Glob("[0-9][0-9]-*")
	if err != nil || len(steps) == 0 {
		t.Fatalf("no steps: %v", err)
	}
	return steps
}

// changed are the files that differ between steps on purpose: in them lies the lesson. Every
// other file has one content, in whatever steps it is.
var changed = []string{
	"main.go", // each step's own
	"echo.go", // 04 has an eye for STEAL
	"demo.go", // each tells its own story
	"demo_test.go",
	"old.go",                       // 05 lets the new process fetch
	"new.go",                       // 05 watches the old process end
	"06-hot-restart/hello.go",      // another version of the protocol, and generations
	"06-hot-restart/bench_test.go", // and what is measured, killed, lied about and modelled is a takeover
	"06-hot-restart/kill_test.go",
	"06-hot-restart/liar_test.go",
	"06-hot-restart/model_test.go",
}

func TestSharedFilesAreIdentical(t *testing.T) {
	first := map[string]string{} // a file's name to where it was first
	shared := 0
	for _, step := range all(t) {
		files, err := filepath.Glob(filepath.Join(step, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			name := filepath.Base(file)
			switch original, seen := first[name]; {
			case slices.Contains(changed, name), slices.Contains(changed, filepath.ToSlash(file)):
			case !seen:
				first[name] = file
			default:
				shared++
				if !bytes.Equal(read(t, original), read(t, file)) {
					t.Errorf("%s and %s differ", original, file)
				}
			}
		}
	}
	if shared < 10 {
		t.Errorf("only %d shared files: is this test looking in the right place?", shared)
	}
}

// What 04 promises, 05 promises too, and the same tests say so. One file tells them how a
// descriptor gets across.
func TestPulledConformsToPushed(t *testing.T) {
	tests, err := filepath.Glob("04-steal/*_test.go")
	if err != nil || len(tests) < 10 {
		t.Fatalf("%d test files, %v", len(tests), err)
	}
	for _, file := range tests {
		other := filepath.Join("05-pidfd", filepath.Base(file))
		if filepath.Base(file) == "push_test.go" {
			other = "05-pidfd/pidfd_test.go"
		} else if !bytes.Equal(read(t, file), read(t, other)) {
			t.Errorf("%s and %s differ", file, other)
		}
		if _, err := os.Stat(other); err != nil {
			t.Error(err)
		}
	}
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// A step imports the standard library and the two dependencies: no other step, no cgo.
func TestImports(t *testing.T) {
	allowed := []string{"github.com/mdlayher/socket", "golang.org/x/sys/unix"}
	for _, step := range all(t) {
		files, err := filepath.Glob(filepath.Join(step, "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if filepath.Ext(file) != ".go" {
				if info, err := os.Stat(file); err != nil || !info.IsDir() || info.Name() != "testdata" {
					t.Errorf("%s: not Go", file)
				}
				continue
			}
			parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
			if err != nil {
				t.Fatal(err)
			}
			for _, i := range parsed.Imports {
				path, err := strconv.Unquote(i.Path.Value)
				if err != nil {
					t.Fatal(err)
				}
				domain, _, _ := strings.Cut(path, "/")
				if path == "C" || path == "steal" || domain == "steal" || strings.Contains(domain, ".") && !slices.Contains(allowed, path) {
					t.Errorf("%s imports %s", file, path)
				}
			}
		}
	}
}

// Each step is copied, alone, to an empty folder with a fresh go.mod, and passes its own tests
// there. Versions come from this module, so that nothing has to be looked up.
func TestStepsStandAlone(t *testing.T) {
	goMod := regexp.MustCompile(`(?m)^module .*$`).ReplaceAll(read(t, "../go.mod"), []byte("module copied"))
	for _, step := range all(t) {
		t.Run(step, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS(step)); err != nil {
				t.Fatal(err)
			}
			for name, content := range map[string][]byte{"go.mod": goMod, "go.sum": read(t, "../go.sum")} {
				if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			for _, args := range [][]string{{"vet", "."}, {"test", "-short", "."}} {
				cmd := exec.CommandContext(t.Context(), "go", args...)
				cmd.Dir = dir
				cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=mod", "GOWORK=off")
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
				}
			}
		})
	}
}

// The README's table says how many lines of code a step has, and how many of them are in files
// that no earlier step has.
func TestReadmeCountsLines(t *testing.T) {
	readme := string(read(t, "../README.md"))
	seen := map[string]bool{}
	for _, step := range all(t) {
		files, err := filepath.Glob(filepath.Join(step, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		total, fresh := 0, 0
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			content := read(t, file)
			n := codeLines(string(content))
			total += n
			if !seen[string(content)] {
				fresh += n
			}
			seen[string(content)] = true
		}
		row := regexp.MustCompile(`(?m)^\| \[.` + step + `.\].* \| (\d+, \d+) \| `).FindStringSubmatch(readme)
		if want := fmt.Sprintf("%d, %d", total, fresh); row == nil || row[1] != want {
			t.Errorf("README, lines of %s: got %v, want %s", step, row, want)
		}
	}
}

// The kernel that a step needs is the same in its doc comment and in the README.
func TestReadmeNamesKernels(t *testing.T) {
	readme := string(read(t, "../README.md"))
	for _, step := range all(t) {
		comment := regexp.MustCompile(`(?m)^// Needs Linux (\S+) `).FindStringSubmatch(string(read(t, step+"/main.go")))
		if comment == nil {
			t.Errorf("%s: its doc comment does not say which kernel it needs", step)
			continue
		}
		if !regexp.MustCompile(`(?m)^\| \[.` + step + `.\].* \| ` + regexp.QuoteMeta(comment[1]) + ` \| none \| `).MatchString(readme) {
			t.Errorf("%s needs Linux %s, and the README says something else", step, comment[1])
		}
	}
}

// codeLines counts lines that are neither blank nor only a comment.
func codeLines(source string) int {
	n := 0
	for line := range strings.Lines(source) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "//") {
			n++
		}
	}
	return n
}
