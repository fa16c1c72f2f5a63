//go:build linux

package main

import (
	"context"
	"errors"
	"syscall"

	"github.com/mdlayher/socket"
)

// What travels in one offer: a connection, and what user space holds of it. The socket is not
// all of a connection: what the old process has read from it and not yet answered is in no
// queue of the kernel's any more.

// parcel is a connection whose reader has stopped, and what it had read too far.
type parcel struct {
	conn   syscall.Conn
	unread []byte
}

// content is the parcel in an offer.
type content struct {
	FD     int    `json:"fd,omitempty"`     // the descriptor's number in the old process
	Cookie uint64 `json:"cookie,omitempty"` // the socket's SO_COOKIE
	Unread []byte `json:"unread,omitempty"` // read from the socket, and not yet answered
}

// send offers the parcel. After an error nothing has been sent.
func (p parcel) send(ctx context.Context, control *socket.Conn, offer uint64) error {
	id, err := identify(p.conn)
	if err != nil {
		return err
	}
	m := message{Type: "offer", ID: offer, content: content{FD: id.fd, Cookie: id.cookie, Unread: p.unread}}
	return sendOffer(ctx, control, m, p.conn)
}

// stolen is a connection that has changed hands. Its owner closes it.
type stolen struct {
	conn   *socket.Conn
	unread []byte // comes before everything that conn still has to read
}

func (s stolen) Close() error { return s.conn.Close() }

// unpack makes a connection of an offer and its descriptors, if they are what they should be.
// It owns the descriptors: after an error they are closed.
func (t *taker) unpack(c content, fds []int) (stolen, error) {
	fd, err := t.fetchFD(c, fds)
	if err != nil {
		return stolen{}, errors.Join(err, closeFDs(fds))
	}
	if err := verify(fd, c.Cookie); err != nil {
		return stolen{}, errors.Join(err, closeFDs([]int{fd}))
	}
	// socket.New leaves the socket's options as they are; net.FileConn would set TCP_NODELAY
	// and the keep-alive times.
	conn, err := socket.New(fd, "tcp")
	if err != nil {
		return stolen{}, err
	}
	return stolen{conn, c.Unread}, nil
}
