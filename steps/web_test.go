//go:build linux

package steps

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"golang.org/x/sys/unix"
)

// Step 08: what crosses a restart is HTTP, events and WebSockets.

var webStep = steps[slices.IndexFunc(steps, func(s step) bool { return s.web })]

// greet is a whole exchange with a step whose connections move.
func (s step) greet(c *client, text string) {
	c.t.Helper()
	if s.web {
		c.posted(text)
	} else {
		c.echoed(text)
	}
}

// half is the beginning of a line, or of a request with one: "line\n" is the rest.
func (s step) half() string {
	if s.web {
		return post("half a line\n", "half a ")
	}
	return "half a "
}

// read reads the answer, or nothing if the connection has ended.
func (s step) read(c *client) (string, error) {
	if !s.web {
		return c.in.ReadString('\n')
	}
	answer, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return "", err
	}
	body, err := io.ReadAll(answer.Body)
	return string(body), err
}

// post is a request whose body comes back, with as much of that as is to be sent now.
func post(body, now string) string {
	return fmt.Sprintf("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n%s", len(body), now)
}

// answered reads an answer, and compares its body. It reports whether the connection is to be closed.
func (c *client) answered(status int, body string) (closes bool) {
	c.t.Helper()
	answer, err := http.ReadResponse(c.in, nil)
	if err != nil {
		c.t.Fatalf("client %v: %v", c.LocalAddr(), err)
	}
	got, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != status || string(got) != body {
		c.t.Fatalf("client %v: %s, %.100q (%d bytes), %v; want %d and %.100q (%d bytes)", c.LocalAddr(), answer.Status, got, len(got), err, status, body, len(body))
	}
	return answer.Close
}

func (c *client) posted(body string) {
	c.t.Helper()
	c.send(post(body, body))
	if c.answered(200, body) {
		c.t.Fatalf("client %v is to close its connection", c.LocalAddr())
	}
}

// TestWebKills: the rows of hotKills, with half a request on each connection.
func TestWebKills(t *testing.T) { webStep.dies(t) }

// TestWebRestarts: requests of any kind, events and messages, under load, over one restart after the other. The
// server ends no connection, and all that a client receives is what it should be.
func TestWebRestarts(t *testing.T) {
	t.Parallel()
	path := meetingPlace(t)
	server := webStep.first(t, path)
	addr := server.addr()
	var all sync.WaitGroup
	var over atomic.Bool
	var received atomic.Int64
	clients := rounds(20, 200)
	for id := range clients {
		for kind, talk := range map[string]func(c *client, id int, over *atomic.Bool, received *atomic.Int64) error{
			"requests": talkHTTP, "events": hearEvents, "chat": talkChat,
		} {
			c := dial(t, addr)
			all.Go(func() {
				if err := talk(c, id, &over, &received); err != nil {
					t.Errorf("%s, client %d: %v", kind, id, err)
				}
			})
		}
	}
	for range rounds(3, 10) {
		for enough := received.Load() + int64(10*clients); received.Load() < enough && !t.Failed(); {
			time.Sleep(time.Millisecond)
		}
		after := webStep.next(t, path, addr).listens()
		server.exits(0)
		server = after
	}
	over.Store(true)
	all.Wait()
}

// talkHTTP is Go's own client. It takes another connection only if it has closed the first by itself: on a busy machine
// it does, if it has not noticed within 50 ms that its request is out (maxWriteWaitBeforeConnReuse in net/http). A
// connection that comes while the server restarts may be one that it does not wait for: that one may be ended.
func talkHTTP(c *client, id int, over *atomic.Bool, received *atomic.Int64) error {
	mine := &watched{client: c}
	transport := &http.Transport{MaxConnsPerHost: 1, ExpectContinueTimeout: patience, DialContext: func(context.Context, string, string) (net.Conn, error) {
		if !mine.closed.Swap(false) {
			return mine, nil
		}
		if mine.ended.Load() && mine.client == c {
			return nil, errors.New("the server has ended its connection")
		}
		again, err := net.Dial("tcp", c.RemoteAddr().String())
		if err != nil {
			return nil, err
		}
		mine = &watched{client: &client{c.t, again.(*net.TCPConn), nil}}
		return mine, nil
	}}
	defer transport.CloseIdleConnections()
	random, base := rand.New(rand.NewSource(int64(id))), "http://"+c.RemoteAddr().String()
	for !over.Load() {
		body := bytes.Repeat([]byte{byte('a' + random.Intn(26))}, 1<<random.Intn(18))
		method, url, want := http.MethodPost, base+"/echo", string(body)
		var send io.Reader = bytes.NewReader(body)
		kind := random.Intn(5)
		switch kind {
		case 0:
			send = io.MultiReader(send) // of unknown length: chunked
		case 1:
			method, url, send = http.MethodGet, base+"/who", nil
		case 2:
			method, url, send, want = http.MethodHead, base+"/", nil, ""
		}
		request, err := http.NewRequest(method, url, send)
		if err != nil {
			return err
		}
		if kind == 3 {
			request.Header.Set("Expect", "100-continue")
		}
		answer, err := transport.RoundTrip(request)
		if err != nil {
			return fmt.Errorf("kind %d: %w", kind, err)
		}
		got, err := io.ReadAll(answer.Body)
		if answer.Close && mine.client == c {
			return errors.New("it is told to come again")
		}
		if kind == 1 { // it may have had to dial for this one
			want = mine.LocalAddr().String()
		}
		if err != nil || answer.StatusCode != 200 || kind != 1 && string(got) != want || !bytes.Contains(got, []byte(want)) {
			return fmt.Errorf("kind %d: %s, %.100q (%d bytes), %w; want %.100q (%d bytes)", kind, answer.Status, got, len(got), err, want, len(want))
		}
		received.Add(1)
	}
	return nil
}

