//go:build cgo

package model

import (
	"fmt"
	"math"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/mhc"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/cuda"
	"github.com/architehc/nanochat/kernels/cuda/cudatest"
)

// mixingCase is hyper-connections with random parameters, states and gradients.
type mixingCase struct {
	c      mhc.Config
	sites  []*mhc.Site
	tokens int
	x, dx  []float32 // [tokens][Streams·Dim]
	grads  []mhc.CoefGrad
}

func newMixingCase(t *testing.T, c mhc.Config, tokens int, wide float64) *mixingCase {
	t.Helper()
	r := cudatest.Rand(os.Getenv, uint64(c.Streams), uint64(c.Dim))
	fill := func(x []float32, scale float64) []float32 {
		for i := range x {
			x[i] = float32(scale * r.NormFloat64())
		}
		return x
	}
	m := &mixingCase{c: c, tokens: tokens, grads: make([]mhc.CoefGrad, tokens)}
	for range 3 {
		s, err := mhc.New(c)
		require.NoError(t, err)
		for _, p := range s.Params() {
			fill(p.Data, map[string]float64{"pre": wide, "post": wide, "res": wide, "gate": 1, "proj": 0.1}[p.Name])
		}
		m.sites = append(m.sites, s)
	}
	m.x, m.dx = fill(make([]float32, tokens*c.Streams*c.Dim), 2), fill(make([]float32, tokens*c.Streams*c.Dim), 1)
	for i := range m.grads {
		d := &m.grads[i]
		fill(d.Pre[:c.Streams], 1)
		fill(d.Post[:c.Streams], 1)
		for j := range c.Streams {
			fill(d.Res[j][:c.Streams], 1)
		}
	}
	return m
}

func (m *mixingCase) shape() cuda.MHCShape {
	return cuda.MHCShape{Streams: m.c.Streams, Dim: m.c.Dim, Sinkhorn: m.c.Kind == mhc.Sinkhorn, Iters: m.c.SinkhornIters, Dynamic: m.c.Dynamic}
}

// mixingCases is every kind of site; widths that are no multiples of anything, or of 16.
func mixingCases(f func(name string, c mhc.Config)) {
	for _, streams := range []int{2, 4} {
		for _, kind := range []mhc.Kind{mhc.BvN, mhc.Sinkhorn} {
			for _, dim := range []int{13, 136} {
				for _, dynamic := range []bool{false, true} {
					f(fmt.Sprint(streams, " streams of ", dim, ", kind ", kind, ", dynamic ", dynamic),
						mhc.Config{Streams: streams, Dim: dim, Kind: kind, SinkhornIters: 7, Dynamic: dynamic})
				}
			}
		}
	}
}

// coefFloatsOf is the mixing that a device has computed, as package mhc has it.
func coefFloatsOf(c *mhc.Coef, streams int) (f []float32) {
	f = append(append(make([]float32, 0, 24), c.Pre[:]...), c.Post[:]...)
	for i := range c.Res {
		f = append(f, c.Res[i][:]...)
	}
	for i := range f {
		if i < 8 && i%4 >= streams || i >= 8 && ((i-8)/4 >= streams || i%4 >= streams) {
			f[i] = 0
		}
	}
	return f
}

func bitsOf(x []float32) []uint32 {
	b := make([]uint32, len(x))
	for i, v := range x {
		b[i] = math.Float32bits(v)
	}
	return b
}

// sameWithin wants the difference of two vectors to be small beside the larger of them.
func sameWithin(t *testing.T, want, got []float32, tolerance float64, what string) {
	t.Helper()
	require.Len(t, got, len(want))
	norm, diff := 0.0, 0.0
	for i := range want {
		norm += float64(want[i]) * float64(want[i])
		d := float64(want[i]) - float64(got[i])
		diff += d * d
	}
	require.LessOrEqual(t, math.Sqrt(diff), tolerance*math.Sqrt(norm), "%s: %v, %v", what, want[:min(len(want), 8)], got[:min(len(got), 8)])
}

// onGPU is what a test does on the device's thread.
type onGPU struct {
	t  *testing.T
	th *cuda.Thread
	at []cuda.Ptr
}

func (g *onGPU) put(x []float32) cuda.Ptr {
	p, err := g.th.Alloc(uint64(4 * max(len(x), 1)))
	require.NoError(g.t, err)
	require.NoError(g.t, cuda.Upload(g.th, p, x))
	g.at = append(g.at, p)
	return p
}

