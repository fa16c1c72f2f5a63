//go:build linux

// Mistakes: eleven ways to lose, leak or block a descriptor that goes to another process. Each
// file makes one mistake and then does it right; the program prints what happened both times, as
// measured a moment ago on the kernel it runs on.
//
//	go run ./steps/mistakes list   # the names
//	go run ./steps/mistakes NAME   # make the mistake, and then do it right
//
// Receiving:
//
//	short_buffer.go       the control buffer is too small for the descriptors that come
//	nofile_limit.go       the receiver has no descriptor numbers left (RLIMIT_NOFILE)
//	no_cloexec.go         recvmsg without MSG_CMSG_CLOEXEC: children inherit the descriptor
//	peek.go               MSG_PEEK at a message that carries a descriptor
//	plain_read.go         read(2) on a socket that carries descriptors
//
// Sending:
//
//	too_many.go           more than 253 descriptors in one message
//	no_payload.go         descriptors without a byte of payload
//	stream_coalescing.go  the belief that on SOCK_STREAM one recvmsg gets one sendmsg
//
// What both processes share afterwards:
//
//	readahead.go          a bufio.Reader has read ahead, and only the descriptor is sent
//	forgotten_dup.go      the sender keeps a File() duplicate of what it gave away
//	nonblock.go           File().Fd() on a socket that another process uses
//
// sockets.go holds what they have in common.
//
// Needs Linux 3.2 (which is what Go needs; MSG_CMSG_CLOEXEC is there since 2.6.23) and no privilege.
package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// mistake is one wrong way and the right one. Each gets new sockets and says what happened.
type mistake struct {
	name, about  string
	wrong, right func(s *sockets) (string, error)
}

var mistakes = []mistake{
	{"short-buffer", "the control buffer is too small for the descriptors that come", shortBufferWrong, shortBufferRight},
	{"nofile-limit", "the receiver has no descriptor numbers left (RLIMIT_NOFILE)", nofileLimitWrong, nofileLimitRight},
	{"no-cloexec", "recvmsg without MSG_CMSG_CLOEXEC: children inherit the descriptor", noCloexecWrong, noCloexecRight},
	{"peek", "MSG_PEEK at a message that carries a descriptor", peekWrong, peekRight},
	{"plain-read", "read(2) on a socket that carries descriptors", plainReadWrong, plainReadRight},
	{"too-many", "more than 253 descriptors in one message", tooManyWrong, tooManyRight},
	{"no-payload", "descriptors without a byte of payload", noPayloadWrong, noPayloadRight},
	{"stream-coalescing", "the belief that on SOCK_STREAM one recvmsg gets one sendmsg", streamCoalescingWrong, streamCoalescingRight},
	{"readahead", "a bufio.Reader has read ahead, and only the descriptor is sent", readaheadWrong, readaheadRight},
	{"forgotten-dup", "the sender keeps a File() duplicate of what it gave away", forgottenDupWrong, forgottenDupRight},
	{"nonblock", "File().Fd() on a socket that another process uses", nonblockWrong, nonblockRight},
}

// children are the parts of the other process, when this program runs itself (see runChild).
var children = map[string]func(arg string) (string, error){
	"child-no-cloexec": noCloexecChild,
	"child-nonblock":   nonblockChild,
}

var errUsage = errors.New("usage: mistakes NAME, or mistakes list for the names")

func main() {
	output, err := run(os.Args[1:])
	if err == nil {
		_, err = fmt.Print(output)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "mistakes:", strings.ReplaceAll(err.Error(), "\n", "; "))
		if errors.Is(err, errUsage) {
			os.Exit(2)
		}
		os.Exit(1)
	}
}

func run(args []string) (output string, err error) {
	if len(args) == 2 && children[args[0]] != nil {
		return children[args[0]](args[1])
	}
	name := strings.Join(args, " ")
	for _, m := range mistakes {
		switch name {
		case "list":
			output += fmt.Sprintf("%-18s %s\n", m.name, m.about)
		case m.name:
			return m.show()
		}
	}
	if output == "" {
		err = fmt.Errorf("%w, not %q", errUsage, name)
	}
	return output, err
}

func (m mistake) show() (string, error) {
	wrong, wrongErr := withSockets(m.wrong)
	right, rightErr := withSockets(m.right)
	output := fmt.Sprintf("%s: %s\nwrong: %s\nright: %s\n", m.name, m.about, wrong, right)
	return output, errors.Join(wrongErr, rightErr)
}
