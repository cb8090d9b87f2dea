package bench

import (
	"strconv"
	"strings"

	"github.com/architehc/nanochat/core/internal/fsx"
)

// Noise is how much of the machine others used during the measurement, in
// percent of the time of all its processors.
type Noise struct {
	// Others is what other programs used, and Steal what the host of a virtual
	// machine gave to others.
	Others float64 `json:"others_percent"`
	Steal  float64 `json:"steal_percent"`
}

// ticks is processor time since the start, in the units of /proc/stat.
type ticks struct{ all, busy, steal, self float64 }

// NoiseMeter begins to observe; the function it returns gives the noise since
// then, or nil where the system does not tell.
func NoiseMeter() func() *Noise {
	before, ok := readTicks()
	return func() *Noise {
		after, ok2 := readTicks()
		all := after.all - before.all
		if !ok || !ok2 || all <= 0 {
			return nil
		}
		others := (after.busy - before.busy) - (after.self - before.self)
		return &Noise{
			Others: round2(100 * max(0, others) / all),
			Steal:  round2(100 * max(0, after.steal-before.steal) / all),
		}
	}
}

func readTicks() (t ticks, ok bool) {
	stat, err := fsx.ReadFile(fsx.OS(), "/proc/stat", 1<<20)
	if err != nil {
		return t, false
	}
	self, err := fsx.ReadFile(fsx.OS(), "/proc/self/stat", 1<<16)
	if err != nil {
		return t, false
	}
	return parseTicks(string(stat), string(self))
}

// parseTicks reads the first line of /proc/stat (cpu user nice system idle iowait
// irq softirq steal …) and fields 14 and 15 of /proc/self/stat.
func parseTicks(stat, self string) (t ticks, ok bool) {
	line, _, _ := strings.Cut(stat, "\n")
	f := strings.Fields(line)
	if len(f) < 9 || f[0] != "cpu" {
		return t, false
	}
	for i, s := range f[1:9] {
		v, err := strconv.ParseFloat(s, 64)
		if err != nil {
			return t, false
		}
		t.all += v
		switch i {
		case 3, 4: // idle, iowait
		case 7:
			t.steal = v
		default:
			t.busy += v
		}
	}
	g := strings.Fields(self[strings.LastIndexByte(self, ')')+1:]) // the name may contain anything
	if len(g) < 13 {
		return t, false
	}
	user, err1 := strconv.ParseFloat(g[11], 64)
	system, err2 := strconv.ParseFloat(g[12], 64)
	t.self = user + system
	return t, err1 == nil && err2 == nil
}

// resident reads the process's resident memory and the most it has been, in
// bytes; 0 if the system does not tell.
func resident() (now, peak int64) {
	b, err := fsx.ReadFile(fsx.OS(), "/proc/self/status", 1<<16)
	if err != nil {
		return 0, 0
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		kb, err := strconv.ParseInt(f[1], 10, 50)
		switch {
		case err != nil:
		case f[0] == "VmRSS:":
			now = kb << 10
		case f[0] == "VmHWM:":
			peak = kb << 10
		}
	}
	return now, peak
}
