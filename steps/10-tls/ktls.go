//go:build linux

package main

// A TLS 1.3 session whose keys the kernel has: linux/tls.h, and "Kernel TLS" in the kernel's
// documentation (networking/tls). To copy: this file and socket.go, with golang.org/x/sys/unix. It
// promises that a connection whose keys went to the kernel reads and writes as one of crypto/tls
// would, in whatever process has its socket.

import (
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// keyOptions are the socket options of level SOL_TLS that take a key (linux/tls.h): TX is for what this
// end sends, RX for what it receives.
var keyOptions = map[string]int{"TLS_TX": 1, "TLS_RX": 2}

// Types of a control message of that level.
const (
	setRecordType = 1 // TLS_SET_RECORD_TYPE, with sendmsg(2)
	getRecordType = 2 // TLS_GET_RECORD_TYPE, with recvmsg(2)
)

// Types of records that are not data (RFC 8446, section 5.1), and what is in them.
const (
	recordAlert     = 21
	recordHandshake = 22
	keyUpdate       = 24 // a handshake message's first byte; the next three are its length
)

// An alert's second byte (RFC 8446, section 6). The first is its level, which says nothing any more.
const (
	closeNotify       = 0
	unexpectedMessage = 10
	badRecordMAC      = 20
	internalError     = 80
	userCanceled      = 90
)

// maxUseless is how many records in a row may carry no data. crypto/tls gives up after as many.
const maxUseless = 16

// errTruncated is an end that anybody on the way could have made.
var errTruncated = fmt.Errorf("%w: the client ended without close_notify, so something may be missing", io.ErrUnexpectedEOF)

// suite is what a cipher suite of TLS 1.3 consists of.
type suite struct {
	cipher  uint16           // the kernel's number for it: TLS_CIPHER_...
	keySize int              // bytes
	salt    int              // how many of the IV's bytes the kernel wants apart from the others
	hash    func() hash.Hash // for HKDF
}

var suites = map[uint16]suite{
	tls.TLS_AES_128_GCM_SHA256:       {51, 16, 4, sha256.New},    // ..._AES_GCM_128
	tls.TLS_AES_256_GCM_SHA384:       {52, 32, 4, sha512.New384}, // ..._AES_GCM_256
	tls.TLS_CHACHA20_POLY1305_SHA256: {54, 32, 0, sha256.New},    // ..._CHACHA20_POLY1305
}

// secrets are what all keys of a session are derived from: one for each direction.
type secrets struct {
	suite
	client, server []byte // ..._traffic_secret_N (RFC 8446, section 7.1)
}

// wipe overwrites the secrets. What crypto/tls has allocated is out of reach.
func (s *secrets) wipe() {
	clear(s.client)
	clear(s.server)
}

// expand is HKDF-Expand-Label with an empty context (RFC 8446, section 7.1).
func (s *secrets) expand(secret []byte, label string, size int) []byte {
	label = "tls13 " + label
	info := binary.BigEndian.AppendUint16(nil, uint16(size))
	info = append(append(append(info, byte(len(label))), label...), 0)
	out, _ := hkdf.Expand(s.hash, secret, string(info), size) // fails for more than 255 hashes, and under FIPS of a short secret
	return out
}

// install gives the kernel the key of one direction of c, in a struct tls12_crypto_info_..., which in
// spite of its name is for TLS 1.3 too. The first record under a secret has number 0 (RFC 8446,
// section 5.3), so this comes before any is sent or received.
func (s *secrets) install(c syscall.Conn, option string, secret []byte) error {
	key, iv := s.expand(secret, "key", s.keySize), s.expand(secret, "iv", 12)
	info := make([]byte, 0, 56)                             // of the longest
	info = binary.NativeEndian.AppendUint16(info, 0x304)    // __u16 version: TLS 1.3
	info = binary.NativeEndian.AppendUint16(info, s.cipher) // __u16 cipher_type
	info = append(info, iv[s.salt:]...)                     // iv[8], or with ChaCha20 iv[12]
	info = append(info, key...)                             // key[16] or key[32]
	info = append(info, iv[:s.salt]...)                     // salt[4], or with ChaCha20 salt[0]
	info = append(info, make([]byte, 8)...)                 // rec_seq[8]: the next record's number
	err := setsockopt(c, option, unix.SOL_TLS, keyOptions[option], info)
	clear(key)
	clear(iv)
	clear(info)
	return err
}

// setsockopt is setsockopt(2). The one of golang.org/x/sys/unix makes a copy of the value, which
// nobody could wipe.
func setsockopt(c syscall.Conn, name string, level, option int, value []byte) error {
	return borrow(c, func(fd int) error {
		_, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option), uintptr(unsafe.Pointer(&value[0])), uintptr(len(value)), 0)
		if errno != 0 {
			return os.NewSyscallError("setsockopt "+name, errno)
		}
		return nil
	})
}

