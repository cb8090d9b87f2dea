//go:build cgo

package optim

import (
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/cuda"
	"github.com/architehc/nanochat/kernels/cuda/cudatest"
)

// TestSpeed prints what an update of nano-125m's size takes on the machine's GPU: the
// whole, what of it is Newton–Schulz, and the quantisation of the new weights.
//
//	NANOCHAT_TEST_GPU=1 go test ./core/optim -run TestSpeed -v
func TestSpeed(t *testing.T) {
	if !cudatest.OnGPU(os.Getenv) {
		t.Skip("the emulated GPU has no speed; " + cudatest.GPUVariable + "=1 uses the machine's")
	}
	lib, err := cudatest.Blas(os.Getenv)
	require.NoError(t, err)
	v, image := cudatest.Open(t, os.Getenv)
	defer v.Close()
	require.NoError(t, v.Do(func(th *cuda.Thread) error {
		blas, err := th.Blas(lib)
		require.NoError(t, err)
		latent, err := th.Latent(image)
		require.NoError(t, err)
		take := func(bytes int) cuda.Ptr {
			p, err := th.Alloc(uint64(bytes))
			require.NoError(t, err)
			require.NoError(t, th.Fill(p, 0x3c, uint64(bytes))) // small numbers
			return p
		}
		var params []GPUParam
		var packs []cuda.PackJob
		var dense []cuda.DenseJob
		elements, muon, flop := 0, 0, 0.0
		add := func(class Class, rows, cols int) {
			n := rows * cols
			p := GPUParam{Name: fmt.Sprint(len(params)), Class: class, Rows: rows, Cols: cols, W: take(4 * n), G: take(4 * n)}
			params = append(params, p)
			elements += n
			if class != Matrix {
				dense = append(dense, cuda.DenseJob{Table: take(n / 32 * 34), Half: take(2 * n), Used: take(2 * n), W: p.W, Kind: kernels.Q8_0, Rows: rows, Cols: cols})
				return
			}
			muon += n
			short, long := float64(min(rows, cols)), float64(max(rows, cols))
			flop += 5 * 2 * short * short * (2*long + short)
			d := &cuda.Ternary{Rows: rows, Cols: cols, Group: 128, Tiles: take(n / 4), Scales: take(n / 64), Gain: 1}
			packs = append(packs, cuda.PackJob{Dst: d, Used: take(2 * n), W: p.W})
		}
		for range 14 {
			for _, s := range [][2]int{{768, 768}, {768, 768}, {768, 768}, {768, 768}, {3072, 768}, {768, 3072}} {
				add(Matrix, s[0], s[1])
			}
		}
		add(Embedding, 16384, 768)
		add(Head, 16384, 768)
		rules := map[Class]Rule{Matrix: {Kind: Muon, LR: 0.01}, Embedding: {Kind: AdamW, LR: 0.01}, Head: {Kind: AdamW, LR: 0.01}}
		for _, half := range []bool{false, true} {
			o, err := NewGPU(th, image, blas, params, Options{Rules: rules, Clip: 1, BF16: true, HalfState: half})
			require.NoError(t, err)
			plan, err := latent.Plan(packs, dense)
			require.NoError(t, err)
			require.NoError(t, o.Prepare(th))
			parts := []struct {
				name  string
				bytes float64 // of all elements, at least
				run   func() error
			}{
				{"update", 0, func() error { return o.Queue(th, 0) }},
				{"its decision", 4 * float64(elements), func() error { return o.ops.Decide(o.all, o.step, 0) }},
				{"its directions", 12 * float64(muon), func() error { return o.ops.Direction(o.parts, o.step) }},
				{"its products", 0, func() error {
					for _, b := range o.groups {
						if _, err := o.orthogonalise(b); err != nil {
							return err
						}
					}
					return nil
				}},
				{"quantisation", 6.25 * float64(elements), func() error { return plan.Run(0) }},
			}
			if half {
				parts[2].bytes = 8 * float64(muon)
			}
			for i, x := range parts {
				var rounds []float64
				for range 8 {
					from, err := th.Record()
					require.NoError(t, err)
					require.NoError(t, x.run())
					to, err := th.Record()
					require.NoError(t, err)
					s, err := th.Between(from, to)
					require.NoError(t, err)
					rounds = append(rounds, s)
				}
				slices.Sort(rounds)
				s := rounds[len(rounds)/2]
				fmt.Printf("half state %-5t  %-14s %8.0f us", half, x.name, 1e6*s)
				if x.bytes > 0 {
					fmt.Printf("  %.0f GB/s", x.bytes/s/1e9)
				}
				if i == 3 {
					fmt.Printf("  %.0f TFLOP/s", flop/s/1e12)
				}
				fmt.Println()
			}
			_, err = o.Report(th)
			require.NoError(t, err)
			require.NoError(t, plan.Free())
			require.NoError(t, o.Free(th))
		}
		return nil
	}))
}
