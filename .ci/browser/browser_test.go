//go:build linux

// Package browser tests step 08 with a real browser: headless Chromium shows the page while its server is
// restarted again and again, and what the page has seen is asked within the page. A module of its own, so
// that the steps' go.mod stays small.
//
//	go test -C .ci/browser -v                                            # needs chromium
//	go test -C .ci/browser -v -artifacts -outputdir /tmp                 # keeps the screenshots
package browser

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"image/png"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

// restarts are clicked and from outside in turn.
const restarts = 12

// server is the step, whose pid changes.
type server struct {
	t         *testing.T
	bin, path string
	addr      string
	lines     chan string
}

// start starts a process that takes over, or begins, and returns when it listens.
func (s *server) start() {
	s.t.Helper()
	cmd := exec.Command(s.bin, "-addr", "127.0.0.1:0", "-control", s.path)
	if s.addr != "" {
		cmd.Args = []string{s.bin, "-control", s.path}
	}
	out, theirs, err := os.Pipe() // which the processes that this one starts have too
	if err != nil {
		s.t.Fatal(err)
	}
	cmd.Stderr = theirs
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	theirs.Close()
	go cmd.Wait()
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			s.lines <- lines.Text()
		}
	}()
	s.listens()
}

// listens waits until a process, any, says that it listens. It is ended with the test.
func (s *server) listens() {
	s.t.Helper()
	for late := time.After(time.Minute); ; {
		select {
		case line := <-s.lines:
			s.t.Log(line)
			pid, addr := 0, ""
			if n, _ := fmt.Sscanf(line, "server[%d]: listening on %s", &pid, &addr); n == 2 {
				s.addr = addr
				s.t.Cleanup(func() { syscall.Kill(pid, syscall.SIGKILL) }) // most have ended by then
				return
			}
		case <-late:
			s.t.Fatal("no process says that it listens")
		}
	}
}

// page is a tab with the page.
type page struct {
	t *testing.T
	context.Context
}

// run does something in the tab.
func run[T any](p page, action chromedp.Action[T]) T {
	p.t.Helper()
	result, err := chromedp.Run(p.Context, action)
	if err != nil {
		p.t.Fatal(err)
	}
	return result
}

// asks asks the page a question in JavaScript.
func asks[T any](p page, question string) T {
	p.t.Helper()
	return run(p, chromedp.Evaluate[T](question))
}

// waits waits until something is true in the page.
func (p page) waits(condition string) {
	p.t.Helper()
	if _, err := chromedp.Run(p.Context, chromedp.Poll[chromedp.Void](condition, chromedp.WithPollingInterval(20*time.Millisecond), chromedp.WithPollingTimeout(time.Minute))); err != nil {
		p.t.Fatalf("never happened: %s: %v\nseen: %s", condition, err, asks[string](p, "JSON.stringify({...seen, socket: 0, stream: 0})"))
	}
}

