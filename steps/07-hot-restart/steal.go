//go:build linux

package main

// The protocol by which a live TCP connection changes its process. To copy: this file with
// parcel.go, what one offer holds, and one that gets the descriptor across (push.go, for one),
// and verify.go, fdpass.go, identity.go, borrow.go, hello.go and control.go. It promises that a
// connection is never served by two processes, never by none while its owner lives, and that
// both know who that is, whoever is killed and whenever.
//
// Two sides that can only send each other messages can never be sure that they agree: the
// last message may be lost. These two sides share a kernel. What it has queued stays
// readable after its sender died, and behind shutdown(2) no later message gets in. So:
//
//   - "taken" is the commit point. Once the new process has queued it, the connection is the
//     new one's, although the old one may not know yet.
//   - An old process that tires of waiting says "withdraw", shuts its socket down, and reads
//     the queue to its end. Either "taken" was in time, or it will never come. Until "withdraw"
//     is in the queue, it does not touch the connection.
//   - A new process whose "taken" no longer gets in reads to the end too. It finds "withdraw",
//     or an old process that died before it could take the connection back.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// message is one record on the control socket, after the hellos.
type message struct {
	Type    string `json:"type"`         // offer, taken, refused or withdraw
	ID      uint64 `json:"id,omitempty"` // which offer
	content        // offer: see parcel.go
	Reason  string `json:"reason,omitempty"` // refused, withdraw: in words
}

// nonsense is the type that receiveMessage gives to a record that is no message.
const nonsense = "nonsense"

// complaint says what is wrong with a message that has no place in the conversation.
func (m message) complaint() error {
	if m.Type == nonsense {
		return errors.New(m.Reason)
	}
	return fmt.Errorf("unexpected %q for offer %d", m.Type, m.ID)
}

// maxRecord bounds a record: an offer with a full buffer of unread input, in base64.
const maxRecord = 32 << 10

// errNobodyWaits is why a connection stays where it is when there is nowhere to go.
var errNobodyWaits = errors.New("no new process is waiting")

// giver is the old process's side of the control connection to a new one. One goroutine is in
// run, and makes one offer after the other; one is in listen, and passes the answers on to it.
// The connections' own goroutines call give, and wait in there.
type giver struct {
	to      peer
	control *socket.Conn
	timeout time.Duration // how long an offer may stay unanswered
	offers  chan offer
	gone    chan struct{} // closed by stop
	lastID  uint64
	over    bool // an offer has been withdrawn, and with it the conversation
}

// offer is a parcel on its way to the new process.
type offer struct {
	parcel
	result chan error
}

// newGiver gives nothing before run runs: until then, whoever wants to give waits. The control
// connection stays the caller's.
func newGiver(control *socket.Conn, to peer, timeout time.Duration) *giver {
	return &giver{to: to, control: control, timeout: timeout, offers: make(chan offer), gone: make(chan struct{})}
}

// give offers p to the new process. After nil its connection is the new one's: the caller closes
// its descriptor, and must not call shutdown(2), read or write. After an error, which is the
// reason in words, it is still the caller's, and untouched. Nothing may read or write it
// meanwhile.
func (g *giver) give(p parcel) error {
	o := offer{p, make(chan error, 1)}
	select {
	case g.offers <- o:
		return <-o.result
	case <-g.gone:
		return errNobodyWaits
	}
}

// stop tells everyone who waits to give something that nothing can be given any more.
func (g *giver) stop() { close(g.gone) }

// run gives one connection after the other, until the new process is gone, breaks the protocol
// or falls silent, which its error says; or until ctx ends, and no offer is open that must be
// answered all the same (answerTime). Then it is nil, and the caller calls stop, closes the control
// connection, and ends with ctx as well.
func (g *giver) run(ctx context.Context) error {
	answers := make(chan message)
	go g.listen(answers)
	for ctx.Err() == nil {
		select {
		case o := <-g.offers:
			o.result <- g.exchange(ctx, o, answers)
			if g.over {
				return fmt.Errorf("%v no longer waits", g.to)
			}
		case m, open := <-answers:
			if !open {
				return fmt.Errorf("%v no longer waits", g.to)
			}
			err := g.brokenBy(m)
			g.withdraw(ctx, 0, err, answers) // no offer is open
			return err
		case <-ctx.Done():
		}
	}
	return nil
}

// listen passes on what the new process says until end-of-file, and then closes answers.
func (g *giver) listen(answers chan<- message) {
	defer close(answers)
	for {
		m, _, err := receiveMessage(context.Background(), g.control, 0)
		switch {
		case errors.Is(err, io.EOF):
			return
		case err != nil: // the queue goes on, and what counts may still be in it
			m = message{Type: nonsense, Reason: err.Error()}
		}
		select {
		case answers <- m:
		case <-g.gone:
			return
		}
	}
}

