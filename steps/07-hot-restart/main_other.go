//go:build !linux

// This step needs Linux; elsewhere it builds and says so.
package main

import (
	"fmt"
	"os"
	"runtime"
)

func main() {
	fmt.Fprintf(os.Stderr, "this program needs Linux, not %s: run it in a Linux container or virtual machine, such as docker run -it -v \"$PWD\":/src -w /src golang\n", runtime.GOOS)
	os.Exit(1)
}
