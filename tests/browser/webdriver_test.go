package browser

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A driver is one browser. All tests share it; each has a server, and so an
// origin, of its own.
type driver struct {
	cmd     *exec.Cmd
	session string // the URL of the WebDriver session
}

// web is the browser of this run, and dir a directory of its own.
var (
	web *driver
	dir string
)

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	if os.Getenv("NANOCHAT_NO_BROWSER") != "" {
		fmt.Fprintln(os.Stderr, "tests/browser: only the tests without a browser run, because NANOCHAT_NO_BROWSER is set")
		return m.Run()
	}
	var err error
	if dir, err = os.MkdirTemp("", "nanochat-browser-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if web, err = startDriver(); err != nil {
		fmt.Fprintf(os.Stderr, "tests/browser: no browser: %v\nhint: scripts/setup browser installs Chromium; NANOCHAT_NO_BROWSER=1 leaves these tests out\n", err)
		return 1
	}
	defer web.stop()
	return m.Run()
}

func startDriver() (*driver, error) {
	path, err := exec.LookPath("chromedriver")
	if err != nil {
		return nil, err
	}
	d := &driver{cmd: exec.Command(path, "--port=0")}
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // stop ends the browser with it
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	port := ""
	lines := bufio.NewScanner(out)
	for port == "" && lines.Scan() {
		if m := regexp.MustCompile(`started successfully on port (\d+)`).FindStringSubmatch(lines.Text()); m != nil {
			port = m[1]
		}
	}
	if port == "" {
		d.stop()
		return nil, errors.New("chromedriver did not start")
	}
	go io.Copy(io.Discard, out)
	d.session = "http://127.0.0.1:" + port
	// Containers often have no sandbox to offer, and the pages are our own.
	args := []string{"--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1000,800", "--force-device-scale-factor=1", "--no-proxy-server"}
	var made struct {
		SessionID string `json:"sessionId"`
	}
	err = d.call("POST", "/session", map[string]any{"capabilities": map[string]any{"alwaysMatch": map[string]any{
		"browserName": "chrome", "goog:chromeOptions": map[string]any{"args": args}, "goog:loggingPrefs": map[string]any{"browser": "ALL"},
		"unhandledPromptBehavior": "ignore",
	}}}, &made)
	if err != nil {
		d.stop()
		return nil, err
	}
	d.session += "/session/" + made.SessionID
	return d, nil
}

func (d *driver) stop() {
	if strings.Contains(d.session, "/session/") {
		d.call("DELETE", "", nil, nil)
	}
	syscall.Kill(-d.cmd.Process.Pid, syscall.SIGKILL)
	d.cmd.Wait()
}

// call makes one WebDriver request; value, if not nil, gets what it returns.
func (d *driver) call(method, path string, body, value any) error {
	var r io.Reader
	if method == "POST" {
		if body == nil {
			body = struct{}{}
		}
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequest(method, d.session+path, r)
	if err != nil {
		return err
	}
	res, err := (&http.Client{Timeout: 60 * time.Second}).Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	var got struct{ Value json.RawMessage }
	if err := json.NewDecoder(res.Body).Decode(&got); err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		var e struct{ Error, Message string }
		json.Unmarshal(got.Value, &e)
		return fmt.Errorf("%s: %s", e.Error, e.Message)
	}
	if value == nil {
		return nil
	}
	return json.Unmarshal(got.Value, value)
}

// A page is a tab that shows one server.
type page struct{ t *testing.T }

// open shows url in a new tab and closes it after the test.
func open(t *testing.T, url string) *page {
	t.Helper()
	if web == nil {
		t.Skip("NANOCHAT_NO_BROWSER is set")
	}
	p := &page{t}
	var tab struct{ Handle string }
	var old string
	p.do("GET", "/window", nil, &old)
	p.do("POST", "/window/new", map[string]any{"type": "tab"}, &tab)
	p.do("POST", "/window", map[string]any{"handle": tab.Handle}, nil)
	t.Cleanup(func() {
		if t.Failed() {
			p.shot("failed-" + strings.ReplaceAll(t.Name(), "/", "-"))
			t.Logf("the page shows: %.2000s", p.eval(`return document.body.innerText`))
			t.Logf("console: %q", p.console())
		}
		p.do("DELETE", "/window", nil, nil)
		p.do("POST", "/window", map[string]any{"handle": old}, nil)
	})
	p.size(1000, 800)
	p.console() // of earlier pages
	p.do("POST", "/url", map[string]any{"url": url}, nil)
	return p
}