// watched knows who has ended a connection first.
type watched struct {
	*client
	closed, ended atomic.Bool
}

func (w *watched) Read(b []byte) (int, error) {
	n, err := w.client.Read(b)
	if err != nil && !w.closed.Load() {
		w.ended.Store(true)
	}
	return n, err
}

func (w *watched) Close() error {
	w.closed.Store(true)
	return w.client.Close()
}

// hearEvents reads events: their numbers have no gap.
func hearEvents(c *client, _ int, over *atomic.Bool, received *atomic.Int64) error {
	if _, err := io.WriteString(c, "GET /events HTTP/1.1\r\nHost: test\r\nLast-Event-ID: 41\r\n\r\n"); err != nil {
		return err
	}
	answer, err := http.ReadResponse(c.in, nil)
	if err != nil || answer.Header.Get("Content-Type") != "text/event-stream" {
		return fmt.Errorf("%v, %w", answer, err)
	}
	for want := 42; !over.Load(); want++ {
		var lines [3]string
		for i := range lines {
			if lines[i], err = c.in.ReadString('\n'); err != nil {
				return err
			}
		}
		if lines[0] != fmt.Sprintf("id: %d\n", want) || !matches(`^data: {"pid": \d+, "generation": \d+}\n\n$`, lines[1]+lines[2]) {
			return fmt.Errorf("got %q, want number %d", lines, want)
		}
		received.Add(1)
	}
	return nil
}

// talkChat says something, in fragments, and reads until that has come back. What others say has no gap.
func talkChat(c *client, id int, over *atomic.Bool, received *atomic.Int64) error {
	w, err := upgrade(c)
	if err != nil {
		return err
	}
	random, heard := rand.New(rand.NewSource(int64(id))), map[int]int{}
	for n := 0; !over.Load(); n++ {
		// Who is one of many says less, as all of them must hear it: else the machine does nothing but that.
		time.Sleep(time.Duration(random.Intn(10*len(heard)+1)) * time.Millisecond)
		text := fmt.Appendf(nil, "%d %d %s", id, n, strings.Repeat("x", 1<<random.Intn(10)))
		cut := random.Intn(len(text))
		w.sends(frame(ws.OpText, false, text[:cut]), frame(ws.OpPing, true, []byte("?")), frame(ws.OpContinuation, true, text[cut:]))
		for mine, ponged := false, false; !mine || !ponged; {
			f, err := w.receive()
			var from, number int
			switch fmt.Sscan(string(f.Payload), &from, &number); {
			case err != nil:
				return err
			case f.Header.OpCode == ws.OpPong && string(f.Payload) == "?":
				ponged = true
				continue
			case f.Header.OpCode != ws.OpText:
				return fmt.Errorf("got %+v", f.Header)
			}
			if last, known := heard[from]; known && number != last+1 {
				return fmt.Errorf("got %.30q behind %d", f.Payload, last)
			}
			heard[from] = number
			mine = mine || from == id && number == n && bytes.Equal(f.Payload, text)
		}
		received.Add(1)
	}
	return nil
}

// webSocket is a client's end.
type webSocket struct{ *client }

