//go:build linux

package steps

import (
	"bufio"
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	_ "crypto/sha256"
	_ "crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// What a step that speaks TLS needs of this suite: clients that do, and a server of our own for its liars.
// And what it promises more than others.

func encrypts(s step) bool      { return s.encrypts }
func encryptsAlone(s step) bool { return s.encrypts && s.steals } // and the kernel has TLS

// kernelTLS asks the kernel whether it has TLS: nil, or how it says no.
var kernelTLS = sync.OnceValue(func() error {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	c, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		return err
	}
	defer c.Close()
	return onDescriptor(c, func(fd int) error {
		return os.NewSyscallError("setsockopt TCP_ULP", unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_ULP, "tls"))
	})
})

// lacksTLS reports whether the step needs TLS of the kernel that it does not have. Another error than
// that it does not know it is none of a kernel's that is new enough.
func (s step) lacksTLS() bool {
	return s.encrypts && errors.Is(kernelTLS(), unix.ENOENT)
}

func onDescriptor(c net.Conn, f func(fd int) error) error {
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err == nil {
		err = errors.Join(raw.Control(func(fd uintptr) { err = f(int(fd)) }), err)
	}
	return err
}

// stream is a client's end: *net.TCPConn, or *tls.Conn.
type stream interface {
	net.Conn
	CloseWrite() error
}

// wire is the TCP connection below. A *tls.Conn that is closed waits for room to say so.
func wire(c stream) net.Conn {
	if c, ok := c.(*tls.Conn); ok {
		return c.NetConn()
	}
	return c
}

// encrypted are the ports at which TLS is spoken, as long as their tests run.
var encrypted sync.Map

func wantsTLS(t *testing.T, addr string) {
	t.Helper()
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	encrypted.Store(port, true)
	t.Cleanup(func() { encrypted.Delete(port) })
}

// connect connects to a server. With TLS, the first to read or write shakes hands.
func connect(addr string) (stream, error) {
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return nil, err
	}
	_, port, err := net.SplitHostPort(addr)
	if _, encrypts := encrypted.Load(port); encrypts && err == nil {
		return tls.Client(c, &tls.Config{InsecureSkipVerify: true}), nil // its certificate is self-made
	}
	return c.(*net.TCPConn), err
}

// sessionKeys are all secrets of a session that a client's key log names, and the keys and IVs made of them.
type sessionKeys struct {
	hash   crypto.Hash
	cipher uint16 // as linux/tls.h numbers it
	size   int    // of a key
	salt   int    // bytes of the IV that the kernel wants apart
	named  map[string][]byte
}

