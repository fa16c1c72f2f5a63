//go:build linux

package main

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"log"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// patience is how long a test waits for what must come.
const patience = 30 * time.Second

// roles are what this test binary does where a test starts it as another process.
var roles = map[string]func(){"step": main}

func TestMain(m *testing.M) {
	role := roles[os.Getenv("TEST_ROLE")]
	if role == nil {
		log.SetOutput(io.Discard) // what the functions under test log
		os.Exit(m.Run())
	}
	role()
}

// needsKernelTLS skips where the kernel has no TLS, and shows how it says so.
func needsKernelTLS(t testing.TB) {
	t.Helper()
	server, _ := tcpPair(t, "tcp4")
	if err := addTLS(server); err != nil {
		if !errors.Is(err, unix.ENOENT) {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

// tcpPair is the two ends of a TCP connection.
func tcpPair(t testing.TB, network string) (server, client *net.TCPConn) {
	t.Helper()
	addr := "127.0.0.1:0"
	if network == "tcp6" {
		addr = "[::1]:0"
	}
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial(network, l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(patience))
	s.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { c.Close(); s.Close() })
	return s.(*net.TCPConn), c.(*net.TCPConn)
}

// newSecrets are of no handshake: any will do.
func newSecrets(t testing.TB, id uint16) (ours, theirs *secrets) {
	t.Helper()
	s := suites[id]
	client, server := make([]byte, s.hash().Size()), make([]byte, s.hash().Size())
	rand.Read(client)
	rand.Read(server)
	return &secrets{s, client, server}, &secrets{s, bytes.Clone(server), bytes.Clone(client)}
}

// kernelPair is a connection with TLS in the kernel at both ends.
func kernelPair(t testing.TB, network string, id uint16) (server, client *kernelTLS) {
	t.Helper()
	s, c := tcpPair(t, network)
	ours, theirs := newSecrets(t, id)
	server, serverErr := toKernel(s, ours)
	client, clientErr := toKernel(c, theirs)
	if err := errors.Join(serverErr, clientErr); err != nil {
		t.Fatal(err)
	}
	return server, client
}

// forger is a client that makes its records by hand, with TLS_AES_128_GCM_SHA256: right ones and others.
type forger struct {
	*net.TCPConn
	t         testing.TB
	s         *secrets // of the server: client is what this end writes with
	out, in   uint64   // records so far
	otherSeal byte     // to be xored with the last byte of the tag
}

func newForger(t testing.TB) (*kernelTLS, *forger) {
	t.Helper()
	s, c := tcpPair(t, "tcp4")
	ours, theirs := newSecrets(t, tls.TLS_AES_128_GCM_SHA256)
	server, err := toKernel(s, ours)
	if err != nil {
		t.Fatal(err)
	}
	theirs.client, theirs.server = theirs.server, theirs.client // its names are the server's
	return server, &forger{TCPConn: c, t: t, s: theirs}
}

// aead is the cipher of a direction, and the nonce of its next record (RFC 8446, section 5.3).
func (f *forger) aead(secret []byte, number uint64) (cipher.AEAD, []byte) {
	block, err := aes.NewCipher(f.s.expand(secret, "key", 16))
	if err != nil {
		f.t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		f.t.Fatal(err)
	}
	nonce := f.s.expand(secret, "iv", 12)
	for i, b := range binary.BigEndian.AppendUint64(nil, number) {
		nonce[4+i] ^= b
	}
	return gcm, nonce
}

// says sends a record.
func (f *forger) says(kind byte, body string) {
	f.t.Helper()
	gcm, nonce := f.aead(f.s.client, f.out)
	f.out++
	header := binary.BigEndian.AppendUint16([]byte{23, 3, 3}, uint16(len(body)+1+gcm.Overhead()))
	record := gcm.Seal(bytes.Clone(header), nonce, append([]byte(body), kind), header)
	record[len(record)-1] ^= f.otherSeal
	if _, err := f.Write(record); err != nil {
		f.t.Fatal(err)
	}
}

// hears expects a record.
func (f *forger) hears(kind byte, body string) {
	f.t.Helper()
	header := make([]byte, 5)
	if _, err := io.ReadFull(f, header); err != nil {
		f.t.Fatal(err)
	}
	record := make([]byte, binary.BigEndian.Uint16(header[3:]))
	if _, err := io.ReadFull(f, record); err != nil {
		f.t.Fatal(err)
	}
	gcm, nonce := f.aead(f.s.server, f.in)
	f.in++
	plain, err := gcm.Open(nil, nonce, record, header)
	if want := append([]byte(body), kind); err != nil || !bytes.Equal(plain, want) {
		f.t.Fatalf("record %d is %x, %v; want %x", f.in, plain, err, want)
	}
}

// next is the secret after a KeyUpdate.
func (f *forger) next(secret []byte) (next []byte, number uint64) {
	return f.s.expand(secret, "traffic upd", len(secret)), 0
}

// TestExpand: the keys of RFC 8448, section 3, which has a whole session in hex.
func TestExpand(t *testing.T) {
	for _, v := range []struct{ secret, key, iv string }{
		{"9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5", "17422dda596ed5d9acd890e3c63f5051", "5b78923dee08579033e523d9"},
		{"a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643", "9f02283b6c9c07efc26bb9f2ac92e356", "cf782b88dd83549aadf1e984"},
	} {
		secret, err := hex.DecodeString(v.secret)
		if err != nil {
			t.Fatal(err)
		}
		s := &secrets{suite: suites[tls.TLS_AES_128_GCM_SHA256]}
		if key, iv := s.expand(secret, "key", 16), s.expand(secret, "iv", 12); hex.EncodeToString(key) != v.key || hex.EncodeToString(iv) != v.iv {
			t.Errorf("key %x, IV %x, want %s, %s", key, iv, v.key, v.iv)
		}
	}
}

// TestCiphers: whatever is written at one end is read at the other, with each cipher, in both
// directions, on IPv4 and IPv6; and close_notify ends one direction only.
func TestCiphers(t *testing.T) {
	needsKernelTLS(t)
	for id := range suites {
		for _, network := range []string{"tcp4", "tcp6"} {
			t.Run(tls.CipherSuiteName(id)+"/"+network, func(t *testing.T) {
				server, client := kernelPair(t, network, id)
				for _, size := range []int{1, 16<<10 - 1, 16 << 10, 16<<10 + 1, 1 << 20} {
					sent := make([]byte, size)
					rand.Read(sent)
					for _, ends := range [][2]*kernelTLS{{client, server}, {server, client}} {
						go ends[0].Write(sent) // what fails is missing below
						got := make([]byte, size)
						if _, err := io.ReadFull(ends[1], got); err != nil || !bytes.Equal(got, sent) {
							t.Fatalf("%d bytes: %v", size, err)
						}
					}
				}
				io.WriteString(client, "the last words") // what fails is missing below
				if err := client.CloseWrite(); err != nil {
					t.Error(err)
				}
				if _, err := io.WriteString(client, "x"); !errors.Is(err, unix.EPIPE) {
					t.Errorf("after the end, Write says %v", err)
				}
				for _, want := range []string{"the last words", ""} { // the end can be read again
					if got, err := io.ReadAll(server); string(got) != want || err != nil {
						t.Errorf("got %q, %v, want %q and the end", got, err, want)
					}
				}
				io.WriteString(server, "an answer") // as above
				if err := server.CloseWrite(); err != nil {
					t.Error(err)
				}
				if got, err := io.ReadAll(client); string(got) != "an answer" || err != nil {
					t.Errorf("got %q, %v", got, err)
				}
			})
		}
	}
}

// TestRecords: what the client has sent behind the handshake is still in the socket, however it was cut.
func TestRecords(t *testing.T) {
	record := func(body string) string { return "\x17\x03\x03\x00" + string(rune(len(body))) + body }
	sent := record("one") + record("") + record("three") + "the rest"
	for _, size := range []int{1, 3, 5, 7, 512} {
		from := strings.NewReader(sent)
		r := &records{Conn: readerConn{Reader: from}}
		b := make([]byte, size)
		for got, ends := 0, []int{5, 8, 13, 18, 23}; len(ends) > 0; {
			n, err := r.Read(b)
			if got += n; err != nil || got > ends[0] || got != len(sent)-from.Len() {
				t.Fatalf("buffer of %d: read up to %d, %v, want at most to %d", size, got, err, ends[0])
			}
			if got == ends[0] {
				ends = ends[1:]
			}
		}
		if rest, _ := io.ReadAll(from); string(rest) != "the rest" {
			t.Errorf("buffer of %d: %q is left", size, rest)
		}
	}
}

// readerConn is a connection that can be read from.
type readerConn struct {
	net.Conn
	io.Reader
}

func (r readerConn) Read(b []byte) (int, error) { return r.Reader.Read(b) }

// none is no alert of TLS 1.3.
const none = 255

// TestBadRecords: what may come instead of data ends the connection with a line that says what it was, and
// if that was wrong the client is told, too.
func TestBadRecords(t *testing.T) {
	needsKernelTLS(t)
	for name, bad := range map[string]struct {
		send func(f *forger)
		want string
		told byte // the alert that the client gets
	}{
		"close_notify":          {func(f *forger) { f.says(recordAlert, "\x01\x00") }, "EOF", none},
		"an alert":              {func(f *forger) { f.says(recordAlert, "\x02\x2a") }, "the client's alert: tls: bad certificate", none},
		"half an alert":         {func(f *forger) { f.says(recordAlert, "\x02") }, "a record of type 21 after the handshake: 02", unexpectedMessage},
		"a truncation":          {func(f *forger) { f.CloseWrite() }, "unexpected EOF: the client ended without close_notify, so something may be missing", none},
		"half a record":         {func(f *forger) { f.Write([]byte{23, 3, 3, 0, 99, 1}); f.CloseWrite() }, "unexpected EOF: the client ended without close_notify, so something may be missing", none},
		"a wrong tag":           {func(f *forger) { f.otherSeal = 1; f.says(23, "x") }, "bad message: what came is no record of this session", badRecordMAC},
		"no TLS":                {func(f *forger) { f.Write([]byte("GET / HTTP/1.1\r\n\r\n")) }, "(invalid argument|message too long|bad message): what came is no record of this session", badRecordMAC},
		"a renegotiation":       {func(f *forger) { f.says(recordHandshake, "\x01\x00\x00\x02\x03\x03") }, "a record of type 22 after the handshake: 010000020303", unexpectedMessage},
		"KeyUpdate that is not": {func(f *forger) { f.says(recordHandshake, "\x18\x00\x00\x02\x00\x00") }, "a record of type 22 after the handshake: 180000020000", unexpectedMessage},
		"KeyUpdate of no kind":  {func(f *forger) { f.says(recordHandshake, "\x18\x00\x00\x01\x02") }, "a record of type 22 after the handshake: 1800000102", unexpectedMessage},
		"no such type":          {func(f *forger) { f.says(99, "\x01") }, "a record of type 99 after the handshake: 01", unexpectedMessage},
		"too long":              {func(f *forger) { f.says(23, strings.Repeat("x", 17<<10)) }, "message too long: what came is no record of this session", badRecordMAC},
		"nothing but useless ones": {func(f *forger) {
			for range maxUseless + 1 {
				f.says(recordAlert, "\x01\x5a")
			}
		}, "too many records in a row that are not data", unexpectedMessage},
	} {
		t.Run(name, func(t *testing.T) {
			server, f := newForger(t)
			f.says(23, "good")
			bad.send(f)
			got := make([]byte, 4)
			if _, err := io.ReadFull(server, got); err != nil || string(got) != "good" {
				t.Fatalf("got %q, %v", got, err)
			}
			if n, err := server.Read(got); n != 0 || err == nil || !regexp.MustCompile(bad.want+"$").MatchString(err.Error()) {
				t.Errorf("read %d, %v, want %q", n, err, bad.want)
			}
			if bad.told != none {
				f.hears(recordAlert, "\x02"+string(rune(bad.told)))
				// That was all, for the client and for whoever has not heard why.
				if rest, err := io.ReadAll(f); len(rest) > 0 || err != nil {
					t.Errorf("after the alert come %x, %v", rest, err)
				}
				_, readErr := server.Read(got)
				_, writeErr := server.Write(got)
				for _, err := range []error{readErr, writeErr} {
					if err == nil || !regexp.MustCompile(bad.want+"$").MatchString(err.Error()) {
						t.Errorf("then %v, want %q again", err, bad.want)
					}
				}
			}
			server.Close()
		})
	}
}

// TestWriteHears: if it is a Write that hears of what is no record, a Read hears of it, too.
func TestWriteHears(t *testing.T) {
	needsKernelTLS(t)
	server, f := newForger(t)
	f.Write([]byte("GET / HTTP/1.1\r\n\r\n")) // what fails is missing below
	var writeErr error
	for writeErr == nil { // it may not have come yet
		_, writeErr = io.WriteString(server, "x")
	}
	if _, err := server.Read(make([]byte, 1)); err != writeErr || !strings.Contains(err.Error(), "what came is no record of this session") {
		t.Errorf("Write: %v; Read: %v", writeErr, err)
	}
}

// TestUserCanceled: what this alert says is over with the handshake, and crypto/tls ignores it.
func TestUserCanceled(t *testing.T) {
	needsKernelTLS(t)
	server, f := newForger(t)
	for range maxUseless + 1 { // with data between them they are none too many
		f.says(23, "a")
		f.says(recordAlert, "\x01\x5a")
		f.says(23, "b")
	}
	f.says(recordAlert, "\x01\x00")
	if got, err := io.ReadAll(server); string(got) != strings.Repeat("ab", maxUseless+1) || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

// canRekey reports whether the kernel takes another key for a direction that has one. Linux does since 6.14.
func canRekey(t testing.TB) bool {
	t.Helper()
	server, f := newForger(t)
	err := server.secrets.install(server, "TLS_TX", f.s.server)
	if err != nil && !errors.Is(err, unix.EBUSY) {
		t.Fatal(err)
	}
	return err == nil
}

// TestKeyUpdate: the client changes its key, and may ask the server to change its own. Where the kernel
// takes a second key, the connection goes on, if this process has the secret; also if somebody writes
// meanwhile, or nobody can write any more.
func TestKeyUpdate(t *testing.T) {
	needsKernelTLS(t)
	for name, asks := range map[string]string{"told": "\x00", "asked": "\x01", "asked in a write": "\x01", "asked after the end": "\x01"} {
		t.Run(name, func(t *testing.T) {
			server, f := newForger(t)
			answer := func() { io.WriteString(server, "answer") } // what fails is missing below
			if name == "asked in a write" {
				server.clientConn = meddler{server.clientConn, answer}
				answer = func() {}
			}
			if name == "asked after the end" {
				server.CloseWrite()
				f.hears(recordAlert, "\x01\x00")
			}
			for range 3 { // a key follows on a key
				f.says(23, "old")
				f.says(recordHandshake, "\x18\x00\x00\x01"+asks)
				f.s.client, f.out = f.next(f.s.client)
				f.says(23, "new")
				got := make([]byte, 6)
				_, err := io.ReadFull(server, got)
				if !canRekey(t) {
					if err == nil || !strings.Contains(err.Error(), "KeyUpdate: setsockopt TLS_RX: device or resource busy: ") {
						t.Errorf("read %q, %v", got, err)
					}
					if name != "asked after the end" {
						f.hears(recordAlert, "\x02\x50")
					}
					return
				}
				if string(got) != "oldnew" || err != nil {
					t.Fatalf("read %q, %v", got, err)
				}
				if name == "asked after the end" { // there is nothing more, and no error either
					conn := server.clientConn.(*net.TCPConn)
					conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
					if _, err := server.Read(got); !errors.Is(err, os.ErrDeadlineExceeded) {
						t.Errorf("after the client's KeyUpdate: %v", err)
					}
					conn.SetReadDeadline(time.Now().Add(patience))
					continue
				}
				if asks == "\x01" {
					f.hears(recordHandshake, "\x18\x00\x00\x01\x00")
					f.s.server, f.in = f.next(f.s.server)
				}
				answer()
				f.hears(23, "answer")
			}
			server.secrets = nil // as in a process that has stolen it
			f.says(recordHandshake, "\x18\x00\x00\x01"+asks)
			if _, err := server.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "this process never had the secret") {
				t.Error(err)
			}
			if name != "asked after the end" {
				f.hears(recordAlert, "\x02\x50")
			}
		})
	}
}

// meddler is a connection that another goroutine uses as soon as something has been sent on it that is not
// data. It should have to wait, and is waited for in vain.
type meddler struct {
	clientConn
	meddle func()
}

func (m meddler) SyscallConn() (syscall.RawConn, error) {
	raw, err := m.clientConn.SyscallConn()
	return meddledWith{raw, m.meddle}, err
}

type meddledWith struct {
	syscall.RawConn
	meddle func()
}

func (m meddledWith) Write(f func(fd uintptr) bool) error {
	err := m.RawConn.Write(f)
	done := make(chan bool)
	go func() {
		m.meddle()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(time.Second):
	}
	return err
}

// TestClose: the secrets are wiped, and not before the descriptor is closed: of zeros, whoever reads
// meanwhile would make a key that the whole world has.
func TestClose(t *testing.T) {
	conn, _ := tcpPair(t, "tcp4")
	s, _ := newSecrets(t, tls.TLS_AES_128_GCM_SHA256)
	server := &kernelTLS{clientConn: closer{conn, func() {
		if wiped(s) {
			t.Error("the secrets are wiped before the descriptor is closed")
		}
	}}, secrets: s}
	if err := server.Close(); err != nil || !wiped(s) {
		t.Errorf("wiped: %v, %v", wiped(s), err)
	}
}

func wiped(s *secrets) bool {
	return !slices.ContainsFunc(append(s.client, s.server...), func(b byte) bool { return b != 0 })
}

// closer is a connection that says when it is closed.
type closer struct {
	clientConn
	closing func()
}

func (c closer) Close() error {
	c.closing()
	return c.clientConn.Close()
}

// TestWhoAsksIsToldTheKey: whoever has the socket can ask the kernel for its keys. isKernelTLS does not.
func TestWhoAsksIsToldTheKey(t *testing.T) {
	needsKernelTLS(t)
	server, _ := newForger(t)
	ask := func(fd, direction, size int) (info []byte) {
		info = make([]byte, 40) // struct tls12_crypto_info_aes_gcm_128
		length := uint32(size)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_TLS, uintptr(direction), uintptr(unsafe.Pointer(&info[0])), uintptr(unsafe.Pointer(&length)), 0)
		if errno != 0 {
			t.Errorf("getsockopt of %d bytes: %v", size, errno)
		}
		return info
	}
	err := borrow(server, func(fd int) error {
		for direction, secret := range map[int][]byte{keyOptions["TLS_TX"]: server.secrets.server, keyOptions["TLS_RX"]: server.secrets.client} {
			key := server.secrets.expand(secret, "key", 16)
			if !bytes.Contains(ask(fd, direction, 40), key) {
				t.Errorf("direction %d: the kernel keeps the key to itself", direction)
			}
			if info := ask(fd, direction, 4); !bytes.Equal(info[4:], make([]byte, 36)) {
				t.Errorf("direction %d: the head is more than 4 bytes: %x", direction, info)
			}
		}
		return isKernelTLS(fd)
	})
	if err != nil {
		t.Error(err)
	}
}

// TestIsKernelTLS: what has no keys, or only one, is refused.
func TestIsKernelTLS(t *testing.T) {
	plain, other := tcpPair(t, "tcp4")
	check := func(c *net.TCPConn, want string) {
		t.Helper()
		err := borrow(c, isKernelTLS)
		if err == nil || !regexp.MustCompile("^not a TCP socket with TLS in the kernel: "+want+"$").MatchString(err.Error()) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	check(plain, "getsockopt TLS_[TR]X: operation not supported")
	needsKernelTLS(t)
	if err := addTLS(other); err != nil {
		t.Fatal(err)
	}
	check(other, "getsockopt TLS_[TR]X: device or resource busy")
	s, _ := newSecrets(t, tls.TLS_AES_128_GCM_SHA256)
	if err := s.install(other, "TLS_TX", s.server); err != nil {
		t.Fatal(err)
	}
	check(other, "getsockopt TLS_RX: device or resource busy")
}

// TestHandshake: whoever shakes hands is served, and what it sent in the same breath is not lost; for
// anybody else there is one line.
func TestHandshake(t *testing.T) {
	config, err := newConfig()
	if err != nil {
		t.Fatal(err)
	}
	t.Run("ahead", func(t *testing.T) {
		server, client := tcpPair(t, "tcp4")
		go func() {
			c := tls.Client(&delayed{Conn: client}, &tls.Config{InsecureSkipVerify: true})
			io.WriteString(c, "in the same breath\n") // what fails is missing below
		}()
		session, s, err := handshake(server, config)
		if err != nil {
			t.Fatal(err)
		}
		var c io.Reader = session
		if k, err := toKernel(server, s); err == nil {
			c = k
		} else if !wiped(s) {
			t.Error("nobody needs the secrets, and they are not wiped")
		}
		got := make([]byte, 19)
		if _, err := io.ReadFull(c, got); err != nil || string(got) != "in the same breath\n" {
			t.Errorf("got %q, %v", got, err)
		}
	})
	for name, bad := range map[string]struct {
		visit func(*net.TCPConn)
		want  string
	}{
		"no TLS": {func(c *net.TCPConn) { io.WriteString(c, "GET / HTTP/1.1\r\n\r\n") }, "handshake: tls: first record does not look like a TLS handshake"},
		"TLS 1.2": {func(c *net.TCPConn) {
			tls.Client(c, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}).Handshake()
		}, "handshake: tls: client offered only unsupported versions"},
		"an end":     {func(c *net.TCPConn) { c.CloseWrite() }, "handshake: EOF"},
		"half of it": {func(c *net.TCPConn) { c.Write([]byte{22, 3, 1, 1, 0, 1}); c.CloseWrite() }, "handshake: unexpected EOF"},
		"too long":   {func(c *net.TCPConn) { c.Write([]byte{22, 3, 1, 255, 255}) }, "handshake: tls: oversized record received"},
	} {
		t.Run(name, func(t *testing.T) {
			server, client := tcpPair(t, "tcp4")
			go bad.visit(client)
			_, _, err := handshake(server, config)
			if err == nil || !strings.HasPrefix(err.Error(), bad.want) {
				t.Errorf("got %v, want %q", err, bad.want)
			}
		})
	}
}

// TestConfigs: whatever the caller's configuration, or the one that it chooses for a client, a session is one
// of TLS 1.3 without tickets, and its secrets are known. To encrypt with the secrets of nobody would be worse
// than not at all.
func TestConfigs(t *testing.T) {
	config, err := newConfig()
	if err != nil {
		t.Fatal(err)
	}
	for name, config := range map[string]*tls.Config{
		"plain":  config,
		"chosen": {GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return config, nil }},
		"not chosen": {Certificates: config.Certificates,
			GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return nil, nil }},
	} {
		t.Run(name, func(t *testing.T) {
			server, client := tcpPair(t, "tcp4")
			var log bytes.Buffer
			c := tls.Client(client, &tls.Config{InsecureSkipVerify: true, KeyLogWriter: &log, ClientSessionCache: tls.NewLRUClientSessionCache(1)})
			shaken := make(chan error, 1)
			go func() { shaken <- c.Handshake() }()
			session, s, err := handshake(server, config)
			if err := errors.Join(err, <-shaken); err != nil {
				t.Fatal(err)
			}
			for _, want := range []string{
				"CLIENT_TRAFFIC_SECRET_0 [0-9a-f]+ " + hex.EncodeToString(s.client) + "\n",
				"SERVER_TRAFFIC_SECRET_0 [0-9a-f]+ " + hex.EncodeToString(s.server) + "\n",
			} {
				if !regexp.MustCompile(want).Match(log.Bytes()) {
					t.Errorf("the server has %x, %x, and the client %s", s.client, s.server, &log)
				}
			}
			if err := errors.Join(session.CloseWrite(), server.CloseWrite()); err != nil {
				t.Error(err)
			}
			rest, err := io.ReadAll(client) // not through TLS
			if len(rest) != 5+2+1+16 || err != nil {
				t.Errorf("behind the handshake come %d bytes, %v, and close_notify has 24", len(rest), err)
			}
			server, client = tcpPair(t, "tcp4")
			go tls.Client(client, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}).Handshake()
			if _, _, err := handshake(server, config); err == nil || !strings.Contains(err.Error(), "unsupported versions") {
				t.Errorf("TLS 1.2: %v", err)
			}
		})
	}
	for name, s := range map[string]*secrets{"no suite": {}, "no secrets": {suite: suites[tls.TLS_AES_128_GCM_SHA256]}} {
		server, _ := tcpPair(t, "tcp4")
		if _, err := toKernel(server, s); err == nil || err.Error() != "not the secrets of a session of TLS 1.3" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestTruncation: crypto/tls, if it goes on, takes no FIN for a good end either.
func TestTruncation(t *testing.T) {
	config, err := newConfig()
	if err != nil {
		t.Fatal(err)
	}
	for want, end := range map[string]func(*tls.Conn) error{
		"":                   (*tls.Conn).CloseWrite,
		errTruncated.Error(): func(c *tls.Conn) error { return c.NetConn().(*net.TCPConn).CloseWrite() },
	} {
		server, client := tcpPair(t, "tcp4")
		c := tls.Client(client, &tls.Config{InsecureSkipVerify: true})
		ended := make(chan error, 1)
		go func() {
			_, err := io.WriteString(c, "words")
			ended <- errors.Join(err, end(c))
		}()
		session, _, err := handshake(server, config)
		if err := errors.Join(err, <-ended); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(session)
		if string(got) != "words" || (want == "") != (err == nil) || err != nil && err.Error() != want {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
}

// delayed sends nothing by itself once its reader has read something: what is written goes out with the next
// but one write, so that the handshake's last record and the first data come together.
type delayed struct {
	net.Conn
	heard bool
	held  []byte
}

func (d *delayed) Read(b []byte) (int, error) {
	d.heard = true
	return d.Conn.Read(b)
}

func (d *delayed) Write(b []byte) (int, error) {
	if !d.heard {
		return d.Conn.Write(b)
	}
	d.held = append(d.held, b...)
	if !bytes.HasPrefix(d.held[len(d.held)-len(b):], []byte{23, 3, 3, 0, 36}) { // 19 bytes of data, one of type, 16 of tag
		return len(b), nil
	}
	_, err := d.Conn.Write(d.held)
	return len(b), err
}

// TestCryptoTLSGoesOn: where the kernel does not take the keys, the session is where it was: if it does not
// have the cipher, or if the client has already ended its side.
func TestCryptoTLSGoesOn(t *testing.T) {
	needsKernelTLS(t)
	config, err := newConfig()
	if err != nil {
		t.Fatal(err)
	}
	for why, ended := range map[string]bool{
		"the kernel does not have this cipher: setsockopt TLS_RX: invalid argument": false,
		"setsockopt TCP_ULP: transport endpoint is not connected":                   true,
	} {
		server, client := tcpPair(t, "tcp4")
		c := tls.Client(client, &tls.Config{InsecureSkipVerify: true})
		go func() {
			io.WriteString(c, "hello") // what fails is missing below
			if ended {
				c.CloseWrite()
				client.CloseWrite()
			}
		}()
		session, s, err := handshake(server, config)
		if err != nil {
			t.Fatal(err)
		}
		if !ended {
			s.cipher = 99
		} else if err := hasEnded(server); err != nil {
			t.Fatal(err)
		}
		if _, err := toKernel(server, s); err == nil || err.Error() != why || !wiped(s) {
			t.Fatalf("wiped: %v, %v", wiped(s), err)
		}
		io.WriteString(session, "hello") // as above
		for _, end := range []*tls.Conn{session, c} {
			got := make([]byte, 5)
			if _, err := io.ReadFull(end, got); err != nil || string(got) != "hello" {
				t.Errorf("%s: got %q, %v", why, got, err)
			}
		}
	}
}

// hasEnded waits until the other end's FIN has come.
func hasEnded(c *net.TCPConn) error {
	return borrow(c, func(fd int) error {
		const closeWait = 8 // TCP_CLOSE_WAIT
		for late := time.Now().Add(patience); time.Now().Before(late); time.Sleep(time.Millisecond) {
			info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
			if err != nil || info.State == closeWait {
				return err
			}
		}
		return errors.New("the client's FIN has not come")
	})
}

// TestOnward: what was stolen can be stolen again, and again, by whoever has a giver of its own.
func TestOnward(t *testing.T) {
	needsKernelTLS(t)
	server, client := kernelPair(t, "tcp4", tls.TLS_CHACHA20_POLY1305_SHA256)
	for hop := range 3 {
		control, err := listenControl(filepath.Join(shortFolder(t), "control"))
		if err != nil {
			t.Fatal(err)
		}
		defer control.Close()
		from, err := dialControl(control.path)
		if err != nil {
			t.Fatal(err)
		}
		defer from.Close()
		given := make(chan error, 1)
		go func() {
			g := &giver{control: control, timeout: patience}
			given <- g.give(server, state{})
		}()
		io.WriteString(client, "sent meanwhile") // what fails is missing below
		c, _, err := take(from)
		if err := errors.Join(err, <-given); err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(patience))
		server.Close()
		server = &kernelTLS{clientConn: c}
		got := make([]byte, 14)
		if _, err := io.ReadFull(server, got); err != nil || string(got) != "sent meanwhile" {
			t.Fatalf("hop %d: got %q, %v", hop, got, err)
		}
		io.WriteString(server, "an answer") // as above
		if _, err := io.ReadFull(client, got[:9]); err != nil || string(got[:9]) != "an answer" {
			t.Fatalf("hop %d: got %q, %v", hop, got, err)
		}
	}
	server.CloseWrite()
	if rest, err := io.ReadAll(client); len(rest) > 0 || err != nil {
		t.Errorf("got %q, %v, want the end", rest, err)
	}
	server.Close()
}

// shortFolder is a folder whose path leaves room in a socket's address.
func shortFolder(t testing.TB) string {
	t.Helper()
	folder, err := os.MkdirTemp("", "t")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(folder) })
	return folder
}
