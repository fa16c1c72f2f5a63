// Kernels boots other Linux kernels in an emulator and runs the tests of all steps there, as
// root and as nobody. What is skipped and why, what the kernel has, and who may take whose
// descriptors is compared with a file for each kernel in golden/.
//
//	.ci/kernels/run [-update] [-step NAME] [all | VERSION...]
//
// Without a version it takes those that most people have, and in Yama's modes 1 to 3 only the tests
// of who may take whose descriptors: the others are little different there, and take minutes.
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
	only   = flag.String("step", "", "run only this step's tests, and show what golden/ should say of them")
	users  = []string{"root", "nobody"}
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("kernels: ")
	flag.Parse()
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
	tests, err := build(filepath.Join(work, "tests"), quick)
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
	name, args string
	yama       string // a pattern: what is to be run in Yama's other modes too
}

// build compiles the tests of all steps, and the probe, for machines without anything else.
func build(to string, quick bool) ([]test, error) {
	steps, err := filepath.Glob("steps/[0-9][0-9]-*")
	if err != nil || len(steps) == 0 {
		return nil, fmt.Errorf("no steps: %w", err)
	}
	tests := []test{{name: "probe"}}
	compile := [][]string{{"build", "-ldflags=-s -w", "-o", filepath.Join(to, "probe"), "./" + folder + "/probe"}}
	for _, step := range steps {
		name := filepath.Base(step)
		if *only != "" && *only != name {
			continue
		}
		compile = append(compile, []string{"test", "-c", "-ldflags=-s -w", "-o", filepath.Join(to, name), "./" + step})
		yama, err := ofYama(step, quick)
		if err != nil {
			return nil, err
		}
		tests = append(tests, test{name, "-test.v=test2json -test.short -test.parallel=4", yama})
	}
	if len(tests) == 1 {
		return nil, fmt.Errorf("there is no step %q", *only)
	}
	for _, args := range compile {
		cmd := exec.Command("go", args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH=amd64")
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		if err := cmd.Run(); err != nil {
			return nil, fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
		}
	}
	return tests, nil
}

// ofYama is a pattern for the tests of a step that want each of Yama's modes, if it has any: all, or
// if it should be quick, those of who may take whose descriptors.
func ofYama(step string, quick bool) (pattern string, err error) {
	var names []string
	for _, file := range []string{"denied_test.go", "relations_test.go"} {
		source, err := os.ReadFile(filepath.Join(step, file))
		if errors.Is(err, fs.ErrNotExist) {
			return "", nil
		}
		if err != nil {
			return "", err
		}
		for _, test := range regexp.MustCompile(`(?m)^func (Test\w+)\(t `).FindAllSubmatch(source, -1) {
			names = append(names, string(test[1]))
		}
	}
	if !quick {
		return ".", nil
	}
	return "^(" + strings.Join(names, "|") + ")$", nil
}
