package main

import (
	"fmt"
	"os"

	"github.com/architehc/nanochat/core/chat"
	"github.com/architehc/nanochat/core/infer"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/cuda"
	"github.com/architehc/nanochat/kernels/team"
	"github.com/architehc/nanochat/kernels/tune"
)

// engineFlags are shared by the commands that compute.
type engineFlags struct {
	Threads int    `env:"NANOCHAT_THREADS" placeholder:"N" help:"Threads (default: the cores this process may use)."`
	Kernel  string `env:"NANOCHAT_KERNEL" placeholder:"NAME" help:"Kernel set (default: the best for this processor; see doctor)."`
}

func (e *engineFlags) set() (*kernels.Set, error) {
	if e.Threads < 0 || e.Threads > team.MaxSize {
		return nil, &usageError{fmt.Sprintf("--threads %d is outside 1 to %d", e.Threads, team.MaxSize), "leave it out to use every core this process may use"}
	}
	if e.Kernel == "" {
		return kernels.Best(), nil
	}
	s, err := kernels.ByName(e.Kernel)
	if err != nil {
		return nil, &usageError{err.Error(), "leave out --kernel and NANOCHAT_KERNEL to use the best"}
	}
	return s, nil
}

func (e *engineFlags) threads() int {
	if e.Threads > 0 {
		return e.Threads
	}
	return team.DefaultSize()
}

// deviceFlag is of the commands that can compute on a GPU.
type deviceFlag struct {
	Device string `env:"NANOCHAT_DEVICE" enum:"cpu,cuda,auto" default:"cpu" help:"Where to compute: cpu, cuda (an NVIDIA GPU), auto (a GPU if there is one that can be used) (default: ${default})."`
}

// runFlags are shared by the commands that run a model.
type runFlags struct {
	KV        string `name:"kv" enum:"f16,int8" default:"f16" help:"Storage of the cache: f16 or int8 (default: ${default})."`
	Pin       bool   `help:"Bind threads to processors."`
	HugePages bool   `help:"Copy the weights into memory with huge pages (default: on); without it they stay where the file is mapped." default:"true" negatable:""`
	deviceFlag
	Tune string `env:"NANOCHAT_TUNE" enum:"off,auto,refresh" default:"off" help:"Measure which kernel is fastest for each shape and remember it: off, auto, refresh (default: ${default})."`
}

func (r *runFlags) kv() kernels.KVType {
	if r.KV == "int8" {
		return kernels.KVI8
	}
	return kernels.KVF16
}

// chooser is the autotuner nil if it is off.
func (r *runFlags) chooser(fallback *kernels.Set) (chat.Chooser, error) {
	mode, err := tune.ParseMode(r.Tune)
	if err != nil || mode == tune.Off {
		return nil, err
	}
	dir, err := tune.DefaultDir()
	if err != nil {
		return nil, &hinted{fmt.Errorf("no place to remember measurements: %w", err), "set XDG_CACHE_HOME or HOME, or leave out --tune"}
	}
	return chat.Tuned(tune.Options{Mode: mode, Dir: dir, Version: version, Fallback: fallback}), nil
}

// options is how a model is run: with a context of so many positions, 0 for its own, and so
// many tokens guessed ahead.
func (r *runFlags) options(e *engineFlags, context size, speculate int) (chat.Options, error) {
	set, err := e.set()
	if err != nil {
		return chat.Options{}, err
	}
	if context < 0 || context > 1<<24 || speculate < 0 {
		return chat.Options{}, &usageError{"--context and --speculate are not negative, and a context has at most 16M positions", "leave them out for the defaults"}
	}
	o := chat.Options{Set: set, HugePages: r.HugePages, Device: r.Device, CUDA: cudaSetup(), Engine: infer.Options{
		Threads: e.threads(), Pin: r.Pin, Context: int(context), Speculate: speculate, KVType: r.kv(),
	}}
	o.Choose, err = r.chooser(set)
	return o, err
}

// alone is options for one request at a time.
func (r *runFlags) alone(e *engineFlags, context size, speculate int) (chat.Options, error) {
	o, err := r.options(e, context, speculate)
	o.Engine.MaxBatch = 1
	return o, err
}

// openModel opens a model file, and says so where it is computed elsewhere than on the
// device that was preferred.
func (a *app) openModel(path string, o chat.Options) (*chat.Model, error) {
	m, err := chat.Open(a.ctx, path, o)
	if err != nil {
		return nil, flagNames(err)
	}
	_, why := m.Device()
	a.onProcessor(why)
	return m, nil
}

// onProcessor says why the processor computes although a GPU was preferred; nil: it was not.
func (a *app) onProcessor(why error) {
	if why != nil {
		fmt.Fprintf(a.stderr, "computing on the processor: %s\n", oneLine(why.Error()))
	}
}

// cudaSetup is where the libraries and the kernels of GPUs are.
func cudaSetup() cuda.Setup { return cuda.FromEnvironment(os.Getenv, executable()) }
