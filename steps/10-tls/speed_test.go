//go:build linux

package main

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	_ "unsafe" // for linkname
)

// Go lets nobody choose a cipher suite of TLS 1.3, but for those who reach for these lists.

//go:linkname suitesWithAES crypto/tls.defaultCipherSuitesTLS13
var suitesWithAES []uint16

//go:linkname suitesWithoutAES crypto/tls.defaultCipherSuitesTLS13NoAES
var suitesWithoutAES []uint16

// goPair is a session between crypto/tls and a server: plain crypto/tls, or if kernel with its keys there.
func goPair(t testing.TB, id uint16, kernel bool) (server io.ReadWriter, client *tls.Conn) {
	t.Helper()
	defer func(before, alsoBefore []uint16) { suitesWithAES, suitesWithoutAES = before, alsoBefore }(suitesWithAES, suitesWithoutAES)
	suitesWithAES, suitesWithoutAES = []uint16{id}, []uint16{id}
	config, err := newConfig()
	if err != nil {
		t.Fatal(err)
	}
	s, c := tcpPair(t, "tcp4")
	client = tls.Client(c, &tls.Config{InsecureSkipVerify: true})
	shaken := make(chan error, 1)
	go func() { shaken <- client.Handshake() }()
	var keys *secrets
	plain := tls.Server(s, config)
	if kernel {
		_, keys, err = handshake(s, config)
	} else {
		err = plain.Handshake()
	}
	if err := errors.Join(err, <-shaken); err != nil {
		t.Fatal(err)
	}
	if got := client.ConnectionState().CipherSuite; got != id {
		t.Fatalf("the cipher is %s", tls.CipherSuiteName(got))
	}
	c.SetDeadline(time.Time{}) // a benchmark takes as long as it takes
	if !kernel {
		s.SetDeadline(time.Time{})
		return plain, client
	}
	k, err := toKernel(s, keys)
	if err != nil {
		t.Fatal(err)
	}
	return k, client
}

// TestGoClient: crypto/tls at the other end, with each cipher.
func TestGoClient(t *testing.T) {
	needsKernelTLS(t)
	for id := range suites {
		t.Run(tls.CipherSuiteName(id), func(t *testing.T) {
			server, client := goPair(t, id, true)
			for _, size := range []int{1, 1000, 16 << 10, 1 << 20} {
				sent := make([]byte, size)
				rand.Read(sent)
				for _, ends := range [][2]io.ReadWriter{{client, server}, {server, client}} {
					go ends[0].Write(sent) // what fails is missing below
					got := make([]byte, size)
					if _, err := io.ReadFull(ends[1], got); err != nil || !bytes.Equal(got, sent) {
						t.Fatalf("%d bytes: %v", size, err)
					}
				}
			}
			client.CloseWrite()
			if rest, err := io.ReadAll(server); len(rest) > 0 || err != nil {
				t.Errorf("read %q, %v, want the end", rest, err)
			}
			server.(*kernelTLS).CloseWrite()
			if rest, err := io.ReadAll(client); len(rest) > 0 || err != nil {
				t.Errorf("the client read %q, %v, want the end", rest, err)
			}
		})
	}
}

// TestTicketsShiftTheCount: why tickets are off. With them the server has sent a record under its secret
// before the kernel begins to count, and the client expects another number than it gets.
func TestTicketsShiftTheCount(t *testing.T) {
	needsKernelTLS(t)
	config, err := newConfig()
	if err != nil {
		t.Fatal(err)
	}
	s, c := tcpPair(t, "tcp4")
	client := tls.Client(c, &tls.Config{InsecureSkipVerify: true, ClientSessionCache: tls.NewLRUClientSessionCache(1)})
	go client.Handshake() // what fails is missing below
	keys := &secrets{}
	config = keys.settings(config)
	config.SessionTicketsDisabled = false
	session := tls.Server(&records{Conn: s}, config)
	if err := session.Handshake(); err != nil {
		t.Fatal(err)
	}
	keys.suite = suites[session.ConnectionState().CipherSuite]
	server, err := toKernel(s, keys)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(server, "hello") // as above
	if _, err := client.Read(make([]byte, 5)); err == nil || !strings.Contains(err.Error(), "bad record MAC") {
		t.Errorf("got %v", err)
	}
}