// upgrade makes a WebSocket of a connection.
func upgrade(c *client) (webSocket, error) {
	_, err := io.WriteString(c, "GET /chat HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	if err != nil {
		return webSocket{}, err
	}
	answer, err := http.ReadResponse(c.in, nil)
	if err == nil && answer.Header.Get("Sec-WebSocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" { // RFC 6455, 1.3
		err = fmt.Errorf("no WebSocket: %s", answer.Status)
	}
	return webSocket{c}, err
}

func dialChat(t *testing.T, addr string) webSocket {
	t.Helper()
	w, err := upgrade(dial(t, addr))
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// frame is a client's, masked.
func frame(op ws.OpCode, fin bool, payload []byte) []byte {
	bytes, err := ws.CompileFrame(ws.MaskFrame(ws.NewFrame(op, fin, payload)))
	if err != nil {
		panic(err)
	}
	return bytes
}

// sends sends frames in one piece; if that fails, nothing is received.
func (w webSocket) sends(frames ...[]byte) { _, _ = w.Write(bytes.Join(frames, nil)) }

func (w webSocket) receive() (f ws.Frame, err error) {
	if f.Header, err = ws.ReadHeader(w.in); err == nil {
		f.Payload = make([]byte, f.Header.Length)
		_, err = io.ReadFull(w.in, f.Payload)
	}
	return f, err
}

// hears expects a frame.
func (w webSocket) hears(op ws.OpCode, payload string) {
	w.t.Helper()
	f, err := w.receive()
	if err != nil || f.Header.OpCode != op || !f.Header.Fin || f.Header.Masked || string(f.Payload) != payload {
		w.t.Fatalf("got %+v %.50q, %v; want %v %.50q", f.Header, f.Payload, err, op, payload)
	}
}

// TestRequestCut: a request that has come up to any of its bytes, in whichever kind of body, when the server is
// restarted. What has not come may be in the kernel, or in the session.
func TestRequestCut(t *testing.T) {
	t.Parallel()
	path := meetingPlace(t)
	server := webStep.first(t, path)
	addr := server.addr()
	request := post("a body with a length", "a body with a length")
	var clients []*client
	for i := range len(request) {
		c := dial(t, addr)
		c.posted("hello")
		c.send(request[:i])
		clients = append(clients, c)
	}
	for moves := range rounds(2, 20) {
		after := webStep.next(t, path, addr).listens()
		server.exits(0)
		server = after
		for i, c := range clients {
			if at := i + moves; at < len(request) {
				c.send(request[at : at+1])
			}
		}
	}
	for i, c := range clients {
		if at := i + rounds(2, 20); at < len(request) {
			c.send(request[at:])
		}
		c.answered(200, "a body with a length")
		c.posted("and on")
	}
}

// TestRunningHandler: a request that is being answered is waited for. If that takes too long, it is answered
// where it is, and its client is told to come again. (Too long is 10 s here: that is also as long as another process
// may take for an answer, on the slowest machine.)
func TestRunningHandler(t *testing.T) {
	t.Parallel()
	bodies := []struct{ name, begin, end string }{
		{"chunked", "POST /echo HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n6\r\n wo", "rld\r\n0\r\nA: trailer\r\n\r\n"},
		{"continued", "POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 11\r\nExpect: 100-continue\r\n\r\nhello wo", "rld"},
		{"long", post(strings.Repeat("x", 40<<10), "x"), strings.Repeat("x", 40<<10-1)},
	}
	for _, body := range bodies[:rounds(1, len(bodies))] { // each waits for a time-out that is real
		t.Run(body.name, func(t *testing.T) {
			t.Parallel()
			want := "hello world"
			if body.name == "long" {
				want = strings.Repeat("x", 40<<10)
			}
			path := meetingPlace(t)
			old := webStep.first(t, path)
			addr := old.addr()
			busy, other := dial(t, addr), dial(t, addr)
			other.posted("hello")
			inode := other.inode()
			begin := func() {
				busy.send(body.begin)
				if body.name == "continued" { // its handler has asked for more
					busy.expect("HTTP/1.1 100 Continue\r", "\r")
				}
				eventually(t, "its handler reads", func() bool { return unread(t, busy) == 0 })
			}
			begin()
			young := webStep.next(t, path, addr, args("-timeout", "10s"))
			eventually(t, "the other one moves", func() bool { return young.has(inode) })
			other.posted("not disturbed")
			if young.has(busy.inode()) {
				t.Error("it has moved, although its handler runs")
			}
			busy.send(body.end)
			if busy.answered(200, want) {
				t.Error("it is to close its connection")
			}
			busy.posted("and on")
			young.listens()
			old.exits(0)
			busy.posted("with the new one")

			begin()
			webStep.next(t, path, addr).listens()
			young.logged(`draining for up to 1h0m0s: clients 1`)
			busy.send(body.end)
			if !busy.answered(200, want) {
				t.Error("it is not told to come again")
			}
			busy.ended()
			young.exits(0)
			other.posted("not disturbed")
		})
	}
}

// unread is how much the server has not read of what a client has sent, by proc_net(5).
func unread(t *testing.T, c *client) (n int) {
	t.Helper()
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	local, remote := c.LocalAddr().(*net.TCPAddr).Port, c.RemoteAddr().(*net.TCPAddr).Port
	for row := range strings.Lines(string(table)) {
		f := strings.Fields(row)
		if strings.HasSuffix(f[1], fmt.Sprintf(":%04X", remote)) && strings.HasSuffix(f[2], fmt.Sprintf(":%04X", local)) {
			_, queue, _ := strings.Cut(f[4], ":")
			fmt.Sscanf(queue, "%x", &n)
			return n
		}
	}
	t.Fatalf("the server's end of %v is not in /proc/net/tcp", c.LocalAddr())
	return 0
}

// TestSlowReader: an answer that its client does not read. If it is short enough, its handler returns, and the
// rest travels. A longer one is sent to its end by the process in which it has begun.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	path := meetingPlace(t)
	old := webStep.first(t, path, args("-timeout", "10s"))
	addr := old.addr()
	slow := map[int]*client{}
	for _, size := range []int{900 << 10, 16 << 20} {
		c := dial(t, addr)
		c.stream.(*net.TCPConn).SetReadBuffer(64 << 10)
		c.posted("hello")
		slow[size] = c
		body := bodyOf(size)
		c.send(post(body, body)) // which the handler has read whole when this returns, but for what the kernel holds
		eventually(t, "its handler has read all, and answers", func() bool { return unread(t, c) == 0 })
	}
	// The kernel holds some megabytes at most: the long answer is not out. The short one has left its handler.
	young := webStep.next(t, path, addr).listens()
	old.logged(`draining for up to 1h0m0s: clients 1`)
	if !young.has(slow[900<<10].inode()) || young.has(slow[16<<20].inode()) {
		t.Error("the short answer has not moved, or the long one has")
	}
	for size, c := range slow {
		c.answered(200, bodyOf(size))
	}
	old.exits(0)
	slow[16<<20].ended()
	slow[900<<10].posted("and on")
}

// TestHalfClosed: a client that sends nothing more gets its answers, and then end-of-file: also from the next
// process. So it is with requests that have come together.
func TestHalfClosed(t *testing.T) {
	t.Parallel()
	path := meetingPlace(t)
	server := webStep.first(t, path)
	addr := server.addr()
	var clients []*client
	big := strings.Repeat("x", 100<<10)
	for i := range 6 {
		c := dial(t, addr)
		go func() { // it may be more than the kernel holds: it is sent while the answers are read
			for n := range 20 {
				io.WriteString(c, post(big, fmt.Sprint(n, big)[:len(big)])) // what fails is not answered
			}
			if i%2 == 0 {
				c.CloseWrite()
			}
		}()
		clients = append(clients, c)
	}
	for n := range 20 {
		for _, c := range clients {
			c.answered(200, fmt.Sprint(n, big)[:len(big)])
		}
		if n%rounds(7, 2) == 1 {
			after := webStep.next(t, path, addr).listens()
			server.exits(0)
			server = after
		}
	}
	for i, c := range clients {
		if i%2 == 0 {
			c.ended()
		} else {
			c.posted("and on")
		}
	}
}

// TestWebIdle: thousands of keep-alive connections that say nothing, and all of them are there afterwards.
func TestWebIdle(t *testing.T) {
	t.Parallel()
	crowd(t)
	path := meetingPlace(t)
	server := webStep.first(t, path)
	addr := server.addr()
	var clients []*client
	for range rounds(300, 10_000) {
		c := dial(t, addr)
		c.in = bufio.NewReaderSize(c, 256)
		c.posted("hello")
		clients = append(clients, c)
	}
	for range 3 {
		after := webStep.next(t, path, addr).listens()
		after.logged(fmt.Sprintf(`connections moved: %d,`, len(clients)))
		server.exits(0)
		server = after
	}
	for _, c := range clients {
		c.posted("still here")
	}
}

// TestSlowHead: who does not finish a request is ended in time, by whichever process: a restart gives it no
// more time. Nor does it disturb the standstill, or anybody else.
func TestSlowHead(t *testing.T) {
	t.Parallel()
	path := meetingPlace(t)
	const patience = 2 * time.Second
	server := webStep.first(t, path, args("-patience", patience.String()))
	addr := server.addr()
	idle, slow, body := dial(t, addr), dial(t, addr), dial(t, addr)
	idle.posted("hello")
	slow.posted("hello")
	begin := time.Now()
	slow.send("GET / HT")
	body.send(post("hello", "hell"))
	for range 3 {
		webStep.next(t, path, addr, args("-patience", patience.String())).listens()
		if _, err := io.WriteString(slow, "x"); err != nil {
			t.Log(err) // it has ended
		}
	}
	slow.ended()
	body.ended()
	if took := time.Since(begin); took < patience {
		t.Errorf("ended after %v", took)
	}
	idle.posted("still here")
}

// TestBadRequests: what net/http says of them is said, the connection ends where it must, and nothing is left.
func TestBadRequests(t *testing.T) {
	t.Parallel()
	path := meetingPlace(t)
	server := webStep.first(t, path)
	addr := server.addr()
	bystander := dial(t, addr)
	bystander.posted("hello")
	keepsFDs := server.keepsFDs()
	smuggled := "GET /who HTTP/1.1\r\nHost: smuggled\r\n\r\n"
	for what, row := range map[string]struct {
		request string
		status  int // of the only answer; 0: there is none
	}{
		"nonsense":                     {"\x16\x03\x01 nonsense\r\n\r\n" + smuggled, 400},
		"nonsense, without an end":     {strings.Repeat("x", 17<<10), 431},
		"empty lines":                  {"\r\n\r\n" + smuggled, 200}, // RFC 9112, 2.2: not a request, and so there is one
		"an empty line that is none":   {"\n" + smuggled, 400},
		"a head over the limit":        {"GET / HTTP/1.1\r\nHost: x\r\nA: " + strings.Repeat("a", 20<<10) + "\r\n\r\n", 431},
		"many lines over the limit":    {"GET / HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("A: a\r\n", 4<<10) + "\r\n", 431},
		"no host":                      {"GET / HTTP/1.1\r\n\r\n" + smuggled, 400},
		"a header that is none":        {"GET / HTTP/1.1\r\nHost: x\r\nA b\r\n\r\n" + smuggled, 400},
		"another version":              {"GET / HTTP/3.0\r\nHost: x\r\n\r\n" + smuggled, 505},
		"HTTP/2, without asking":       {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400},
		"two lengths":                  {"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello" + smuggled, 400},
		"a length that is none":        {"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n\r\nhello" + smuggled, 400},
		"a length below 0":             {"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\nhello" + smuggled, 400},
		"a length, and chunked":        {"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" + smuggled, 200},
		"chunked twice":                {"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n" + smuggled, 501},
		"an encoding that nobody has":  {"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n" + smuggled, 501},
		"a chunk that is none":         {"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n" + smuggled, 413},
		"a chunk line that never ends": {"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5;" + strings.Repeat("x", 20<<10), 413},
		"a chunk with a bare newline":  {"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n" + smuggled, 413},
		"a chunk that is longer":       {"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhello\r\n0\r\n\r\n" + smuggled, 413},
		"a body over the limit":        {"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n" + strings.Repeat("x", 17<<20), 413},
		"an expectation":               {"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: more\r\n\r\nhello" + smuggled, 417},
		"HTTP/1.0":                     {"GET /who HTTP/1.0\r\n\r\n" + smuggled, 200},
		"HTTP/1.0, and chunked":        {"POST /echo HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n" + smuggled, 200},
		"the same, with a length":      {"POST /echo HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\nhello" + smuggled, 200},
		"no WebSocket":                 {"GET /chat HTTP/1.1\r\nHost: x\r\n\r\n" + smuggled, 400},
		"a WebSocket in HTTP/1.0":      {"GET /chat HTTP/1.0\r\n\r\n" + smuggled, 505},
		"the head of a WebSocket":      {"HEAD /chat HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" + smuggled, 405},
		"connection: close":            {"GET /who HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" + smuggled, 200},
		"the end within a head":        {"GET / HT", 0},
		"the end within a body":        {post("hello", "hell"), 0},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			c := dial(t, addr)
			go func() { // it may be cut off before all of it is sent
				io.WriteString(c, row.request)
				c.CloseWrite()
			}()
			all, err := io.ReadAll(c.in)
			if err != nil && !errors.Is(err, unix.ECONNRESET) {
				t.Fatal(err)
			}
			if row.status == 0 && len(all) > 0 || bytes.Count(all, []byte("HTTP/1.")) > 1 {
				t.Fatalf("got %.500q", all)
			}
			if answer, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(all)), nil); row.status > 0 && (err != nil || answer.StatusCode != row.status) {
				t.Errorf("got %.300q, want status %d", all, row.status)
			}
		})
	}
	t.Cleanup(func() { // when all of these have ended
		bystander.posted("not disturbed")
		keepsFDs()
		webStep.next(t, path, addr).listens()
		bystander.posted("not disturbed")
		server.exits(0)
	})
}