// clientConn is a client's connection: accepted (*net.TCPConn) or stolen (*socket.Conn), or one of
// these with TLS on top.
type clientConn interface {
	io.ReadWriteCloser
	syscall.Conn
	CloseWrite() error
}

// kernelTLS is a connection whose socket has the keys: read(2) and write(2) carry plaintext. At the same
// time one goroutine may read, others write, and any close it, which ends what waits.
type kernelTLS struct {
	clientConn
	secrets *secrets              // for a KeyUpdate; nil in a process that never had them
	keys    sync.Mutex            // guards what is in secrets
	out     sync.Mutex            // held by who sends: nothing comes between our KeyUpdate and our next key
	ended   bool                  // we have said close_notify; guarded by out
	failure atomic.Pointer[error] // why the session has ended, if not as it should
}

// toKernel moves a session's keys into c's socket, right after the handshake: nothing else has been
// sent or received yet. Afterwards c and s are the result's, and crypto/tls must not be used on c any
// more. After an error s is wiped, but c is as it was, and crypto/tls can go on: ENOENT if the kernel has
// no TLS or not this cipher, EINVAL likewise, ENOTCONN if the client has already sent its FIN. If the kernel
// took one key and then not the other (ENOMEM, say), c is closed, and whatever goes on with it hears so.
func toKernel(c clientConn, s *secrets) (k *kernelTLS, err error) {
	defer func() {
		if err != nil {
			s.wipe()
		}
	}()
	// Of an empty secret HKDF makes a key as good as any, which the whole world has.
	if s.hash == nil || len(s.client) != s.hash().Size() || len(s.server) != s.hash().Size() {
		return nil, errors.New("not the secrets of a session of TLS 1.3")
	}
	if err := addTLS(c); err != nil {
		return nil, err
	}
	if err := s.install(c, "TLS_RX", s.client); err != nil {
		return nil, fmt.Errorf("the kernel does not have this cipher: %w", err)
	}
	if err := s.install(c, "TLS_TX", s.server); err != nil {
		c.Close()
		return nil, fmt.Errorf("the session ends, as the kernel has one of its keys: %w", err)
	}
	return &kernelTLS{clientConn: c, secrets: s}, nil
}

// addTLS puts the kernel's TLS, still without a key, between a connected socket and its readers. It
// fails with ENOENT where the kernel does not have it, with ENOPROTOOPT on Multipath TCP, and with ENOTCONN
// if the client has already sent its FIN.
func addTLS(c syscall.Conn) error {
	err := setsockopt(c, "TCP_ULP", unix.IPPROTO_TCP, unix.TCP_ULP, []byte("tls"))
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("the kernel has no TLS: %w: as root, modprobe tls", err)
	}
	return err
}

