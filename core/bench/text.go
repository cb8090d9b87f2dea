package bench

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// table is rows of equally many cells under a header. A column whose header
// begins with '<' is flush left.
type table struct {
	title  string
	header []string
	rows   [][]string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) widths() []int {
	w := make([]int, len(t.header))
	for i, h := range t.header {
		w[i] = utf8.RuneCountInString(strings.TrimPrefix(h, "<"))
	}
	for _, r := range t.rows {
		for i, c := range r {
			w[i] = max(w[i], utf8.RuneCountInString(c))
		}
	}
	return w
}

// line joins cells, padded to their widths.
func (t *table) line(cells []string, widths []int, sep string) string {
	out := make([]string, len(cells))
	for i, c := range cells {
		pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c))
		if strings.HasPrefix(t.header[i], "<") {
			out[i] = c + pad
		} else {
			out[i] = pad + c
		}
	}
	return strings.Join(out, sep)
}

func (t *table) heads() []string {
	h := make([]string, len(t.header))
	for i := range h {
		h[i] = strings.TrimPrefix(t.header[i], "<")
	}
	return h
}

// text writes the table for a terminal.
func (t *table) text(b *strings.Builder) {
	w := t.widths()
	fmt.Fprintf(b, "\n%s\n", t.title)
	fmt.Fprintf(b, "  %s\n", strings.TrimRight(t.line(t.heads(), w, "  "), " "))
	for _, r := range t.rows {
		fmt.Fprintf(b, "  %s\n", strings.TrimRight(t.line(r, w, "  "), " "))
	}
}

// markdown writes the table for a document.
func (t *table) markdown(b *strings.Builder) {
	w := t.widths()
	rule := make([]string, len(w))
	for i := range w {
		w[i] = max(w[i], 3)
		rule[i] = strings.Repeat("-", w[i])
		if !strings.HasPrefix(t.header[i], "<") {
			rule[i] = rule[i][:w[i]-1] + ":"
		}
	}
	fmt.Fprintf(b, "\n| %s |\n| %s |\n", t.line(t.heads(), w, " | "), strings.Join(rule, " | "))
	for _, r := range t.rows {
		fmt.Fprintf(b, "| %s |\n", t.line(r, w, " | "))
	}
}

// num prints a number with about three significant digits.
func num(x float64) string {
	switch {
	case x == 0:
		return "-"
	case x < 10:
		return fmt.Sprintf("%.2f", x)
	case x < 100:
		return fmt.Sprintf("%.1f", x)
	}
	return fmt.Sprintf("%.0f", x)
}

func reach(s Spread) string { return num(s.Min) + "–" + num(s.Max) }

func size(n int64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%.0f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.0f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d B", n)
}

// describe is the machine in lines of name and value.
func (m Machine) describe() [][2]string {
	var caches []string
	for _, c := range m.Caches {
		caches = append(caches, fmt.Sprintf("L%d %s shared by %d", c.Level, size(int64(c.Bytes)), c.Shared))
	}
	model := ""
	if m.Family != "" {
		model = fmt.Sprintf(" (family %s, model %s, stepping %s)", m.Family, m.Model, m.Stepping)
	}
	lines := [][2]string{
		{"CPU", m.CPU + model},
		{"Cores", fmt.Sprintf("%d on %d NUMA node(s), %d usable", m.Cores, m.Nodes, m.CPUs)},
		{"Caches", strings.Join(caches, ", ")},
		{"Memory", size(int64(m.MemBytes))},
		{"Features", strings.Join(m.Features, " ")},
		{"Governor", m.Governor},
		{"System", strings.TrimSpace(m.Kernel + " " + m.Arch)},
		{"Compilers", strings.TrimSuffix(m.Go+", "+m.CCompiler, ", ")},
	}
	for i := range lines {
		if lines[i][1] == "" { // some containers hide what the system knows
			lines[i][1] = "not readable"
		}
	}
	return lines
}

