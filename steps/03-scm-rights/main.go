//go:build linux

// Step 03: a descriptor travels. Two stories, which two processes tell each other:
//
//   - the old one reads line one of a file, the new one line two, the old one line three;
//   - the old one opens a listener, and the new one accepts the client that waits there.
//
// To run it:
//
//	go run ./steps/03-scm-rights              # the old process: waits for new ones
//	go run ./steps/03-scm-rights -c           # the new process
//	go run ./steps/03-scm-rights -demo        # both, in one terminal
//	go run ./steps/03-scm-rights -break list  # what can go wrong, to try out
//
// New since 02: msghdr.go, the system calls with nothing between them and the reader; fdpass.go,
// the same for every day, to be copied; offset.go and queue.go, the two stories; break.go and
// its like, the mistakes. identity.go is back from step 01.
//
// Needs Linux 4.12 (for SO_COOKIE; MSG_CMSG_CLOEXEC is there since 2.6.23) and no privilege.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"sync"
	"time"

	"github.com/mdlayher/socket"
)

// storyTime is how long a process may keep the other one waiting.
const storyTime = 3 * time.Second

func main() { os.Exit(command(run)) }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	nameProcess("old", stderr)
	flags := flag.NewFlagSet("03-scm-rights", flag.ContinueOnError)
	control := flags.String("control", "", "`path` of the unix socket where the two processes meet (default in a private folder)")
	connect := flags.Bool("c", false, "be the new process: connect to the old one")
	demo := flags.Bool("demo", false, "tell the whole story in one terminal")
	mistake := flags.String("break", "", "make the mistake of this `name`, and show what happens; list lists them")
	verbose := flags.Bool("v", false, "show the hellos")
	if err := parseFlags(flags, args, stdout); err != nil {
		return err
	}
	if *verbose {
		trace = log.Printf
	}
	switch {
	case *demo:
		return runDemo(ctx, stdout, stderr)
	case *mistake != "" && *connect:
		return runOther(ctx, *mistake, *control, stderr)
	case *mistake != "":
		return runBreak(ctx, *mistake, stdout, stderr)
	case *connect:
		nameProcess("new", stderr)
	}
	path, err := controlPath(*control, flags.Name())
	if err != nil {
		return err
	}
	if *connect {
		return runNew(ctx, path, stdout)
	}
	return runOld(ctx, path, stdout)
}

// runOld tells both stories to every new process that connects, until ctx ends.
func runOld(ctx context.Context, path string, stdout io.Writer) error {
	listener, err := listenControl(ctx, path)
	if err != nil {
		return err
	}
	log.Printf("listening on %s", path)
	var turn sync.Mutex
	accept := func() (*socket.Conn, error) { return listener.accept(ctx) }
	return acceptAll(ctx, listener, accept, func(c *socket.Conn) {
		newcomer, err := greet(ctx, c, sameUser)
		switch {
		case ctx.Err() != nil, errors.Is(err, io.EOF): // it only looked whether anybody is here
			return
		case err != nil:
			log.Print(err)
			return
		}
		log.Printf("met %v", newcomer)
		turn.Lock() // told two at a time, the stories could not be followed
		defer turn.Unlock()
		if err := giveBoth(ctx, c, stdout); ctx.Err() == nil {
			log.Printf("%s; listening on %s", outcome(newcomer, err), path)
		}
	})
}

// giveBoth is the old process's side of both stories.
func giveBoth(ctx context.Context, c *socket.Conn, stdout io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, storyTime)
	defer cancel()
	if err := sendFile(ctx, c); err != nil {
		return err
	}
	return sendListener(ctx, c, stdout)
}

// runNew meets the old process, plays its part in both stories, and leaves.
func runNew(ctx context.Context, path string, stdout io.Writer) error {
	c, err := dialControl(path)
	if err != nil {
		return err
	}
	defer closeQuietly(c)
	old, err := greet(ctx, c, sameUserOrRoot)
	if err != nil {
		return err
	}
	log.Printf("met %v", old)
	log.Printf("waiting on %s", path)
	err = takeBoth(ctx, c, stdout)
	switch {
	case ctx.Err() != nil:
		return nil
	case err != nil:
		return errors.New(outcome(old, err))
	}
	log.Print(outcome(old, nil))
	return nil
}

// takeBoth is the new process's side of both stories.
func takeBoth(ctx context.Context, c *socket.Conn, stdout io.Writer) error {
	if err := receiveFile(ctx, c); err != nil {
		return err
	}
	if err := receiveListener(ctx, c, stdout); err != nil {
		return err
	}
	return awaitEnd(ctx, c)
}

// awaitEnd waits until the old process hangs up, which it does when it has heard the answer.
func awaitEnd(ctx context.Context, c *socket.Conn) error {
	_, _, err := receiveFDs(ctx, c, make([]byte, 1), 0, 0)
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// outcome says in words how the stories ended between this process and the other.
func outcome(other peer, err error) string {
	switch {
	case err == nil:
		return fmt.Sprintf("both stories are told, with pid %d", other.pid)
	case errors.Is(err, io.EOF), isGone(err):
		return fmt.Sprintf("%v is gone: %v", other, err)
	}
	return fmt.Sprintf("%v: %v", other, err)
}
