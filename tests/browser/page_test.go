package browser

import (
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestSelfContained: the page asks nobody else for anything, and can be served under
// a policy that allows its own script and style only.
func TestSelfContained(t *testing.T) {
	b, err := os.ReadFile(pageFile)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(b), "\n"); n > 520 {
		t.Errorf("%d lines", n)
	}
	hashOf(t, b, "script")
	hashOf(t, b, "style")
	for _, bad := range []string{`https?:`, `\bsrc=`, `@import`, `url\(`, `<[^>]*\sstyle=`, `<[^>]*\son\w+=`, `innerHTML`, `outerHTML`, `insertAdjacentHTML`, `document\.write`, `\beval\(`, `new Function`} {
		if m := regexp.MustCompile(bad).Find(b); m != nil {
			t.Errorf("the page contains %q", m)
		}
	}
}

func TestChat(t *testing.T) {
	f := newFake(t, nil)
	p := open(t, f.url)
	p.see("#model option", "large")
	p.keys("#input", "first line"+shift+enter+shift+"second"+enter)
	p.see("article.assistant .body", "You said: first line\nsecond")
	p.idle()
	if got := p.eval(`return document.getElementById("input").value`); got != "" {
		t.Errorf("the field still holds %q", got)
	}
	q := f.last()
	if q.path != "/v1/chat/completions" || q.Model != "small" || !q.Stream || !q.StreamOptions.IncludeUsage || len(q.Messages) != 1 || q.Messages[0].Content != "first line\nsecond" {
		t.Errorf("the request was %+v", q)
	}
	p.see(".tools", "tokens")

	// The next one goes with what was said, and with what was set.
	p.click("#toggle-settings")
	p.fill("#temperature", "0.3")
	p.fill("#top_p", "0.9")
	p.fill("#max_tokens", "77")
	p.fill("#seed", "42")
	p.fill("#repetition_penalty", "1")
	p.fill("#system", "Be brief.")
	p.eval(`const m = document.getElementById("model"); m.value = "large"; m.dispatchEvent(new Event("change"))`)
	p.keys("#input", "code")
	p.click("#send")
	p.see("article.assistant pre code", "a + b // <b>")
	p.idle()
	q = f.last()
	if q.Temperature != 0.3 || q.TopP != 0.9 || q.MaxTokens != 77 || q.Seed != 42 || q.RepeatPenalty != 0 || q.Model != "large" {
		t.Errorf("the request was %+v", q)
	}
	roles := ""
	for _, m := range q.Messages {
		roles += m.Role + " "
	}
	if roles != "system user assistant user " || q.Messages[2].Content != "You said: first line\nsecond" {
		t.Errorf("the messages were %+v", q.Messages)
	}
	if got := p.text("article.assistant pre span"); got != "rust" {
		t.Errorf("the language is %q", got)
	}
	if font := p.eval(`return getComputedStyle(document.querySelector("pre code")).fontFamily`); !strings.Contains(font, "monospace") {
		t.Errorf("code is shown in %s", font)
	}
	p.click("#toggle-settings")
	p.shot("light")

	// What is copied is the code, without what stands around it.
	p.click("article.assistant pre button")
	p.see("article.assistant pre button", "Copied")
	p.keys("#input", control+"v")
	p.until("the code in the field", `return document.getElementById("input").value == "fn add(a: i32, b: i32) -> i32 {\n    a + b // <b>\n}\n"`)
	p.eval(`document.getElementById("input").value = ""`)

	// Another answer to the same question.
	before := len(f.requests)
	p.eval(`[...document.querySelectorAll(".tools button")].find(b => b.textContent == "Retry").click()`)
	p.idle()
	if q = f.last(); len(f.requests) != before+1 || len(q.Messages) != 4 {
		t.Errorf("Retry sent %d requests, the last %+v", len(f.requests)-before, q)
	}
	p.click("#new")
	if got := p.text("article"); got != "" {
		t.Errorf("a new conversation shows %q", got)
	}
	p.quiet()
}

