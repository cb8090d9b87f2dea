package bench

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// sample is a report with every part.
func sample(scale float64) *Report {
	r := NewReport("1.0", "abc")
	r.Command = "nanochat benchmark --roofline --kernels --json"
	r.Noise = &Noise{Others: 1.5}
	spread := func(x float64) Spread { return Spread{x * scale, x * scale * 0.99, x * scale * 1.01} }
	r.Roofline = &Roofline{
		Peaks: []Peak{{"vpdpbusd", "int8 dot", 1, spread(470)}},
		Reads: []Read{{"DRAM", 1, 256 << 20, spread(20)}},
	}
	r.Kernels = []Kernel{{Op: "ternary_gemv", Kernel: "avx2", M: 64, K: 32, N: 1, Threads: 1, Group: 32,
		GOPS: 100 * scale, MinGOPS: 99 * scale, MaxGOPS: 101 * scale, LimitGOPS: 470, Fraction: 0.21, Bound: "compute"}}
	r.Model = &Model{Name: "nano", Kernel: "avx2", Threads: 1, Load: 50 / scale, LoadSpread: Spread{50 / scale, 49 / scale, 51 / scale}, RSS: 1 << 20}
	r.Prefill = Rate{TokS: 3000, Min: 2000, Max: 4000}
	return r
}

func TestReportRoundTrip(t *testing.T) {
	r := sample(1)
	b, err := json.Marshal(r)
	require.NoError(t, err)
	got, err := Parse(b)
	require.NoError(t, err)
	require.Equal(t, r, got)

	// Without a model none of its fields appear.
	r.Model = nil
	b, err = json.Marshal(r)
	require.NoError(t, err)
	require.NotContains(t, string(b), "ttft_ms")

	_, err = Parse([]byte("{"))
	require.ErrorContains(t, err, "not a report")
	_, err = Parse([]byte(`{"format":99}`))
	require.ErrorContains(t, err, "format 99")
}

func TestText(t *testing.T) {
	var b strings.Builder
	require.NoError(t, sample(1).Text(&b))
	for _, want := range []string{"vpdpbusd", "256.0 mib", "ternary/32", "0.21", "nano", "others used 1.5 %", "governor"} {
		require.Contains(t, strings.ToLower(b.String()), want)
	}
	for line := range strings.Lines(b.String()) {
		require.Equal(t, strings.TrimRight(line, " \n")+"\n", line)
	}
}

func TestCompare(t *testing.T) {
	cs := Compare(sample(1), sample(1.5))
	byName := map[string]Change{}
	for _, c := range cs {
		byName[c.Name] = c
	}
	k := byName["ternary_gemv avx2 64×32×1 group 32, 1 threads"]
	require.InDelta(t, 1.5, k.Speedup, 1e-9)
	require.True(t, k.Clear)
	load := byName["load nano, 1 threads"]
	require.InDelta(t, 1.5, load.Speedup, 0.01, "less time is better")
	require.True(t, load.Clear)
	prefill := byName["prefill nano, 1 threads"]
	require.InDelta(t, 1, prefill.Speedup, 0)
	require.False(t, prefill.Clear)

	require.InDelta(t, 0.01, k.Noise, 1e-9)
	require.InDelta(t, 1.0/3, prefill.Noise, 1e-3, "2000 to 4000 around 3000")
	require.Zero(t, Hidden(cs), "no difference, or a clear one")

	// Within the spread of the measurements nothing is clear.
	for _, c := range Compare(sample(1), sample(1.01)) {
		require.False(t, c.Clear, c.Name)
	}
	wide := sample(1.2)
	wide.Kernels[0].MinGOPS, wide.Prefill = 90, Rate{TokS: 3500, Min: 2500, Max: 4500}
	hidden := Compare(sample(1), wide)
	require.Equal(t, 2, Hidden(hidden))
	var text strings.Builder
	require.NoError(t, WriteChanges(&text, hidden))
	require.Equal(t, 2, strings.Count(text.String(), "noise"))
	var b strings.Builder
	require.NoError(t, WriteChanges(&b, cs))
	require.Contains(t, b.String(), "faster")
	b.Reset()
	require.NoError(t, WriteChanges(&b, Compare(sample(1.5), sample(1))))
	require.Contains(t, b.String(), "slower")
	require.Empty(t, Compare(&Report{}, sample(1)))
}