func (g *onGPU) get(p cuda.Ptr, n int) []float32 {
	x := make([]float32, n)
	require.NoError(g.t, cuda.Download(g.th, x, p))
	return x
}

// site puts a site on the device, with gradients that are not zero.
func (g *onGPU) site(s *mhc.Site, start *mhc.Grad) cuda.MHCSite {
	d := cuda.MHCSite{Pre: g.put(s.Pre), Post: g.put(s.Post), Res: g.put(s.Res), Coef: g.put(make([]float32, cuda.CoefFloats))}
	d.GPre, d.GPost, d.GRes = g.put(start.Pre), g.put(start.Post), g.put(start.Res)
	if s.Dynamic {
		d.Gate, d.Proj, d.GGate, d.GProj = g.put(s.Gate), g.put(s.Proj), g.put(start.Gate), g.put(start.Proj)
	}
	return d
}

func TestGPUMixingIsThatOfTheProcessor(t *testing.T) {
	device, image := gpu(t)
	set, err := kernels.ByName("go")
	require.NoError(t, err)
	mixingCases(func(name string, c mhc.Config) {
		for _, wide := range []float64{2, 60} { // with 60 parts of the mixing are 0
			t.Run(fmt.Sprint(name, ", logits ", wide), func(t *testing.T) {
				tokens := 37
				if wide > 2 || !c.Dynamic {
					tokens = 530 // three blocks of sums
				}
				if c.Dynamic && wide > 2 {
					tokens = 90
				}
				m := newMixingCase(t, c, tokens, wide)
				require.NoError(t, device.Do(func(th *cuda.Thread) error {
					checkMixing(t, &onGPU{t: t, th: th}, image, set, m)
					return nil
				}))
			})
		}
	})
}

