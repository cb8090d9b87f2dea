package optim

import (
	"fmt"
	"slices"

	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/cuda"
)

// Memory is the bytes of the device that state and scratch have.
func (p *GPU) Memory() Memory { return p.bytes }

// Counters is the counters of the state.
func (p *GPU) Counters() Counters { return p.count }

// Routes is how every parameter is trained, in order.
func (p *GPU) Routes() []Route {
	r := make([]Route, len(p.slots))
	for i, s := range p.slots {
		bytes := 4 * s.Rows * s.Cols * s.rule.Kind.words()
		if s.half {
			bytes /= 2
		}
		r[i] = Route{s.Name, s.Class, s.rule.Kind, s.Rows, s.Cols, slices.Clone(s.Split), s.rule.LR, bytes}
	}
	return r
}

// moments lists the state, without data, and where on the device it is.
func (p *GPU) moments() (list []Tensor, at []cuda.Ptr, half []bool) {
	add := func(s *gpuSlot, what string, offset uint64) {
		list = append(list, Tensor{Name: s.Name + "." + what, Rows: s.Rows, Cols: s.Cols})
		at, half = append(at, p.state+cuda.Ptr(offset)), append(half, s.half)
	}
	for i := range p.slots {
		s := &p.slots[i]
		add(s, "m", s.m)
		if s.rule.Kind == AdamW {
			add(s, "v", s.v)
		}
	}
	return list, at, half
}

// Tensors is the state as Optimizer.Tensors gives it, copied to memory of the host
// that stays the GPU's: the next call overwrites it. It waits.
func (p *GPU) Tensors(t *cuda.Thread) ([]Tensor, error) {
	list, at, half := p.moments()
	if p.host == nil {
		p.host = list
		for i := range p.host {
			p.host[i].Data = make([]float32, p.host[i].Rows*p.host[i].Cols)
		}
	}
	var short []uint16
	for i, x := range p.host {
		if !half[i] {
			if err := cuda.Download(t, x.Data, at[i]); err != nil {
				return nil, fmt.Errorf("optim: state tensor %q: %w", x.Name, err)
			}
			continue
		}
		short = slices.Grow(short[:0], len(x.Data))[:len(x.Data)]
		if err := cuda.Download(t, short, at[i]); err != nil {
			return nil, fmt.Errorf("optim: state tensor %q: %w", x.Name, err)
		}
		for k, h := range short {
			x.Data[k] = kernels.BF16ToF32(h)
		}
	}
	return slices.Clone(p.host), nil
}

// Restore is Optimizer.Restore: the state may come from either. Momentum that is kept
// in bfloat16 is rounded to the nearest. If the tensors do not fit nothing was changed.
func (p *GPU) Restore(t *cuda.Thread, c Counters, tensors []Tensor) error {
	list, at, half := p.moments()
	data, err := match(c, list, tensors)
	if err != nil {
		return err
	}
	var short []uint16
	for i, x := range data {
		if half[i] {
			short = slices.Grow(short[:0], len(x))[:len(x)]
			for k, v := range x {
				short[k] = kernels.F32ToBF16(v)
			}
			err = cuda.Upload(t, at[i], short)
		} else {
			err = cuda.Upload(t, at[i], x)
		}
		if err != nil {
			return fmt.Errorf("optim: state tensor %q: %w", list[i].Name, err)
		}
	}
	p.count, p.pending = c, false
	return nil
}
