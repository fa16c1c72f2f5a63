package docs

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// A part of a page between <!-- generated: NAME --> and <!-- end --> is written by a generator.
var generated = regexp.MustCompile(`(?s)(<!-- generated: ([^\n]*) -->\n)(.*?)(<!-- end -->)`)

var generators = map[string]func(t *testing.T, arg string) (string, error){
	"files":             files,
	"kills":             kills,
	"kills-that-differ": killsThatDiffer,
	"restart-kills":     restartKills,
	"hot-kills":         hotKills,

	"pitfalls": func(t *testing.T, _ string) (string, error) { return listPitfalls(read(t, "docs/pitfalls.md")), nil },
	"glossary": func(t *testing.T, _ string) (string, error) { return listTerms(read(t, "docs/glossary.md")) },

	"kernel-features":  func(*testing.T, string) (string, error) { return features() },
	"kernel-relations": func(*testing.T, string) (string, error) { return relations() },
}

func TestGenerated(t *testing.T) {
	for _, p := range pages(t) {
		t.Run(p.path, func(t *testing.T) {
			p.settle(t, func() (page, []error) { return p.generate(t) })
		})
	}
}

// generate writes all generated parts of a page.
func (p page) generate(t *testing.T) (now page, wrong []error) {
	now = p
	now.text = generated.ReplaceAllStringFunc(p.text, func(part string) string {
		m := generated.FindStringSubmatch(part)
		name, arg, _ := strings.Cut(m[2], " ")
		text, err := "", fmt.Errorf("no generator %q", name)
		if generator := generators[name]; generator != nil {
			text, err = generator(t, arg)
		}
		if err == nil && text != m[3] {
			err = fmt.Errorf("%w:\n%s", errStale, difference(m[3], text))
		} else if err != nil {
			text = m[3]
		}
		if err != nil {
			wrong = append(wrong, fmt.Errorf("%s: %s: %w", p.path, m[2], err))
		}
		return m[1] + text + m[4]
	})
	return now, wrong
}

// fileLine is a line of a step's doc comment: a file, and what to do with it.
var (
	fileLine  = regexp.MustCompile(`(?m)^//\t(\w+\.go) +(.+)$`)
	knownFrom = regexp.MustCompile(`known from (\d\d)`)
)

// files lists a step's files, as its doc comment has them: all, and no other. Those that are said to be
// known from a step before are what they were there.
func files(t *testing.T, step string) (list string, err error) {
	comment, _, _ := strings.Cut(read(t, "steps/"+step+"/main.go"), "\npackage ")
	about := map[string]string{} // by each name on the line
	for _, m := range fileLine.FindAllStringSubmatch(comment, -1) {
		list += fmt.Sprintf("- [`%[1]s`](../steps/%[2]s/%[1]s): %[3]s\n", m[1], step, m[2])
		said, _, _ := strings.Cut(m[0], "; ") // behind which are those that are gone
		for _, name := range regexp.MustCompile(`\w+\.go`).FindAllString(said, -1) {
			about[name] = said
		}
	}
	for _, file := range sources(t, step) {
		name := filepath.Base(file)
		if about[name] == "" {
			return "", fmt.Errorf("the doc comment does not name %s", file)
		}
		if m := knownFrom.FindStringSubmatch(about[name]); m != nil {
			before, err := filepath.Glob("steps/" + m[1] + "-*/" + name)
			if err != nil || len(before) != 1 || read(t, before[0]) != read(t, file) {
				return "", fmt.Errorf("%s is not what is known from %s", file, m[1])
			}
		}
		delete(about, name)
	}
	for name := range about {
		return "", fmt.Errorf("the doc comment names %s, which is not there", name)
	}
	return list, nil
}

// killMoments are how a kill's place among the messages is written in the tests, and in the book.
var killMoments = strings.NewReplacer("before-send", "before it sends", "after-send", "after it has sent",
	"before-receive", "before it receives", "after-receive", "after it has received")

// kills makes a table of the rows of var kills in the one suite.
func kills(_ *testing.T, step string) (string, error) {
	rows, err := killRows("steps/kills_test.go", "kills")
	table := "| the new process | killed | when | the connection is then served by |\n| --- | --- | --- | --- |\n"
	for _, r := range rows {
		survivor := strings.Replace(r[3], "inFlight", inFlight(step), 1)
		table += fmt.Sprintf("| %s | %s | %s | %s |\n", r[0], r[1], killMoment(r[2]), survivor)
	}
	return table, err
}

// inFlight is who has an offered connection whose sender died: a pulled descriptor dies with its owner.
func inFlight(step string) string {
	if step == "05-pidfd" {
		return "nobody"
	}
	return "new"
}

// killsThatDiffer makes a table of those that end otherwise when descriptors are pulled.
func killsThatDiffer(*testing.T, string) (string, error) {
	rows, err := killRows("steps/kills_test.go", "kills")
	table := "| the new process | killed | when | pushed (04), it is served by | pulled (05), by |\n| --- | --- | --- | --- | --- |\n"
	for _, r := range rows {
		if r[3] == "inFlight" {
			table += fmt.Sprintf("| %s | %s | %s | %s | %s |\n", r[0], r[1], killMoment(r[2]), inFlight("04-steal"), inFlight("05-pidfd"))
		}
	}
	return table, err
}