func checkMixing(t *testing.T, g *onGPU, image cuda.Image, set *kernels.Set, m *mixingCase) {
	kernel, err := g.th.MHC(image)
	require.NoError(t, err)
	want := mhc.NewGrad(m.c)
	for _, p := range want.Params() {
		for i := range p.Data {
			p.Data[i] = 0.25 // what was there is added to
		}
	}
	var on []cuda.MHCSite
	for _, s := range m.sites {
		s.Prepare(set)
		on = append(on, g.site(s, want))
	}
	sites, err := kernel.Sites(m.shape(), on, m.tokens)
	require.NoError(t, err)
	const which = 1 // of the sites
	site, d, width := m.sites[which], &on[which], m.c.Streams*m.c.Dim
	coefs := make([]mhc.Coef, m.tokens)
	scratch := make([]float32, max(m.c.ScratchLen(), m.c.BackwardScratchLen()))
	grads := make([]float32, 0, cuda.CoefFloats*m.tokens)
	for i := range m.grads {
		grads = append(append(grads, m.grads[i].Pre[:]...), m.grads[i].Post[:]...)
		for j := range m.grads[i].Res {
			grads = append(grads, m.grads[i].Res[j][:]...)
		}
	}
	grad := g.put(grads)
	dx := append([]float32{}, m.dx...)
	for i := range m.tokens {
		x := m.x[i*width:][:width]
		site.Coef(set, &coefs[i], x, scratch)
		site.Backward(set, want, dx[i*width:][:width], &m.grads[i], x, scratch)
	}
	site.FinishBackward(set, want)
	if m.c.Dynamic {
		c := &cuda.MHCCoefs{
			X: g.put(m.x), Coef: g.put(make([]float32, cuda.CoefFloats*m.tokens)), U: g.put(make([]float32, m.tokens*m.c.Dim)),
			Z: g.put(make([]float32, cuda.MHCLogits*m.tokens)), Inverse: g.put(make([]float32, m.tokens)),
		}
		require.NoError(t, kernel.Coefs(sites, which, c, m.tokens))
		got, u := g.get(c.Coef, cuda.CoefFloats*m.tokens), g.get(c.U, m.tokens*m.c.Dim)
		read := make([]float32, m.c.Dim)
		for i := range coefs {
			require.Equal(t, bitsOf(coefFloatsOf(&coefs[i], m.c.Streams)), bitsOf(got[i*cuda.CoefFloats:][:cuda.CoefFloats]), "token %d", i)
			coefs[i].Read(set, read, m.x[i*width:][:width])
			require.Equal(t, bitsOf(read), bitsOf(u[i*m.c.Dim:][:m.c.Dim]), "token %d", i)
		}
		few := *c // of some tokens, which are spread otherwise
		few.Coef, few.U = g.put(make([]float32, len(got))), g.put(make([]float32, len(u)))
		few.Z, few.Inverse = g.put(make([]float32, cuda.MHCLogits*m.tokens)), g.put(make([]float32, m.tokens))
		n := cuda.FewTokens - 3
		require.NoError(t, kernel.Coefs(sites, which, &few, n))
		for _, same := range [][3]int{{int(c.Coef), int(few.Coef), cuda.CoefFloats}, {int(c.U), int(few.U), m.c.Dim}, {int(c.Z), int(few.Z), cuda.MHCLogits}, {int(c.Inverse), int(few.Inverse), 1}} {
			require.Equal(t, bitsOf(g.get(cuda.Ptr(same[0]), n*same[2])), bitsOf(g.get(cuda.Ptr(same[1]), n*same[2])))
		}
		b := &cuda.MHCBackward{X: c.X, DX: g.put(m.dx), Grad: grad, Z: c.Z, Inverse: c.Inverse}
		require.NoError(t, kernel.Backward(sites, which, b, m.tokens))
		sameWithin(t, dx, g.get(b.DX, len(dx)), 1e-5, "dx")
		sameWithin(t, want.Gate, g.get(d.GGate, 3), 1e-5, "gate")
		sameWithin(t, want.Proj, g.get(d.GProj, len(want.Proj)), 1e-5, "proj")
		require.ErrorContains(t, kernel.Finish(sites, which, grad, m.tokens), "depends on the token")
	} else {
		require.NoError(t, kernel.Prepare(sites))
		for i, s := range m.sites {
			require.Equal(t, bitsOf(coefFloatsOf(s.Coef(set, nil, nil, nil), m.c.Streams)), bitsOf(g.get(on[i].Coef, cuda.CoefFloats)))
		}
		require.NoError(t, kernel.Finish(sites, which, grad, m.tokens))
	}
	sameWithin(t, want.Pre, g.get(d.GPre, len(want.Pre)), 1e-5, "pre")
	sameWithin(t, want.Post, g.get(d.GPost, len(want.Post)), 1e-5, "post")
	sameWithin(t, want.Res, g.get(d.GRes, len(want.Res)), 1e-5, "res")

	const step = 5
	n := (m.tokens + step - 1) / step
	cosines, err := g.th.Alloc(uint64(8 * n))
	require.NoError(t, err)
	require.NoError(t, kernel.Similarities(cosines, g.put(m.x), m.tokens, step, m.c.Streams, m.c.Dim))
	got := make([]float64, n)
	require.NoError(t, cuda.Download(g.th, got, cosines))
	for i := range got {
		require.InDelta(t, mhc.Similarity(m.x[i*step*width:][:width], m.c.Streams), got[i], 1e-12)
	}

	require.ErrorContains(t, kernel.Finish(sites, which, grad, m.tokens+1), "room for")
	require.ErrorContains(t, kernel.Coefs(sites, 3, &cuda.MHCCoefs{}, 1), "site 3 of 3")
	require.NoError(t, kernel.Free(sites))
	require.NoError(t, g.th.Free(cosines))
	for _, p := range g.at {
		require.NoError(t, g.th.Free(p))
	}
}

func TestGPUMixingOfWrongShapes(t *testing.T) {
	device, image := gpu(t)
	require.NoError(t, device.Do(func(th *cuda.Thread) error {
		m, err := th.MHC(image)
		require.NoError(t, err)
		for _, s := range []cuda.MHCShape{{Streams: 1, Dim: 8}, {Streams: 3, Dim: 8}, {Streams: 2}, {Streams: 4, Dim: 8, Sinkhorn: true}, {Streams: 4, Dim: 8, Sinkhorn: true, Iters: 1001}} {
			_, err := m.Sites(s, make([]cuda.MHCSite, 1), 0)
			require.ErrorContains(t, err, "want 2 or 4 streams")
		}
		_, err = m.Sites(cuda.MHCShape{Streams: 2, Dim: 8}, nil, 0)
		require.ErrorContains(t, err, "at 0 places")
		require.ErrorContains(t, m.Similarities(0, 0, 1, 1, 1, 8), "want 2 or 4 streams")
		require.ErrorContains(t, m.Similarities(0, 0, 1, 0, 2, 8), "every 0 of 1")
		return nil
	}))
}