func keysOf(t *testing.T, c *tls.Conn, log *bytes.Buffer) sessionKeys {
	t.Helper()
	k := map[uint16]sessionKeys{
		tls.TLS_AES_128_GCM_SHA256:       {hash: crypto.SHA256, cipher: 51, size: 16, salt: 4},
		tls.TLS_AES_256_GCM_SHA384:       {hash: crypto.SHA384, cipher: 52, size: 32, salt: 4},
		tls.TLS_CHACHA20_POLY1305_SHA256: {hash: crypto.SHA256, cipher: 54, size: 32},
	}[c.ConnectionState().CipherSuite]
	k.named = map[string][]byte{}
	for line := range strings.Lines(log.String()) {
		fields := strings.Fields(line)
		secret, err := hex.DecodeString(fields[2])
		if err != nil {
			t.Fatal(err)
		}
		k.named[fields[0]] = secret
		for label, size := range map[string]int{"key": k.size, "iv": 12} {
			info := append([]byte{0, byte(size), byte(len("tls13 " + label))}, "tls13 "+label+"\x00"...)
			if k.named[fields[0]+" "+label], err = hkdf.Expand(k.hash.New, secret, string(info), size); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(k.named) < 4*3 {
		t.Fatalf("the key log has %q", log)
	}
	return k
}

// encrypt shakes hands with the client, and gives the kernel the keys: as the step under test does it, in
// other words.
func (x served) encrypt() {
	t := x.t
	t.Helper()
	fd, err := unix.FcntlInt(uintptr(x.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), "server")
	server, err := net.FileConn(file)
	if err := errors.Join(err, file.Close()); err != nil {
		t.Fatal(err)
	}
	defer server.Close() // x.fd stays
	c := tls.Client(x.stream, &tls.Config{InsecureSkipVerify: true})
	x.stream, x.in = c, bufio.NewReader(c)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	session := tls.Server(server, &tls.Config{
		Certificates:           []tls.Certificate{{Certificate: [][]byte{certificate}, PrivateKey: key}},
		SessionTicketsDisabled: true,
		KeyLogWriter:           &log,
	})
	shaken := make(chan error)
	go func() { shaken <- c.Handshake() }()
	if err := errors.Join(session.Handshake(), <-shaken); err != nil {
		t.Fatal(err)
	}
	k := keysOf(t, session, &log)
	err = onDescriptor(server, func(fd int) error {
		err := unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_ULP, "tls")
		for option, name := range map[int]string{1: "SERVER_TRAFFIC_SECRET_0", 2: "CLIENT_TRAFFIC_SECRET_0"} {
			iv := k.named[name+" iv"]
			info := binary.NativeEndian.AppendUint16(nil, tls.VersionTLS13)
			info = append(binary.NativeEndian.AppendUint16(info, k.cipher), iv[k.salt:]...)
			info = append(append(append(info, k.named[name+" key"]...), iv[:k.salt]...), make([]byte, 8)...)
			err = errors.Join(err, unix.SetsockoptString(fd, unix.SOL_TLS, option, string(info)))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestNoKernelTLS: without the kernel's help, clients are served, and told why they stay.
func TestNoKernelTLS(t *testing.T) {
	each(t, encrypts, func(t *testing.T, s step) {
		if s.steals {
			t.Skip("this kernel has TLS")
		}
		path := meetingPlace(t)
		old := s.old(t, path)
		s.young(t, path)
		visit := func() {
			c := dial(t, old.addr())
			c.send("before\nSTEAL\nafter\n")
			c.expect("before", "* not stolen: the kernel has no TLS: setsockopt TCP_ULP: no such file or directory: as root, modprobe tls", "after")
			c.finish("")
		}
		visit()
		keepsFDs := old.keepsFDs()
		visit()
		keepsFDs()
		demo := s.start(t, args("-demo"))
		demo.exits(1)
		demo.logged(`nothing can move here: as root, modprobe tls`)
	})
}

// TestForeignClients: TLS libraries that are none of ours, each with each cipher, on IPv4 and IPv6. Bytes
// are exact before STEAL, across it (it is in the middle of a record), and after it.
func TestForeignClients(t *testing.T) {
	body := strings.Repeat("a line of some length, which comes back as it was\n", rounds(1000, 20_000)) // of 50 bytes
	sent := "x\n" + body + "in one record\nSTEAL\nwith this\n" + body
	for tool, command := range map[string]func(cipher, host, port string) []string{
		"openssl": func(cipher, host, port string) []string {
			return []string{"s_client", "-quiet", "-ciphersuites", cipher, "-connect", net.JoinHostPort(host, port)}
		},
		"gnutls-cli": func(cipher, host, port string) []string {
			name := strings.NewReplacer("TLS_AES_128_GCM_SHA256", "AES-128-GCM", "TLS_AES_256_GCM_SHA384", "AES-256-GCM", "TLS_CHACHA20_POLY1305_SHA256", "CHACHA20-POLY1305").Replace(cipher)
			return []string{"--no-ca-verification", "--logfile=/dev/null", "--priority=NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+" + name, "--port=" + port, host}
		},
		// As a client of HTTP it sends the text behind a header of its own, which is not compared.
		"curl": func(cipher, host, port string) []string {
			return []string{"-ksN", "--http0.9", "--tls13-ciphers", cipher, "-H", "Expect:", "--data-binary", "@-", "https://" + net.JoinHostPort(host, port)}
		},
	} {
		t.Run(tool, func(t *testing.T) {
			path, err := exec.LookPath(tool)
			if err != nil {
				t.Skip(err)
			}
			each(t, encrypts, func(t *testing.T, s step) {
				for i, cipher := range []string{"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"} {
					for j, host := range []string{"127.0.0.1", "::1"} {
						if !isLong && i%2 != j { // each once
							continue
						}
						meet := meetingPlace(t)
						old := s.old(t, meet, args("-addr", net.JoinHostPort(host, "0")))
						young := s.young(t, meet)
						answer := stolenLine(old, young)
						if !s.steals {
							answer = "* not stolen: the kernel has no TLS: setsockopt TCP_ULP: no such file or directory: as root, modprobe tls"
						}
						_, port, err := net.SplitHostPort(old.addr())
						if err != nil {
							t.Fatal(err)
						}
						r, w, err := os.Pipe()
						if err != nil {
							t.Fatal(err)
						}
						client := start(t, path, args(command(cipher, host, port)...), func(cmd *exec.Cmd) { cmd.Stdin = r })
						r.Close()
						go func() {
							_, _ = io.WriteString(w, sent) // what fails is missing below
							if tool == "curl" {
								w.Close() // it reads all before it sends any
							}
						}()
						want := strings.Replace(sent, "STEAL", answer, 1)
						eventually(t, "all has come back", func() bool {
							got := client.out.String()
							return strings.HasSuffix(got, want) && (tool == "curl" || got == want)
						})
						client.kill()
						w.Close()
						old.kill()
						young.kill()
					}
				}
			})
		})
	}
}

// TestNeverHasAKey: neither the new process's memory nor what it is sent has any of the session's secrets,
// keys and IVs.
func TestNeverHasAKey(t *testing.T) {
	each(t, encryptsAlone, func(t *testing.T, s step) {
		path := meetingPlace(t)
		old := s.old(t, path)
		conn, err := net.Dial("tcp", old.addr())
		if err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		session := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, KeyLogWriter: &log})
		if err := session.Handshake(); err != nil {
			t.Fatal(err)
		}
		c := &client{t, session, bufio.NewReader(session)}
		t.Cleanup(func() { c.Close() })
		c.echoed("hello")
		k := keysOf(t, session, &log)

		l := join(t, path) // who listens on the way
		c.send("STEAL\n")
		record := make([]byte, 64<<10)
		n, _, _, _, err := unix.Recvmsg(l.fd, record, make([]byte, unix.CmsgSpace(4)), unix.MSG_CMSG_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		if found := k.in(record[:n]); len(found) > 0 || !bytes.Contains(record[:n], []byte(`"offer"`)) {
			t.Errorf("the offer %s has %v", record[:n], found)
		}
		l.hangUp()
		c.expect(nobodyWaits)

		young := s.young(t, path)
		c.stolen(old, young)
		witness := fmt.Sprintf("a line that it has read, of session %x", k.named["CLIENT_RANDOM"])
		c.echoed(witness)
		k.named["the witness"] = []byte(witness)
		if found := k.inMemory(t, young); len(found) != 1 || found[0] != "the witness" {
			t.Errorf("the new process has %v, want nothing but the witness", found)
		}
		delete(k.named, "the witness")
		t.Logf("of %d, the old process still has %v", len(k.named), k.inMemory(t, old))
	})
}

// in returns which of them are in a text: as they are, in hex, or in base64.
func (k sessionKeys) in(text []byte) (found []string) {
	for name, secret := range k.named {
		inHex, inBase64 := hex.AppendEncode(nil, secret), base64.StdEncoding.EncodeToString(secret)
		if bytes.Contains(text, secret) || bytes.Contains(text, inHex) || bytes.Contains(text, []byte(strings.TrimRight(inBase64, "="))) {
			found = append(found, name)
		}
	}
	slices.Sort(found)
	return found
}

// inMemory looks for them in all that a process has mapped (proc_pid_mem(5)).
func (k sessionKeys) inMemory(t *testing.T, p *process) (found []string) {
	t.Helper()
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", p.pid))
	if errors.Is(err, os.ErrPermission) && yamaMode(t) > 1 {
		t.Skipf("%v: Yama's ptrace_scope is %d", err, yamaMode(t))
	}
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	p.stop()
	defer p.signal(unix.SIGCONT)
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", p.pid))
	if err != nil {
		t.Fatal(err)
	}
	zeros := make([]byte, 33<<10)
	for line := range strings.Lines(string(maps)) {
		var from, to int64
		var mode string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(mode, "rw") {
			continue // nothing was written there
		}
		// In pieces, which overlap. Go maps 64 MiB at a time, and what it never touched reads as zeros.
		const piece, overlap = 32 << 10, 256
		for text := make([]byte, piece+overlap); from < to; from += piece {
			n, _ := memory.ReadAt(text[:min(piece+overlap, to-from)], from)
			if !bytes.Equal(text[:n], zeros[:n]) {
				found = append(found, k.in(text[:n])...)
			}
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// TestMultipath: the kernel has no TLS for a connection over Multipath TCP, for which Go's listeners listen
// too. Its client is served all the same.
func TestMultipath(t *testing.T) {
	each(t, encryptsAlone, func(t *testing.T, s step) {
		path := meetingPlace(t)
		old := s.old(t, path)
		s.young(t, path)
		dialer := net.Dialer{}
		dialer.SetMultipathTCP(true)
		conn, err := dialer.Dial("tcp", old.addr())
		if err != nil {
			t.Fatal(err)
		}
		if is, err := conn.(*net.TCPConn).MultipathTCP(); !is {
			t.Skipf("this kernel has no Multipath TCP (%v)", err)
		}
		session := tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
		c := &client{t, session, bufio.NewReader(session)}
		c.send("before\nSTEAL\nafter\n")
		c.expect("before")
		c.matches(`\* not stolen: setsockopt TCP_ULP: (protocol not available|operation not supported)`)
		c.expect("after")
		c.finish("")
	})
}

// TestStrangers: whoever cannot speak TLS 1.3 gets one line in the log, and nobody else notices.
func TestStrangers(t *testing.T) {
	each(t, encrypts, func(t *testing.T, s step) {
		path := meetingPlace(t)
		old := s.old(t, path)
		c := dial(t, old.addr())
		c.echoed("hello")
		keepsFDs := old.keepsFDs()
		for _, stranger := range []struct {
			visit func(net.Conn)
			says  string
		}{
			{func(c net.Conn) { io.WriteString(c, "GET / HTTP/1.1\r\n\r\n") }, `handshake: tls: first record does not look like a TLS handshake`},
			{func(c net.Conn) {
				tls.Client(c, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}).Handshake()
			}, `handshake: tls: client offered only unsupported versions`},
			{func(c net.Conn) { c.Close() }, `handshake: EOF`},
			{func(c net.Conn) { // garbage after the handshake
				session := tls.Client(c, &tls.Config{InsecureSkipVerify: true})
				session.Handshake()
				io.WriteString(c, strings.Repeat("garbage", 5))
				io.ReadAll(c)
			}, `closing descriptor \d+: .*(message too long|invalid argument|bad message|oversized record|tls: )`},
			{func(c net.Conn) { // a truncation
				tls.Client(c, &tls.Config{InsecureSkipVerify: true}).Handshake()
				c.(*net.TCPConn).CloseWrite()
				if answer, err := io.ReadAll(c); len(answer) > 0 || err != nil {
					t.Errorf("after a truncation comes %x, %v, want no close_notify", answer, err)
				}
			}, `closing descriptor \d+: .*unexpected EOF: the client ended without close_notify`},
		} {
			before := strings.Count(old.err.String(), "\n")
			conn, err := net.Dial("tcp", old.addr())
			if err != nil {
				t.Fatal(err)
			}
			conn.SetDeadline(deadline())
			stranger.visit(conn)
			old.logged(stranger.says)
			conn.Close()
			if after := strings.Count(old.err.String(), "\n"); after > before+3 {
				t.Errorf("%q: %d lines", stranger.says, after-before)
			}
			c.echoed("still here")
		}
		keepsFDs()
	})
}
