package bench

import (
	"fmt"
	"strings"
)

// Target is a number that this project wants to reach.
type Target struct {
	What    string
	Threads int
	Unit    string
	Want    float64
	// Most says that Want is the largest good value, not the least.
	Most bool
	// Have is what was measured; Reached compares.
	Have    float64
	Reached bool
}

// kernelTargets are fractions, which compare between machines, except the last.
var kernelTargets = []struct {
	what, op, kernel string // kernel "" means the best
	m, k, n          int
	want             float64
	unit             string
	threads          int // 0 means any
}{
	{"GEMV 2048×2048", "ternary_gemv", "", 2048, 2048, 1, 0.45, "of the int8 peak", 1},
	{"GEMV 32768×8192", "ternary_gemv", "", 32768, 8192, 1, 0.85, "of the read bandwidth", 0},
	{"GEMM 4096×4096, 48 tokens", "ternary_gemm", "", 4096, 4096, 48, 0.88, "of the int8 peak", 0},
	{"GEMM 4096×4096, 512 tokens", "ternary_gemm", "", 4096, 4096, 512, 0.88, "of the int8 peak", 0},
	{"GEMV 2048×2048 with AVX2", "ternary_gemv", "avx2", 2048, 2048, 1, 200, "GOPS", 1},
}

// modelTargets are absolute. They were set on a processor with twice the int8 peak and
// faster memory than the one our tables come from.
var modelTargets = []struct {
	prefix, what string
	threads      int
	want         float64
	unit         string
	most         bool
	have         func(*Model) float64
}{
	{"nano-125m", "decode", 1, 1250, "tok/s", false, decodeRate},
	{"nano-125m", "decode", 2, 2100, "tok/s", false, decodeRate},
	{"nano-125m", "prefill of 512", 1, 3000, "tok/s", false, prefillRate},
	{"nano-125m", "prefill of 512", 2, 5600, "tok/s", false, prefillRate},
	{"bitnet-2b-4t", "decode", 1, 36, "tok/s", false, decodeRate},
	{"bitnet-2b-4t", "decode", 2, 50, "tok/s", false, decodeRate},
	{"bitnet-2b-4t", "prefill of 512", 1, 175, "tok/s", false, prefillRate},
	{"bitnet-2b-4t", "prefill of 512", 2, 310, "tok/s", false, prefillRate},
	{"nano-125m", "load to first logits", 0, 60, "ms", true, func(m *Model) float64 { return m.Load }},
	{"nano-125m", "resident memory", 0, 1.15, "of file and cache", true, resident115},
	{"bitnet-2b-4t", "resident memory", 0, 1.15, "of file and cache", true, resident115},
}

// resident115 is 1.15 if resident memory is 1.15 times the file and the cache.
func resident115(m *Model) float64 {
	return float64(m.RSS) / (1.15*float64(m.ModelBytes) + float64(m.KVBytes)) * 1.15
}

func decodeRate(m *Model) float64  { return m.Decode.TokS }
func prefillRate(m *Model) float64 { return m.Prefill.TokS }

// Targets compares the report with the targets it has numbers for.
func (r *Report) Targets() []Target {
	var ts []Target
	for _, k := range r.Kernels {
		for _, t := range kernelTargets {
			right := k.Op == t.op && k.M == t.m && k.K == t.k && k.N == t.n && (k.Group == 128) && (t.threads == 0 || t.threads == k.Threads)
			if !right || (t.kernel == "") == (k.Kernel == "avx2") || t.kernel != "" && k.Kernel != t.kernel {
				continue
			}
			have := k.GOPS
			switch t.unit {
			case "of the int8 peak":
				have = k.FractionOfPeak
			case "of the read bandwidth":
				have = round(k.GOPS / k.ReadGOPS)
			}
			ts = append(ts, Target{What: t.what, Threads: k.Threads, Unit: t.unit, Want: t.want, Have: have, Reached: have >= t.want})
		}
	}
	if s := r.Together; s != nil && strings.HasPrefix(s.Name, "nano-125m") && s.Streams == 16 {
		ts = append(ts,
			Target{What: s.Name + ": 16 streams", Threads: s.Threads, Unit: "of one stream's tok/s", Want: 2.5, Have: s.Ratio.Median, Reached: s.Ratio.Median >= 2.5},
			Target{What: s.Name + ": largest gap of 8 streams while a prompt is read", Threads: s.Threads, Unit: "of its median", Want: 4, Most: true,
				Have: s.Gap.Median, Reached: s.Gap.Median <= 4})
	}
	if r.Model == nil {
		return ts
	}
	for _, t := range modelTargets {
		if !strings.HasPrefix(r.Name, t.prefix) || t.threads != 0 && t.threads != r.Threads {
			continue
		}
		have := round(t.have(r.Model))
		reached := have >= t.want
		if t.most {
			reached = have <= t.want
		}
		ts = append(ts, Target{What: r.Name + ": " + t.what, Threads: r.Threads, Unit: t.unit, Want: t.want, Most: t.most, Have: have, Reached: reached})
	}
	return ts
}

func targetTable(ts []Target) *table {
	t := &table{title: "Targets", header: []string{"<what", "threads", "target", "<unit", "here", "<reached"}}
	for _, x := range ts {
		sign, reached := "≥ ", "no"
		if x.Most {
			sign = "≤ "
		}
		if x.Reached {
			reached = "yes"
		}
		t.add(x.What, fmt.Sprint(x.Threads), sign+num(x.Want), x.Unit, num(x.Have), reached)
	}
	return t
}
