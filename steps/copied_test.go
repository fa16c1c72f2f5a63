//go:build linux

package steps

import (
	"bytes"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// What the ladder promises of the steps' folders: the difference between two of them is the lesson,
// each can be copied alone, and none is large.

// sources are the Go files of a step. Where there are only programs, there is nothing to look at.
func sources(t *testing.T, s step) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(s.name, "*"))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		if _, err := os.Stat("../go.mod"); os.IsNotExist(err) {
			t.Skipf("no sources here: %v", err)
		}
		t.Fatalf("%s is empty", s.name)
	}
	return files
}

// TestSharedFilesAreIdentical: a file that a later step takes over has not changed, but for main.go.
func TestSharedFilesAreIdentical(t *testing.T) {
	first := map[string]string{} // a file's name to where it was first
	shared := 0
	for _, s := range steps {
		for _, file := range sources(t, s) {
			switch name := filepath.Base(file); {
			case name == "main.go", s.moves && name == "session.go": // a session of another kind
			case first[name] == "":
				first[name] = file
			default:
				shared++
				if !bytes.Equal(read(t, first[name]), read(t, file)) {
					t.Errorf("%s and %s differ", first[name], file)
				}
			}
		}
	}
	if shared < 10 {
		t.Errorf("only %d shared files: is this test looking in the right place?", shared)
	}
}

// TestFolders: a step is at most 13 Go files (07: 17) and three of unit tests, which import the standard
// library and the two dependencies.
func TestFolders(t *testing.T) {
	allowed := regexp.MustCompile(`^(github\.com/mdlayher/socket|golang\.org/x/sys/unix|[a-z]+[0-9]*(/[a-z0-9]+)*)$`)
	for _, s := range steps {
		code, tests := 0, 0
		for _, file := range sources(t, s) {
			switch {
			case strings.HasSuffix(file, "_test.go"):
				tests++
			case strings.HasSuffix(file, ".go"):
				code++
			default:
				t.Errorf("%s is not Go", file)
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
				if !allowed.MatchString(path) || strings.HasPrefix(path, "steal") {
					t.Errorf("%s imports %s", file, path)
				}
			}
		}
		most := 13
		if s.moves { // of which nine are known from earlier steps
			most = 17
		}
		if code > most || tests > 3 {
			t.Errorf("%s: %d files and %d of tests, want at most %d and 3", s.name, code, tests, most)
		}
	}
}

// TestCopied: a folder copied alone to another module builds, and passes its unit tests there.
func TestCopied(t *testing.T) {
	long(t)
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip(err)
	}
	sources(t, steps[0])
	goMod := regexp.MustCompile(`(?m)^module .*$`).ReplaceAll(read(t, "../go.mod"), []byte("module copied"))
	each(t, func(step) bool { return true }, func(t *testing.T, s step) {
		dir := t.TempDir()
		if err := os.CopyFS(dir, os.DirFS(s.name)); err != nil {
			t.Fatal(err)
		}
		for name, content := range map[string][]byte{"go.mod": goMod, "go.sum": read(t, "../go.sum")} {
			if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for _, what := range []string{"vet", "test"} {
			cmd := exec.CommandContext(t.Context(), "go", what, ".")
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=mod", "GOWORK=off")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v: %v\n%s", cmd, err, out)
			}
		}
	})
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return content
}