// TestCurl: what people type.
func TestCurl(t *testing.T) {
	t.Parallel()
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip(err)
	}
	path := meetingPlace(t)
	old := webStep.first(t, path)
	base := "http://" + old.addr()
	run := func(args ...string) string {
		out, err := exec.Command(curl, append([]string{"-sS", "--fail", "--max-time", "60"}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("curl %q: %v\n%s", args, err, out)
		}
		return string(out)
	}
	if got := run("-d", "hello", base+"/echo"); got != "hello" {
		t.Errorf("got %q", got)
	}
	if got := run("-I", base+"/"); !strings.Contains(got, "Content-Type: text/html") {
		t.Errorf("got %q", got)
	}
	for _, stays := range []string{"-0", "--http2"} { // an offer of HTTP/2 is not taken
		if got := run(stays, base+"/who"); !strings.Contains(got, fmt.Sprintf(`"pid":%d`, old.pid)) {
			t.Errorf("got %q", got)
		}
	}
	if got := run("-w", "%{num_connects} ", "-d", "hello", base+"/echo", base+"/echo", base+"/echo"); got != "hello1 hello0 hello0 " {
		t.Errorf("got %q: not one connection", got)
	}
	events := start(t, curl, args("-sSN", base+"/events"))
	pipe, upload := io.Pipe()
	chunked := start(t, curl, args("-sS", "-T", "-", "-X", "POST", base+"/echo"), func(cmd *exec.Cmd) { cmd.Stdin = pipe })
	io.WriteString(upload, "half of ")
	eventually(t, "some events", func() bool { return strings.Count(events.out.String(), "id: ") > 2 })
	young := webStep.next(t, path, old.addr())
	io.WriteString(upload, "an upload")
	upload.Close()
	chunked.exits(0)
	if got := chunked.out.String(); got != "half of an upload" {
		t.Errorf("curl uploaded, and got %q", got)
	}
	young.listens()
	old.exits(0)
	eventually(t, "events of the new process", func() bool { return strings.Contains(events.out.String(), fmt.Sprintf(`"pid": %d`, young.pid)) })
	for i, line := range slices.DeleteFunc(strings.Split(events.out.String(), "\n"), func(line string) bool { return !strings.HasPrefix(line, "id: ") }) {
		if line != fmt.Sprintf("id: %d", i+1) {
			t.Fatalf("got %q as number %d", line, i+1)
		}
	}
}

