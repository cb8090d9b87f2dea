package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strings"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/cuda"
	"github.com/architehc/nanochat/kernels/dl"
	"github.com/architehc/nanochat/kernels/numa"
)

// doctorReport is what `doctor --json` prints.
type doctorReport struct {
	Version  versionReport `json:"version"`
	Machine  numa.Machine  `json:"machine"`
	Features []string      `json:"features"`
	// Kernels lists the usable sets, best first; Kernel is the one in use.
	Kernels []string `json:"kernels"`
	Kernel  string   `json:"kernel"`
	Threads int      `json:"threads"`
	// Affinity is the number of CPUs this process may run on; Quota the CPUs' worth
	// of time its control group allows, 0 for no limit.
	Affinity    int               `json:"affinity"`
	Quota       float64           `json:"cgroup_quota"`
	CUDA        cudaReport        `json:"cuda"`
	Environment map[string]string `json:"environment"`
	Notes       []string          `json:"notes"`
}

type doctorCmd struct {
	JSON   bool     `name:"json" help:"Print JSON."`
	Config string   `placeholder:"PRESET|FILE" help:"Show every key of a configuration and where its value comes from, instead."`
	Set    []string `placeholder:"KEY=VALUE" sep:"none" help:"Override a key of --config."`
	// Compile and Arch are for machines without NVRTC.
	Compile string   `name:"compile-kernels" placeholder:"DIR" help:"Compile the kernels of NVIDIA GPUs into a directory, instead; NANOCHAT_CUDA_KERNELS names it where they are used."`
	Arch    []string `default:"sm_80,sm_90a,sm_100" help:"Architectures for --compile-kernels."`
	engineFlags
}

// environment lists the variables that nanochat reads.
var environment = []string{"NANOCHAT_KERNEL", "NANOCHAT_THREADS", "NANOCHAT_TUNE", cuda.LibDirVariable, cuda.KernelsVariable, "NO_COLOR"}

// Run prints what was found.
func (c *doctorCmd) Run(a *app) error {
	if c.Config != "" {
		return c.showConfig(a)
	}
	if len(c.Set) > 0 {
		return &usageError{"--set without --config", "nanochat doctor --config nano-125m --set model.vocab=16384"}
	}
	if c.Compile != "" {
		return c.compileKernels(a)
	}
	set, err := c.set()
	if err != nil {
		return err
	}
	r := doctorReport{
		Version: thisVersion(), Machine: numa.ReadMachine(), Features: kernels.Features(),
		Kernel: set.Name, Threads: c.threads(), Affinity: numa.CPUs(), Quota: numa.Quota(),
		CUDA: findCUDA(), Environment: map[string]string{},
	}
	for _, s := range kernels.All() {
		r.Kernels = append(r.Kernels, s.Name)
	}
	for _, name := range environment {
		if v, ok := os.LookupEnv(name); ok {
			r.Environment[name] = v
		}
	}
	r.Notes = r.notes()
	if c.JSON {
		return writeJSON(a.stdout, r)
	}
	return writePairs(a.stdout, r.pairs())
}

// notes says what keeps this machine from its full speed.
func (r *doctorReport) notes() []string {
	notes := []string{}
	if !r.Version.Cgo {
		notes = append(notes, "built without cgo: only the Go kernels are there, which are much slower; build with a C compiler and CGO_ENABLED=1")
	} else if runtime.GOARCH == "amd64" && r.Kernel == "scalar" {
		notes = append(notes, "no vector kernel is in use; this processor has no AVX2, or NANOCHAT_KERNEL forbids it")
	}
	if r.Kernel != r.Kernels[0] {
		notes = append(notes, fmt.Sprintf("kernel %s was asked for; %s is faster here", r.Kernel, r.Kernels[0]))
	}
	if r.Threads > r.Affinity {
		notes = append(notes, fmt.Sprintf("%d threads on %d processors: they will wait for each other", r.Threads, r.Affinity))
	}
	if r.Machine.HugePages == "never" {
		notes = append(notes, "transparent huge pages are off; large models read memory more slowly")
	}
	if g := r.Machine.Governor; g != "" && g != "performance" && g != "schedutil" {
		notes = append(notes, "the frequency governor is "+g+"; measurements will vary")
	}
	return notes
}

