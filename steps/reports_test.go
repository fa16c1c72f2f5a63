//go:build linux

package steps

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What others have reported, of their programs and of ours: surroundings in which a server must not
// end, or must at least say why.

// TestNobodyReadsTheOutput: the reader of stdout or of stderr goes away, as a supervisor that is
// restarted does. No client's connection ends, and STEAL works.
func TestNobodyReadsTheOutput(t *testing.T) {
	for _, which := range []string{"stdout", "stderr"} {
		t.Run(which, func(t *testing.T) {
			each(t, servesTCP, func(t *testing.T, s step) {
				path := meetingPlace(t)
				r, w, err := os.Pipe()
				if err != nil {
					t.Fatal(err)
				}
				defer w.Close() // each process has its own
				defer r.Close()
				silent := func(cmd *exec.Cmd) {
					if which == "stdout" {
						cmd.Stdout = w
					} else {
						cmd.Stderr = w
					}
				}
				flags := []string{"-addr", "127.0.0.1:0"}
				if s.meets {
					flags = append(flags, "-control", path, "-timeout", "1h")
				}
				old := s.start(t, silent, args(flags...))
				addr := ""
				if which == "stdout" {
					addr = old.addr()
				}
				if err := r.SetReadDeadline(deadline()); err != nil {
					t.Fatal(err)
				}
				for lines := bufio.NewScanner(r); addr == ""; { // and then nobody reads any more
					if !lines.Scan() {
						t.Fatalf("it does not say where it listens: %v", lines.Err())
					}
					_, addr, _ = strings.Cut(lines.Text(), "listening on ")
				}
				if err := r.Close(); err != nil {
					t.Fatal(err)
				}
				if s.encrypts {
					wantsTLS(t, addr)
				}
				a, b := dial(t, addr), dial(t, addr)
				for range 3 {
					a.echoed("hello")
					b.echoed("hello")
				}
				if s.steals {
					young := s.start(t, silent, args("-c", "-control", path))
					eventually(t, "the new process waits, and has the connection", func() bool {
						a.send("STEAL\n")
						answer := a.line()
						return answer == stolenLine(old, young)
					})
					for range 3 {
						a.echoed("still here")
					}
				}
				b.echoed("still here")
			})
		})
	}
}

// TestAcceptErrors: an error of accept(2) is about one pending connection, and the next one is served:
// golang/go#6163 and many others. strace plays the network.
func TestAcceptErrors(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip(err)
	}
	if out, err := exec.Command(strace, "-qq", "-o", "/dev/null", "-e", "inject=accept4:error=EPROTO:when=1", "true").CombinedOutput(); err != nil {
		t.Skipf("strace may not trace here, or cannot inject: %v\n%s", err, out)
	}
	errnos := []string{"EPROTO", "EPERM", "ECONNABORTED"}
	if isLong {
		errnos = append(errnos, "ENETDOWN", "ENOPROTOOPT", "EHOSTDOWN", "ENONET", "EHOSTUNREACH", "EOPNOTSUPP", "ENETUNREACH", "ENOBUFS", "ENOMEM", "EMFILE", "ENFILE")
	}
	for _, errno := range errnos {
		t.Run(errno, func(t *testing.T) {
			each(t, servesTCP, func(t *testing.T, s step) {
				// With -D it is strace that is the child's child: what we kill is the step.
				p := s.old(t, meetingPlace(t), func(cmd *exec.Cmd) {
					cmd.Args = append([]string{"strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", "trace=accept4",
						"-e", "inject=accept4:error=" + errno + ":when=1", cmd.Path}, cmd.Args[1:]...)
					cmd.Path = strace
				})
				for range 3 {
					dial(t, p.addr()).echoed("hello")
				}
			})
		})
	}
}

// TestAnotherUser: neither side has to do with another user's process, and each says so.
func TestAnotherUser(t *testing.T) {
	needsRoot(t)
	each(t, steals, func(t *testing.T, s step) {
		// The path is open to all, as it would be if somebody had been careless: the second lock holds.
		meet := func() (path string) {
			path = meetingPlace(t)
			if err := os.Chmod(path[:strings.LastIndex(path, "/")], 0o777); err != nil {
				t.Fatal(err)
			}
			return path
		}
		open := func(path string) {
			if err := os.Chmod(path, 0o777); err != nil {
				t.Fatal(err)
			}
		}
		// Root's old process: a new one of nobody's would take from it, but is given nothing.
		path := meet()
		old := s.old(t, path)
		open(path)
		c := dial(t, old.addr())
		c.echoed("hello")
		keepsFDs := old.keepsFDs()
		stranger := s.young(t, path, as(nobody))
		c.send("STEAL\nafter\n")
		c.expect(nobodyWaits, "after")
		stranger.exits(1)
		stranger.logged(`gave up on this process: ".*pid \d+ \(uid 65534\) is another user's process`)
		keepsFDs()
		c.stolen(old, s.young(t, path))

		// Nobody's old process gives to root, who has everything anyway: here, this test.
		path = meet()
		old = s.old(t, path, as(nobody))
		c = dial(t, old.addr())
		l := join(t, path)
		c.send("STEAL\nafter\n")
		if m, fds := l.receive(); m.Type != "offer" {
			t.Errorf("got %+v, want an offer", m)
		} else {
			for _, fd := range fds {
				unix.Close(fd) // the test's own
			}
		}
		l.hangUp()
		c.expect(nobodyWaits, "after")
		// But neither root nor another user takes from it.
		open(path)
		s.start(t, args("-c", "-control", path)).fails(`pid \d+ \(uid 65534\) is another user's process`)
		s.start(t, args("-c", "-control", path), as(nobody-1)).fails(`pid \d+ \(uid 65534\) is another user's process`)
		c.echoed("still here")
		c.stolen(old, s.young(t, path, as(nobody)))
	})
}

