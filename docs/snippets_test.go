package docs

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"strings"
	"testing"
)

// A snippet is marked <!-- source: FILE NAME -->, where NAME is a declaration (acceptAll,
// giver.withdraw, identity), or the part of a function between the comments //begin:NAME and
// //end:NAME. Go blocks without a mark are sketches of the reader's own code.
func TestSnippets(t *testing.T) {
	check(t, "go", func(_ *testing.T, b block) (string, error) { return snippet(b) })
}

func snippet(b block) (string, error) {
	reference, marked := strings.CutPrefix(b.mark, "source: ")
	if !marked {
		return b.text, nil
	}
	file, name, ok := strings.Cut(reference, " ")
	if !ok {
		return "", fmt.Errorf("%q: want a file and a name", reference)
	}
	source, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	text, err := declaration(string(source), name)
	if err != nil {
		return "", fmt.Errorf("%s: %w", file, err)
	}
	return text, nil
}

var errNoSuchName = errors.New("no such declaration, and no part of that name")

// declaration cuts a declaration out of a source, with its comment.
func declaration(source, name string) (string, error) {
	_, rest, begins := strings.Cut(source, "//begin:"+name+"\n")
	part, _, ends := strings.Cut(rest, "//end:"+name+"\n")
	if begins && ends {
		return unindent(part), nil
	}
	files := token.NewFileSet()
	parsed, err := parser.ParseFile(files, "source.go", source, parser.ParseComments)
	if err != nil {
		return "", err
	}
	for _, d := range parsed.Decls {
		if names, doc := declared(d); strings.Contains(names, " "+name+" ") {
			from := d.Pos()
			if doc != nil {
				from = doc.Pos()
			}
			return source[files.Position(from).Offset:files.Position(d.End()).Offset] + "\n", nil
		}
	}
	return "", fmt.Errorf("%q: %w", name, errNoSuchName)
}

// declared returns the names that a declaration introduces, with a space around each, and its
// comment.
func declared(d ast.Decl) (names string, doc *ast.CommentGroup) {
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
		return " " + name + " ", d.Doc
	case *ast.GenDecl:
		for _, spec := range d.Specs {
			switch spec := spec.(type) {
			case *ast.TypeSpec:
				names += " " + spec.Name.Name + " "
			case *ast.ValueSpec:
				for _, name := range spec.Names {
					names += " " + name.Name + " "
				}
			}
		}
		return names, d.Doc
	}
	return "", nil
}

// unindent removes the tabs that all lines begin with, and the last line if it is only those.
func unindent(part string) string {
	part = strings.TrimRight(part, "\t")
	indent := part[:len(part)-len(strings.TrimLeft(part, "\t"))]
	lines := strings.SplitAfter(part, "\n")
	for i, line := range lines {
		lines[i] = strings.TrimPrefix(line, indent)
	}
	return strings.Join(lines, "")
}

func TestDeclaration(t *testing.T) {
	const source = `package p

// T is a type.
type T struct{ a int }

// M is a method.
func (t *T) M() {
	//begin:core
	one()
	//end:core
}

const A, B = 1, 2
`
	for name, want := range map[string]string{
		"T":    "// T is a type.\ntype T struct{ a int }\n",
		"T.M":  "// M is a method.\nfunc (t *T) M() {\n\t//begin:core\n\tone()\n\t//end:core\n}\n",
		"core": "one()\n",
		"B":    "const A, B = 1, 2\n",
	} {
		if got, err := declaration(source, name); got != want || err != nil {
			t.Errorf("%s: got %q, %v, want %q", name, got, err, want)
		}
	}
	if _, err := declaration(source, "Gone"); !errors.Is(err, errNoSuchName) {
		t.Errorf("a name that is not there: %v", err)
	}
}

// A planted error: a page that shows yesterday's code.
func TestStaleSnippetIsNoticed(t *testing.T) {
	stale := page{"page.md", "<!-- source: steps/01-echo/show.go shownBytes -->\n```go\nconst shownBytes = 79\n```\n"}
	now, wrong := stale.rewrite("go", snippet)
	if len(wrong) != 1 || !strings.Contains(wrong[0].Error(), "page:  const shownBytes = 79") {
		t.Errorf("got %v", wrong)
	}
	if !strings.Contains(now.text, "\nconst shownBytes = 80\n```\n") {
		t.Errorf("updated to %q", now.text)
	}
	if again, wrong := now.rewrite("go", snippet); len(wrong) > 0 || again != now {
		t.Errorf("the update does not hold: %v", wrong)
	}
	gone := page{"page.md", "<!-- source: steps/01-echo/show.go nothing -->\n```go\n```\n"}
	if _, wrong := gone.rewrite("go", snippet); len(wrong) != 1 {
		t.Errorf("a snippet of nothing: %v", wrong)
	}
}