func (r *doctorReport) pairs() []pair {
	m := r.Machine
	var caches []string
	for _, c := range m.Caches {
		caches = append(caches, fmt.Sprintf("L%d %s", c.Level, bytesText(int64(c.Bytes))))
	}
	memory, quota := "", "none"
	if m.MemBytes > 0 {
		memory = bytesText(int64(m.MemBytes))
	}
	if r.Quota > 0 {
		quota = fmt.Sprintf("%.2f processors", r.Quota)
	}
	v := r.Version
	p := []pair{
		{"version", strings.TrimSpace(v.Version + " " + v.Commit)},
		{"built with", fmt.Sprintf("%s, cgo %v", v.Go, v.Cgo)},
		{"system", strings.TrimSpace(v.System + " " + m.Kernel)},
		{"processor", m.CPU},
		{"features", strings.Join(r.Features, " ")},
		{"caches", strings.Join(caches, ", ")},
		{"memory", memory},
		{"cores", fmt.Sprintf("%d processors on %d cores, %d usable, cgroup limit %s", m.CPUs, m.Cores, r.Affinity, quota)},
		{"NUMA nodes", fmt.Sprint(m.Nodes)},
		{"huge pages", m.HugePages},
		{"kernels", strings.Join(r.Kernels, ", ")},
		{"in use", r.Kernel + ", " + plural(r.Threads, "thread")},
		{"CUDA", r.CUDA.text()},
	}
	if r.CUDA.Missing == "" {
		p = append(p, pair{"CUDA libraries", r.CUDA.libraries()})
	}
	for _, name := range environment {
		if value, ok := r.Environment[name]; ok {
			p = append(p, pair{"environment", name + "=" + value})
		}
	}
	for _, n := range r.Notes {
		p = append(p, pair{"note", n})
	}
	return p
}

// cudaReport is the NVIDIA GPUs of this machine and what their use needs.
type cudaReport struct {
	// Driver is the version of CUDA that the driver is for. Compiler is that of NVRTC, Blas of cuBLASLt, which
	// training needs, and NCCL of that, which training on several needs; "" for what is not there. Missing
	// says why there is no driver or device.
	Driver   string      `json:"driver,omitempty"`
	Compiler string      `json:"compiler,omitempty"`
	Blas     string      `json:"cublaslt,omitempty"`
	NCCL     string      `json:"nccl,omitempty"`
	Devices  []cuda.Info `json:"devices,omitempty"`
	// Notices is what the kernels, which are loaded and compared with each other, cannot do on the first device.
	Notices []string `json:"notices,omitempty"`
	Missing string   `json:"missing,omitempty"`
	Hint    string   `json:"hint,omitempty"`
}

func findCUDA() (r cudaReport) {
	dirs := cuda.LibDirs(os.Getenv)
	if c, err := cuda.OpenCompiler(dirs...); err == nil {
		r.Compiler = c.Version()
	}
	if b, err := cuda.OpenBlas(dirs...); err == nil {
		r.Blas = b.Version()
	}
	if n, err := cuda.OpenNCCL(dirs...); err == nil {
		r.NCCL = n.Version()
	}
	driver, err := cuda.OpenDriver(dirs...)
	if err == nil {
		r.Driver = driver.Version()
		r.Devices, err = driver.Devices()
	}
	if err == nil {
		r.Notices = checkKernels(cudaSetup())
		return r
	}
	r.Missing = err.Error()
	if e, ok := errors.AsType[*dl.Error](err); ok {
		r.Missing, r.Hint = e.Library+" was not found", e.Hint
	} else if e, ok := errors.AsType[*cuda.Error](err); ok {
		r.Hint = e.Hint
	}
	return r
}

