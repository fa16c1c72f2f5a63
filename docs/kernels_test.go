package docs

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
)

// What .ci/kernels has seen on other kernels stands in a golden file for each. Here it becomes
// the tables of docs/kernels.md, so that no kernel has to be booted to check that page.
const kernelsFolder = ".ci/kernels/"

// seen are lines of one kernel's golden file.
type seen struct{ kernel, lines string }

func seenOnKernels() ([]seen, error) {
	list, err := os.ReadFile(kernelsFolder + "kernels.txt")
	if err != nil {
		return nil, err
	}
	var all []seen
	for _, m := range regexp.MustCompile(`(?m)^(\d\S*) `).FindAllStringSubmatch(string(list), -1) {
		lines, err := os.ReadFile(kernelsFolder + "golden/" + m[1] + ".txt")
		if err != nil {
			return nil, err
		}
		all = append(all, seen{m[1], string(lines)})
	}
	return all, nil
}

// features makes a table: what there is, on which kernel. As root; nobody is told the same, but
// may not change settings.
func features() (string, error) {
	kernels, err := seenOnKernels()
	if err != nil {
		return "", err
	}
	head, rule := "| feature |", "| --- |"
	answers := map[string][]string{} // by feature, one for each kernel
	for i, k := range kernels {
		head, rule = head+" "+k.kernel+" |", rule+" --- |"
		for _, m := range regexp.MustCompile(`(?m)^feature root (.*): (.*)$`).FindAllStringSubmatch(k.lines, -1) {
			if i == 0 || answers[m[1]] != nil {
				answers[m[1]] = append(answers[m[1]], m[2])
			}
		}
	}
	if len(answers) == 0 {
		return "", errors.New("no features")
	}
	table := head + "\n" + rule + "\n"
	for _, name := range rowsByAge(answers) {
		if len(answers[name]) != len(kernels) {
			return "", fmt.Errorf("%s: not asked on every kernel", name)
		}
		table += fmt.Sprintf("| %s | %s |\n", name, strings.Join(answers[name], " | "))
	}
	return table, nil
}

// rowsByAge puts first what all kernels have, and last what none has.
func rowsByAge(answers map[string][]string) []string {
	lacking := func(name string) (n int) {
		for _, a := range answers[name] {
			if a != "yes" {
				n++
			}
		}
		return n
	}
	var names []string
	for name := range answers {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		if d := lacking(a) - lacking(b); d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
	return names
}

// relations makes a table: who may fetch whose descriptors, in which mode of Yama. It must be
// the same on all kernels.
func relations() (string, error) {
	kernels, err := seenOnKernels()
	if err != nil {
		return "", err
	}
	answers := map[string][4]string{} // by taker and target, one for each mode
	for _, k := range kernels {
		for _, m := range regexp.MustCompile(`(?m)^relation \w+ (\d) (.*), ((?:parent|child|sibling) -> .*): (.*)$`).FindAllStringSubmatch(k.lines, -1) {
			name, mode := m[2]+" | "+strings.ReplaceAll(m[3], "->", "→"), m[1][0]-'0'
			row := answers[name]
			if row[mode] != "" && row[mode] != m[4] {
				return "", fmt.Errorf("Yama %d, %s: %s, and on Linux %s: %s", mode, name, row[mode], k.kernel, m[4])
			}
			row[mode] = m[4]
			answers[name] = row
		}
	}
	var names []string
	for name := range answers {
		names = append(names, name)
	}
	slices.Sort(names)
	if names == nil {
		return "", errors.New("no relations")
	}
	table := "| the taker | taker → target | 0, or no Yama | 1 | 2 | 3 |\n| --- | --- | --- | --- | --- | --- |\n"
	for _, name := range names {
		row := answers[name]
		table += fmt.Sprintf("| %s | %s |\n", name, strings.Join(row[:], " | "))
	}
	return table, nil
}
