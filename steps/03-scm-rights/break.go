//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// breakTime bounds each of the mistakes, which take less than a second.
const breakTime = 20 * time.Second

// mistake is one wrong way of passing descriptors. Everything it prints, next to the right
// way, has been measured the moment before, and so is true of the kernel it runs on.
type mistake struct {
	name, about string
	run         func(ctx context.Context, b *bench) error
}

var mistakes = []mistake{
	{"short-buffer", "a control buffer with room for one descriptor, when three come", breakShortBuffer},
	{"nofile-limit", "the receiver is out of descriptors", breakNofileLimit},
	{"no-cloexec", "recvmsg without MSG_CMSG_CLOEXEC", breakNoCloexec},
	{"peek", "MSG_PEEK at a message with a descriptor", breakPeek},
	{"plain-read", "read(2) on the socket that the descriptors come by", breakPlainRead},
	{"too-many", "more than 253 descriptors in one message", breakTooMany},
	{"no-payload", "descriptors without a byte of payload", breakNoPayload},
	{"stream-coalescing", "SOCK_STREAM, in the belief that one recvmsg gets one sendmsg", breakStreamCoalescing},
	{"readahead", "a buffered reader reads ahead, and only the descriptor travels", breakReadahead},
	{"forgotten-dup", "the old process keeps a File() duplicate of what it gave away", breakForgottenDup},
	{"nonblock", "File().Fd() on a socket that another process uses", breakNonblock},
}

// others are what the other process does, for the mistakes that take two.
var others = map[string]func(ctx context.Context, c *socket.Conn) error{
	"nofile-limit": atTheLimit,
	"no-cloexec":   stayAround,
	"nonblock":     readWithDeadline,
}

// runBreak makes the mistake called name, and shows what comes of it.
func runBreak(ctx context.Context, name string, stdout, stderr io.Writer) error {
	nameProcess("break", stderr)
	if name == "list" {
		for _, m := range mistakes {
			fmt.Fprintf(stdout, "%-18s %s\n", m.name, m.about)
		}
		return nil
	}
	for _, m := range mistakes {
		if m.name == name {
			return m.show(ctx, stdout)
		}
	}
	return usageError{fmt.Errorf("-break %q: there is no such mistake; -break list lists them", name)}
}

func (m mistake) show(ctx context.Context, stdout io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, breakTime)
	defer cancel()
	b, err := newBench(unix.SOCK_SEQPACKET, stdout)
	if err != nil {
		return err
	}
	defer b.close()
	fmt.Fprintf(stdout, "%s: %s\n", m.name, m.about)
	return m.run(ctx, b)
}

// runOther is the other process of the mistake called name: -break NAME -c, as withOther
// starts it.
func runOther(ctx context.Context, name, path string, stderr io.Writer) error {
	nameProcess("other", stderr)
	play, ok := others[name]
	if !ok {
		return usageError{fmt.Errorf("-break %q takes no other process", name)}
	}
	c, err := dialControl(path)
	if err != nil {
		return err
	}
	defer closeQuietly(c)
	return play(ctx, c)
}