// checkKernels loads the kernels on the first device, which compares those for its generation with
// others, and returns what there is to say of them.
func checkKernels(s cuda.Setup) (notices []string) {
	device, image, err := s.Open(0)
	if err == nil {
		err = device.Do(func(t *cuda.Thread) error {
			o, err := t.Ops(image)
			if err == nil {
				notices = o.Notices()
			}
			return err
		})
		device.Close()
	}
	if err != nil {
		notices = append(notices, oneLine(err.Error()))
	}
	return notices
}

func (r *cudaReport) text() string {
	if r.Missing != "" {
		return "not used: " + r.Missing
	}
	var names []string
	for _, d := range r.Devices {
		names = append(names, fmt.Sprintf("%s, %s", d.Name, bytesText(int64(d.Memory))))
	}
	text := fmt.Sprintf("%s; driver for CUDA %s; used with --device cuda", strings.Join(names, "; "), r.Driver)
	for _, n := range r.Notices {
		text += "; notice: " + n
	}
	return text
}

// libraries is what was found of the libraries that work with a GPU.
func (r *cudaReport) libraries() string {
	var list []string
	for _, l := range [][2]string{{"NVRTC", r.Compiler}, {"cuBLASLt", r.Blas}, {"NCCL", r.NCCL}} {
		if l[1] == "" {
			l[1] = "none"
		}
		list = append(list, l[0]+" "+l[1])
	}
	return strings.Join(list, ", ")
}

// compileKernels fills a directory for machines without a compiler.
func (c *doctorCmd) compileKernels(a *app) error {
	compiler, err := cuda.OpenCompiler(cuda.LibDirs(os.Getenv)...)
	if err != nil {
		return err
	}
	files := 0
	err = compiler.CompileTo(c.Compile, c.Arch, func(string) { files++ })
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.stdout, "%s: %s for %s, by NVRTC %s\n", c.Compile, plural(files, "file"), strings.Join(c.Arch, ", "), compiler.Version())
	return err
}

func (c *doctorCmd) showConfig(a *app) error {
	conf, err := loadConfig(c.Config, c.Set)
	if err != nil {
		return err
	}
	settings := conf.Settings()
	if c.JSON {
		return writeJSON(a.stdout, map[string]any{"settings": settings, "params": paramsOf(conf.Model)})
	}
	pairs := make([]pair, len(settings))
	for i, s := range settings {
		pairs[i] = pair{s.Key, fmt.Sprintf("%-28v %s", s.Value, s.Source)}
	}
	p := conf.Model.Params()
	pairs = append(pairs, pair{"weights", fmt.Sprintf("%d (%s): ternary %s, embedding %s, head %s, norms %s, mhc %s", p.Total(), countText(p.Total()),
		countText(p.Ternary), countText(p.Embedding), countText(p.Head), countText(p.Norms), countText(p.MHC))})
	return writePairs(a.stdout, pairs)
}

// loadConfig reads a preset by name or, if name ends in .toml, a file.
func loadConfig(name string, sets []string) (*config.Config, error) {
	if !strings.HasSuffix(name, ".toml") {
		return config.Preset(name, sets...)
	}
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &usageError{fmt.Sprintf("configuration %s: no such file", name), "the presets are " + strings.Join(config.Presets(), ", ")}
	}
	if err != nil {
		return nil, fmt.Errorf("configuration %s: %s", name, reason(err))
	}
	return config.Parse(name, b, sets...)
}

// paramsOf is a count of weights as JSON shows it.
func paramsOf(m config.Model) map[string]int64 {
	p := m.Params()
	return map[string]int64{
		"total": p.Total(), "ternary": p.Ternary, "embedding": p.Embedding, "head": p.Head, "norms": p.Norms, "mhc": p.MHC,
	}
}
