package kernels

import (
	"fmt"
	"slices"
	"strings"
	"sync"
)

var sets = sync.OnceValue(func() []*Set { return append(csets(), newGoSet()) })

// All is every set this CPU can run, best first, "go" last.
func All() []*Set { return slices.Clone(sets()) }

// Best is the set to use where nothing else was asked for.
func Best() *Set { return sets()[0] }

// ByName is the set called name. The error lists the names this CPU can run.
func ByName(name string) (*Set, error) {
	var names []string
	for _, s := range sets() {
		if s.Name == name {
			return s, nil
		}
		names = append(names, s.Name)
	}
	return nil, fmt.Errorf("kernels: no kernel set %q on this CPU; it has %s", name, strings.Join(names, ", "))
}

// newGoSet is the Go reference: the definition of every op.
func newGoSet() *Set {
	s := &Set{Name: "go"}
	ternaryGo(s)
	floatGo(s)
	matMulGo(s)
	q8Go(s)
	backwardGo(s)
	bindFused(s)
	return s
}

// bindFused composes the fused ops from the set's own parts.
func bindFused(s *Set) {
	norm, quantize := s.RMSNorm, s.Quantize
	s.RMSNormQuantize = func(q []int8, sums []int32, dst, x, weight []float32, eps float32, group int) float32 {
		norm(dst, x, weight, eps)
		return quantize(q, sums, dst, group)
	}
}
