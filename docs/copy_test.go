package docs

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"strings"
	"testing"
)

// toCopy are the rows of the README's table of what to copy: what one wants, from which step, and
// the files that make it up. Below the table are the names that they bring, folded.
var toCopy = []struct{ want, step, files string }{
	{"a unix socket that one process owns, and to know who connects", "02-unix-socket", "control.go"},
	{"descriptors passed without leaks or surprises", "03-scm-rights", "fdpass.go socket.go"},
	{"live connections handed over", "04-steal", "protocol.go steal.go push.go fdpass.go control.go socket.go"},
	{"live connections handed over, and pulled", "05-pidfd", "protocol.go steal.go pull.go pidfd.go fdpass.go control.go socket.go"},
	{"a descriptor out of another process", "05-pidfd", "pidfd.go"},
	{"listeners matched with addresses; systemd's messages and sockets", "06-listeners", "listeners.go supervisor.go socket.go"},
	{"a server's listeners handed over, with a `server` of your own", "06-listeners", "generations.go handover.go restart.go listeners.go supervisor.go protocol.go fdpass.go control.go socket.go process.go"},
	{"a connection that can be stopped at any moment", "07-hot-restart", "session.go socket.go"},
	{"a server's listeners and connections handed over, with a protocol of your own", "07-hot-restart", "session.go clients.go silent.go give.go take.go batch.go generations.go restart.go listeners.go supervisor.go protocol.go fdpass.go control.go socket.go process.go"},
	{"net/http over connections that move, on top of that", "08-web", "web.go http.go request.go"},
	{"how far a dead process had come with a TCP socket", "09-rescue", "counters.go"},
	{"a server that may be killed, with an `echo` of your own", "09-rescue", "keeper.go serve.go estate.go partner.go memory.go counters.go fdpass.go socket.go process.go"},
	{"TLS connections whose keys the kernel has", "10-tls", "handshake.go ktls.go socket.go"},
	{"live TLS connections handed over", "10-tls", "handshake.go ktls.go pushtls.go protocol.go steal.go fdpass.go control.go socket.go"},
}

func init() {
	generators["copy"] = func(t *testing.T, _ string) (string, error) {
		table, list := "| you want | take | lines |\n| --- | --- | --- |\n", ""
		for _, row := range toCopy {
			lines, names := 0, []string{}
			for _, file := range strings.Fields(row.files) {
				source := read(t, "steps/"+row.step+"/"+file)
				lines += len(codeLines(source))
				declared, err := topLevel(source)
				if err != nil {
					return "", err
				}
				names = append(names, declared...)
			}
			files := strings.ReplaceAll(row.files, " ", "`, `")
			table += fmt.Sprintf("| %s | `%s` of [%s](steps/%s) | %d |\n", row.want, files, row.step[:2], row.step, lines)
			list += fmt.Sprintf("- `%s` of %s: `%s`\n", files, row.step[:2], strings.Join(names, "`, `"))
		}
		return table + "\n<details><summary>The names that they bring</summary>\n\n" + list + "\n</details>\n", nil
	}
}

// topLevel lists the names that a file would add to yours: not methods.
func topLevel(source string) (names []string, err error) {
	file, err := parser.ParseFile(token.NewFileSet(), "", source, 0)
	if err != nil {
		return nil, err
	}
	for _, d := range file.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if d.Recv == nil {
				names = append(names, d.Name.Name)
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				switch spec := spec.(type) {
				case *ast.TypeSpec:
					names = append(names, spec.Name.Name)
				case *ast.ValueSpec:
					names = append(names, spec.Names[0].Name)
				}
			}
		}
	}
	return names, nil
}
