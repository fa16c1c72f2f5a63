package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// errEmulator: what went wrong says nothing about the project.
var errEmulator = errors.New("the emulator did not get there")

// guest is a machine that runs all tests as one user.
type guest struct {
	image   string // the kernel
	work    string // where the test programs are, in tests/, and the steps, in programs/
	version string
	user    string
	tests   []test
}

// plan is what the guest does, line by line: Yama's mode, a variable, a program, its arguments. The mode
// can only be raised, so the tests that want several come again at the end.
func (g guest) plan() string {
	var plan strings.Builder
	tests := slices.DeleteFunc(slices.Clone(g.tests), func(t test) bool { return t.notRoot && g.user == "root" })
	for _, t := range tests {
		fmt.Fprintln(&plan, 0, t.env, t.name, t.args)
	}
	for mode := 1; mode <= 3; mode++ {
		for _, t := range tests {
			if t.yama != "" {
				fmt.Fprintln(&plan, mode, t.env, t.name, t.args, "'-test.run="+t.yama+"'")
			}
		}
	}
	return plan.String()
}

// console boots the guest and returns what it wrote until it turned itself off.
func (g guest) console() ([]byte, error) {
	initrd, err := g.initrd()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	// One processor, which suffices for what differs from kernel to kernel: with several that run at
	// once, the emulator now and then trips over the kernel's patching of its own code.
	// An old processor: what newer ones have more, such as string instructions that go by single bytes,
	// takes the emulator longer. So does, with highres and nohz, a timer that is set again and again.
	// ia32_emulation: 32-bit programs, which newer kernels may be told to refuse.
	// tsc=reliable: the older kernels distrust its clock, and the other one they have is slow.
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", "tcg,thread=single", "-cpu", "core2duo,+rdrand", "-m", "1024",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-nic", "none", "-serial", "stdio",
		"-kernel", g.image, "-initrd", initrd,
		"-append", "console=ttyS0 quiet panic=-1 mitigations=off nokaslr highres=off nohz=off tsc=reliable random.trust_cpu=on audit=0 ia32_emulation=on")
	out, err := cmd.CombinedOutput()
	out = bytes.ReplaceAll(out, []byte("\r"), nil)
	if *logs != "" {
		if err := os.WriteFile(filepath.Join(*logs, g.version+"-"+g.user+".log"), out, 0o644); err != nil {
			return nil, err
		}
	}
	if err == nil && !bytes.Contains(out, []byte("\nguest: done ")) {
		err = errors.New("it stopped halfway")
	}
	if err != nil {
		return nil, fmt.Errorf("%s as %s: %w: %w; its last words: %s", g.version, g.user, errEmulator, err, tail(string(out)))
	}
	return out, nil
}

// initrd packs the guest's files: busybox, the tests, and what to do with them.
func (g guest) initrd() (string, error) {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return "", err
	}
	var a archive
	for _, folder := range []string{"bin", "dev", "etc", "modules", "proc", "programs", "programs/hooked", "sbin", "sys", "tests", "tmp", "usr", "usr/bin", "usr/sbin"} {
		a.add(folder, 0o40755, nil)
	}
	files, err := clients()
	if err != nil {
		return "", err
	}
	made := map[string]bool{}
	for name := range files { // with the folders of the libraries
		for i := range name {
			if folder := name[:i]; name[i] == '/' && !made[folder] {
				made[folder] = true
				a.add(folder, 0o40755, nil)
			}
		}
	}
	files["init"], files["bin/busybox"] = filepath.Join(folder, "init"), busybox
	modules, err := filepath.Glob(g.image + ".modules/*.ko")
	if err != nil {
		return "", err
	}
	for _, path := range modules {
		files["modules/"+filepath.Base(path)] = path
	}
	for _, t := range g.tests {
		files["tests/"+t.name] = filepath.Join(g.work, "tests", t.name)
	}
	programs, err := filepath.Glob(filepath.Join(g.work, "programs", "*"))
	if err != nil {
		return "", err
	}
	hooked, err := filepath.Glob(filepath.Join(g.work, "programs", "hooked", "*"))
	if err != nil {
		return "", err
	}
	for _, path := range append(programs, hooked...) {
		if name, err := filepath.Rel(g.work, path); err == nil && name != "programs/hooked" {
			files[name] = path
		}
	}
	for name, path := range files {
		content, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		a.add(name, 0o100755, content)
	}
	for name, content := range map[string]string{
		"etc/passwd": "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
		"etc/group":  "root:x:0:\nnogroup:x:65534:\n",
		"etc/hosts":  "127.0.0.1 localhost\n",
		"plan":       g.plan(),
		"user":       g.user + "\n",
	} {
		a.add(name, 0o100644, []byte(content))
	}
	a.add("TRAILER!!!", 0, nil)
	path := filepath.Join(g.work, g.version+"-"+g.user+".cpio")
	return path, os.WriteFile(path, a.Bytes(), 0o600)
}

// clients are the TLS clients of this machine that the suite knows, and the libraries that they need, by
// their names in the guest.
func clients() (map[string]string, error) {
	files := map[string]string{}
	for _, name := range []string{"openssl", "curl", "gnutls-cli"} {
		path, err := exec.LookPath(name)
		if err != nil {
			return nil, err // run installs them
		}
		files["usr/bin/"+name] = path
		list, err := exec.Command("ldd", path).Output()
		if err != nil {
			return nil, fmt.Errorf("ldd %s: %w", path, err)
		}
		for _, library := range regexp.MustCompile(`(?m)(/\S+) \(0x`).FindAllSubmatch(list, -1) {
			files[string(library[1][1:])] = string(library[1])
		}
	}
	return files, nil
}

// archive is a cpio archive as kernels unpack them (driver-api/early-userspace/buffer-format).
type archive struct {
	bytes.Buffer
	files int
}

// add appends a file. All belong to root.
func (a *archive) add(name string, mode int, content []byte) {
	a.files++
	fmt.Fprintf(a, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X", a.files, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0)
	for _, part := range [][]byte{append([]byte(name), 0), content} {
		a.Write(part)
		_, _ = io.CopyN(a, zeros{}, int64(-a.Len()&3)) // to a multiple of four; a Buffer never fails
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }
