package team

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/architehc/nanochat/kernels/numa"
)

func currentCPU() int { return numa.CurrentCPU() }

func TestSplitCoversOnceOnBoundaries(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(-3, 5000).Draw(t, "n")
		align := rapid.IntRange(0, 70).Draw(t, "align")
		parts := rapid.IntRange(1, 40).Draw(t, "parts")
		next, least, most := 0, 1<<30, 0
		for id := range parts {
			lo, hi := Split(n, align, id, parts)
			if lo != next || hi < lo {
				t.Fatalf("part %d is %d..%d after %d", id, lo, hi, next)
			}
			if hi != max(n, 0) && hi%max(align, 1) != 0 {
				t.Fatalf("boundary %d of align %d", hi, align)
			}
			next = hi
			least, most = min(least, hi-lo), max(most, hi-lo)
		}
		if next != max(n, 0) {
			t.Fatalf("ends at %d, want %d", next, n)
		}
		if most-least > 2*max(align, 1) {
			t.Fatalf("parts from %d to %d", least, most)
		}
	})
}

// Several loops in a row, without barriers, deal every element out exactly once.
func TestCounterDealsOnce(t *testing.T) {
	lengths := []int{0, 1, 15, 16, 17, 1000, 4096, 3}
	each(t, func(t *testing.T, tm *Team) {
		for range 20 {
			counts := make([][]atomic.Int32, len(lengths))
			for i, n := range lengths {
				counts[i] = make([]atomic.Int32, n)
			}
			require.NoError(t, tm.Run(func(w *Worker) {
				for i, n := range lengths {
					c := w.Counter(n, 16, 16*(i%3))
					for w.Next(&c) {
						if c.Lo%16 != 0 || (c.Hi%16 != 0 && c.Hi != n) {
							panic(fmt.Sprintf("chunk %d..%d", c.Lo, c.Hi))
						}
						for j := c.Lo; j < c.Hi; j++ {
							counts[i][j].Add(1)
						}
					}
				}
			}))
			for i := range counts {
				for j := range counts[i] {
					require.EqualValues(t, 1, counts[i][j].Load(), "loop %d element %d", i, j)
				}
			}
		}
	})
}

func ExampleTeam_Run() {
	tm := New(2, Options{})
	defer tm.Close()
	x := make([]int, 100)
	err := tm.Run(func(w *Worker) {
		lo, hi := w.Range(len(x), 16)
		for i := lo; i < hi; i++ {
			x[i] = i
		}
		w.Barrier() // now every worker sees all of x
	})
	fmt.Println(x[99], err)
	// Output: 99 <nil>
}