func TestBrowser(t *testing.T) {
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatalf("%v: apt-get install chromium", err)
	}
	dir := t.TempDir()
	s := &server{t: t, bin: filepath.Join(dir, "08-web"), path: filepath.Join(dir, "control"), lines: make(chan string, 1000)}
	build := exec.Command("go", "build", "-o", s.bin, "./steps/08-web")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	s.start()

	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(chromium), chromedp.WindowSize(1100, 900))
	if os.Geteuid() == 0 {
		options = append(options, chromedp.NoSandbox)
	}
	browser, quit := chromedp.NewExecAllocator(t.Context(), options...)
	defer quit()
	first, closeFirst := chromedp.NewContext(browser)
	defer closeFirst()
	pages := []page{{t, first}}
	run(pages[0], chromedp.Navigate("http://"+s.addr+"/"))
	second, closeSecond := chromedp.NewContext(first)
	defer closeSecond()
	pages = append(pages, page{t, second})
	run(pages[1], chromedp.Navigate("http://"+s.addr+"/"))
	for _, p := range pages {
		p.waits("seen.events > 5 && seen.socket.readyState === WebSocket.OPEN")
		asks[chromedp.Void](p, "window.first = {socket: seen.socket, stream: seen.stream}")
	}

	var said []string
	for i := range restarts {
		for n, p := range pages { // one message before the restart, and one that may meet it
			text := fmt.Sprintf("message %d of page %d", i, n)
			asks[chromedp.Void](p, fmt.Sprintf("seen.socket.send(%q)", text))
			said = append(said, text)
		}
		pid := asks[int](pages[0], "seen.pid")
		switch i % 3 {
		case 0:
			pages[0].waits("!document.getElementById('restart').disabled")
			run(pages[0], chromedp.Click("#restart"))
			s.listens()
		case 1:
			s.start()
		case 2:
			if err := syscall.Kill(pid, syscall.SIGUSR2); err != nil {
				t.Fatal(err)
			}
			s.listens()
		}
		for n, p := range pages {
			text := fmt.Sprintf("message %d of page %d, behind it", i, n)
			asks[chromedp.Void](p, fmt.Sprintf("seen.socket.send(%q)", text))
			said = append(said, text)
		}
		for _, p := range pages {
			p.waits(fmt.Sprintf("seen.restarts >= %d && seen.messages.length >= %d", i+1, len(said)))
		}
	}

	for n, p := range pages {
		p.waits("seen.events > 30")
		seen := asks[map[string]any](p, "({...seen, socket: 0, stream: 0, messages: 0})")
		for what, want := range map[string]float64{"missing": 0, "doubled": 0, "eventReconnects": 0, "socketReconnects": 0, "restarts": restarts} {
			if seen[what] != want {
				t.Errorf("page %d: %s is %v, want %v", n, what, seen[what], want)
			}
		}
		if seen["events"] != seen["last"] {
			t.Errorf("page %d: %v events, and the last is number %v", n, seen["events"], seen["last"])
		}
		if !asks[bool](p, "seen.socket === first.socket && seen.stream === first.stream && first.socket.readyState === 1 && first.stream.readyState === 1") {
			t.Errorf("page %d: these are not the objects with which it began, or they are closed", n)
		}
		heard := asks[[]string](p, "seen.messages")
		count := map[string]int{}
		for _, text := range heard {
			count[text]++
		}
		for _, text := range said {
			if count[text] != 1 {
				t.Errorf("page %d has heard %q %d times", n, text, count[text])
			}
		}
		t.Logf("page %d: %v events, %d messages, longest gap %v ms", n, seen["events"], len(heard), seen["longest"])
	}
	if a, b := asks[[]string](pages[0], "seen.messages"), asks[[]string](pages[1], "seen.messages"); strings.Join(a, "\n") != strings.Join(b, "\n") {
		t.Error("the two pages have heard the messages in another order")
	}
	// A message typed by hand, which also the screenshot shows.
	run(pages[0], chromedp.SendKeys("#text", "still here, and so are you\r"))
	pages[1].waits("seen.messages.at(-1).endsWith(': still here, and so are you')")
	// What is typed while the chat is closed stays where it is, until it can be said.
	asks[chromedp.Void](pages[0], "seen.socket.close(), document.getElementById('text').value = 'typed meanwhile', document.getElementById('say').requestSubmit()")
	if got := asks[string](pages[0], "document.getElementById('text').value"); got != "typed meanwhile" {
		t.Errorf("what has been typed has become %q", got)
	}
	pages[0].waits("seen.socket !== first.socket && seen.socket.readyState === WebSocket.OPEN")
	asks[chromedp.Void](pages[0], "document.getElementById('say').requestSubmit()")
	pages[1].waits("seen.messages.at(-1).endsWith(': typed meanwhile')")
	for _, scheme := range []string{"light", "dark"} {
		run(pages[0], func(ctx context.Context, tab *chromedp.Target) (chromedp.Void, error) {
			_, err := cdp.Call(ctx, tab, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
				Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
			})
			return chromedp.Void{}, err
		})
		run(pages[0], chromedp.Sleep(300*time.Millisecond)) // for a frame or two: what it shows is for people
		picture := run(pages[0], chromedp.FullScreenshot(100))
		look(t, picture)
		file := filepath.Join(t.ArtifactDir(), scheme+".png")
		if err := os.WriteFile(file, picture, 0o644); err != nil {
			t.Fatal(err)
		}
		t.Logf("screenshot: %s", file)
	}
}

// look checks that a screenshot shows something.
func look(t *testing.T, picture []byte) {
	t.Helper()
	img, err := png.Decode(io.Reader(bytes.NewReader(picture)))
	if err != nil {
		t.Fatal(err)
	}
	colors := map[any]bool{}
	for y := 0; y < img.Bounds().Dy(); y += 3 {
		for x := 0; x < img.Bounds().Dx(); x += 3 {
			colors[img.At(x, y)] = true
		}
	}
	if len(colors) < 20 {
		t.Errorf("the screenshot has %d colors: it is empty", len(colors))
	}
}
