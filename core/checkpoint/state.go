package checkpoint

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/architehc/nanochat/core/optim"
)

// State is what a training continues from.
type State struct {
	// Step is the steps taken. Load sets it.
	Step int
	// Weights and Optimizer are the trained tensors and the optimizer's. Names are
	// unique within each.
	Weights, Optimizer []optim.Tensor
	// Meta is everything else as JSON; empty stands for {}.
	Meta json.RawMessage
}

// SetMeta makes Meta of v. Numbers that JSON does not have, infinities and NaN,
// are an error.
func (s *State) SetMeta(v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("checkpoint: state: %w", err)
	}
	s.Meta = b
	return nil
}

// GetMeta sets v, a pointer, to what Meta says. Numbers come back exactly in
// fields of the type they were written from.
func (s *State) GetMeta(v any) error {
	if err := json.Unmarshal(s.Meta, v); err != nil {
		return fmt.Errorf("checkpoint: state: %w", err)
	}
	return nil
}

// Weights is the weights of params: the same memory, not a copy.
func Weights(params []optim.Param) []optim.Tensor {
	list := make([]optim.Tensor, len(params))
	for i, p := range params {
		list[i] = optim.Tensor{Name: p.Name, Rows: p.Rows, Cols: p.Cols, Data: p.W}
	}
	return list
}

// CopyWeights sets the weights of params to those of s, by name. If s lacks one,
// has another one or another shape, that is an error and nothing was changed.
func (s *State) CopyWeights(params []optim.Param) error {
	byName := make(map[string]*optim.Tensor, len(s.Weights))
	for i := range s.Weights {
		byName[s.Weights[i].Name] = &s.Weights[i]
	}
	for _, p := range params {
		t := byName[p.Name]
		switch {
		case t == nil:
			return fmt.Errorf("checkpoint: it has no weights %q; it is of another model", p.Name)
		case t.Rows != p.Rows || t.Cols != p.Cols || len(t.Data) != len(p.W):
			return fmt.Errorf("checkpoint: weights %q are [%d %d] there and [%d %d] here; it is of another model", p.Name, t.Rows, t.Cols, p.Rows, p.Cols)
		}
	}
	if len(byName) != len(params) {
		for _, p := range params {
			delete(byName, p.Name)
		}
		return fmt.Errorf("checkpoint: its weights %q are not in this model", slices.Sorted(maps.Keys(byName)))
	}
	for _, p := range params {
		copy(p.W, byName[p.Name].Data)
	}
	return nil
}