// isKernelTLS checks that fd is a socket with a key for either direction. It asks for the four bytes at
// the struct's head, version and cipher: whoever asks for all of it is told the key.
func isKernelTLS(fd int) error {
	for _, name := range []string{"TLS_TX", "TLS_RX"} {
		if _, err := unix.GetsockoptInt(fd, unix.SOL_TLS, keyOptions[name]); err != nil {
			return fmt.Errorf("not a TCP socket with TLS in the kernel: %w", os.NewSyscallError("getsockopt "+name, err))
		}
	}
	return nil
}

// Read reads data. It returns io.EOF at close_notify, which it leaves where it is, as the kernel does
// with a FIN: whoever has the socket next reads it too. An end without one is io.ErrUnexpectedEOF. If the
// client has broken the rules, it is told so, and the error says how. If the client asks for a new key of
// ours, Read waits for a Write that is under way, and heeds the deadline for writing.
func (c *kernelTLS) Read(b []byte) (int, error) {
	for range 1 + maxUseless {
		n, err := c.clientConn.Read(b)
		if errors.Is(err, io.EOF) {
			err = errTruncated
		}
		if !errors.Is(err, unix.EIO) { // what read(2) says if the next record is not data
			return n, c.explain(err)
		}
		if err := c.control(); err != nil {
			return 0, err
		}
	}
	return 0, c.fail(unexpectedMessage, errors.New("too many records in a row that are not data"))
}

// Write writes data. It may be the one to hear of a bad record that has come meanwhile.
func (c *kernelTLS) Write(b []byte) (int, error) {
	c.out.Lock()
	n, err := 0, error(unix.EPIPE)
	if !c.ended && c.failure.Load() == nil { // otherwise the kernel would say yes to one more, and drop it
		n, err = c.clientConn.Write(b)
	}
	c.out.Unlock()
	return n, c.explain(err)
}

// explain adds words to what the kernel says of a record that it cannot decrypt, and repeats them if
// the session has failed already.
func (c *kernelTLS) explain(err error) error {
	if failure := c.failure.Load(); err != nil && failure != nil {
		return *failure
	}
	for _, errno := range []unix.Errno{unix.EBADMSG, unix.EINVAL, unix.EMSGSIZE} { // its tag, its header, its length
		if errors.Is(err, errno) {
			return c.fail(badRecordMAC, fmt.Errorf("%w: what came is no record of this session", err))
		}
	}
	return err
}

// fail says goodbye with an alert, so that the client does not take this for a good end, and ends the
// connection: whoever reads or writes hears so. It returns why.
func (c *kernelTLS) fail(alert byte, why error) error {
	const fatal = 2
	c.failure.CompareAndSwap(nil, &why)
	_ = borrow(c, func(fd int) error {
		// Of a wrong tag the kernel tells the next caller once more, and that would be send. This takes it away.
		_, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		return err
	})
	if c.out.TryLock() { // a Write that is under way may wait for ever, and so would this
		c.send(recordAlert, fatal, alert) // fails if nobody can be told any more
		c.out.Unlock()
	}
	_ = borrow(c, func(fd int) error { return unix.Shutdown(fd, unix.SHUT_RDWR) }) // as above
	return why
}

// control deals with a record that is not data.
func (c *kernelTLS) control() error {
	kind, body, err := c.receive(unix.MSG_PEEK)
	switch {
	case err != nil:
		return c.explain(err)
	case kind == recordAlert && len(body) == 2 && body[1] == closeNotify:
		return io.EOF
	case kind == recordAlert && len(body) == 2 && body[1] == userCanceled: // means nothing after the handshake
		_, _, err := c.receive(0)
		return err
	case kind == recordAlert && len(body) == 2:
		return fmt.Errorf("the client's alert: %w", tls.AlertError(body[1]))
	case kind == recordHandshake && len(body) == 5 && body[0] == keyUpdate && body[4] <= 1:
		return c.rekey(body[4] == 1)
	}
	return c.fail(unexpectedMessage, fmt.Errorf("a record of type %d after the handshake: %.8x", kind, body))
}

