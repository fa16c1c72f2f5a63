//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

const (
	// The versions of the protocol that this program speaks.
	minVersion = 2
	maxVersion = 2

	// helloTime is how long the other process may take to say hello.
	helloTime = 2 * time.Second
)

// trace logs every message between the processes, once -v has set it to log.Printf.
var trace = func(format string, args ...any) {}

// hello is what both sides send first. Who they are does not stand in it: the kernel says so.
type hello struct {
	Type       string `json:"type"` // "hello", or "refused" with a reason
	Min        int    `json:"min,omitempty"`
	Max        int    `json:"max,omitempty"`
	Generation int    `json:"generation,omitempty"` // of a process that serves
	Reason     string `json:"reason,omitempty"`
}

// peer is the process at the other end.
type peer struct {
	pid        int
	uid, gid   uint32
	version    int // the highest that both speak
	generation int // 0 if it does not serve yet
}

func (p peer) String() string { return fmt.Sprintf("pid %d (uid %d, gid %d)", p.pid, p.uid, p.gid) }

// sameUser admits processes of this process's own user, and root's.
func sameUser(p peer) error {
	if own := os.Geteuid(); p.uid != 0 && int(p.uid) != own {
		return fmt.Errorf("another user's process: uid %d, not uid %d", p.uid, own)
	}
	return nil
}

// sameUserOrRoot is what the one who joins asks for: root may join anybody.
func sameUserOrRoot(p peer) error {
	if os.Geteuid() == 0 {
		return nil
	}
	return sameUser(p)
}

// greet exchanges hellos, unless admit has an objection: then the other side gets that instead.
// Its error wraps io.EOF if the other side hung up without a word, and
// context.DeadlineExceeded if it said nothing for helloTime.
func greet(ctx context.Context, c *socket.Conn, generation int, admit func(peer) error) (peer, error) {
	ctx, cancel := context.WithTimeout(ctx, helloTime)
	defer cancel()
	cred, err := credentials(c)
	if err != nil {
		return peer{}, err
	}
	p := peer{pid: int(cred.Pid), uid: cred.Uid, gid: cred.Gid}
	if objection := admit(p); objection != nil {
		err := sendHello(ctx, c, hello{Type: "refused", Reason: objection.Error()})
		return p, errors.Join(fmt.Errorf("refused %v: %w", p, objection), err)
	}
	if err := sendHello(ctx, c, hello{Type: "hello", Min: minVersion, Max: maxVersion, Generation: generation}); err != nil {
		return p, fmt.Errorf("hello to %v: %w", p, err)
	}
	theirs, err := receiveHello(ctx, c)
	if err != nil {
		return p, fmt.Errorf("hello from %v: %w", p, err)
	}
	p.version, err = agree(theirs)
	if err != nil {
		return p, fmt.Errorf("hello from %v: %w", p, err)
	}
	p.generation = theirs.Generation
	return p, nil
}

// agree returns the highest version that both sides speak.
func agree(theirs hello) (version int, err error) {
	switch version = min(maxVersion, theirs.Max); {
	case theirs.Type == "refused":
		return 0, fmt.Errorf("it refused: %q", theirs.Reason)
	case theirs.Type != "hello":
		return 0, fmt.Errorf("it began with %q", theirs.Type)
	case version < max(minVersion, theirs.Min):
		return 0, fmt.Errorf("it speaks versions %d to %d of the protocol, this process %d to %d: use two builds that overlap", theirs.Min, theirs.Max, minVersion, maxVersion)
	}
	return version, nil
}

func sendHello(ctx context.Context, c *socket.Conn, h hello) error {
	record, err := json.Marshal(h)
	if err != nil {
		return err
	}
	trace("sending %s", record)
	_, err = c.Sendmsg(ctx, record, nil, nil, 0)
	if isGone(err) {
		return nil // it has hung up: what it said before that is still in our queue, and says why
	}
	if err == nil {
		trace("sent %s", record)
	}
	return err
}

// isGone reports whether a send failed because the other side is closed or shut. ECONNREFUSED is what
// older kernels say (5.10 does) while it is just closing. Then they drop what is in our queue, and
// every receive is ENOTCONN.
func isGone(err error) bool {
	return errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.ECONNREFUSED)
}

// receiveHello reads one record. No room is given for descriptors: the kernel closes any that
// come along (MSG_CTRUNC), as they have no business in a hello.
func receiveHello(ctx context.Context, c *socket.Conn) (hello, error) {
	record := make([]byte, 4<<10)
	n, _, flags, _, err := c.Recvmsg(ctx, record, nil, 0)
	if errors.Is(err, unix.ECONNRESET) {
		// The other side closed with our hello unread. The kernel says that once, *before*
		// what it had sent us, such as its reason.
		n, _, flags, _, err = c.Recvmsg(ctx, record, nil, 0)
	}
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, unix.ENOTCONN):
		return hello{}, fmt.Errorf("recvmsg: %w: it hung up without a word", io.EOF)
	case errors.Is(err, context.DeadlineExceeded):
		return hello{}, fmt.Errorf("%w: it said nothing for %v", err, helloTime)
	case err != nil:
		return hello{}, err
	case flags&unix.MSG_TRUNC != 0:
		return hello{}, fmt.Errorf("longer than %d bytes", len(record))
	}
	var h hello
	trace("received %#q", record[:n])
	if err := json.Unmarshal(record[:n], &h); err != nil {
		return hello{}, fmt.Errorf("%.80q is not a hello: %w", record[:n], err)
	}
	return h, nil
}
