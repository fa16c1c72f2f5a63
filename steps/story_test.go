//go:build linux

package steps

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The stories that the steps tell, as their clients see them.

// TestMeeting: two processes meet, the kernel tells each who the other is, and each gets what the
// other one sent.
func TestMeeting(t *testing.T) {
	each(t, func(s step) bool { return s.name == "02-unix-socket" }, func(t *testing.T, s step) {
		path := meetingPlace(t)
		old := s.old(t, path)
		for range 2 {
			young := s.young(t, path)
			for p, other := range map[*process]*process{old: young, young: old} {
				p.logged(fmt.Sprintf(`pid %d \(uid %d\) says "I am pid %[1]d"`, other.pid, os.Getuid()))
			}
			young.kill()
			old.logged(fmt.Sprintf(`pid %d \(uid %d\) is gone`, young.pid, os.Getuid()))
		}
		young := s.young(t, path)
		old.kill()
		young.exits(0)
	})
}

// TestDescriptorTravels: two processes read one file with one offset, and the client that queued up
// at a listener in one of them is answered by the other.
func TestDescriptorTravels(t *testing.T) {
	each(t, func(s step) bool { return s.name == "03-scm-rights" }, func(t *testing.T, s step) {
		path := meetingPlace(t)
		old := s.old(t, path)
		for range 2 {
			young := s.young(t, path)
			young.exits(0)
			young.logged(`the next line is "line two\\n"`)
			old.logged(`the next line is "line one\\n"`)
			old.logged(`the next line is "line three\\n"`)
			old.logged(fmt.Sprintf(`the client hears "pid %d\\n"`, young.pid))
			old.logged(fmt.Sprintf(`both stories are told, with pid %d `, young.pid))
		}
	})
}

// TestEcho: whatever bytes a client sends come back, once and in order.
func TestEcho(t *testing.T) {
	each(t, servesTCP, func(t *testing.T, s step) {
		old := s.old(t, meetingPlace(t))
		for name, sent := range map[string]string{
			"nothing":                 "",
			"lines":                   "one\r\n\n\nfour\n",
			"binary":                  "\x00\xff\xfe\xc3\x28 \x1b[2J\n",
			"a last line":             "one\ntwo",
			"a line that is long":     strings.Repeat("x", 100_000) + "\nshort\n",
			"lines about 16 KiB long": strings.Repeat("y", 16<<10-1) + "\n" + strings.Repeat("z", 16<<10) + "\n",
			"anything":                string(anything(rounds(1<<20, 1<<20))),
		} {
			c := dial(t, old.addr())
			go func() {
				_, err := io.WriteString(c, sent)
				if err := errors.Join(err, c.CloseWrite()); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}()
			if got, err := io.ReadAll(c); string(got) != sent || err != nil {
				t.Errorf("%s: %d bytes came back, and %v; want %d", name, len(got), err, len(sent))
			}
		}
	})
}

// anything is random bytes, and no STEAL among them.
func anything(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return bytes.ReplaceAll(b, []byte("S"), []byte("T"))
}

// TestSteal is the story: three clients, an old and a new process, in any order. The connection that
// moves is the very socket that it was.
func TestSteal(t *testing.T) {
	each(t, steals, func(t *testing.T, s step) {
		path := meetingPlace(t)
		old := s.old(t, path)
		early, kept := dial(t, old.addr()), dial(t, old.addr())
		early.echoed("before there is a new process")
		kept.echoed("mine")
		young := s.young(t, path)
		if why := forbidden(t, s, 1); why != "" { // the client is told, and stays
			early.send("STEAL\nafter\n")
			early.matches(fmt.Sprintf(`\* not stolen: pid %d .* refused: ".*%s.*`, young.pid, why))
			early.expect("after")
			t.Skip("refused with: " + why)
		}
		late := dial(t, old.addr())
		for _, c := range []*client{early, late} {
			c.echoed("hello")
			port, inode := c.LocalAddr().String(), c.inode()
			if !old.has(inode) || young.has(inode) {
				t.Errorf("before, socket %s: old has it: %v; new has it: %v", inode, old.has(inode), young.has(inode))
			}
			c.stolen(old, young)
			if now := c.inode(); now != inode || !young.has(inode) || c.LocalAddr().String() != port {
				t.Errorf("after, %s is %s, was %s; new has it: %v", port, now, inode, young.has(inode))
			}
			eventually(t, "the old process has closed its descriptor", func() bool { return !old.has(inode) })
		}
		if inode := kept.inode(); !old.has(inode) || young.has(inode) {
			t.Errorf("the client that never asked: old has it: %v; new has it: %v", old.has(inode), young.has(inode))
		}
		early.send("STEAL\n")
		early.matches(`\* not stolen: pid \d+ has it already.*`)

		old.kill()
		kept.ended()
		early.echoed("still here")
		late.finish("")
		early.finish("")
		young.exits(0) // all that it had has ended
		if got := young.out.String(); !strings.Contains(got, `"still here\n"`+"\n") {
			t.Errorf("stdout of the new process: %q", got)
		}
	})
}