// exchange makes one offer and returns nil once the new process has taken it. If ctx ends before
// there is an answer, and there is no more time to wait for one, it returns nil too: this process
// will never touch the connection again, and when its end of the control connection closes, the
// new process takes an orphan, if it has the descriptor by then.
func (g *giver) exchange(ctx context.Context, o offer, answers <-chan message) error {
	g.lastID++
	id := g.lastID
	inTime, cancel := answerTime(ctx, g.timeout)
	defer cancel()
	if err := o.send(inTime, g.control, id); err != nil {
		return fmt.Errorf("offer to %v: %w", g.to, err) // nothing was sent, so nothing is open
	}

	var reason error
	select {
	case a, open := <-answers:
		switch {
		case !open: // the queue has ended, and taken was not in it
			return fmt.Errorf("%v went away without taking it", g.to)
		case a.ID == id && a.Type == "taken":
			return nil
		case a.ID == id && a.Type == "refused":
			return fmt.Errorf("%v refused: %q", g.to, a.Reason)
		}
		reason = g.brokenBy(a)
	case <-inTime.Done():
		reason = fmt.Errorf("%v did not answer within %v", g.to, g.timeout)
	}
	if ctx.Err() != nil || g.withdraw(ctx, id, reason, answers) {
		return nil
	}
	return reason
}

// withdraw ends the conversation in such a way that both sides know who has the connection of
// the open offer. It reports whether that is not this process any more: the new one had taken
// it in time; or ctx ended before it could be withdrawn, as in exchange.
func (g *giver) withdraw(ctx context.Context, id uint64, reason error, answers <-chan message) (gone bool) {
	// In this order: a new process that finds the socket shut must find the reason before it,
	// or it would take the connection for an orphan. So this waits as long as it must.
	err := sendMessage(ctx, g.control, message{Type: "withdraw", ID: id, Reason: reason.Error()})
	if err != nil && !isGone(err) {
		log.Printf("withdraw offer %d of %v: %v", id, g.to, err)
		return true
	}
	if err := g.control.Shutdown(unix.SHUT_RDWR); err != nil {
		log.Printf("%v: %v", g.to, err) // not connected any more: the queue ends all the same
	}
	g.over = true
	for a := range answers {
		gone = gone || a.ID == id && a.Type == "taken"
	}
	return gone
}

// brokenBy is the error of an answer that nothing has asked for.
func (g *giver) brokenBy(m message) error {
	return fmt.Errorf("%v broke the protocol: %w", g.to, m.complaint())
}

// taker is the new process's side of the control connection to the old one.
type taker struct {
	from    peer
	control *socket.Conn
}

// take waits for the next parcel that is this process's to serve. Offers that are not what
// they say are refused. Its error is io.EOF when the old process is gone.
func (t *taker) take(ctx context.Context) (stolen, error) {
	for {
		m, fds, err := receiveMessage(ctx, t.control, offerFDs)
		if err != nil {
			return stolen{}, err
		}
		if m.Type == "withdraw" {
			return stolen{}, t.gaveUp(m)
		}
		s, err := t.open(m, fds)
		if err == nil {
			return t.commit(ctx, m, s)
		}
		if err := t.refuse(ctx, m, err); err != nil {
			return stolen{}, err
		}
	}
}

func (t *taker) refuse(ctx context.Context, m message, why error) error {
	log.Printf("refused offer %d of %v: %v", m.ID, t.from, why)
	err := sendMessage(ctx, t.control, message{Type: "refused", ID: m.ID, Reason: why.Error()})
	if isGone(err) {
		return nil // that is the next thing that we receive
	}
	return err
}

// open makes of a message and its descriptors what was offered, if it is that. It owns the
// descriptors: after an error they are closed.
func (t *taker) open(m message, fds []int) (stolen, error) {
	if m.Type != "offer" {
		return stolen{}, errors.Join(m.complaint(), closeFDs(fds))
	}
	return t.unpack(m.content, fds)
}

// commit says taken, before the first byte is read from or written to a connection.
func (t *taker) commit(ctx context.Context, m message, s stolen) (stolen, error) {
	err := sendMessage(ctx, t.control, message{Type: "taken", ID: m.ID})
	if isGone(err) {
		err = t.lastWord()
	}
	if err != nil {
		return stolen{}, errors.Join(err, s.Close())
	}
	return s, nil
}

// lastWord reads what the old process has left in the queue after it hung up: that it gave up
// on this process and serves the connection itself, which is an error, or nothing. Then it has
// died, and the connection is an orphan: nobody serves it but us.
func (t *taker) lastWord() error {
	for {
		m, _, err := receiveMessage(context.Background(), t.control, 0)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case m.Type == "withdraw":
			return t.gaveUp(m)
		}
	}
}

func (t *taker) gaveUp(m message) error {
	return fmt.Errorf("%v gave up: %q", t.from, m.Reason)
}

// sendMessage sends a message, whole or not at all, with duplicates of fds.
func sendMessage(ctx context.Context, c *socket.Conn, m message, fds ...int) error {
	record, err := json.Marshal(m)
	if err != nil {
		return err
	}
	trace("sending %s", record)
	if err := sendFDs(ctx, c, record, fds...); err != nil {
		return err
	}
	trace("sent %s", record)
	return nil
}

// receiveMessage waits for a message with at most most descriptors, which become the caller's.
// A record that is not such a message comes as one of type nonsense, with the reason; only
// the end of the conversation is an error.
func receiveMessage(ctx context.Context, c *socket.Conn, most int) (m message, fds []int, err error) {
	record := make([]byte, maxRecord)
	n, fds, err := receiveFDs(ctx, c, record, 0, most)
	if n == 0 {
		return message{}, nil, err
	}
	trace("received %#q", record[:n])
	jsonErr := json.Unmarshal(record[:n], &m) // in any case: a refusal should name its offer
	if err == nil {
		err = jsonErr
	}
	if err != nil {
		return message{Type: nonsense, ID: m.ID, Reason: err.Error()}, nil, closeFDs(fds)
	}
	return m, fds, nil
}
