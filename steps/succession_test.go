//go:build linux

package steps

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Who meets whom: the control path, whose it is, and the line of those who wait there.

// TestLine: several new processes may wait. The first in line takes; when it dies, the next one does.
func TestLine(t *testing.T) {
	each(t, steals, func(t *testing.T, s step) {
		path := meetingPlace(t)
		old := s.old(t, path)
		first, second, third, fourth := s.young(t, path), s.young(t, path), s.young(t, path), s.young(t, path)
		c := make([]*client, 5)
		for i := range c {
			c[i] = dial(t, old.addr())
			c[i].echoed("hello")
		}
		c[0].stolen(old, first)
		c[1].stolen(old, first)
		first.kill()
		c[0].ended()
		c[2].stolen(old, second)
		third.kill() // while it waits: nobody has accepted it yet
		second.kill()
		c[3].stolen(old, fourth)
		fourth.kill()
		c[4].send("STEAL\n")
		c[4].expect(nobodyWaits)
		c[4].stolen(old, s.young(t, path))
	})
}

// TestSilentOnesInLine: whoever connects and says nothing delays a newcomer by one time-out.
func TestSilentOnesInLine(t *testing.T) {
	each(t, steals, func(t *testing.T, s step) {
		path := meetingPlace(t)
		old := s.old(t, path, hook("after-send offer 1 expire", "after-send offer 2 expire"))
		c := dial(t, old.addr())
		for range 2 {
			join(t, path)
		}
		young := s.young(t, path)
		for range 2 {
			c.send("STEAL\nafter\n")
			c.matches(fmt.Sprintf(`\* not stolen: pid %d .*did not answer within 1h0m0s`, os.Getpid()))
			c.expect("after")
		}
		c.stolen(old, young)
	})
}

// TestNoOld: a new process without an old one says so in one line.
func TestNoOld(t *testing.T) {
	each(t, meets, func(t *testing.T, s step) {
		path := meetingPlace(t)
		s.start(t, args("-c", "-control", path)).fails(`connect: no such file or directory: is the old process running\?`)
		s.old(t, path).kill()
		s.start(t, args("-c", "-control", path)).fails(`connect: connection refused: is the old process running\?`)
	})
}

// TestSecondOld: a second old process says in one line that there is one, which notices nothing. When
// the first was killed, its path is no obstacle.
func TestSecondOld(t *testing.T) {
	each(t, meets, func(t *testing.T, s step) {
		path := meetingPlace(t)
		old := s.old(t, path)
		s.start(t, args("-control", path)).fails(`lock .*: resource temporarily unavailable: .* another path with -control`)
		s.young(t, path)
		old.kill()
		s.old(t, path)
		s.young(t, path)
	})
}

// TestTwoOldOnesAtOnce: of two that start together, one listens. There is a path of a dead one,
// which both would remove.
func TestTwoOldOnesAtOnce(t *testing.T) {
	each(t, meets, func(t *testing.T, s step) {
		path := meetingPlace(t)
		s.old(t, path).kill()
		for range rounds(5, 50) {
			flags := []string{"-control", path}
			if s.tcp {
				flags = append(flags, "-addr", "127.0.0.1:0")
			}
			winner, loser := s.start(t, args(flags...)), s.start(t, args(flags...))
			select {
			case <-loser.done:
			case <-winner.done:
				winner, loser = loser, winner
			}
			loser.fails(`resource temporarily unavailable`)
			winner.logged(`listening on `)
			s.young(t, path).kill()
			winner.kill()
		}
	})
}

// TestNothingOfOthersIsTouched: what another program has put at the path stays there as it is.
func TestNothingOfOthersIsTouched(t *testing.T) {
	listen := func(network string) func(path string) error {
		return func(path string) error {
			if network == "unixgram" {
				c, err := net.ListenUnixgram(network, &net.UnixAddr{Name: path})
				if err == nil {
					t.Cleanup(func() { _ = c.Close() }) // with the test
				}
				return err
			}
			l, err := net.Listen(network, path)
			if err == nil {
				t.Cleanup(func() { _ = l.Close() }) // with the test
			}
			return err
		}
	}
	for name, put := range map[string]func(path string) error{
		"a file":               func(path string) error { return os.WriteFile(path, []byte("precious"), 0o600) },
		"a folder":             func(path string) error { return os.Mkdir(path, 0o700) },
		"a symbolic link":      func(path string) error { return os.Symlink("/etc/passwd", path) },
		"a link to nowhere":    func(path string) error { return os.Symlink(path+"-nowhere", path) },
		"a stream listener":    listen("unix"),
		"a datagram socket":    listen("unixgram"),
		"a seqpacket listener": listen("unixpacket"),
	} {
		t.Run(name, func(t *testing.T) {
			each(t, meets, func(t *testing.T, s step) {
				path := meetingPlace(t)
				if err := put(path); err != nil {
					t.Fatal(err)
				}
				before, err := os.Lstat(path)
				if err != nil {
					t.Fatal(err)
				}
				s.start(t, args("-control", path)).fails(`another program's file or socket is there: choose another path with -control`)
				after, err := os.Lstat(path)
				if err != nil || !os.SameFile(before, after) || before.Size() != after.Size() || before.Mode() != after.Mode() {
					t.Errorf("before: %v, after: %v (%v)", before, after, err)
				}
			})
		})
	}
}

