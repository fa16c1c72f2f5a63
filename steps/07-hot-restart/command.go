//go:build linux

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"strings"

	"golang.org/x/sys/unix"
)

// command runs a step as a process and returns its exit status: 0 done, 1 it failed, 2 wrong
// usage. SIGINT and SIGTERM cancel the context; a second one ends the process the kernel's way.
func command(run func(ctx context.Context, args []string, stdout, stderr io.Writer) error) int {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)

	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case errors.As(err, new(usageError)):
		log.Printf("%v; -h lists the flags", err)
		return 2
	}
	log.Print(strings.ReplaceAll(err.Error(), "\n", "; ")) // joined errors stand on lines of their own
	return 1
}

// nameProcess makes every line of the log begin with the process's role and pid.
func nameProcess(role string, stderr io.Writer) {
	log.SetFlags(0)
	log.SetOutput(stderr)
	log.SetPrefix(fmt.Sprintf("%s[%d]: ", role, os.Getpid()))
}

// usageError is a command line that makes no sense.
type usageError struct{ error }

// parseFlags parses a command line that takes flags only. With -h it prints them to stdout
// and returns flag.ErrHelp.
func parseFlags(flags *flag.FlagSet, args []string, stdout io.Writer) error {
	flags.SetOutput(io.Discard) // wrong usage is one line, and command prints it
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		flags.SetOutput(stdout)
		flags.PrintDefaults()
	case err != nil:
		return usageError{err}
	case flags.NArg() > 0:
		return usageError{fmt.Errorf("unexpected argument %q", flags.Arg(0))}
	}
	return err
}
