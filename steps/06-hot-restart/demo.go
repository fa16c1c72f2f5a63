//go:build linux

package main

import (
	"context"
	"io"
)

func runDemo(ctx context.Context, stdout, stderr io.Writer) error { return nil }
