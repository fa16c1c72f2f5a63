package docs

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestSnippets(t *testing.T) {
	check(t, "go", func(_ *testing.T, b block) (string, error) { return snippet(b) })
}

func snippet(b block) (string, error) {
	reference, marked := strings.CutPrefix(b.mark, "source: ")
	if !marked {
		return b.text, nil
	}
	words := strings.Fields(reference)
	source, err := os.ReadFile(words[0])
	if err != nil {
		return "", err
	}
	if len(words) == 1 {
		return partMarks.ReplaceAllString(string(source), ""), nil
	}
	var parts []string
	for _, name := range words[1:] {
		part, err := declaration(string(source), name)
		if err != nil {
			return "", fmt.Errorf("%s: %w", words[0], err)
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, "\n"), nil
}

var (
	partMarks     = regexp.MustCompile(`(?m)^\s*//(?:begin|end):\w+\n`)
	errNoSuchName = errors.New("no such declaration, and no part of that name")
)

// declaration cuts a declaration, with its comment, or a part out of a source.
func declaration(source, name string) (string, error) {
	_, rest, begins := strings.Cut(source, "//begin:"+name+"\n")
	if part, _, ends := strings.Cut(rest, "//end:"+name+"\n"); begins && ends {
		return partMarks.ReplaceAllString(unindent(part), ""), nil
	}
	files := token.NewFileSet()
	parsed, err := parser.ParseFile(files, "source.go", source, parser.ParseComments)
	if err != nil {
		return "", err
	}
	for _, d := range parsed.Decls {
		if names, doc := declared(d); slices.Contains(names, name) {
			from := d.Pos()
			if doc != nil {
				from = doc.Pos()
			}
			text := source[files.Position(from).Offset:files.Position(d.End()).Offset] + "\n"
			return partMarks.ReplaceAllString(text, ""), nil
		}
	}
	return "", fmt.Errorf("%q: %w", name, errNoSuchName)
}

// declared returns the names that a declaration introduces, and its comment.
func declared(d ast.Decl) (names []string, doc *ast.CommentGroup) {
	switch d := d.(type) {
	case *ast.FuncDecl:
		name := d.Name.Name
		if d.Recv != nil {
			receiver := d.Recv.List[0].Type
			if pointer, ok := receiver.(*ast.StarExpr); ok {
				receiver = pointer.X
			}
			name = fmt.Sprintf("%s.%s", receiver, name)
		}
		return []string{name}, d.Doc
	case *ast.GenDecl:
		for _, spec := range d.Specs {
			switch spec := spec.(type) {
			case *ast.TypeSpec:
				names = append(names, spec.Name.Name)
			case *ast.ValueSpec:
				for _, name := range spec.Names {
					names = append(names, name.Name)
				}
			}
		}
		return names, d.Doc
	}
	return nil, nil
}

// unindent removes the tabs that all lines begin with, and the last line if it is only those.
func unindent(part string) string {
	part = strings.TrimRight(part, "\t")
	indent := part[:len(part)-len(strings.TrimLeft(part, "\t"))]
	return strings.ReplaceAll(strings.TrimPrefix(part, indent), "\n"+indent, "\n")
}

// A planted error: a page that shows yesterday's code.
func TestStaleSnippetIsNoticed(t *testing.T) {
	stale := page{"page.md", "<!-- source: steps/07-hot-restart/give.go busyBatch -->\n```go\nconst busyBatch = 79\n```\n"}
	now, wrong := stale.rewrite("go", snippet)
	if len(wrong) != 1 || !errors.Is(wrong[0], errStale) || !strings.Contains(now.text, "\nconst busyBatch = 16\n```\n") {
		t.Errorf("updated to %q, %v", now.text, wrong)
	}
	if again, wrong := now.rewrite("go", snippet); len(wrong) > 0 || again != now {
		t.Errorf("the update does not hold: %v", wrong)
	}
}
