package bench

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/numa"
)

// Format is the version of the JSON form of a Report.
const Format = 1

// Report is everything one run measured. Parts that were not asked for are
// absent; the fields of a model stand at the top.
type Report struct {
	Format  int       `json:"format"`
	Version string    `json:"version"`
	Commit  string    `json:"commit,omitempty"`
	Command string    `json:"command,omitempty"`
	Time    time.Time `json:"time"`
	Machine Machine   `json:"machine"`
	Noise   *Noise    `json:"noise,omitempty"`

	Roofline *Roofline `json:"roofline,omitempty"`
	Kernels  []Kernel  `json:"kernels,omitempty"`
	Profiles []Profile `json:"profiles,omitempty"`
	Train    *Train    `json:"train,omitempty"`
	Together *Streams  `json:"together,omitempty"`
	*Model
}

// Machine is the hardware and what the program was built with.
type Machine struct {
	numa.Machine
	Features []string `json:"features"`
	// Kernels are the usable sets, best first.
	Kernels   []string `json:"kernels"`
	Go        string   `json:"go"`
	CCompiler string   `json:"c_compiler,omitempty"`
}

// NewReport is a report without measurements. version and commit describe the
// program; with an empty commit that of the build is used, if it says.
func NewReport(version, commit string) *Report {
	r := &Report{Format: Format, Version: version, Commit: commit, Time: time.Now().UTC().Truncate(time.Second)}
	if b, ok := debug.ReadBuildInfo(); ok && commit == "" {
		for _, s := range b.Settings {
			if s.Key == "vcs.revision" {
				r.Commit = s.Value
			}
		}
	}
	r.Machine = Machine{Machine: numa.ReadMachine(), Features: kernels.Features(), Go: runtime.Version(), CCompiler: kernels.Compiler()}
	for _, s := range kernels.All() {
		r.Machine.Kernels = append(r.Machine.Kernels, s.Name)
	}
	return r
}

// Parse reads a report in the form that encoding/json writes.
func Parse(b []byte) (*Report, error) {
	r := new(Report)
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("bench: not a report of nanochat benchmark --json: %w", err)
	}
	if r.Format != Format {
		return nil, fmt.Errorf("bench: the report has format %d, this program reads %d; measure again", r.Format, Format)
	}
	return r, nil
}

// Spread is the median of several repetitions and how far they reached.
type Spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}