// TestStreamsAndStops: words appear as they come; the button and Esc end the answer
// here and at the server.
func TestStreamsAndStops(t *testing.T) {
	f := newFake(t, nil)
	p := open(t, f.url)
	p.keys("#input", "paced"+enter)
	for n := 1; n <= 3; n++ {
		f.step <- struct{}{}
		p.see("article.assistant .body", strings.Repeat("word ", n)[:5*n-1])
		if got := strings.Count(p.text("article.assistant .body"), "word"); got != n {
			t.Errorf("%d words are shown after %d", got, n)
		}
	}
	for _, stop := range []func(){func() { p.click("#stop") }, func() { p.keys("#input", escape) }} {
		start := time.Now()
		stop()
		select {
		case <-f.gone:
		case <-time.After(5 * time.Second):
			t.Fatal("the server was not told")
		}
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("stopping took %v", took)
		}
		p.idle()
		p.see("article:last-child .tools", "stopped")
		if !strings.Contains(p.text("article:last-child .body"), "word word") {
			t.Error("what came before is not shown any more")
		}
		p.keys("#input", "slow"+enter)
		p.see("article:last-child .body", "word word word")
	}
	p.keys("#input", escape)
	p.idle()
	p.quiet()
}

func TestReload(t *testing.T) {
	f := newFake(t, nil)
	p := open(t, f.url)
	p.keys("#input", "hello"+enter)
	p.see("article.assistant .tools", "tokens")
	p.click("#toggle-settings")
	p.fill("#temperature", "1.5")
	p.click("#toggle-settings")
	p.keys("#input", "slow"+enter)
	p.see("article:last-child .body", "word word word")
	p.do("POST", "/refresh", nil, nil)
	p.see("article.user .body", "hello")
	p.see("article.assistant .body", "You said: hello")
	p.see("article:last-child .body", "word word word")
	p.see("article:last-child .tools", "interrupted")
	if got := p.eval(`return document.getElementById("temperature").value`); got != "1.5" {
		t.Errorf("the temperature is %s after a reload", got)
	}
	p.keys("#input", "not sent yet")
	p.do("POST", "/refresh", nil, nil)
	p.see("article.user .body", "hello")
	if got := p.eval(`return document.getElementById("input").value`); got != "not sent yet" {
		t.Errorf("the draft is %q after a reload", got)
	}
	p.quiet()
}

// TestInjection: texts of users and models are text.
func TestInjection(t *testing.T) {
	f := newFake(t, nil)
	p := open(t, f.url)
	p.keys("#input", "inject"+enter)
	p.see("article.assistant .body", "bold")
	p.idle()
	p.keys("#input", injection+enter)
	p.see("article:last-child .body", "You said: <img")
	p.idle()
	p.do("POST", "/refresh", nil, nil)
	p.see("article:last-child .body", "You said: <img")
	if err := web.call("GET", "/alert/text", nil, nil); err == nil || !strings.Contains(err.Error(), "no such alert") {
		t.Errorf("an alert is open: %v", err)
	}
	if got := p.text("article:nth-child(2) .body"); got != injection {
		t.Errorf("the text is shown as %q", got)
	}
	if n := p.eval(`return document.querySelectorAll("#log img, #log script, #log b, #log a").length`); n != "0" {
		t.Errorf("%s elements came of the text", n)
	}
	p.quiet()
}

func TestDark(t *testing.T) {
	f := newFake(t, nil)
	p := open(t, f.url)
	lightness := `const c = getComputedStyle(document.body).backgroundColor.match(/\d+/g).map(Number); return c[0] + c[1] + c[2] > 380`
	is := func(when, want string) {
		t.Helper()
		if got := p.eval(lightness); got != want {
			t.Errorf("%s: light is %s", when, got)
		}
	}
	p.prefers("light")
	p.do("POST", "/refresh", nil, nil)
	is("the system is light", "true")
	p.prefers("dark")
	p.until("the page follows the system", "return !(() => {"+lightness+"})()")
	p.keys("#input", "code"+enter)
	p.see("article.assistant pre code", "a + b")
	p.idle()
	p.shot("dark")
	p.click("#theme")
	is("the button was pressed", "true")
	p.do("POST", "/refresh", nil, nil)
	is("after a reload", "true")
	p.quiet()
}

// TestContrast: text on what it stands on has a contrast of 4.5 to 1 (WCAG AA).
func TestContrast(t *testing.T) {
	f := newFake(t, nil)
	p := open(t, f.url)
	p.keys("#input", "cut the line"+enter)
	p.see(".error", "connection")
	for _, scheme := range []string{"light", "dark"} {
		p.prefers(scheme)
		p.until(scheme, `return document.documentElement.dataset.theme == given[0]`, scheme)
		bad := p.eval(`
			const lum = c => c.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4).reduce((s, v, i) => s + v * [0.2126, 0.7152, 0.0722][i], 0);
			const rgb = s => s.match(/[\d.]+/g).map(Number);
			const back = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c.slice(0, 3); } return [255, 255, 255]; };
			return [...document.querySelectorAll("h1, button, label, select, .body, .tools, .error, footer p")].filter(e => e.offsetParent && e.textContent.trim()).map(e => {
				const a = lum(rgb(getComputedStyle(e).color).slice(0, 3)), b = lum(back(e));
				return [e.tagName + "#" + e.id + "." + e.className, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
			}).filter(x => x[1] < 4.5).join("; ")`)
		if bad != "" {
			t.Errorf("%s: %s", scheme, bad)
		}
	}
}

