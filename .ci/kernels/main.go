// Kernels boots other Linux kernels in an emulator and runs the tests of all steps there, as
// root and as nobody. What is skipped and why, what the kernel has, and who may take whose
// descriptors is compared with a file for each kernel in golden/.
//
//	.ci/kernels/run [-update] [-only NAME] [-arch 386] [all | VERSION...]
//
// Without a version it takes those that most people have, as root all but the suite, and in Yama's modes
// 1 to 3 only the tests of who may take whose descriptors: the others are little different there, and take
// minutes.
//
// Exit status: 1 if a test failed or something differs; else 2 if a kernel could not be had or did
// not reach its end, twice.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	folder = ".ci/kernels"
	gate   = "5.10 6.1 6.12" // without arguments: what people have
)

var (
	update = flag.Bool("update", false, "write what is true now into golden/")
	logs   = flag.String("logs", "", "a folder to keep the consoles' output in")
	only   = flag.String("only", "", "run only the tests of this `name` (a step, mistakes or suite), and show what golden/ should say of them")
	arch   = flag.String("arch", "amd64", "run them as programs for this processor, and compare nothing with golden/")
	users  = []string{"root", "nobody"}
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("kernels: ")
	flag.Parse()
	if *arch != "amd64" {
		users = users[:1] // of whom there is less to skip
	}
	work, err := os.MkdirTemp("", "kernels")
	if err != nil {
		log.Fatal(err)
	}
	status := 0
	for _, err := range append(run(work, flag.Args()), os.RemoveAll(work)) {
		switch {
		case err == nil:
			continue
		case !errors.Is(err, errEmulator):
			status = 1
		case status == 0:
			status = 2
		}
		log.Print(err)
	}
	os.Exit(status)
}

func run(work string, versions []string) []error {
	kernels, err := choose(versions)
	if err != nil {
		return []error{err}
	}
	quick := len(versions) == 0 && !*update
	tests, err := build(work, quick)
	if err != nil {
		return []error{err}
	}
	cache, err := os.UserCacheDir()
	if err != nil { // no home
		cache = os.TempDir()
	}
	for _, k := range kernels {
		cmd := exec.Command(filepath.Join(folder, "fetch"), filepath.Join(cache, "steal-kernels"), k.suite, k.version)
		cmd.Stderr = os.Stderr
		if err := cmd.Run(); err != nil {
			return []error{fmt.Errorf("%w: fetch %s: %w", errEmulator, k.version, err)}
		}
	}

	// One kernel and one user is one boot. It takes one processor, and much of the time none, while
	// its tests wait for something: so there are two more than there are processors.
	var wait sync.WaitGroup
	processors := make(chan bool, runtime.NumCPU()+2)
	reports, errs := make([]report, len(kernels)*len(users)), make([]error, len(kernels)*len(users))
	for i := range reports {
		k, user := kernels[i/len(users)], users[i%len(users)]
		processors <- true
		wait.Go(func() {
			defer func() { <-processors }()
			g := guest{filepath.Join(cache, "steal-kernels", k.version), work, k.version, user, tests}
			begin := time.Now()
			reports[i], errs[i] = g.report()
			if errors.Is(errs[i], errEmulator) {
				log.Printf("%v: once more", errs[i])
				reports[i], errs[i] = g.report()
			}
			log.Printf("%s as %s: %s in %.0f s", k.version, user, reports[i].summary(), time.Since(begin).Seconds())
		})
	}
	wait.Wait()
	for i, k := range kernels {
		first, end := i*len(users), (i+1)*len(users)
		if errors.Join(errs[first:end]...) != nil {
			continue // what is missing has a reason
		}
		var facts []string
		for _, r := range reports[first:end] {
			facts = append(facts, r.facts...)
		}
		if *arch != "amd64" {
			continue
		}
		if *only != "" {
			for _, f := range facts {
				fmt.Println(k.version, f)
			}
			continue
		}
		errs = append(errs, compare(k.version, facts, tests))
	}
	return errs
}

