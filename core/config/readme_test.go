package config

import (
	"flag"
	"fmt"
	"os"
	"sort"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the table of presets into README.md")

// TestREADME compares the table of presets with what Params computes.
func TestREADME(t *testing.T) {
	const (
		path  = "../../README.md"
		begin = "<!-- made by: go test ./core/config -run README -update -->\n"
		end   = "<!-- end -->"
	)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok1 := strings.Cut(string(b), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		t.Fatalf("%s has no place for the table", path)
	}
	want := before + begin + presetTable(t) + end + after
	if string(b) == want {
		return
	}
	if !*update {
		t.Fatalf("the table of presets in README.md is out of date: go test ./core/config -run README -update")
	}
	if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}

// presetTable is the table in Markdown, by number of weights.
func presetTable(t *testing.T) string {
	type row struct {
		total int64
		text  string
	}
	var rows []row
	for _, name := range Presets() {
		c, err := Preset(name)
		if err != nil {
			t.Fatal(err)
		}
		m, p := c.Model, c.Model.Params()
		total := fmt.Sprintf("%.1f M", float64(p.Total())/1e6)
		if p.Total() >= 1e9 {
			total = fmt.Sprintf("%.2f G", float64(p.Total())/1e9)
		}
		group := fmt.Sprint(m.Group)
		if m.Group == 0 {
			group = "row"
		}
		rows = append(rows, row{p.Total(), fmt.Sprintf("| `%s` | %s | %.0f %% | %d | %d | %d/%d | %d %s | %d | %d | %s | %d |\n", name, total,
			100*float64(p.Ternary)/float64(p.Total()), m.Dim, m.Layers, m.Heads, m.KVHeads, m.FFN, m.FFNKind, m.Vocab, m.Context, group, m.Streams)})
	}
	sort.SliceStable(rows, func(i, j int) bool { return rows[i].total < rows[j].total })
	var b strings.Builder
	b.WriteString("| preset | weights | ternary | dim | layers | heads/KV | FFN | vocabulary | context | group | streams |\n")
	b.WriteString("|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, r := range rows {
		b.WriteString(r.text)
	}
	return b.String()
}