func (p *page) do(method, path string, body, value any) {
	p.t.Helper()
	if err := web.call(method, path, body, value); err != nil {
		p.t.Fatalf("%s %s: %v", method, path, err)
	}
}

func (p *page) size(w, h int) {
	p.t.Helper()
	// Chromium windows are at least 500 wide; the device may be narrower.
	p.do("POST", "/goog/cdp/execute", map[string]any{"cmd": "Emulation.setDeviceMetricsOverride",
		"params": map[string]any{"width": w, "height": h, "deviceScaleFactor": 1, "mobile": false}}, nil)
}

// prefers sets what the system prefers: light or dark.
func (p *page) prefers(scheme string) {
	p.t.Helper()
	p.do("POST", "/goog/cdp/execute", map[string]any{"cmd": "Emulation.setEmulatedMedia",
		"params": map[string]any{"features": []any{map[string]string{"name": "prefers-color-scheme", "value": scheme}}}}, nil)
}

// eval runs JavaScript and returns what it returns, as text.
func (p *page) eval(script string, args ...any) string {
	p.t.Helper()
	if args == nil {
		args = []any{}
	}
	var v any
	p.do("POST", "/execute/sync", map[string]any{"script": script, "args": args}, &v)
	if s, ok := v.(string); ok {
		return s
	}
	return fmt.Sprint(v)
}

// text is the text of the elements that match selector.
func (p *page) text(selector string) string {
	p.t.Helper()
	return p.eval(`return [...document.querySelectorAll(arguments[0])].map(e => e.textContent).join("\n")`, selector)
}

// until waits until script returns true; args are given[0] and so on there.
func (p *page) until(what, script string, args ...any) {
	p.t.Helper()
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(15 * time.Millisecond) {
		if p.eval("const given = arguments; return Boolean((() => {"+script+"})())", args...) == "true" {
			return
		}
	}
	p.t.Fatalf("%s: not within 15 s", what)
}

// see waits until the elements that match selector contain text.
func (p *page) see(selector, text string) {
	p.t.Helper()
	p.until(fmt.Sprintf("%q in %s", text, selector),
		`return [...document.querySelectorAll(given[0])].some(e => e.textContent.includes(given[1]))`, selector, text)
}

// idle waits until no answer is being written.
func (p *page) idle() {
	p.t.Helper()
	p.until("the end of the answer", `return document.getElementById("stop").hidden`)
}

func (p *page) element(selector string) string {
	p.t.Helper()
	var e map[string]string
	p.do("POST", "/element", map[string]string{"using": "css selector", "value": selector}, &e)
	for _, id := range e {
		return "/element/" + id
	}
	return ""
}

func (p *page) click(selector string) {
	p.t.Helper()
	p.do("POST", p.element(selector)+"/click", nil, nil)
}

// Keys as WebDriver writes them.
const (
	enter   = "\ue007"
	shift   = "\ue008"
	control = "\ue009"
	escape  = "\ue00c"
)

// keys types into the element.
func (p *page) keys(selector, text string) {
	p.t.Helper()
	p.do("POST", p.element(selector)+"/value", map[string]string{"text": text}, nil)
}

// fill replaces the value of an input.
func (p *page) fill(selector, text string) {
	p.t.Helper()
	p.do("POST", p.element(selector)+"/clear", nil, nil)
	p.keys(selector, text+"\t")
}

// console returns what the page has written to the console since the last call.
func (p *page) console() (lines []string) {
	p.t.Helper()
	var entries []struct{ Level, Message string }
	p.do("POST", "/se/log", map[string]string{"type": "browser"}, &entries)
	for _, e := range entries {
		if e.Level != "DEBUG" && e.Level != "INFO" {
			lines = append(lines, e.Level+" "+e.Message)
		}
	}
	return lines
}

// quiet fails the test if there is a warning or an error on the console.
func (p *page) quiet() {
	p.t.Helper()
	if lines := p.console(); len(lines) > 0 {
		p.t.Errorf("the console shows %q", lines)
	}
}

// shot keeps a picture of the page in the directory NANOCHAT_SCREENSHOTS.
func (p *page) shot(name string) {
	p.t.Helper()
	dir := os.Getenv("NANOCHAT_SCREENSHOTS")
	if dir == "" {
		return
	}
	var b64 string
	p.do("GET", "/screenshot", nil, &b64)
	b, err := base64.StdEncoding.DecodeString(b64)
	if err == nil {
		err = os.MkdirAll(dir, 0o755)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, name+".png"), b, 0o644)
	}
	if err != nil {
		p.t.Error(err)
	}
}