// BenchmarkTLS compares a server whose keys are in the kernel with one of crypto/tls, in turn; the client is
// crypto/tls in either case. It reports medians, for what the server sends, for what it receives (64 KiB or
// 1 MiB, in writes of that many bytes), and for a question of 1 KiB with its answer.
func BenchmarkTLS(b *testing.B) {
	needsKernelTLS(b)
	send := func(from, to io.ReadWriter, text []byte, times int) error {
		go func() {
			for range times {
				from.Write(text) // what fails is missing below
			}
		}()
		_, err := io.CopyN(io.Discard, struct{ io.Reader }{to}, int64(times*len(text)))
		return err
	}
	for id := range suites {
		for name, op := range map[string]struct {
			size int
			do   func(server, client io.ReadWriter, text []byte) error
		}{
			"sends/1KiB":    {1 << 10, func(s, c io.ReadWriter, text []byte) error { return send(s, c, text, 64) }},
			"sends/1MiB":    {1 << 20, func(s, c io.ReadWriter, text []byte) error { return send(s, c, text, 1) }},
			"receives/1KiB": {1 << 10, func(s, c io.ReadWriter, text []byte) error { return send(c, s, text, 64) }},
			"receives/1MiB": {1 << 20, func(s, c io.ReadWriter, text []byte) error { return send(c, s, text, 1) }},
			"answers/1KiB": {1 << 10, func(s, c io.ReadWriter, text []byte) error {
				return errors.Join(send(c, s, text, 1), send(s, c, text, 1))
			}},
		} {
			b.Run(tls.CipherSuiteName(id)+"/"+name, func(b *testing.B) {
				text := make([]byte, op.size)
				var medians [2]time.Duration
				var times [2][]time.Duration
				var servers, clients [2]io.ReadWriter
				for i := range times {
					servers[i], clients[i] = goPair(b, id, i == 1)
				}
				for b.Loop() {
					for i := range times {
						begin := time.Now()
						if err := op.do(servers[i], clients[i], text); err != nil {
							b.Fatal(err)
						}
						times[i] = append(times[i], time.Since(begin))
					}
				}
				for i := range times {
					slices.Sort(times[i])
					medians[i] = times[i][len(times[i])/2]
				}
				b.ReportMetric(float64(medians[0].Nanoseconds())/1000, "crypto-tls-µs")
				b.ReportMetric(float64(medians[1].Nanoseconds())/1000, "kernel-µs")
				b.ReportMetric(float64(medians[1])/float64(medians[0]), "kernel/crypto-tls")
				b.ReportMetric(0, "ns/op") // it is the sum
			})
		}
	}
}

// BenchmarkSteal measures how long a client waits, from sending STEAL to reading the answer; and in turn with
// that, how long for the answer to a line. Step 04 measures the first under the same name, without TLS.
func BenchmarkSteal(b *testing.B) {
	needsKernelTLS(b)
	path := filepath.Join(shortFolder(b), "control")
	old, addr := startStep(b, "listening on ", "-addr", "127.0.0.1:0", "-control", path)
	young, _ := startStep(b, "waiting on ", "-c", "-control", path)
	var pauses, echoes []time.Duration
	for b.Loop() {
		c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			b.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(patience))
		in := bufio.NewReader(c)
		ask := func(text, want string) time.Duration {
			begin := time.Now()
			io.WriteString(c, text) // what fails here is not answered
			if got, err := in.ReadString('\n'); got != want {
				b.Fatalf("got %q, %v, want %q", got, err, want)
			}
			return time.Since(begin)
		}
		ask("hello\n", "hello\n") // the handshake is in it
		echoes = append(echoes, ask("hello\n", "hello\n"))
		pauses = append(pauses, ask("STEAL\n", fmt.Sprintf("* stolen: pid %d -> pid %d\n", old.Process.Pid, young.Process.Pid)))
		c.Close()
	}
	for name, times := range map[string][]time.Duration{"pause": pauses, "echo": echoes} {
		slices.Sort(times)
		b.ReportMetric(float64(times[len(times)/2].Nanoseconds())/1000, name+"-p50-µs")
	}
	b.ReportMetric(0, "ns/op") // the handshake is in it: it says nothing
}

// startStep starts the step as a process, and returns what its log says behind mark.
func startStep(t testing.TB, mark string, args ...string) (cmd *exec.Cmd, rest string) {
	t.Helper()
	cmd = exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), "TEST_ROLE=step")
	out, err := cmd.StderrPipe()
	if err := errors.Join(err, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if _, rest, found := strings.Cut(lines.Text(), mark); found {
			go io.Copy(io.Discard, out) // so that it never waits for a reader
			return cmd, rest
		}
	}
	t.Fatalf("%v ended, and never said %q", cmd.Args, mark)
	return nil, ""
}