// webSockets: what a client sends, and what it gets, in a room where it is alone. "close N" is a close frame with that
// code, behind which the connection ends.
var webSockets = []struct {
	name string
	send [][]byte
	want []string
}{
	{"text", frames(frame(ws.OpText, true, []byte("hello"))), []string{"text hello"}},
	{"nothing", frames(frame(ws.OpText, true, nil)), []string{"text "}},
	{"binary", frames(frame(ws.OpBinary, true, []byte{0, 0xff})), []string{"binary \x00\xff"}},
	{"125 bytes", frames(frame(ws.OpText, true, xs(125))), []string{"text " + string(xs(125))}},
	{"126 bytes", frames(frame(ws.OpText, true, xs(126))), []string{"text " + string(xs(126))}},
	{"64 KiB - 1", frames(frame(ws.OpText, true, xs(64<<10-1))), []string{"text " + string(xs(64<<10-1))}},
	{"64 KiB", frames(frame(ws.OpText, true, xs(64<<10))), []string{"text " + string(xs(64<<10))}},
	{"1 MiB", frames(frame(ws.OpText, true, xs(1<<20))), []string{"text " + string(xs(1<<20))}},
	{"1 MiB and a byte", frames(frame(ws.OpText, true, xs(1<<20+1))), []string{"close 1009"}},
	{"a length of 2^62", frames([]byte("\x82\xff\x40\x00\x00\x00\x00\x00\x00\x00mask")), []string{"close 1009"}},
	{"a length of 2^63", frames([]byte("\x82\xff\x80\x00\x00\x00\x00\x00\x00\x00mask")), []string{"close 1002"}},
	{"two in one piece", frames(frame(ws.OpText, true, []byte("a")), frame(ws.OpText, true, []byte("b"))), []string{"text a", "text b"}},
	{"three fragments", frames(frame(ws.OpText, false, []byte("a")), frame(ws.OpContinuation, false, []byte("b")), frame(ws.OpContinuation, true, []byte("c"))), []string{"text abc"}},
	{"empty fragments", frames(frame(ws.OpText, false, nil), frame(ws.OpContinuation, false, nil), frame(ws.OpContinuation, true, nil)), []string{"text "}},
	{"fragments of more than 1 MiB", frames(frame(ws.OpText, false, xs(1<<20)), frame(ws.OpContinuation, true, xs(1))), []string{"close 1009"}},
	{"a ping between fragments", frames(frame(ws.OpBinary, false, []byte("a")), frame(ws.OpPing, true, []byte("?")), frame(ws.OpContinuation, true, []byte("b"))), []string{"pong ?", "binary ab"}},
	{"a continuation of nothing", frames(frame(ws.OpContinuation, true, []byte("a"))), []string{"close 1002"}},
	{"a continuation behind the last fragment", frames(frame(ws.OpText, true, []byte("a")), frame(ws.OpContinuation, true, []byte("b"))), []string{"text a", "close 1002"}},
	{"a text within a text", frames(frame(ws.OpText, false, []byte("a")), frame(ws.OpText, true, []byte("b"))), []string{"close 1002"}},
	{"ping", frames(frame(ws.OpPing, true, nil)), []string{"pong "}},
	{"a ping of 125 bytes", frames(frame(ws.OpPing, true, xs(125))), []string{"pong " + string(xs(125))}},
	{"a ping of 126 bytes", frames(frame(ws.OpPing, true, xs(126))), []string{"close 1002"}},
	{"a ping in fragments", frames(frame(ws.OpPing, false, nil)), []string{"close 1002"}},
	{"a pong that nobody has asked for", frames(frame(ws.OpPong, true, []byte("!")), frame(ws.OpText, true, []byte("a"))), []string{"text a"}},
	{"text that is no UTF-8", frames(frame(ws.OpText, true, []byte("a\xffb"))), []string{"close 1007"}},
	{"text that ends within a rune", frames(frame(ws.OpText, true, []byte("\xe2\x82"))), []string{"close 1007"}},
	{"a surrogate", frames(frame(ws.OpText, true, []byte("\xed\xa0\x80"))), []string{"close 1007"}},
	{"a rune in two fragments", frames(frame(ws.OpText, false, []byte("\xe2\x82")), frame(ws.OpContinuation, true, []byte("\xac"))), []string{"text €"}},
	{"not masked", frames([]byte("\x81\x01a")), []string{"close 1002"}},
	{"reserved bit 1", frames(reserved(4)), []string{"close 1002"}},
	{"reserved bit 2", frames(reserved(2)), []string{"close 1002"}},
	{"reserved bit 3", frames(reserved(1)), []string{"close 1002"}},
	{"opcode 3", frames(frame(3, true, nil)), []string{"close 1002"}},
	{"opcode 11", frames(frame(11, true, nil)), []string{"close 1002"}},
	{"close", frames(frame(ws.OpClose, true, nil)), []string{"close 1000"}},
	{"close 1000", frames(closing(1000, "bye")), []string{"close 1000"}},
	{"close 1001", frames(closing(1001, "")), []string{"close 1001"}},
	{"close 3000", frames(closing(3000, "")), []string{"close 3000"}},
	{"close 4999", frames(closing(4999, "")), []string{"close 4999"}},
	{"close 0", frames(closing(0, "")), []string{"close 1002"}},
	{"close 999", frames(closing(999, "")), []string{"close 1002"}},
	{"close 1004", frames(closing(1004, "")), []string{"close 1002"}},
	{"close 1005", frames(closing(1005, "")), []string{"close 1002"}},
	{"close 1006", frames(closing(1006, "")), []string{"close 1002"}},
	{"close 1015", frames(closing(1015, "")), []string{"close 1002"}},
	{"close 2999", frames(closing(2999, "")), []string{"close 1002"}},
	{"a close of one byte", frames(frame(ws.OpClose, true, []byte{3})), []string{"close 1002"}},
	{"a close with a reason that is no UTF-8", frames(closing(1000, "\xff")), []string{"close 1002"}},
	{"a close of 126 bytes", frames(frame(ws.OpClose, true, xs(126))), []string{"close 1002"}},
	{"a close within a message", frames(frame(ws.OpText, false, []byte("a")), closing(1000, "")), []string{"close 1000"}},
	{"behind a close", frames(closing(1000, ""), frame(ws.OpText, true, []byte("a"))), []string{"close 1000"}},
}

