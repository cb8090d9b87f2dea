package telemetry

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

const deploy = "../../deploy"

// known is every metric of both registries, those of the process included.
func known(process bool) map[string]string {
	out := names(fullServing(process).registry)
	maps.Copy(out, names(fullTraining(process).registry))
	return out
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

var metricName = regexp.MustCompile(`\b(nanochat|process|go)_[a-z0-9_]+`)

// missing is the metrics that text names and no registry has.
func missing(text string) (out []string) {
	all := known(true)
	for _, name := range metricName.FindAllString(text, -1) {
		base := name
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			if _, ok := all[name]; !ok {
				base = strings.TrimSuffix(base, suffix)
			}
		}
		if _, ok := all[base]; !ok && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

// panels is the queries of a dashboard by the titles of their panels.
func panels(t *testing.T, path string) map[string][]string {
	t.Helper()
	var d struct {
		Panels []struct {
			ID          int
			Type, Title string
			GridPos     struct{ X, Y, W, H int }
			Targets     []struct{ Expr string }
		}
		Title, UID string
	}
	if err := json.Unmarshal([]byte(read(t, path)), &d); err != nil {
		t.Fatal(err)
	}
	out, ids := map[string][]string{}, map[int]bool{}
	for i, p := range d.Panels {
		if ids[p.ID] {
			t.Errorf("%s: two panels have the number %d", path, p.ID)
		}
		ids[p.ID] = true
		if g := p.GridPos; g.X < 0 || g.X+g.W > 24 || g.W < 1 {
			t.Errorf("%s: %s stands at %+v", path, p.Title, g)
		}
		for _, q := range d.Panels[:i] {
			a, b := p.GridPos, q.GridPos
			if a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H {
				t.Errorf("%s: %s covers %s", path, p.Title, q.Title)
			}
		}
		for _, x := range p.Targets {
			out[p.Title] = append(out[p.Title], x.Expr)
		}
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("%s: %s shows nothing", path, p.Title)
		}
	}
	if d.Title == "" || d.UID == "" || len(out) < 10 {
		t.Errorf("%s: title %q, uid %q, %d panels", path, d.Title, d.UID, len(out))
	}
	return out
}

// Every dashboard asks for metrics that exist, in queries that Prometheus can read, and
// together they show every metric.
func TestDashboards(t *testing.T) {
	shown := ""
	rules := []string{"groups:", "- name: panels", "  rules:"}
	for _, name := range []string{"serving", "training"} {
		path := filepath.Join(deploy, "grafana", name+".json")
		for title, queries := range panels(t, path) {
			for _, q := range queries {
				if m := missing(q); m != nil {
					t.Errorf("%s: %s: no metric %s", path, title, strings.Join(m, ", "))
				}
				shown += q + "\n"
				q = strings.NewReplacer("$__rate_interval", "5m", "$instance", ".*").Replace(q)
				if strings.Contains(q, "$") {
					t.Errorf("%s: %s: %s", path, title, q)
				}
				rules = append(rules, fmt.Sprintf("  - record: panel:%d\n    expr: %q", len(rules), q))
			}
		}
	}
	for name := range known(false) {
		if !strings.Contains(shown, name) {
			t.Errorf("no dashboard shows %s", name)
		}
	}
	path := filepath.Join(t.TempDir(), "panels.yml")
	if err := os.WriteFile(path, []byte(strings.Join(rules, "\n")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	promtool(t, "", "check", "rules", path)
}

func TestAlerts(t *testing.T) {
	alerts, tests := read(t, filepath.Join(deploy, "prometheus/alerts.yml")), read(t, filepath.Join(deploy, "prometheus/alerts_test.yml"))
	for _, text := range []string{alerts, tests} {
		if m := missing(text); m != nil {
			t.Errorf("no metric %s", strings.Join(m, ", "))
		}
	}
	doc := read(t, doc)
	for _, m := range regexp.MustCompile(`- alert: (\w+)`).FindAllStringSubmatch(alerts, -1) {
		if n := strings.Count(tests, "alertname: "+m[1]); n != 2 {
			t.Errorf("%s is tested %d times, want once silent and once firing", m[1], n)
		}
		if !strings.Contains(doc, "`"+m[1]+"`") {
			t.Errorf("docs/TELEMETRY.md has no word about %s", m[1])
		}
	}
	promtool(t, "", "check", "rules", filepath.Join(deploy, "prometheus/alerts.yml"))
	promtool(t, "", "test", "rules", filepath.Join(deploy, "prometheus/alerts_test.yml"))
	promtool(t, "", "check", "config", filepath.Join(deploy, "prometheus/prometheus.yml"))
}

const doc = "../../docs/TELEMETRY.md"

var update = flag.Bool("update", false, "write the table of metrics into docs/TELEMETRY.md")

// table is the metrics of a registry in which each has a value, as Markdown.
func table(t *testing.T, r *prometheus.Registry) string {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	b.WriteString("| metric | kind | labels | what it is |\n|---|---|---|---|\n")
	for _, f := range families {
		var labels []string
		for _, l := range f.Metric[0].Label {
			labels = append(labels, "`"+l.GetName()+"`")
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.GetName(), strings.ToLower(f.GetType().String()), strings.Join(labels, ", "), f.GetHelp())
	}
	if got, want := len(families), len(names(r)); got != want {
		t.Errorf("%d of %d metrics have a value in the test", got, want)
	}
	return b.String()
}

// The tables of the documentation are what the registries say.
func TestDocumentation(t *testing.T) {
	text := read(t, doc)
	for name, r := range map[string]*prometheus.Registry{"serving": fullServing(false).registry, "training": fullTraining(false).registry} {
		begin, end := "<!-- begin "+name+" -->\n", "<!-- end "+name+" -->"
		i, j := strings.Index(text, begin), strings.Index(text, end)
		if i < 0 || j < i {
			t.Fatalf("%s has no place for the metrics of %s", doc, name)
		}
		i += len(begin)
		want := table(t, r)
		if text[i:j] == want {
			continue
		}
		if !*update {
			t.Errorf("the metrics of %s are not those of %s: run go test ./core/telemetry -run Documentation -update", name, doc)
			continue
		}
		text = text[:i] + want + text[j:]
	}
	if *update {
		if err := os.WriteFile(doc, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
