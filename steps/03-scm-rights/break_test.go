//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// outcomes are the values that each mistake must measure, line by line.
var outcomes = map[string][]string{
	"short-buffer": {
		`wrong: 3 sent, .* descriptors ` + fmt.Sprint(roomForOne()) + `, flags MSG_CTRUNC, error <nil>`,
		`right: 3 sent, .* descriptors 3, flags none, error <nil>`,
	},
	"nofile-limit": {
		`wrong: 4 sent, 1 number free there: recvmsg: payload "four", descriptors 1, flags MSG_CTRUNC, error <nil>`,
		`right: 4 sent, 1 number free there: receiveFDs: descriptors 0, error descriptors lost \(MSG_CTRUNC\).*`,
	},
	"no-cloexec": {
		`wrong: .* received 1, close-on-exec 0, inherited by a child 1`,
		`right: .* received 1, close-on-exec 1, inherited by a child 0`,
	},
	"peek": {
		`wrong: 1 sent; three peeks .* installed 3, the receipt 1 more`,
		`right: 1 sent; three peeks .* installed 0, the receipt 1 more`,
	},
	"plain-read": {
		`wrong: .* payload "pipe", descriptors 0; out of the pipe comes ""`,
		`right: .* payload "pipe", descriptors 1; out of the pipe comes "hello"`,
	},
	"too-many": {
		`wrong: 254 in one message: sendmsg: invalid argument`,
		`right: sendFDs: more than 253 descriptors in one message`,
		`right: 254 in 2 messages: there arrive 253 \+ 1`,
	},
	"no-payload": {
		`wrong: SOCK_STREAM: .* sent: ""\+1; arrived: \[\]`,
		`wrong: SOCK_SEQPACKET: .* sent: ""\+1; arrived: \[""\+1\]`,
		`right: SOCK_STREAM: .* sent: "x"\+1; arrived: \["x"\+1\]`,
		`right: SOCK_SEQPACKET: .* sent: "x"\+1; arrived: \["x"\+1\]`,
		`right: sendFDs refuses: a message needs at least one byte of payload`,
	},
	"stream-coalescing": {
		`wrong: SOCK_STREAM: .* arrived: \["AAAAaaaaBBBB"\+1 "CCCC"\+1\]`,
		`right: SOCK_SEQPACKET: .* arrived: \["AAAA"\+0 "aaaa"\+0 "BBBB"\+1 "CCCC"\+1\]`,
	},
	"readahead": {
		`wrong: .* the old side has read "one\\n", the new one gets ""`,
		`right: .* the old side has read "one\\n", the new one gets "two\\nthree\\n"`,
	},
	"forgotten-dup": {
		`wrong: .* the client has read nothing, and no end-of-file, for 100ms`,
		`right: .* the client reads end-of-file`,
	},
	"nonblock": {
		`wrong: .* O_NONBLOCK is false, .* deadline of 50ms ends after \d+ms: 1 bytes, error <nil>`,
		`right: .* O_NONBLOCK is true, .* deadline of 50ms ends after \d+ms: 0 bytes, error .* deadline exceeded`,
	},
}

// roomForOne is how many descriptors fit a buffer for one: two, where a word has 8 bytes.
func roomForOne() int { return (unix.CmsgSpace(4) - unix.CmsgLen(0)) / 4 }

func TestBreakEach(t *testing.T) {
	t.Setenv(asStep, "1") // for the other process, which is this program
	for _, m := range mistakes {
		t.Run(m.name, func(t *testing.T) {
			makeMistake(t, m.name) // what the runtime opens, it opens the first time
			before := openFDs(t)
			makeMistake(t, m.name)
			if now := openFDs(t); now != before {
				t.Errorf("%d descriptors are open, want %d", now, before)
			}
		})
	}
	if len(outcomes) != len(mistakes) {
		t.Errorf("outcomes of %d, and there are %d", len(outcomes), len(mistakes))
	}
}

func makeMistake(t *testing.T, name string) {
	t.Helper()
	var out strings.Builder
	if err := run(t.Context(), []string{"-break", name}, &out, io.Discard); err != nil {
		t.Fatal(err)
	}
	said := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")[1:] // without the heading
	if len(said) != len(outcomes[name]) {
		t.Fatalf("%d lines, want %d:\n%s", len(said), len(outcomes[name]), out.String())
	}
	for i, want := range outcomes[name] {
		if !regexp.MustCompile(`^` + want + `$`).MatchString(said[i]) {
			t.Errorf("got  %s\nwant %s", said[i], want)
		}
	}
}

func TestBreakAsProcess(t *testing.T) {
	list := start(t, "-break", "list")
	exits(t, list, 0)
	for _, m := range mistakes {
		list.printed(`^` + m.name + ` +` + regexp.QuoteMeta(m.about) + `$`)
	}
	p := start(t, "-break", "nonblock")
	exits(t, p, 0)
	p.printed(`^nonblock: `)
	p.printed(`^wrong: `)
	p.printed(`^right: `)
}

// Another process that ends too early is an error, and nothing waits for it.
func TestOtherProcessFails(t *testing.T) {
	t.Setenv(asStep, "1")
	err := withOther(t.Context(), "nonsense", func(*socket.Conn, int) error {
		t.Error("it should not come")
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "exit status 2") {
		t.Errorf("got %v, want exit status 2", err)
	}
	err = withOther(t.Context(), "nofile-limit", func(c *socket.Conn, pid int) error {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		_, err := hear(t.Context(), c)
		return err
	})
	if !errors.Is(err, io.EOF) || !strings.Contains(err.Error(), "signal: killed") {
		t.Errorf("got %v, want end-of-file and how it ended", err)
	}
}

// openFDs counts this process's descriptors.
func openFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