// Text writes the report for a person at a terminal.
func (r *Report) Text(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintln(&b, strings.TrimSpace("nanochat "+r.Version+" "+r.Commit))
	for _, p := range r.Machine.describe() {
		fmt.Fprintf(&b, "  %-9s  %s\n", p[0], p[1])
	}
	if r.Noise != nil {
		fmt.Fprintf(&b, "  %-9s  others used %.1f %% of the processors during the measurement, the host took %.1f %%\n", "Noise", r.Noise.Others, r.Noise.Steal)
	}
	for _, t := range r.tables() {
		t.text(&b)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// tables are all parts of the report that were measured.
func (r *Report) tables() []*table {
	var ts []*table
	if r.Roofline != nil {
		ts = append(ts, r.Roofline.peakTable(), r.Roofline.readTable())
	}
	if len(r.Kernels) > 0 {
		ts = append(ts, kernelTable(r.Kernels))
	}
	if r.Model != nil {
		ts = append(ts, modelTable([]*Model{r.Model}))
	}
	if r.Together != nil {
		ts = append(ts, streamsTable([]*Streams{r.Together}))
	}
	if r.Train != nil {
		ts = append(ts, trainTable([]*Train{r.Train}), trainPartTable(r.Train))
	}
	if targets := r.Targets(); len(targets) > 0 {
		ts = append(ts, targetTable(targets))
	}
	for _, p := range r.Profiles {
		ts = append(ts, profileTable(p))
	}
	return ts
}

func (r *Roofline) peakTable() *table {
	t := &table{title: "Instruction peaks", header: []string{"<instruction", "<kind", "threads", "GOPS", "min–max"}}
	for _, p := range r.Peaks {
		t.add(p.Instruction, p.Kind, fmt.Sprint(p.Threads), num(p.GOPS.Median), reach(p.GOPS))
	}
	return t
}

func (r *Roofline) readTable() *table {
	t := &table{title: "Read bandwidth", header: []string{"<level", "memory", "threads", "GB/s", "min–max"}}
	for _, p := range r.Reads {
		t.add(p.Level, size(int64(p.Bytes)), fmt.Sprint(p.Threads), num(p.GBs.Median), reach(p.GBs))
	}
	return t
}

func kernelTable(ks []Kernel) *table {
	t := &table{title: "Kernels", header: []string{"<op", "<kernel", "m", "k", "n", "<weights", "threads", "µs", "GOPS", "min–max", "limit", "of limit", "of peak", "<bound"}}
	for _, k := range ks {
		weights := k.Type
		if k.Group > 0 {
			weights = fmt.Sprintf("ternary/%d", k.Group)
		}
		t.add(k.Op, k.Kernel, fmt.Sprint(k.M), fmt.Sprint(k.K), fmt.Sprint(k.N), weights, fmt.Sprint(k.Threads), num(k.Microseconds),
			num(k.GOPS), reach(Spread{Min: k.MinGOPS, Max: k.MaxGOPS}), num(k.LimitGOPS),
			fmt.Sprintf("%.2f", k.Fraction), fmt.Sprintf("%.2f", k.FractionOfPeak), k.Bound)
	}
	return t
}

// threads is the number of them, or - where a GPU computes.
func threads(device string, n int) string {
	if device != "" {
		return "-"
	}
	return fmt.Sprint(n)
}

func modelTable(ms []*Model) *table {
	t := &table{title: "Models", header: []string{"<model", "<kernel", "streams", "threads", "prefill tok/s", "min–max", "decode tok/s", "min–max", "read GB/s", "first token ms", "load ms", "file", "resident", "KV"}}
	for _, m := range ms {
		t.add(m.Name, m.Kernel, fmt.Sprint(m.Streams), threads(m.Device, m.Threads),
			num(m.Prefill.TokS), reach(Spread{Min: m.Prefill.Min, Max: m.Prefill.Max}),
			num(m.Decode.TokS), reach(Spread{Min: m.Decode.Min, Max: m.Decode.Max}), num(m.ReadGBs),
			num(m.TTFT), num(m.Load), size(m.ModelBytes), size(m.RSS), size(m.KVBytes))
	}
	return t
}
