//go:build linux

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"golang.org/x/sys/unix"
)

// What it costs that net/http does not have the connection, beside net/http that has it, in the same run; and what
// an event stream sees of a restart.
//
//	go test -run '^$' -bench . ./steps/08-web

const asRole = "STEAL_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(asRole) {
	case "step":
		main()
	case "net/http":
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			log.Fatal(err)
		}
		log.Printf("listening on %v", l.Addr())
		log.Fatal(http.Serve(l, handler()))
	default:
		os.Exit(m.Run())
	}
}

// serverOf starts a server, and returns when it listens.
func serverOf(b *testing.B, role, path string) (addr string, pid int) {
	b.Helper()
	cmd := exec.Command("/proc/self/exe", "-addr", "127.0.0.1:0", "-control", path)
	cmd.Env = append(os.Environ(), asRole+"="+role)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	out, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if _, addr, found := strings.Cut(lines.Text(), "listening on "); found {
			go io.Copy(io.Discard, out)
			return addr, cmd.Process.Pid
		}
	}
	b.Fatal("it does not listen")
	return "", 0
}

type benchConn struct {
	net.Conn
	in *bufio.Reader
}

func dialBench(b *testing.B, addr string) benchConn {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	return benchConn{c, bufio.NewReaderSize(c, 1<<10)}
}

// asks sends a request, and reads the answer.
func (c benchConn) asks(b *testing.B) {
	io.WriteString(c, "GET /who HTTP/1.1\r\nHost: bench\r\n\r\n")
	length := 0
	for {
		line, err := c.in.ReadString('\n')
		if err != nil {
			b.Fatal(err)
		}
		fmt.Sscanf(line, "Content-Length: %d", &length)
		if line == "\r\n" {
			break
		}
	}
	if n, err := c.in.Discard(length); err != nil || length == 0 {
		b.Fatal(n, err)
	}
}

// chats becomes a WebSocket that has sent so much of a message.
func (c benchConn) chats(b *testing.B, half int) {
	io.WriteString(c, "GET /chat HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	answer, err := http.ReadResponse(c.in, nil)
	if err != nil || answer.StatusCode != http.StatusSwitchingProtocols {
		b.Fatal(answer, err)
	}
	for _, h := range []ws.Header{
		{Fin: false, OpCode: ws.OpBinary, Masked: true, Length: int64(half)},
		{Fin: true, OpCode: ws.OpPing, Masked: true},
	} {
		err = errors.Join(err, ws.WriteHeader(c, h))
		_, failed := c.Write(make([]byte, h.Length))
		err = errors.Join(err, failed)
	}
	pong, failed := ws.ReadHeader(c.in) // so the part has been taken
	if err = errors.Join(err, failed); err != nil || pong.OpCode != ws.OpPong {
		b.Fatal(pong, err)
	}
}

var roles = []string{"net/http", "step"}

// BenchmarkRequests: small requests over 16 connections, one after the other on each; in turns of a quarter of a second, so that
// both meet the same machine.
func BenchmarkRequests(b *testing.B) {
	conns := map[string][]benchConn{}
	for _, role := range roles {
		addr, _ := serverOf(b, role, filepath.Join(b.TempDir(), "control"))
		for range 16 {
			conns[role] = append(conns[role], dialBench(b, addr))
		}
	}
	rates := map[string][]float64{}
	for range max(b.N, 9) {
		for _, role := range roles {
			var all sync.WaitGroup
			var mu sync.Mutex
			total, begin := 0, time.Now()
			for _, c := range conns[role] {
				all.Go(func() {
					n := 0
					for ; time.Since(begin) < 250*time.Millisecond; n++ {
						c.asks(b)
					}
					mu.Lock()
					total += n
					mu.Unlock()
				})
			}
			all.Wait()
			rates[role] = append(rates[role], float64(total)/time.Since(begin).Seconds())
		}
	}
	median := func(role string) float64 {
		slices.Sort(rates[role])
		return rates[role][len(rates[role])/2]
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median("net/http"), "net/http-req/s")
	b.ReportMetric(median("step"), "step-req/s")
	b.ReportMetric(median("step")/median("net/http"), "step/net/http")
}

// BenchmarkIdle: the memory of an idle keep-alive connection, behind its first request.
func BenchmarkIdle(b *testing.B) {
	const n = 5000
	for _, role := range roles {
		addr, pid := serverOf(b, role, filepath.Join(b.TempDir(), "control"))
		dialBench(b, addr).asks(b)
		before := resident(b, pid)
		for range n {
			dialBench(b, addr).asks(b)
		}
		b.ReportMetric(float64(resident(b, pid)-before)/n, role+"-KiB")
	}
	b.ReportMetric(0, "ns/op")
}

// resident is a process's VmRSS, in KiB.
func resident(b *testing.B, pid int) (kB int) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	_, value, _ := strings.Cut(string(status), "VmRSS:")
	fmt.Sscan(value, &kB)
	return kB
}

// BenchmarkEvents: gaps between the events of 20 streams, of which there is one each 100 ms: with a restart in each second,
// and without; and with restarts beside 128 chats that have each sent a part of a message.
func BenchmarkEvents(b *testing.B) {
	for _, row := range []struct {
		name     string
		restarts bool
		half     int // bytes of a message
	}{{"calm", false, 0}, {"restarts", true, 0}, {"restarts beside 64 KB", true, 64_000}, {"restarts beside 1 MB", true, 1_000_000}} {
		b.Run(row.name, func(b *testing.B) {
			path := filepath.Join(b.TempDir(), "control")
			addr, _ := serverOf(b, "step", path)
			for range 128 {
				if row.half > 0 {
					dialBench(b, addr).chats(b, row.half)
				}
			}
			var mu sync.Mutex
			var gaps []time.Duration
			var over sync.WaitGroup
			end := time.Now().Add(10 * time.Second)
			for range 20 {
				c := dialBench(b, addr)
				io.WriteString(c, "GET /events HTTP/1.1\r\nHost: bench\r\n\r\n")
				over.Go(func() {
					before := time.Time{}
					for time.Now().Before(end) {
						line, err := c.in.ReadString('\n')
						if err != nil {
							b.Error(err)
							return
						}
						if !strings.HasPrefix(line, "id: ") {
							continue
						}
						now := time.Now()
						if !before.IsZero() {
							mu.Lock()
							gaps = append(gaps, now.Sub(before))
							mu.Unlock()
						}
						before = now
					}
				})
			}
			for row.restarts && time.Until(end) > time.Second {
				time.Sleep(time.Second)
				serverOf(b, "step", path)
			}
			over.Wait()
			slices.Sort(gaps)
			ms := func(part float64) float64 {
				return float64(gaps[int(part*float64(len(gaps)-1))].Microseconds()) / 1000
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(ms(0.5), "p50-ms")
			b.ReportMetric(ms(0.99), "p99-ms")
			b.ReportMetric(ms(1), "max-ms")
		})
	}
}
