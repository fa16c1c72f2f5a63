//go:build linux

package main

import (
	"regexp"
	"testing"
)

// Before the server says that it listens, it lists its descriptor table.
func TestExercise1(t *testing.T) {
	server, _ := startEcho(t)
	table := server.descriptors() // seen from outside, and nobody has connected meanwhile
	for number, link := range table {
		line := `^echo\[\d+\]: descriptor ` + number + ` is ` + regexp.QuoteMeta(link) + `$`
		if said := server.err.all(line); len(said) != 1 {
			t.Errorf("%d lines say that descriptor %s is %s, want one", len(said), number, link)
		}
	}
	if said := server.err.all(`: descriptor \d+ is `); len(said) != len(table) {
		t.Errorf("%d descriptors are listed, and %d are open", len(said), len(table))
	}
}