// TestBytes: what a client sends around STEAL is echoed once and in order, by whichever process.
func TestBytes(t *testing.T) {
	const steal = "<answer>" // in a wanted text: the line in answer to STEAL
	long := strings.Repeat("x", 100_000)
	binary := string(anything(3000))
	for name, c := range map[string]struct {
		writes []string
		want   string
	}{
		"alone":                 {[]string{"STEAL\n"}, steal},
		"in one write":          {[]string{"a\nSTEAL\nb\nc\n"}, "a\n" + steal + "b\nc\n"},
		"half a line behind it": {[]string{"STEAL\nhalf", " a line\n"}, steal + "half a line\n"},
		"in two writes":         {[]string{"STE", "AL\nafter\n"}, steal + "after\n"},
		"newline later":         {[]string{"STEAL", "\n"}, steal},
		"in lower case":         {[]string{"steal\r\n"}, steal},
		"with spaces":           {[]string{" \t Steal  \r\n"}, steal},
		"at the end":            {[]string{"a\nSTEAL"}, "a\n" + steal},
		"binary":                {[]string{binary + "\nSTEAL\n" + binary}, binary + "\n" + steal + binary},
		"much behind it":        {[]string{"STEAL\n" + long + "\n" + long}, steal + long + "\n" + long},
		"a long line before it": {[]string{long + "\nSTEAL\nafter\n"}, long + "\n" + steal + "after\n"},
		"the end of a line":     {[]string{long + "STEAL\nafter\n"}, long + "STEAL\nafter\n"},
		"exactly a buffer":      {[]string{strings.Repeat("x", 16<<10) + "STEAL\nafter\n"}, strings.Repeat("x", 16<<10) + "STEAL\nafter\n"},
		"not it":                {[]string{"STEALTH\nNO STEAL\nSTEAL.\n\u017fTEAL\n"}, "STEALTH\nNO STEAL\nSTEAL.\n\u017fTEAL\n"},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, steals, func(t *testing.T, s step) {
				path := meetingPlace(t)
				old := s.old(t, path)
				young := s.young(t, path)
				client := dial(t, old.addr())
				client.echoed("hello")
				var got bytes.Buffer
				read := make(chan error)
				go func() {
					_, err := io.Copy(&got, client.in)
					read <- err
				}()
				for _, w := range c.writes {
					client.send(w)
				}
				if err := client.CloseWrite(); err != nil { // a half-close travels too
					t.Error(err)
				}
				err := <-read
				want := strings.ReplaceAll(c.want, steal, stolenLine(old, young)+"\n")
				if got.String() != want || err != nil {
					t.Errorf("got %.200q (%d bytes) and %v, want %.200q (%d bytes)", got.String(), got.Len(), err, want, len(want))
				}
			})
		})
	}
}

// TestNobodyWaits: the old process says so, and goes on serving.
func TestNobodyWaits(t *testing.T) {
	each(t, steals, func(t *testing.T, s step) {
		path := meetingPlace(t)
		old := s.old(t, path)
		c := dial(t, old.addr())
		c.send("before\nSTEAL\nafter\n")
		c.expect("before", nobodyWaits, "after")
		c.stolen(old, s.young(t, path))
	})
}