func frames(all ...[]byte) [][]byte { return all }

// bodyOf is a body that says how long it is.
func bodyOf(size int) string {
	word := fmt.Sprint(size, " ")
	return strings.Repeat(word, size/len(word)+1)[:size]
}

func xs(n int) []byte { return bytes.Repeat([]byte("x"), n) }

func closing(code ws.StatusCode, reason string) []byte {
	return frame(ws.OpClose, true, ws.NewCloseFrameBody(code, reason))
}

func reserved(bits byte) []byte {
	f := frame(ws.OpText, true, []byte("a"))
	f[0] |= bits << 4
	return f
}

// TestWebSockets: each row as a whole, and again with a restart somewhere in what is sent.
func TestWebSockets(t *testing.T) {
	t.Parallel()
	whole, path := t, meetingPlace(t) // a subtest ends its own processes
	server := webStep.first(t, path)
	addr := server.addr()
	random := rand.New(rand.NewSource(1))
	for i, row := range webSockets {
		for _, cut := range []bool{false, true} {
			if cut && (!isLong && i%3 != 0 || testing.Short() && i%9 != 0) {
				continue
			}
			t.Run(fmt.Sprintf("%s, restart %v", row.name, cut), func(t *testing.T) {
				w := dialChat(t, addr)
				all := bytes.Join(row.send, nil)
				if cut {
					n := random.Intn(len(all))
					w.sends(all[:n])
					all = all[n:]
					after := webStep.next(whole, path, addr).listens()
					server.exits(0)
					server = after
				}
				go w.sends(all) // it may be closed before it has come
				for _, want := range row.want {
					f, err := w.receive()
					got := map[ws.OpCode]string{ws.OpText: "text ", ws.OpBinary: "binary ", ws.OpPong: "pong ", ws.OpClose: "close "}[f.Header.OpCode]
					if got == "close " {
						code, reason := ws.ParseCloseFrameData(f.Payload)
						got += fmt.Sprint(code, reason)
					} else {
						got += string(f.Payload)
					}
					if err != nil || got != want || !f.Header.Fin || f.Header.Masked {
						t.Fatalf("got %.50q, %+v, %v; want %.50q", got, f.Header, err, want)
					}
				}
				if strings.HasPrefix(row.want[len(row.want)-1], "close") {
					w.ended()
				} else {
					w.sends(closing(1000, ""))
					if f, err := w.receive(); err != nil || f.Header.OpCode != ws.OpClose {
						t.Fatalf("got %+v, %v; want it closed", f.Header, err)
					}
				}
			})
		}
	}
}