// kernel is a line of kernels.txt.
type kernel struct{ version, suite string }

// choose returns the kernels that are asked for.
func choose(versions []string) ([]kernel, error) {
	if len(versions) == 0 {
		versions = strings.Fields(gate)
	}
	list, err := os.ReadFile(filepath.Join(folder, "kernels.txt"))
	if err != nil {
		return nil, err
	}
	var chosen []kernel
	for line := range strings.Lines(string(list)) {
		var k kernel
		if n, _ := fmt.Sscan(line, &k.version, &k.suite); n < 2 || k.version == "#" {
			continue // a comment
		}
		if slices.Contains(versions, k.version) || slices.Contains(versions, "all") {
			chosen = append(chosen, k)
		}
	}
	if len(chosen) < len(versions) {
		return nil, fmt.Errorf("not all of %v are in kernels.txt", versions)
	}
	return chosen, nil
}

// test is one program for the guest.
type test struct {
	env, name, args string
	yama            string // a pattern: what is to be run in Yama's other modes too
	notRoot         bool   // it is to be run as nobody only
}

// build compiles, for machines without anything else: the probe, the steps' own tests, those of the
// mistakes, the one suite of steps/, and in programs/ the steps themselves, which the suite runs.
func build(work string, quick bool) ([]test, error) {
	sources, err := filepath.Glob("steps/*/*_test.go")
	if err != nil || len(sources) == 0 {
		return nil, fmt.Errorf("no steps: %w", err)
	}
	tests := []test{{env: "A=", name: "probe"}}
	packages := map[string]string{"probe": "./" + folder + "/probe"}
	add := func(name, dir, yama string, notRoot bool) {
		if *only != "" && *only != name {
			return
		}
		t := test{"STEAL_LONG=", name, "-test.v=test2json -test.short -test.parallel=4", yama, notRoot}
		tests, packages[name] = append(tests, t), "./"+dir
	}
	for i, source := range sources {
		dir := filepath.Dir(source)
		if i > 0 && dir == filepath.Dir(sources[i-1]) {
			continue
		}
		yama, err := ofYama(dir, quick)
		if err != nil {
			return nil, err
		}
		add(filepath.Base(dir), dir, yama, false)
	}
	yama := "^(TestSteal|TestDemo|TestLook)$"
	if quick {
		yama = ""
	}
	add("suite", "steps", yama, quick)
	if len(tests) == 1 {
		return nil, fmt.Errorf("there is no %q", *only)
	}
	for name, dir := range packages {
		verb := []string{"test", "-c"}
		if name == "probe" {
			verb = []string{"build"}
		}
		if err := goCommand(*arch, append(verb, "-ldflags=-s -w", "-o", filepath.Join(work, "tests", name), dir)...); err != nil {
			return nil, err
		}
	}
	// The suite builds its programs itself, here: so it must be a program for here.
	builder := filepath.Join(work, "builder")
	if err := goCommand("", "test", "-c", "-o", builder, "./steps"); err != nil {
		return nil, err
	}
	cmd := exec.Command(builder, "-prebuild", filepath.Join(work, "programs"))
	cmd.Dir = "steps"
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+*arch)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building the suite's programs: %w: %s", err, out)
	}
	return tests, nil
}

func goCommand(arch string, args ...string) error {
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+arch)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// ofYama is a pattern for the tests of a step that want each of Yama's modes, if it has any: all, or
// if it should be quick, those of who may take whose descriptors.
func ofYama(step string, quick bool) (pattern string, err error) {
	source, err := os.ReadFile(filepath.Join(step, "denied_test.go"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", nil
	case err != nil:
		return "", err
	case !quick:
		return ".", nil
	}
	var names []string
	for _, test := range regexp.MustCompile(`(?m)^func (Test\w+)\(t `).FindAllSubmatch(source, -1) {
		names = append(names, string(test[1]))
	}
	return "^(" + strings.Join(names, "|") + ")$", nil
}