// killMoment turns "before-send offer" into words.
func killMoment(at string) string {
	moment, message, _ := strings.Cut(at, " ")
	return killMoments.Replace(moment) + " `" + message + "`"
}

// killRows are the strings in a variable of a test, row by row.
func killRows(file, variable string) (rows [][]string, err error) {
	source, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	text, err := declaration(string(source), variable)
	if err != nil {
		return nil, err
	}
	for _, row := range regexp.MustCompile(`(?m)^\t\{(".*)\},`).FindAllStringSubmatch(text, -1) {
		var cells []string
		for _, cell := range regexp.MustCompile("\"([^\"]*)\"|`([^`]*)`").FindAllStringSubmatch(row[1], -1) {
			cells = append(cells, cell[1]+cell[2])
		}
		if len(cells) < 4 {
			return nil, fmt.Errorf("%s: %q is no row", file, row[0])
		}
		rows = append(rows, cells)
	}
	if rows == nil {
		err = fmt.Errorf("%s: no rows in var %s", file, variable)
	}
	return rows, err
}

// restartKills makes a table of the rows of var restartKills in the one suite: who has the listeners.
func restartKills(*testing.T, string) (string, error) {
	rows, err := killRows("steps/restart_test.go", "restartKills")
	table := "| the new process | killed | when | then has the listeners |\n| --- | --- | --- | --- |\n"
	for _, r := range rows {
		has := map[string]string{"old": "old", "new": "new", "nobody": "nobody; the next one begins anew", "anew": "new, which begins anew"}[r[3]]
		if has == "" {
			return "", fmt.Errorf("%q is no row", r)
		}
		if r[3] == "anew" && r[0] == "hesitates" { // the new one knows that it has been given up on, and ends
			has = "nobody; the next one begins anew"
		}
		table += fmt.Sprintf("| %s | %s | %s | %s |\n", r[0], r[1], killMoment(r[2]), has)
	}
	return table, err
}

// hotKills makes a table of the rows of var hotKills in the one suite: who has the listeners, and each
// of two connections.
func hotKills(*testing.T, string) (string, error) {
	rows, err := killRows("steps/hot_restart_test.go", "hotKills")
	table := "| the new process | killed | when | then has the listeners | the first connection | the second |\n| --- | --- | --- | --- | --- | --- |\n"
	offers := map[string]string{"1": "the listeners", "2": "the first", "3": "the second", "4": "`done`"}
	for _, r := range rows {
		if len(r) != 6 {
			return "", fmt.Errorf("%q is no row", r)
		}
		situation, nth, hesitates := strings.Cut(r[0], " ")
		if hesitates {
			situation += " at " + offers[nth]
		}
		when := ""
		if moment, nth, _ := strings.Cut(strings.Replace(r[2], " ", "#", 1), " "); moment != "" {
			when = killMoment(strings.Replace(moment, "#", " ", 1))
			switch _, message, _ := strings.Cut(moment, "#"); message {
			case "offer", "taken":
				when += ": " + offers[nth]
			case "refused":
				when += ": the second" // which is the only one that is
			}
		}
		table += fmt.Sprintf("| %s | %s | %s | %s |\n", situation, r[1], when, strings.Join(r[3:], " | "))
	}
	return table, err
}

var (
	pitfallGroup = regexp.MustCompile(`(?m)^## (.*)|^### (\d+\. .*)`)
	term         = regexp.MustCompile(`(?m)^## (.*)`)
)

// listPitfalls makes the list at the top of the page: groups (##), and in them pitfalls (### 7. Title).
func listPitfalls(text string) (list string) {
	group, lead := "", ""
	for _, m := range pitfallGroup.FindAllStringSubmatch(text, -1) {
		if m[1] != "" {
			group, lead = m[1], ""
			continue
		}
		if lead == "" {
			lead = "- **" + group + ":**\n  "
			if list != "" {
				lead = "\n" + lead
			}
		}
		list += fmt.Sprintf("%s[%s](#%s)", lead, strings.Replace(m[2], ".", "", 1), anchorOf(m[2]))
		lead = " ·\n  "
	}
	return list + "\n"
}

// listTerms makes the list at the top of the page, and wants the terms in alphabetical order.
func listTerms(text string) (string, error) {
	var links []string
	last := ""
	for _, m := range term.FindAllStringSubmatch(text, -1) {
		if order := strings.ToLower(m[1]); order < last {
			return "", fmt.Errorf("%q is not in its place", m[1])
		}
		last = strings.ToLower(m[1])
		links = append(links, fmt.Sprintf("[%s](#%s)", m[1], anchorOf(m[1])))
	}
	return strings.Join(links, " ·\n") + "\n", nil
}