// TestLinkLocal: an address of one link only is printed with its link, by the old process, the new
// one and -pid (gobgp#3276).
func TestLinkLocal(t *testing.T) {
	addr, link := linkLocal(t)
	each(t, servesTCP, func(t *testing.T, s step) {
		path := meetingPlace(t)
		old := s.old(t, path, args("-addr", "["+addr+"]:0"))
		_, port, err := net.SplitHostPort(old.logged(`listening on (\S+)$`)[1])
		if err != nil {
			t.Fatal(err)
		}
		c := dial(t, "["+addr+"]:"+port)
		c.echoed("hello")
		if s.restarts {
			s.old(t, path, args("-addr", "["+addr+"]:"+port)).logged(`listening on \[fe80::[0-9a-f:]+(%` + link + `)?\]:` + port)
			return
		}
		if s.rescues { // it logs no clients
			return
		}
		old.logged(`client \[fe80::[0-9a-f:]+%` + link + `\]:\d+ `)
		number := old.logged(`is descriptor (\d+)`)[1]
		if s.pulls {
			look := s.start(t, args("-pid", fmt.Sprint(old.pid), "-fd", number))
			if why := forbidden(t, s, 0); why != "" {
				look.fails(why)
			} else if look.exits(0); !strings.Contains(look.out.String(), c.LocalAddr().String()) {
				t.Errorf("no %v in:\n%s", c.LocalAddr(), look.out)
			}
		}
		if s.steals {
			young := s.young(t, path)
			c.stolen(old, young)
			young.logged(`client \[fe80::[0-9a-f:]+%` + link + `\]:\d+ `)
		}
	})
}

// linkLocal returns a link-local address of this machine, with its zone.
func linkLocal(t *testing.T) (addr, link string) {
	t.Helper()
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range links {
		addrs, err := i.Addrs()
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range addrs {
			if ip, ok := a.(*net.IPNet); ok && ip.IP.To4() == nil && ip.IP.IsLinkLocalUnicast() && i.Flags&net.FlagUp != 0 {
				return ip.IP.String() + "%" + i.Name, i.Name
			}
		}
	}
	t.Skipf("none of these has a link-local address: %v", links)
	return "", ""
}

// TestYamaThatCannotBeRead: where /proc shows processes only, Yama's mode cannot be read, and may be
// what forbids it (fwupd#6964). strace says EPERM, as Yama would.
func TestYamaThatCannotBeRead(t *testing.T) {
	needsRoot(t)
	const inside = `mount -t proc -o subset=pid proc /proc && exec `
	if out, err := exec.Command("unshare", "-m", "sh", "-c", inside+"strace -V").CombinedOutput(); err != nil {
		t.Skipf("no mount namespace, no proc with subset=pid, or no strace: %v\n%s", err, out)
	}
	each(t, pulls, func(t *testing.T, s step) {
		target := s.old(t, meetingPlace(t))
		traced := func(cmd *exec.Cmd) {
			trace := `strace -f -qq -o /dev/null -e trace=pidfd_getfd -e inject=pidfd_getfd:error=EPERM:when=1 `
			cmd.Args = []string{"unshare", "-m", "sh", "-c", inside + trace + strings.Join(append([]string{cmd.Path}, cmd.Args[1:]...), " ")}
			var err error
			if cmd.Path, err = exec.LookPath("unshare"); err != nil {
				t.Fatal(err)
			}
		}
		// The first call is the one that asks for the descriptor. The second is on a pidfd that is none,
		// and shows that there is no seccomp filter. strace counts for each thread, and Go may have
		// changed to another one between the two: then it is the filter that is blamed, and we ask again.
		eventually(t, "both calls are in one thread", func() bool {
			p := s.start(t, args("-pid", fmt.Sprint(target.pid), "-fd", "0"), traced)
			if p.wait(); strings.Contains(p.err.String(), "seccomp filter") {
				return false
			}
			p.fails(`operation not permitted: .*ptrace_scope cannot be read`)
			return true
		})
	})
}