// TestDemo: the demo's verdict is good, it says so last, and it leaves nothing behind.
func TestDemo(t *testing.T) {
	each(t, steals, func(t *testing.T, s step) {
		temp := folder(t)
		demo := s.start(t, args("-demo"), env("TMPDIR="+temp, "XDG_RUNTIME_DIR="))
		status, verdict, received := 0, "good", `"\* stolen: pid \d+ -> pid \d+"$`
		if why := forbidden(t, s, 1); why != "" {
			status, verdict, received = 1, "BAD", `"\* not stolen: pid .*`+why
		}
		demo.exits(status)
		said := strings.Split(strings.TrimSpace(demo.err.String()), "\n")
		if last, want := said[len(said)-1], fmt.Sprintf("demo[%d]: verdict: %s", demo.pid, verdict); !strings.HasPrefix(last, want) {
			t.Errorf("the last line is %q, want %s", last, want)
		}
		demo.logged(fmt.Sprintf(`^demo\[%d\]: the client receives %s`, demo.pid, received))
		left, err := os.ReadDir(temp)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range left {
			if !strings.HasPrefix(f.Name(), "steal-") || !f.IsDir() || strings.Contains(f.Name(), "demo") {
				t.Errorf("it left %s behind", f.Name())
			}
		}
	})
}

// TestLook: any descriptor of a process can be looked at, without a trace in it.
func TestLook(t *testing.T) {
	each(t, pulls, func(t *testing.T, s step) {
		old := s.old(t, meetingPlace(t))
		c := dial(t, old.addr())
		c.echoed("hello")
		inode := c.inode()
		number := -1
		for fd, what := range old.fds() {
			if what == "socket:["+inode+"]" {
				number = fd
			}
		}
		c.send("unread by whom it does not concern\n")
		c.expect("unread by whom it does not concern")
		keepsFDs := old.keepsFDs()
		look := s.start(t, args("-pid", fmt.Sprint(old.pid), "-fd", fmt.Sprint(number)))
		if why := forbidden(t, s, 0); why != "" { // also of a number that the process does not have
			look.fails(why)
			s.start(t, args("-pid", fmt.Sprint(old.pid), "-fd", "999")).fails(why)
			c.echoed("still here")
			t.Skip("refused with: " + why)
		}
		look.exits(0)
		got := look.out.String()
		for _, want := range []string{inode, c.LocalAddr().String(), c.RemoteAddr().String(), "the same there and here"} {
			if !strings.Contains(got, want) {
				t.Errorf("no %q in:\n%s", want, got)
			}
		}
		keepsFDs()
		c.echoed("still here")
		s.start(t, args("-pid", fmt.Sprint(old.pid), "-fd", "999")).fails("pidfd_getfd .*bad file descriptor: it has no such descriptor")
		look.wait()
		s.start(t, args("-pid", fmt.Sprint(look.pid), "-fd", "0")).fails("pidfd_open .*no such process")
	})
}

// TestLookAtAnotherUsers: why it may not be.
func TestLookAtAnotherUsers(t *testing.T) {
	needsRoot(t)
	each(t, pulls, func(t *testing.T, s step) {
		old := s.old(t, meetingPlace(t))
		s.start(t, as(nobody), args("-pid", fmt.Sprint(old.pid), "-fd", "0")).
			fails(`operation not permitted: .* belongs to uid 0, and this process is uid 65534's`)
	})
}

// TestOnlyIPv4: 0.0.0.0 is IPv4 and nothing else, as golang/go#12579 asked for.
func TestOnlyIPv4(t *testing.T) {
	each(t, servesTCP, func(t *testing.T, s step) {
		old := s.old(t, meetingPlace(t), args("-addr", "0.0.0.0:0"))
		_, port, err := net.SplitHostPort(old.addr())
		if err != nil {
			t.Fatal(err)
		}
		dial(t, "127.0.0.1:"+port).echoed("hello")
		c, err := net.Dial("tcp", "[::1]:"+port)
		if err == nil {
			t.Errorf("%v answers", c.RemoteAddr())
		} else if !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.EAFNOSUPPORT) {
			t.Error(err)
		}
	})
}