// TestChatSlowReader: one who does not read holds up nobody, and costs no memory: it is closed when it is too
// far behind. One who is only slow gets all, from whichever process.
func TestChatSlowReader(t *testing.T) {
	t.Parallel()
	path := meetingPlace(t)
	server := webStep.first(t, path)
	addr := server.addr()
	quick, slow, never := dialChat(t, addr), dialChat(t, addr), dialChat(t, addr)
	text := string(xs(1 << 20))
	for n := range 30 {
		quick.sends(frame(ws.OpText, true, []byte(text)))
		quick.hears(ws.OpText, text)
		if n%10 == 5 {
			after := webStep.next(t, path, addr).listens()
			server.exits(0)
			server = after
		}
		if n%4 == 3 {
			for range 4 {
				slow.hears(ws.OpText, text)
			}
		}
	}
	if kB := server.peak("VmRSS"); kB > 200<<10 {
		t.Errorf("the server has %d kB", kB)
	}
	for n := 0; ; n++ { // what the kernel has taken for it: if that ends within a frame, there is no close frame
		f, err := never.receive()
		if n == 30 || err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("after %d messages: %v, want it closed", n, err)
		}
		if err != nil {
			break
		}
		if f.Header.OpCode == ws.OpClose {
			if code, _ := ws.ParseCloseFrameData(f.Payload); code != ws.StatusPolicyViolation {
				t.Errorf("closed with %d", code)
			}
			never.ended()
			break
		}
	}
	quick.sends(frame(ws.OpText, true, []byte("still here")))
	quick.hears(ws.OpText, "still here")
	slow.hears(ws.OpText, text)
	slow.hears(ws.OpText, text)
	slow.hears(ws.OpText, "still here")
}

// TestChatDeaf: one who reads nothing at all, so that its session cannot even see how far behind it is, is ended after
// -patience, also when it has moved.
func TestChatDeaf(t *testing.T) {
	t.Parallel()
	path := meetingPlace(t)
	server := webStep.first(t, path, args("-patience", "1s"))
	quick, never := dialChat(t, server.addr()), dialChat(t, server.addr())
	never.stream.(*net.TCPConn).SetReadBuffer(64 << 10)
	inode, text := never.inode(), string(xs(1<<20))
	for n := range 8 { // more than the kernel holds
		quick.sends(frame(ws.OpText, true, []byte(text)))
		quick.hears(ws.OpText, text)
		if n == 6 {
			server = webStep.next(t, path, server.addr(), args("-patience", "1s")).listens()
		}
	}
	eventually(t, "it is ended", func() bool { return !server.has(inode) })
	quick.sends(frame(ws.OpText, true, []byte("not disturbed")))
	quick.hears(ws.OpText, "not disturbed")
}

