package docs

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
)

// A mermaid block is drawn by the reader's browser, and a mistake in it shows nowhere else. So
// the book uses few of Mermaid's forms, and each line must have one of them.
//
//	flowchart LR                                 sequenceDiagram
//	    subgraph table["descriptor table"]           participant K as kernel
//	    direction LR                                 S->>K: accept4
//	        d5["5"]                                  K-->>S: descriptor 6
//	    end                                          Note over K: it is queued
//	    d5 --> od5["open file<br>description"]
//	    a -. bound .- b; c <--> d; e -- "offer" --> f
func TestDiagrams(t *testing.T) {
	for _, p := range pages(t) {
		_, wrong := p.rewrite("mermaid", func(b block) (string, error) { return b.text, checkDiagram(b.text) })
		for _, err := range wrong {
			t.Error(err)
		}
	}
}

// widestLabel is how many letters a line in a box may have: Mermaid breaks what is wider than
// 200 pixels wherever there is a blank or a hyphen.
const widestLabel = 24

var (
	graphHead  = regexp.MustCompile(`^flowchart (LR|TB)$`)
	graphLine  = regexp.MustCompile(`^(subgraph \w+\["[^"]+"\]|direction (LR|TB)|end|` + graphChain + `)$`)
	graphChain = graphNode + `(` + graphArrow + graphNode + `)*`
	nodes      = regexp.MustCompile(graphNode)
	arrows     = regexp.MustCompile(graphArrow)

	participant = regexp.MustCompile(`^participant (\w+) as \S.*$`)
	message     = regexp.MustCompile(`^(\w+)--?>>(\w+): \S.*$`)
	note        = regexp.MustCompile(`^Note over (\w+)(?:,(\w+))?: \S.*$`)
)

const (
	graphNode  = `(\w+)(?:\["([^"]+)"\])?` // a name, with a label where it is used first
	graphArrow = ` (?:-->|---|<-->|-\.->|-\. [^.]+ \.->?|-- "[^"]+" -->) `
)

func checkDiagram(text string) error {
	head, rest, _ := strings.Cut(strings.TrimSuffix(text, "\n"), "\n")
	lines := strings.Split(rest, "\n")
	for i, line := range lines {
		lines[i] = strings.TrimLeft(line, " ")
	}
	switch {
	case head == "sequenceDiagram":
		return checkSequence(lines)
	case graphHead.MatchString(head):
		return checkGraph(lines)
	}
	return fmt.Errorf("%q begins no diagram that is known here", head)
}

// checkSequence reports what nobody could draw, and who has not been introduced.
func checkSequence(lines []string) error {
	known := map[string]bool{"": true}
	for _, line := range lines {
		if m := participant.FindStringSubmatch(line); m != nil {
			known[m[1]] = true
			continue
		}
		m := message.FindStringSubmatch(line)
		if m == nil {
			m = note.FindStringSubmatch(line)
		}
		switch {
		case m == nil || strings.ContainsAny(line, ";#"): // Mermaid ends a line there, or begins an entity
			return fmt.Errorf("%q is no line of a sequence diagram", line)
		case !known[m[1]] || !known[m[2]]:
			return fmt.Errorf("%q: who is that?", line)
		}
	}
	return nil
}

// checkGraph reports what nobody could draw, boxes without a label, and labels that get broken.
func checkGraph(lines []string) error {
	open, labelled, used := 0, map[string]bool{}, map[string]bool{}
	for _, line := range lines {
		if !graphLine.MatchString(line) {
			return fmt.Errorf("%q is no line of a flowchart", line)
		}
		word, rest, _ := strings.Cut(line, " ")
		switch word {
		case "direction":
			continue
		case "end":
			open--
			continue
		case "subgraph":
			open++
			labelled[rest[:strings.Index(rest, "[")]] = true
			continue
		}
		for _, node := range nodes.FindAllStringSubmatch(arrows.ReplaceAllString(line, " "), -1) {
			used[node[1]] = true
			for _, part := range strings.Split(node[2], "<br>") {
				if len(part) > widestLabel {
					return fmt.Errorf("%q has more than %d letters, and will be broken: use <br>", part, widestLabel)
				}
			}
			labelled[node[1]] = labelled[node[1]] || node[2] != ""
		}
	}
	for name := range used {
		if !labelled[name] {
			return fmt.Errorf("%q has no label", name)
		}
	}
	if open != 0 {
		return errors.New("a subgraph does not end, or ends twice")
	}
	return nil
}

// Planted errors: each of these is wrong in one way.
func TestBrokenDiagramsAreNoticed(t *testing.T) {
	const (
		graph = "flowchart LR\n    subgraph t[\"table\"]\n        direction TB\n        a[\"5\"]\n    end\n    a --> b[\"open file<br>description\"] -. bound .-> c[\"path\"]\n    b -- \"sent\" --> d[\"socket\"] <--> c\n"
		talk  = "sequenceDiagram\n    participant K as kernel\n    participant S as server\n    S->>K: accept4\n    K-->>S: descriptor 6\n    Note over K,S: done\n"
	)
	for _, right := range []string{graph, talk} {
		if err := checkDiagram(right); err != nil {
			t.Error(err)
		}
	}
	for _, wrong := range []struct{ text, old, new, notice string }{
		{graph, "flowchart", "flowchrt", "begins no diagram"},
		{graph, "LR", "left", "begins no diagram"},
		{graph, "a -->", "a ->", "no line of a flowchart"},
		{graph, `"path"]`, `"path"`, "no line of a flowchart"},
		{graph, `["path"]`, `[a "path"]`, "no line of a flowchart"},
		{graph, `c["path"]`, "c", `"c" has no label`},
		{graph, "    end\n", "", "a subgraph does not end"},
		{graph, "open file<br>description", "open file description, shared", "will be broken"},
		{talk, "sequenceDiagram", "sequence", "begins no diagram"},
		{talk, "S->>K: accept4", "S->K accept4", "no line of a sequence diagram"},
		{talk, "accept4", "accept4; then wait", "no line of a sequence diagram"},
		{talk, "K-->>S", "K-->>X", "who is that?"},
		{talk, "over K,S", "over N", "who is that?"},
	} {
		err := checkDiagram(strings.Replace(wrong.text, wrong.old, wrong.new, 1))
		if err == nil || !strings.Contains(err.Error(), wrong.notice) {
			t.Errorf("%q for %q: noticed %v, want %q", wrong.new, wrong.old, err, wrong.notice)
		}
	}
}