// TestSignals: SIGINT and SIGTERM end a process with status 0. The old one removes its own path then,
// and no other.
func TestSignals(t *testing.T) {
	for name, signal := range map[string]unix.Signal{"INT": unix.SIGINT, "TERM": unix.SIGTERM} {
		t.Run(name, func(t *testing.T) {
			each(t, meets, func(t *testing.T, s step) {
				path := meetingPlace(t)
				gone := func() bool { _, err := os.Lstat(path); return os.IsNotExist(err) }
				old := s.old(t, path)
				if s.name != "03-scm-rights" { // where the new one ends by itself
					young := s.young(t, path)
					young.signal(signal)
					young.exits(0)
				}
				if gone() {
					t.Error("the new process has removed the old one's path")
				}
				old.signal(signal)
				old.exits(0)
				if !gone() {
					t.Error("the old process has left its path")
				}

				old = s.old(t, path)
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte("another's"), 0o600); err != nil {
					t.Fatal(err)
				}
				old.signal(signal)
				old.exits(0)
				if content, err := os.ReadFile(path); string(content) != "another's" {
					t.Errorf("the file of another program: %q, %v", content, err)
				}
			})
		})
	}
	t.Run("server", func(t *testing.T) {
		each(t, func(s step) bool { return !s.meets }, func(t *testing.T, s step) {
			p := s.old(t, meetingPlace(t))
			p.signal(unix.SIGTERM)
			p.exits(0)
		})
	})
}

// TestUsage: what cannot be, and how it is said.
func TestUsage(t *testing.T) {
	each(t, func(step) bool { return true }, func(t *testing.T, s step) {
		s.start(t, args("-nosuch")).exits(2)
		s.start(t, args("stray"), env("TMPDIR="+folder(t))).exits(2)
		s.start(t, args("-h")).exits(0)
		if s.meets {
			s.start(t, args("-c", "-control", "/"+strings.Repeat("x", 107))).fails(`sun_path`)
		}
		if s.meets || s.restarts {
			path := filepath.Join(folder(t), strings.Repeat("x", 100))
			s.start(t, args("-control", path)).fails(fmt.Sprintf(`%d bytes, and sun_path holds 107`, len(path)))
			s.start(t, args("-control", "/nosuch/folder")).fails(`no such file or directory`)
		}
		if s.tcp {
			path := meetingPlace(t)
			taken := s.old(t, path).addr()
			for addr, want := range map[string]string{
				taken:              "address already in use: choose another with -addr",
				"127.0.0.1:notone": "lookup tcp/notone: unknown port",
				"192.0.2.1:0":      "cannot assign requested address",
			} {
				flags := []string{"-addr", addr}
				if s.meets || s.restarts {
					flags = append(flags, "-control", path+"2")
				}
				p := s.start(t, args(flags...))
				p.exits(1)
				if p.logged(want); strings.Count(p.err.String(), "\n") > 2 { // the first is about the path
					t.Errorf("more than one line:\n%s", p.err)
				}
				if _, err := os.Lstat(path + "2"); !os.IsNotExist(err) {
					t.Errorf("%s: it has left its path: %v", addr, err)
				}
			}
		}
	})
}

// TestDefaultPath: without -control, two processes of one user meet in a private folder: under
// XDG_RUNTIME_DIR if that is one of theirs (zellij#3909, podman#13338), otherwise in the temp folder.
func TestDefaultPath(t *testing.T) {
	meet := func(t *testing.T, s step, where string, with ...how) {
		t.Helper()
		old := s.start(t, append(with, args("-addr", "127.0.0.1:0"))...)
		c := dial(t, old.addr())
		young := s.start(t, append(with, args("-c"))...)
		young.logged(`waiting on ` + where + `/`)
		c.stolen(old, young)
	}
	each(t, steals, func(t *testing.T, s step) {
		temp, run := folder(t), folder(t)
		own := fmt.Sprintf("%s/steal-%d", temp, os.Getuid())
		if err := os.Chmod(run, 0o700); err != nil {
			t.Fatal(err)
		}
		meet(t, s, own, env("TMPDIR="+temp, "XDG_RUNTIME_DIR="+temp+"/nosuch"))
		meet(t, s, run+"/steal", env("TMPDIR="+temp, "XDG_RUNTIME_DIR="+run))
		for _, private := range []string{own, run} {
			if err := os.Chmod(private, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		s.start(t, env("TMPDIR="+temp, "XDG_RUNTIME_DIR="+run)).fails(`must be a folder of mode 0700 that uid \d+ owns.*-control`)
	})
	t.Run("another user's", func(t *testing.T) {
		needsRoot(t)
		each(t, steals, func(t *testing.T, s step) {
			temp, run := folder(t), folder(t)
			if err := os.Chmod(run, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.Chown(run, nobody, nobody); err != nil {
				t.Fatal(err)
			}
			meet(t, s, fmt.Sprintf("%s/steal-0", temp), env("TMPDIR="+temp, "XDG_RUNTIME_DIR="+run))
			if left, err := os.ReadDir(run); len(left) > 0 || err != nil {
				t.Errorf("root has left %v in another user's folder (%v)", left, err)
			}
		})
	})
}
