package model

import (
	"fmt"
	"slices"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/optim"
	"github.com/architehc/nanochat/kernels/cuda"
)

// GPUTrainMemory is bytes of a device that a training takes, by part.
type GPUTrainMemory struct {
	// Weights are the latents and Grads their gradients; Model is the weights as inference
	// has them, and Factors as the head and the backward multiply by them.
	Weights, Grads, Model, Factors int64
	// Optimizer is its state and what an update works in.
	Optimizer int64
	// Tape is what the forward keeps, Scratch the rest of what a step works in, and
	// Batches are those of two steps.
	Tape, Scratch, Batches int64
	// Library is the workspace of cuBLASLt and tables of kernels.
	Library int64
	// Peak is the most that was allocated at a time; 0 in a forecast. What the driver keeps
	// for itself, some hundred MiB, is in none of these.
	Peak int64
}

// MemoryPart is a part of memory by name.
type MemoryPart struct {
	Name  string `json:"name"`
	Bytes int64  `json:"bytes"`
}

// Parts lists the parts.
func (m GPUTrainMemory) Parts() []MemoryPart {
	of := [gpuParts]int64{m.Weights, m.Grads, m.Model, m.Factors, m.Tape, m.Scratch, m.Batches}
	list := make([]MemoryPart, 0, gpuParts+2)
	for i, n := range of {
		list = append(list, MemoryPart{gpuPartNames[i], n})
	}
	return append(list, MemoryPart{"optimizer", m.Optimizer}, MemoryPart{"libraries", m.Library})
}

// Total is the sum of all parts.
func (m GPUTrainMemory) Total() (n int64) {
	for _, p := range m.Parts() {
		n += p.Bytes
	}
	return n
}

// largest is the n largest parts.
func (m GPUTrainMemory) largest(n int) []MemoryPart {
	list := m.Parts()
	slices.SortStableFunc(list, func(a, b MemoryPart) int { return int(b.Bytes>>10 - a.Bytes>>10) })
	return list[:min(n, len(list))]
}

// sizes fills in what the regions take.
func (n *gpuNet) sizes(m *GPUTrainMemory) {
	for i, to := range []*int64{&m.Weights, &m.Grads, &m.Model, &m.Factors, &m.Tape, &m.Scratch, &m.Batches} {
		*to = int64(n.regions[i].end)
	}
}

// Memory counts what g has allocated. Peak is the device's: everything that this program
// allocated there.
func (g *GPUTrainer) Memory() GPUTrainMemory {
	m, err := gpuTrainMemory(&g.gpuNet, &g.o)
	if err != nil {
		return GPUTrainMemory{} // NewGPUTrainer had the same options
	}
	_ = g.device.Do(func(t *cuda.Thread) error { // a lost device has no peak
		_, peak, _ := t.Memory()
		m.Peak = int64(peak)
		return nil
	})
	return m
}

// GPUTrainMemoryOf is what Memory of a new GPUTrainer would be, without making it: what it
// allocates is within 10 % of the total. Blas and Group of o need not be set.
func GPUTrainMemoryOf(c config.Model, o GPUTrainOptions) (GPUTrainMemory, error) {
	o = o.withDefaults()
	if err := checkGPUTrain(c, o); err != nil {
		return GPUTrainMemory{}, err
	}
	m, err := newModel(c, arch, Options{}.withDefaults())
	if err != nil {
		return GPUTrainMemory{}, err
	}
	n := newGPUNet(m, &o, forecastProcessors)
	n.layOut(m)
	return gpuTrainMemory(&n, &o)
}

// forecastProcessors is the multiprocessors that a forecast takes the device to have: those of
// an H100. Little depends on it.
const forecastProcessors = 132

func gpuTrainMemory(n *gpuNet, o *GPUTrainOptions) (m GPUTrainMemory, err error) {
	n.sizes(&m)
	state, err := optim.GPUMemoryOf(n.params, o.Optim)
	if err != nil {
		return m, fmt.Errorf("model: %w", err)
	}
	m.Optimizer = int64(state.State) + int64(state.Scratch)
	m.Library = cuda.BlasWorkspace
	if n.cfg.Streams > 1 {
		m.Library += int64(mhcShape(n.cfg).ScratchBytes(n.tokens))
	}
	return m, nil
}