// rekey follows the client to its next key, and if it asks for that changes ours too (RFC 8446,
// section 4.6.3). That takes Linux 6.14, and the secret that the next one is made of.
func (c *kernelTLS) rekey(ours bool) error {
	if c.secrets == nil {
		return c.fail(internalError, errors.New("KeyUpdate: the client has changed its key, and this process never had the secret that the next one is made of"))
	}
	if _, _, err := c.receive(0); err != nil {
		return err
	}
	next := func(option string, secret []byte) error {
		c.keys.Lock()
		defer c.keys.Unlock()
		following := c.secrets.expand(secret, "traffic upd", len(secret))
		copy(secret, following)
		clear(following)
		err := c.secrets.install(c, option, secret) // fails after Close, which wipes the secret
		if errors.Is(err, unix.EBUSY) {
			err = fmt.Errorf("%w: a second key takes Linux 6.14", err)
		}
		return err
	}
	err := next("TLS_RX", c.secrets.client)
	if err == nil && ours {
		c.out.Lock()
		if err = c.send(recordHandshake, keyUpdate, 0, 0, 1, 0); err == nil {
			err = next("TLS_TX", c.secrets.server)
		}
		c.out.Unlock()
	}
	if err != nil {
		return c.fail(internalError, fmt.Errorf("KeyUpdate: %w", err))
	}
	return nil
}

// receive returns the next record, which is not data, and its type.
func (c *kernelTLS) receive(flags int) (kind byte, body []byte, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, nil, err
	}
	body, control := make([]byte, 16<<10), make([]byte, unix.CmsgSpace(1))
	var n, controlLen int
	waitErr := raw.Read(func(fd uintptr) bool {
		n, controlLen, _, _, err = unix.Recvmsg(int(fd), body, control, flags)
		return !errors.Is(err, unix.EAGAIN)
	})
	if err := errors.Join(waitErr, os.NewSyscallError("recvmsg", err)); err != nil {
		return 0, nil, err
	}
	messages, err := unix.ParseSocketControlMessage(control[:controlLen])
	if err != nil || len(messages) != 1 || messages[0].Header.Level != unix.SOL_TLS || messages[0].Header.Type != getRecordType {
		return 0, nil, fmt.Errorf("a record of no type: %v, %v", messages, err)
	}
	return messages[0].Data[0], body[:n], nil
}

// send sends a record that is not data. It waits for room as Write does.
func (c *kernelTLS) send(kind byte, body ...byte) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	control := make([]byte, unix.CmsgSpace(1))
	header := (*unix.Cmsghdr)(unsafe.Pointer(&control[0]))
	header.Level, header.Type = unix.SOL_TLS, setRecordType
	header.SetLen(unix.CmsgLen(1))
	control[unix.CmsgLen(0)] = kind
	waitErr := raw.Write(func(fd uintptr) bool {
		err = unix.Sendmsg(int(fd), body, control, nil, 0)
		return !errors.Is(err, unix.EAGAIN)
	})
	return errors.Join(waitErr, os.NewSyscallError("sendmsg", err))
}

// CloseWrite says close_notify, and then ends this direction of the connection: a FIN alone could be
// anybody's, and a client takes it for a truncation. It waits for room as Write does, and for a Write that
// is under way: set a deadline before.
func (c *kernelTLS) CloseWrite() error {
	const warning = 1
	c.out.Lock()
	defer c.out.Unlock()
	c.ended = true
	return errors.Join(c.send(recordAlert, warning, closeNotify), c.clientConn.CloseWrite())
}

// Close forgets the secrets with the descriptor. The descriptor comes first: no key can be made any more
// of what is wiped, as one of zeros would be.
func (c *kernelTLS) Close() error {
	err := c.clientConn.Close()
	if c.secrets != nil {
		c.keys.Lock()
		c.secrets.wipe()
		c.keys.Unlock()
	}
	return err
}
