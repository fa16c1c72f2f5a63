//go:build linux

package main

import (
	"fmt"
	"io"
)

// shownBytes is how much of a line is shown.
const shownBytes = 80

// show writes one received line to out, quoted: a client's bytes never reach a terminal as
// they are, where they could move the cursor or worse. A failing out is not the client's
// concern, so it is not reported; one that takes nothing any more holds up every client.
func show(out io.Writer, line []byte) {
	if len(line) > shownBytes {
		fmt.Fprintf(out, "%q... (%d bytes)\n", line[:shownBytes], len(line))
		return
	}
	fmt.Fprintf(out, "%q\n", line)
}
