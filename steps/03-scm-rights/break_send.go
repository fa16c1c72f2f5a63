//go:build linux

package main

// Mistakes in sending.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// One sendmsg(2) takes 253 descriptors (SCM_MAX_FD), or none at all (unix(7)).
func breakTooMany(ctx context.Context, b *bench) error {
	all := slices.Repeat([]int{b.null}, maxFDs+1)
	_, err := sendRaw(ctx, b.from, []byte("all"), rights(all...))
	b.wrong("%d in one message: %v", len(all), err)

	var arrived []string
	for batch := range slices.Chunk(all, maxFDs) {
		if err := sendFDs(ctx, b.from, []byte("some"), batch...); err != nil {
			return err
		}
		_, fds, err := receiveFDs(ctx, b.to, make([]byte, 16), 1, maxFDs)
		if err := errors.Join(err, closeFDs(fds)); err != nil {
			return err
		}
		arrived = append(arrived, fmt.Sprint(len(fds)))
	}
	b.right("sendFDs: %v", sendFDs(ctx, b.from, []byte("all"), all...))
	b.right("%d in %d messages: there arrive %s", len(all), len(arrived), strings.Join(arrived, " + "))
	return nil
}

// Descriptors travel with payload (unix(7)). Without any, a stream takes them and loses them,
// and a record looks like end-of-file to whoever goes by what recvmsg(2) returns.
func breakNoPayload(ctx context.Context, b *bench) error {
	for _, way := range []struct {
		say     say
		name    string
		kind    int
		payload string
	}{
		{b.wrong, "SOCK_STREAM", unix.SOCK_STREAM, ""},
		{b.wrong, "SOCK_SEQPACKET", unix.SOCK_SEQPACKET, ""},
		{b.right, "SOCK_STREAM", unix.SOCK_STREAM, "x"},
		{b.right, "SOCK_SEQPACKET", unix.SOCK_SEQPACKET, "x"},
	} {
		arrived, err := sendAll(ctx, way.kind, parcel{way.payload, 1})
		if err != nil {
			return err
		}
		way.say("%s: payload+descriptors sent: %v; arrived: %v", way.name, parcel{way.payload, 1}, arrived)
	}
	b.right("sendFDs refuses: %v", sendFDs(ctx, b.from, nil, b.null))
	return nil
}

// A stream has no records. recvmsg(2) goes on until its buffer is full, or until behind a
// piece with descriptors, so that they come with the bytes of earlier messages.
func breakStreamCoalescing(ctx context.Context, b *bench) error {
	four := []parcel{{"AAAA", 0}, {"aaaa", 0}, {"BBBB", 1}, {"CCCC", 1}}
	for _, way := range []struct {
		say  say
		name string
		kind int
	}{
		{b.wrong, "SOCK_STREAM", unix.SOCK_STREAM},
		{b.right, "SOCK_SEQPACKET", unix.SOCK_SEQPACKET},
	} {
		arrived, err := sendAll(ctx, way.kind, four...)
		if err != nil {
			return err
		}
		way.say("%s: payload+descriptors sent: %v; arrived: %v", way.name, four, arrived)
	}
	return nil
}

// parcel is what goes into one sendmsg(2), or comes out of one recvmsg(2).
type parcel struct {
	payload string
	fds     int
}

func (p parcel) String() string { return fmt.Sprintf("%q+%d", p.payload, p.fds) }

// sendAll sends parcels over a pair of sockets, and returns what arrives until end-of-file.
func sendAll(ctx context.Context, kind int, parcels ...parcel) (arrived []parcel, err error) {
	b, err := newBench(kind, io.Discard)
	if err != nil {
		return nil, err
	}
	defer b.close()
	for _, p := range parcels {
		control := rights(slices.Repeat([]int{b.null}, p.fds)...)
		if _, err := sendRaw(ctx, b.from, []byte(p.payload), control); err != nil {
			return nil, err
		}
	}
	if err := b.from.CloseWrite(); err != nil {
		return nil, err
	}
	for {
		got, err := take(ctx, b.to, maxFDs, unix.MSG_CMSG_CLOEXEC)
		if err := errors.Join(err, closeFDs(got.fds)); err != nil {
			return nil, err
		}
		p := parcel{got.payload, len(got.fds)}
		if p == (parcel{}) {
			return arrived, nil
		}
		arrived = append(arrived, p)
	}
}
