//go:build linux

package main

// A chat over WebSockets: a mode. What a client has sent in part is in its state, and so is how far it has read
// the room.

import (
	"bytes"
	"errors"
	"io"
	"log"
	"net/http"
	"net/url"
	"unicode/utf8"

	"github.com/gobwas/ws"
	"golang.org/x/sys/unix"
)

// maxMessage is how long a message may be, all of its fragments together.
const maxMessage = 1 << 20

// chat is the mode of a WebSocket. A message comes in frames, and a frame in pieces.
type chat struct {
	Frame   ws.Header     `json:"frame"`         // what has begun to come
	Left    int64         `json:"left"`          // of its payload
	Kind    ws.OpCode     `json:"kind"`          // of the message that has begun: text or binary; 0: none has
	Message []byte        `json:"msg,omitempty"` // what has come of that
	Pong    []byte        `json:"pong"`          // the answer to the last ping; nil: there is none
	Code    ws.StatusCode `json:"code"`          // with which it is to be closed; 0: it is not
	Last    int64         `json:"last"`          // and only when what has been said up to here is read
	Reader  reader        `json:"reader"`        // of the room
}

// serveChat begins. A page of another site could use its visitor's address and cookies here: browsers say where
// the page is from, or "null". Who is no browser says nothing.
func serveChat(w http.ResponseWriter, r *http.Request) {
	if refused(w, r) {
		return
	}
	origin := r.Header.Get("Origin")
	if from, err := url.Parse(origin); origin != "" && (err != nil || from.Host != r.Host) {
		http.Error(w, "a page of another site", http.StatusForbidden)
		return
	}
	end, err := chatRoom.end()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	c, _, _, err := ws.UpgradeHTTP(r, w)
	if c != nil {
		defer c.Close() // it has been hijacked, also if it is no WebSocket
	}
	if err != nil {
		return // it has said so
	}
	x := c.(*exchange)
	// While its client reads nothing at all, a session waits in write, and step is not called. So the kernel ends it:
	// tcp(7). That is the socket's, and travels with it.
	_ = unix.SetsockoptInt(x.fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(patience.Milliseconds()))
	x.Chat = &chat{Reader: end} // what is said from now on
}

// step takes the frames that have come, as far as they have, and says what the room has said meanwhile.
func (c *chat) step(s *session) bool {
	for !s.Ended && c.Code == 0 && c.receive(s) {
	}
	if c.Code != 0 {
		s.In = shrink(s.In, len(s.In))
	}
	chatRoom.enter(s)
	return c.send(s)
}

// receive takes a frame from what has come, or a piece of one, and reports whether there may be more.
func (c *chat) receive(s *session) bool {
	if c.Left == 0 {
		in := bytes.NewReader(s.In)
		h, err := ws.ReadHeader(in)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return false
		}
		expects := ws.StateServerSide // so it must be masked: RFC 6455, 5.1
		if c.Kind != 0 {
			expects |= ws.StateFragmented
		}
		if err == nil {
			err = ws.CheckHeader(h, expects)
		}
		switch {
		case err != nil:
			return c.fail(ws.StatusProtocolError)
		case h.OpCode.IsControl() && int64(in.Len()) < h.Length:
			return false // it is short, and must be here as a whole
		case h.OpCode.IsData() && h.Length > maxMessage-int64(len(c.Message)): // before any of it is kept
			return c.fail(ws.StatusMessageTooBig)
		}
		s.In = shrink(s.In, len(s.In)-in.Len())
		c.Frame, c.Left = h, h.Length
	}
	// What follows is done once for a control frame, and for a data frame with each piece of it.
	n := min(c.Left, int64(len(s.In)))
	payload := bytes.Clone(s.In[:n])
	ws.Cipher(payload, c.Frame.Mask, int(c.Frame.Length-c.Left)) // unmasks
	s.In, c.Left = shrink(s.In, int(n)), c.Left-n
	switch c.Frame.OpCode {
	case ws.OpPing:
		c.Pong = append([]byte{}, payload...) // only the last one must be answered: RFC 6455, 5.5.3
	case ws.OpClose:
		c.close(payload)
	case ws.OpText, ws.OpBinary:
		c.Kind = c.Frame.OpCode
		fallthrough
	case ws.OpContinuation:
		c.Message = append(c.Message, payload...)
		if c.Left == 0 && c.Frame.Fin {
			c.post()
		}
	}
	return c.Left == 0
}

// fail has the connection closed, when its client has heard what it has said before.
func (c *chat) fail(code ws.StatusCode) (more bool) {
	end, _ := chatRoom.end() // if it fails, so does what is read, and closes it too
	c.Code, c.Last = code, end.At
	return false
}

// close answers a close frame with the same code, if that is one that may be sent.
func (c *chat) close(payload []byte) {
	code, reason := ws.ParseCloseFrameData(payload)
	switch {
	case len(payload) == 0:
		code = ws.StatusNormalClosure
	case ws.CheckCloseFrameData(code, reason) != nil:
		code = ws.StatusProtocolError
	}
	c.fail(code)
}

// post gives a whole message to the room. Whether it is UTF-8 can only be said of the whole: a fragment may end
// within a rune (RFC 6455, 5.6).
func (c *chat) post() {
	message, kind := c.Message, c.Kind
	c.Message, c.Kind = nil, 0
	if kind == ws.OpText && !utf8.Valid(message) {
		c.fail(ws.StatusInvalidFramePayloadData)
	} else if err := chatRoom.post(ws.NewFrame(kind, true, message)); err != nil {
		log.Print(err)
		c.fail(ws.StatusInternalServerError)
	}
}

// send says what has been said in the room, as much as fits; and, between two frames, what concerns this
// client alone.
func (c *chat) send(s *session) bool {
	for len(s.Out) < bufferSize/2 {
		between := c.Reader.Left == 0
		if between && c.Pong != nil {
			s.frame(ws.NewPongFrame(c.Pong))
			c.Pong = nil
		}
		if between && c.Code != 0 && c.Reader.At >= c.Last {
			s.frame(ws.NewCloseFrame(ws.NewCloseFrameBody(c.Code, "")))
			s.Chat, s.Bye = nil, &farewell{}
			break
		}
		some, err := chatRoom.read(&c.Reader)
		if err != nil && between {
			c.Code, c.Last = closeCode(err), 0
			continue
		} else if err != nil { // within a frame nothing else can be said
			s.Chat, s.Bye = nil, &farewell{}
			break
		}
		if len(some) == 0 {
			break
		}
		s.say(some)
	}
	return len(s.Out) > 0 || s.Bye != nil
}

// closeCode is what a client is told that cannot read on.
func closeCode(err error) ws.StatusCode {
	switch {
	case errors.Is(err, errBehind):
		return ws.StatusPolicyViolation
	case errors.Is(err, errOther):
		return 1012 // "service restart": the registry of RFC 6455, 11.7
	}
	return ws.StatusInternalServerError
}

// frame says a frame. A control frame is short enough that this cannot fail.
func (s *session) frame(f ws.Frame) {
	if bytes, err := ws.CompileFrame(f); err == nil {
		s.say(bytes)
	}
}