// TestChatFile: what is done to the chat's file from outside. Nobody hears anything wrong, and the server lives: who can
// not read on is told to come again, and whoever comes then talks.
func TestChatFile(t *testing.T) {
	t.Parallel()
	for what, do := range map[string]func(file string) error{
		"removed":              os.Remove,
		"emptied":              func(file string) error { return os.Truncate(file, 0) },
		"shorter":              func(file string) error { return os.Truncate(file, 30) },
		"removed and replaced": func(file string) error { return errors.Join(os.Remove(file), os.WriteFile(file, nil, 0o600)) },
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			path := meetingPlace(t)
			server := webStep.first(t, path)
			w := dialChat(t, server.addr())
			w.sends(frame(ws.OpText, true, []byte("hello, everybody")))
			w.hears(ws.OpText, "hello, everybody")
			if err := do(path + ".room"); err != nil {
				t.Fatal(err)
			}
			young := webStep.next(t, path, server.addr()).listens()
			server.exits(0)
			// Who has a file that nobody else has may still hear itself, and another one nothing.
			again := dialChat(t, server.addr())
			again.sends(frame(ws.OpText, true, []byte("again")))
			again.hears(ws.OpText, "again")
			w.hears(ws.OpClose, "\x03\xf4") // 1012
			w.ended()
			eventually(t, "a process says so", func() bool { // the old one too, if it has seen it
				return strings.Contains(server.err.String()+young.err.String(), "is another one, or is shorter")
			})
		})
	}
	t.Run("locked", func(t *testing.T) { // as by a process that is stopped
		t.Parallel()
		path := meetingPlace(t)
		server := webStep.first(t, path)
		says, hears := dialChat(t, server.addr()), dialChat(t, server.addr())
		file, err := unix.Open(path+".room", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(file)
		if err := unix.Flock(file, unix.LOCK_EX); err != nil {
			t.Fatal(err)
		}
		says.sends(frame(ws.OpText, true, []byte("hello")))
		server.logged(`is locked`)
		hears.sends(frame(ws.OpPing, true, []byte("?")))
		hears.hears(ws.OpPong, "?")
		if err := unix.Flock(file, unix.LOCK_UN); err != nil {
			t.Fatal(err)
		}
		says.hears(ws.OpText, "hello")
		hears.hears(ws.OpText, "hello")
	})
	t.Run("overwritten", func(t *testing.T) {
		t.Parallel()
		path := meetingPlace(t)
		server := webStep.first(t, path)
		w, other := dialChat(t, server.addr()), dial(t, server.addr())
		room, err := os.OpenFile(path+".room", os.O_WRONLY, 0) // without os.O_TRUNC: then it is an empty one first
		if err == nil {
			_, err = room.WriteString("a letter to my aunt, which has some pages")
		}
		if err != nil {
			t.Fatal(err)
		}
		room.Close()
		w.hears(ws.OpClose, "\x03\xf3") // 1011
		w.ended()
		other.posted("not disturbed")
		webStep.start(t, args("-addr", "", "-control", path)).fails(`is no chat`)
		other.posted("not disturbed")
	})
	t.Run("another program's", func(t *testing.T) {
		t.Parallel()
		path := meetingPlace(t)
		if err := os.WriteFile(path+".room", []byte("a letter to my aunt, which has some pages"), 0o600); err != nil {
			t.Fatal(err)
		}
		webStep.start(t, args("-addr", "127.0.0.1:0", "-control", path)).fails(`is no chat`)
		if got := string(read(t, path+".room")); !strings.HasPrefix(got, "a letter") {
			t.Errorf("it has become %q", got)
		}
	})
	t.Run("of an earlier server", func(t *testing.T) {
		t.Parallel()
		path := meetingPlace(t)
		server := webStep.first(t, path)
		w := dialChat(t, server.addr())
		w.sends(frame(ws.OpText, true, xs(1<<20)))
		w.hears(ws.OpText, string(xs(1<<20)))
		server.kill()
		webStep.first(t, path)
		if info, err := os.Stat(path + ".room"); err != nil || info.Size() > 1<<10 {
			t.Errorf("%v, %v: want it empty", info, err)
		}
	})
}

// TestOtherSites: a page of another site opens no WebSocket here, and restarts nothing.
func TestOtherSites(t *testing.T) {
	t.Parallel()
	server := webStep.first(t, meetingPlace(t))
	for _, request := range []string{
		"GET /chat HTTP/1.1\r\nHost: test\r\nOrigin: http://evil.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
		"GET /chat HTTP/1.1\r\nHost: test\r\nOrigin: null\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
		"POST /restart HTTP/1.1\r\nHost: test\r\nOrigin: http://evil.test\r\nContent-Length: 0\r\n\r\n",
	} {
		c := dial(t, server.addr())
		c.send(request)
		if answer, err := http.ReadResponse(c.in, nil); err != nil || answer.StatusCode != http.StatusForbidden {
			t.Errorf("got %+v, %v", answer, err)
		}
	}
}

// TestRestartButton: the server starts its program again when it is asked to, and its clients do not notice.
func TestRestartButton(t *testing.T) {
	t.Parallel()
	server := webStep.first(t, meetingPlace(t))
	c := dial(t, server.addr())
	c.posted("hello")
	c.send("POST /restart HTTP/1.1\r\nHost: test\r\nOrigin: http://test\r\nContent-Length: 0\r\n\r\n")
	c.answered(http.StatusAccepted, "")
	server.exits(0)
	c.posted("still here")
	var pid int
	fmt.Sscan(server.logged(`started pid (\d+)`)[1], &pid)
	if err := unix.Kill(pid, unix.SIGTERM); err != nil {
		t.Error(err)
	}
	c.ended()
}