func TestKey(t *testing.T) {
	f := newFake(t, func(f *fake) { f.key = "secret-1" })
	p := open(t, f.url)
	p.see("#status", "API key")
	p.fill("#key", "schlüssel")
	p.see("#status", "copy it again")
	p.fill("#key", "wrong")
	p.see("#status", "API key")
	p.fill("#key", "secret-1")
	p.see("#model option", "small")
	p.keys("#input", "hello"+enter)
	p.see("article.assistant .body", "You said: hello")
	p.idle()
	p.do("POST", "/refresh", nil, nil)
	p.see("#model option", "small")
	if kept := p.eval(`return JSON.stringify(localStorage).includes("secret-1")`); kept != "false" {
		t.Error("the key is kept longer than the session")
	}
}

// TestComplete: with a model that knows no roles the page continues texts.
func TestComplete(t *testing.T) {
	f := newFake(t, func(f *fake) { f.template = nil })
	p := open(t, f.url)
	p.until("the mode", `return document.getElementById("mode-complete").getAttribute("aria-pressed") == "true"`)
	p.keys("#input", "fn main() {"+enter)
	p.see("article.text .body", "fn main() {\n    println!(\"hello\");\n}")
	p.idle()
	if q := f.last(); q.path != "/v1/completions" || q.Prompt != "fn main() {" || q.RepeatPenalty != 1.1 {
		t.Errorf("the request was %+v", q)
	}
	p.shot("complete")
	p.eval(`[...document.querySelectorAll(".tools button")].find(b => b.textContent == "Go on").click()`)
	p.see("article.text .body", "You said: fn main() {")
	p.idle()
	if q := f.last(); q.Prompt != "fn main() {\n    println!(\"hello\");\n}\n" {
		t.Errorf("went on with %q", q.Prompt)
	}
	p.quiet()
}

func TestFailuresAreShown(t *testing.T) {
	f := newFake(t, nil)
	p := open(t, f.url)
	for message, want := range map[string]string{
		"busy": "try again in 7 s", "long": "prompt has 600 tokens, the context holds 512",
		"fail in the middle": "the engine stopped", "cut the line": "connection",
	} {
		p.keys("#input", message+enter)
		p.see("article:last-child .error", want)
		p.idle()
	}
	// None of the questions without an answer is sent again.
	p.keys("#input", "hello"+enter)
	p.see("article:last-child .body", "You said: hello")
	for _, m := range f.last().Messages {
		if m.Content == "busy" || m.Content == "long" {
			t.Errorf("%q is sent again", m.Content)
		}
	}
}

func TestNarrow(t *testing.T) {
	f := newFake(t, nil)
	p := open(t, f.url)
	p.size(360, 640)
	p.keys("#input", "code"+enter)
	p.see("article.assistant pre code", "a + b")
	p.idle()
	p.keys("#input", strings.Repeat("wide", 60)+enter)
	p.idle()
	p.shot("narrow")
	p.click("#toggle-settings")
	p.shot("narrow-settings")
	if wide := p.eval(`return document.documentElement.scrollWidth > innerWidth || document.getElementById("scroll").scrollWidth > innerWidth`); wide != "false" {
		t.Error("the page is wider than the screen")
	}
	if long := p.eval(`return document.documentElement.scrollHeight > innerHeight`); long != "false" {
		t.Error("the page scrolls, not only the conversation")
	}
}

// TestLabels: every control has a name that a screen reader can say.
func TestLabels(t *testing.T) {
	f := newFake(t, nil)
	p := open(t, f.url)
	p.keys("#input", "code"+enter)
	p.see("article.assistant pre code", "a + b")
	p.idle()
	nameless := p.eval(`return [...document.querySelectorAll("button, input, select, textarea")].filter(e => {
		const label = [...(e.labels || [])].some(l => l.textContent.trim());
		return !label && !e.getAttribute("aria-label") && !(e.tagName == "BUTTON" && /\w/.test(e.textContent));
	}).map(e => e.outerHTML).join("; ")`)
	if nameless != "" {
		t.Errorf("without a name: %s", nameless)
	}
}