const document = `# Speed
<!-- begin targets -->
<!-- end targets -->
<!-- begin machine -->
<!-- end machine -->
words
<!-- begin roofline -->
old
<!-- end roofline -->
<!-- begin kernels -->
<!-- end kernels -->
<!-- begin models -->
<!-- end models -->
<!-- begin profiles -->
<!-- end profiles -->
end`

func TestTargets(t *testing.T) {
	r := sample(1)
	gemv := Kernel{Op: "ternary_gemv", Kernel: "avx512vnni", M: 2048, K: 2048, N: 1, Group: 128, Threads: 1, GOPS: 200, PeakGOPS: 400, ReadGOPS: 300, FractionOfPeak: 0.5}
	two, avx2, cold, row := gemv, gemv, gemv, gemv
	two.Threads = 2
	avx2.Kernel, avx2.GOPS = "avx2", 150
	cold.M, cold.K, cold.Threads = 32768, 8192, 2
	row.Group = 2048
	r.Kernels = []Kernel{gemv, two, avx2, cold, row}
	r.Name, r.Threads, r.RSS, r.ModelBytes, r.KVBytes = "nano-125m.gguf", 2, 130, 100, 10
	r.Decode.TokS = 2100
	var got []string
	for _, x := range r.Targets() {
		got = append(got, fmt.Sprintf("%s|%d|%g|%t", x.What, x.Threads, x.Have, x.Reached))
	}
	require.Equal(t, []string{
		"GEMV 2048×2048|1|0.5|true",
		"GEMV 2048×2048 with AVX2|1|150|false",
		"GEMV 32768×8192|2|0.6667|false",
		"nano-125m.gguf: decode|2|2100|true",
		"nano-125m.gguf: prefill of 512|2|3000|false",
		"nano-125m.gguf: load to first logits|2|50|true",
		"nano-125m.gguf: resident memory|2|1.196|false",
	}, got)
	require.Empty(t, (&Report{}).Targets())
	r.Kernels, r.Name = nil, "mine.gguf"
	require.Empty(t, r.Targets(), "the targets are those of two models")
}

func TestMarkdown(t *testing.T) {
	one, two := sample(1), sample(1)
	two.Roofline, two.Kernels = nil, nil
	two.Name = "another"
	one.Profiles = []Profile{{Model: "nano", Name: "decode", Tokens: 1, Threads: 1, Microseconds: 100, Ops: []OpTime{{"attention", 2, 70, 0.7}}}}
	doc, err := Markdown(document, one)
	require.NoError(t, err)
	doc, err = Markdown(doc, two)
	require.NoError(t, err)
	for _, want := range []string{"words\n", "| vpdpbusd ", "| ternary_gemv ", "| nano ", "| another ", "| attention ", "benchmark --roofline --kernels --json"} {
		require.Contains(t, doc, want)
	}
	require.NotContains(t, doc, "old")
	again, err := Markdown(doc, two)
	require.NoError(t, err)
	require.Equal(t, doc, again, "writing the same again changes nothing")

	// A model replaces its own row, a profile its own table.
	faster := sample(1)
	faster.Roofline, faster.Kernels = nil, nil
	faster.Prefill = Rate{TokS: 7777}
	p := one.Profiles[0]
	p.Ops = []OpTime{{"attention", 2, 44.4, 0.9}}
	q := p
	q.Threads = 2
	faster.Profiles = []Profile{p, q}
	doc, err = Markdown(doc, faster)
	require.NoError(t, err)
	require.Equal(t, 1, strings.Count(doc, "| nano "))
	require.Equal(t, 1, strings.Count(doc, "| another "))
	require.Contains(t, doc, "7777")
	require.NotContains(t, doc, "70.0")
	require.Equal(t, 2, strings.Count(doc, "44.4"))
	doc, err = Markdown(doc, &Report{Profiles: []Profile{q}})
	require.NoError(t, err)
	require.Equal(t, 2, strings.Count(doc, "44.4"))

	kept, err := Markdown(document, two)
	require.NoError(t, err)
	require.Contains(t, kept, "old", "a part that was not measured stays")
	_, err = Markdown("nothing", one)
	require.ErrorContains(t, err, "no part")
}

func ExampleCompare() {
	for _, c := range Compare(sample(1), sample(2)) {
		if c.Unit == "GB/s" {
			fmt.Printf("%s: %.0f to %.0f %s, %.1f times\n", c.Name, c.Old, c.New, c.Unit, c.Speedup)
		}
	}
	// Output: read DRAM, 1 threads: 20 to 40 GB/s, 2.0 times
}
