//go:build cgo

package optim

import (
	"encoding/binary"
	"math"
	"os"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/cuda"
	"github.com/architehc/nanochat/kernels/cuda/cudatest"
)

func TestMain(m *testing.M) {
	code := m.Run()
	cudatest.Clean()
	os.Exit(code)
}

// bench is a device with parameters on it.
type bench struct {
	t      *testing.T
	th     *cuda.Thread
	params []Param // of the host
	gpu    []GPUParam
	o      *GPU
	loss   cuda.Ptr
}

// onDevice runs f on a device of its own with a copy of the parameters. gap is the bytes
// between tensors: with a multiple of 16 they are aligned.
func onDevice(t *testing.T, params []Param, o Options, gap int, f func(*bench)) {
	t.Helper()
	v, image := cudatest.Open(t, os.Getenv)
	lib, err := cudatest.Blas(os.Getenv)
	require.NoError(t, err)
	err = v.Do(func(th *cuda.Thread) error {
		blas, err := th.Blas(lib)
		require.NoError(t, err)
		b := &bench{t: t, th: th, params: params}
		for _, p := range params {
			q := GPUParam{Name: p.Name, Class: p.Class, Rows: p.Rows, Cols: p.Cols, Split: p.Split}
			q.W, q.G = put(t, th, p.W, gap), put(t, th, p.G, gap)
			b.gpu = append(b.gpu, q)
		}
		b.loss = put(t, th, make([]float64, 6), 0)
		before, _, _ := th.Memory()
		b.o, err = NewGPU(th, image, blas, b.gpu, o)
		require.NoError(t, err)
		after, _, _ := th.Memory()
		m := b.o.Memory()
		require.Equal(t, int(after-before), m.State+m.Scratch, "memory")
		forecast, err := GPUMemoryOf(b.gpu, o)
		require.NoError(t, err)
		require.Equal(t, m, forecast)
		f(b)
		require.NoError(t, b.o.Free(th))
		end, _, _ := th.Memory()
		require.Equal(t, before, end)
		return nil
	})
	v.Close()
	require.NoError(t, err)
}

func put[T cuda.Element](t *testing.T, th *cuda.Thread, x []T, gap int) cuda.Ptr {
	t.Helper()
	p, err := th.Alloc(uint64(8*len(x) + gap))
	require.NoError(t, err)
	require.NoError(t, cuda.Upload(th, p+cuda.Ptr(gap), x))
	return p + cuda.Ptr(gap)
}

// step gives the device the host's gradients and steps there.
func (b *bench) step() Report {
	b.t.Helper()
	for i, p := range b.params {
		require.NoError(b.t, cuda.Upload(b.th, b.gpu[i].G, p.G))
	}
	require.NoError(b.t, b.o.Prepare(b.th))
	require.NoError(b.t, b.o.Queue(b.th, b.loss))
	require.NoError(b.t, b.th.Wait())
	r, err := b.o.Report(b.th)
	require.NoError(b.t, err)
	return r
}

func (b *bench) weights() [][]float32 {
	b.t.Helper()
	var w [][]float32
	for i, p := range b.params {
		x := make([]float32, len(p.W))
		require.NoError(b.t, cuda.Download(b.th, x, b.gpu[i].W))
		w = append(w, x)
	}
	return w
}

// distance is the relative distance of two vectors.
func distance(got, want []float32) float64 {
	var d, n float64
	for i, v := range want {
		d += (float64(got[i]) - float64(v)) * (float64(got[i]) - float64(v))
		n += float64(v) * float64(v)
	}
	return math.Sqrt(d / max(n, 1e-300))
}

func sameBits(t *testing.T, want, got []float32, what string) {
	t.Helper()
	require.Len(t, got, len(want))
	for i := range want {
		require.Equal(t, math.Float32bits(want[i]), math.Float32bits(got[i]), "%s, element %d: %v and %v", what, i, want[i], got[i])
	}
}

// Everything but Muon's products has the bits of the processor.
func TestGPUStepsAsTheProcessor(t *testing.T) {
	for _, c := range []struct {
		name string
		bf16 bool
		gap  int
		rule func(map[Class]Rule)
	}{
		{"float32", false, 0, func(map[Class]Rule) {}},
		{"bfloat16", true, 16, func(map[Class]Rule) {}},
		{"odd addresses", false, 4, func(map[Class]Rule) {}},
		{"others", false, 0, func(r map[Class]Rule) {
			r[Matrix] = Rule{Kind: Muon, LR: 0.02, Heavy: true, NewtonSchulz: 3, Scaling: Spectral, NoClip: true}
			r[Embedding] = Rule{Kind: Lion, LR: 0.001, WeightDecay: 3, Cautious: true}
			r[MHC] = Rule{Kind: AdamW, LR: 0.1, Eps: 1e-3, Cautious: true, WeightDecay: 2}
		}},
		{"without muon", false, 0, func(r map[Class]Rule) { r[Matrix] = Rule{Kind: AdamW, LR: 0.01} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			rules := everyRule()
			c.rule(rules)
			o := Options{Rules: rules, Schedule: wsd, Clip: 30, BF16: c.bf16}
			params := network(11)
			cpu, err := New(params, o)
			require.NoError(t, err)
			onDevice(t, params, o, c.gap, func(b *bench) {
				for s := 1; s <= 10; s++ {
					gradients(params, s)
					for _, p := range params {
						clear(p.G[:len(p.G)/3]) // rows that no token had
					}
					if s == 4 { // sums of squares that float32 does not hold
						for i := range params[0].G {
							params[0].G[i] *= 1e-18
						}
						for i := range params[4].G {
							params[4].G[i] *= 1e-19
						}
					}
					if s == 6 {
						params[0].G[0] = float32(math.NaN())
						params[3].G[5] = float32(math.Inf(1))
					}
					want, got := step(t, cpu), b.step()
					if s == 4 {
						for i := range want.Norms { // other orders of float64 sums
							require.InEpsilon(t, want.Norms[i], got.Norms[i], 1e-14)
						}
						want.Norms, got.Norms = nil, nil
						require.InEpsilon(t, want.GradNorm, got.GradNorm, 1e-14)
						want.GradNorm, want.ClassNorm, got.GradNorm, got.ClassNorm = 0, [classes]float64{}, 0, [classes]float64{}
						require.InEpsilon(t, want.Clip, got.Clip, 1e-14)
						want.Clip, got.Clip = 0, 0
					}
					if s == 6 {
						require.Equal(t, "embedding", got.NonFinite)
						require.True(t, math.IsNaN(got.GradNorm) && math.IsNaN(got.Norms[0]) && math.IsInf(got.Norms[3], 1))
						require.Equal(t, want.Norms[1], got.Norms[1])
						want.GradNorm, want.ClassNorm, want.Norms = 0, [classes]float64{}, nil // NaN is not equal
						got.GradNorm, got.ClassNorm, got.Norms = 0, [classes]float64{}, nil
					} else {
						require.Less(t, want.Clip, 1.0, "the test has to clip")
					}
					require.Equal(t, want, got)
					require.Equal(t, cpu.Counters(), b.o.Counters())
					for i, w := range b.weights() {
						p := &params[i]
						if rules[p.Class].Kind != Muon {
							sameBits(t, p.W, w, p.Name)
							continue
						}
						limit := 2e-6
						if c.bf16 {
							limit = 4e-3
						}
						require.Less(t, distance(w, p.W), limit, "step %d, %s", s, p.Name)
						copy(p.W, w) // decay, and gradients, must see the same weights
					}
				}
				state, err := b.o.Tensors(b.th)
				require.NoError(t, err)
				for i, x := range cpu.Tensors() {
					require.Equal(t, x.Name, state[i].Name)
					sameBits(t, x.Data, state[i].Data, x.Name)
				}
			})
		})
	}
}

// The iteration of the device's is the polynomial of the singular values too.
func TestGPUOrthogonalises(t *testing.T) {
	rnd := cudatest.Rand(os.Getenv, 1, 1)
	for k, s := range shapes {
		for _, bf16 := range []bool{false, true} {
			g := normalMat(rnd, s[0], s[1])
			g = g.lin([]float64{1, 1e-22, 1e19}[k%3], g, 0) // float32 does not hold all squares
			u, sv, v := g.svd()
			for i := range sv {
				x := sv[i] / g.norm()
				for range 5 {
					x = float64(nsA)*x + float64(nsB)*x*x*x + float64(nsC)*x*x*x*x*x
				}
				sv[i] = x
			}
			want := u.mul(diag(sv)).mul(v.t())
			p := Param{Name: "w", Class: Matrix, Rows: g.r, Cols: g.c, W: make([]float32, len(g.v)), G: g.f32()}
			o := Options{Rules: map[Class]Rule{Matrix: {Kind: Muon, LR: 1}}, BF16: bf16}
			onDevice(t, []Param{p}, o, 0, func(b *bench) {
				b.step()
				got := matOf(b.weights()[0], g.r, g.c).lin(-1/MatchAdam.factor(g.r, g.c), newMat(g.r, g.c), 0)
				limit := 2e-5
				if bf16 {
					limit = 0.03 // 0.019 at most
				}
				require.Less(t, got.lin(1, want, -1).norm()/want.norm(), limit, "%v bf16=%t", s, bf16)
			})
		}
	}
}

// A loss that is not finite changes nothing, nor do its gradients.
func TestGPUSkipsALossThatIsNotFinite(t *testing.T) {
	params := network(12)
	onDevice(t, params, Options{Rules: everyRule(), HalfState: true}, 0, func(b *bench) {
		gradients(params, 1)
		b.step()
		want := b.weights()
		state, err := b.o.Tensors(b.th)
		require.NoError(t, err)
		var before [][]float32
		for _, x := range state {
			before = append(before, slices.Clone(x.Data))
		}
		require.NoError(t, cuda.Upload(b.th, b.loss, []float64{1, 1, 1, 1, math.NaN(), 1}))
		r := b.step()
		require.True(t, r.Skipped)
		require.Equal(t, "loss", r.NonFinite)
		require.Equal(t, 1.0, r.Clip)
		require.Equal(t, Counters{Step: 2, Skipped: 1}, b.o.Counters())
		require.Equal(t, want, b.weights())
		state, err = b.o.Tensors(b.th)
		require.NoError(t, err)
		for i, x := range state {
			require.Equal(t, before[i], x.Data, x.Name)
		}
		require.NoError(t, cuda.Upload(b.th, b.loss, make([]float64, 6)))
		require.False(t, b.step().Skipped)
	})
}

// The state goes from the processor to the device and back, and a graph that was
// recorded before is good after it.
func TestGPUStateIsTheProcessors(t *testing.T) {
	rules := everyRule()
	rules[Matrix] = Rule{Kind: Lion, LR: 0.01} // no products: all bits are the same
	o := Options{Rules: rules, Schedule: wsd, Clip: 1}
	params, twin := network(13), network(13)
	whole, err := New(twin, o)
	require.NoError(t, err)
	train(t, whole, twin, 1, 12)

	cpu, err := New(params, o)
	require.NoError(t, err)
	train(t, cpu, params, 1, 4)
	onDevice(t, params, o, 0, func(b *bench) {
		g, err := b.th.Graph(func() error { return b.o.Queue(b.th, b.loss) })
		require.NoError(t, err)
		defer b.th.Drop(g)
		require.ErrorContains(t, b.o.Restore(b.th, Counters{}, cpu.Tensors()[1:]), "is missing")
		require.NoError(t, b.o.Restore(b.th, cpu.Counters(), cpu.Tensors()))
		for s := 5; s <= 8; s++ {
			gradients(params, s)
			for i, p := range params {
				require.NoError(t, cuda.Upload(b.th, b.gpu[i].G, p.G))
			}
			require.NoError(t, b.o.Prepare(b.th))
			require.ErrorContains(t, b.o.Prepare(b.th), "before the report")
			require.NoError(t, b.th.Replay(g))
			require.NoError(t, b.th.Wait())
			r, err := b.o.Report(b.th)
			require.NoError(t, err)
			require.Equal(t, s, r.Step)
			for i, w := range b.weights() {
				copy(params[i].W, w)
			}
		}
		_, err = b.o.Report(b.th)
		require.ErrorContains(t, err, "without a step")
		state, err := b.o.Tensors(b.th)
		require.NoError(t, err)
		require.NoError(t, cpu.Restore(b.o.Counters(), state))
	})
	train(t, cpu, params, 9, 12)
	for i := range params {
		sameBits(t, twin[i].W, params[i].W, params[i].Name)
	}
}

// A graph of an update is good for all later steps.
func TestGPUGraph(t *testing.T) {
	o := Options{Rules: everyRule(), Schedule: wsd, Clip: 30, BF16: true, HalfState: true}
	var want [][]float32
	for _, graph := range []bool{false, true} {
		params := network(15)
		onDevice(t, params, o, 0, func(b *bench) {
			gradients(params, 1)
			b.step()
			queue := func() error { return b.o.Queue(b.th, b.loss) }
			if graph {
				g, err := b.th.Graph(queue)
				require.NoError(t, err)
				defer b.th.Drop(g)
				queue = func() error { return b.th.Replay(g) }
			}
			for s := 2; s <= 4; s++ {
				gradients(params, s)
				if s == 3 {
					params[1].G[0] = float32(math.Inf(1))
				}
				for i, p := range params {
					require.NoError(t, cuda.Upload(b.th, b.gpu[i].G, p.G))
				}
				require.NoError(t, b.o.Prepare(b.th))
				require.NoError(t, queue())
				require.NoError(t, b.th.Wait())
				r, err := b.o.Report(b.th)
				require.NoError(t, err)
				require.Equal(t, s == 3, r.Skipped)
			}
			if graph {
				require.Equal(t, want, b.weights())
			}
			want = b.weights()
		})
	}
}

// philox is Philox 4x32-10 of the host.
func philox(x [4]uint32, k [2]uint32) [4]uint32 {
	for range 10 {
		p, q := 0xD2511F53*uint64(x[0]), 0xCD9E8D57*uint64(x[2])
		x = [4]uint32{uint32(q>>32) ^ x[1] ^ k[0], uint32(q), uint32(p>>32) ^ x[3] ^ k[1], uint32(p)}
		k[0], k[1] = k[0]+0x9E3779B9, k[1]+0xBB67AE85
	}
	return x
}

// The vectors that are published with the generator (Random123, kat_vectors).
func TestPhilox(t *testing.T) {
	for _, c := range []struct {
		x    [4]uint32
		k    [2]uint32
		want [4]uint32
	}{
		{[4]uint32{}, [2]uint32{}, [4]uint32{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
		{[4]uint32{1<<32 - 1, 1<<32 - 1, 1<<32 - 1, 1<<32 - 1}, [2]uint32{1<<32 - 1, 1<<32 - 1}, [4]uint32{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
		{[4]uint32{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, [2]uint32{0xa4093822, 0x299f31d0}, [4]uint32{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
	} {
		require.Equal(t, c.want, philox(c.x, c.k))
	}
}

// A momentum in bfloat16 is the float32 one plus 16 bits of Philox, cut off: the device's
// numbers are those of the host's generator, whatever the addresses.
func TestHalfStateIsRoundedAtRandom(t *testing.T) {
	const n = 5000
	for _, gap := range []int{0, 4} {
		params := []Param{
			{Name: "scale", Class: Scalar, Rows: 1, Cols: 3},
			{Name: "head", Class: Head, Rows: 1, Cols: n},
			{Name: "qkv", Class: Matrix, Rows: 7, Cols: 65, Split: []int{1, 1, 1, 4}},
		}
		const value, seed = 0.3001, uint64(0x123456789abcdef)
		for i := range params {
			p := &params[i]
			p.W, p.G = make([]float32, p.Rows*p.Cols), slices.Repeat([]float32{value}, p.Rows*p.Cols)
		}
		rules := map[Class]Rule{Head: {Kind: Lion, LR: 1, Beta2: 0.5}, Scalar: {Kind: AdamW}, Matrix: {Kind: Muon, Momentum: 0.5}}
		onDevice(t, params, Options{Rules: rules, HalfState: true, Seed: seed}, gap, func(b *bench) {
			b.step()
			state, err := b.o.Tensors(b.th)
			require.NoError(t, err)
			exact := float32(float32(0.5) * float32(value))
			check := func(x Tensor, first int) (sum float64) {
				seen := map[float32]int{}
				for i, got := range x.Data {
					e := uint32(first + i)
					r := philox([4]uint32{e / 4, 0, 1, 0}, [2]uint32{uint32(seed & 0xffffffff), uint32(seed >> 32)})
					want := kernels.BF16ToF32(uint16((math.Float32bits(exact) + r[e%4]&0xffff) >> 16))
					require.Equal(t, want, got, "%s, element %d", x.Name, i)
					sum += float64(got)
					seen[got]++
				}
				require.Len(t, seen, 2)
				return sum
			}
			require.Equal(t, "head.m", state[2].Name)
			sum := check(state[2], 16) // scale has 3 elements and is followed by 13 that no tensor has
			require.Equal(t, "qkv.m", state[3].Name)
			check(state[3], 16+5008)
			gap := 0x1p-10 // of bfloat16 numbers from 0.125 to 0.25
			require.InDelta(t, float64(exact), sum/n, 2*gap/math.Sqrt(n))
			require.Equal(t, (2*64+10048+960+255)/256*256, b.o.Memory().State)
		})
	}
}

// Muon with a momentum in bfloat16 stays near the one in float32, and the state that it
// saves is what it goes on from.
func TestMuonWithHalfState(t *testing.T) {
	full, half := network(14), network(14)
	o := Options{Rules: everyRule(), Schedule: wsd, Clip: 30}
	cpu, err := New(full, o)
	require.NoError(t, err)
	train(t, cpu, full, 1, 5)
	o.HalfState = true
	onDevice(t, half, o, 0, func(b *bench) {
		for s := 1; s <= 5; s++ {
			gradients(half, s)
			b.step()
			for i, w := range b.weights() {
				copy(half[i].W, w)
			}
		}
		for i := range half {
			if half[i].Class == Matrix {
				require.Less(t, distance(half[i].W, full[i].W), 0.02, half[i].Name)
			}
		}
		state, err := b.o.Tensors(b.th)
		require.NoError(t, err)
		for i, x := range cpu.Tensors() {
			require.Less(t, distance(state[i].Data, x.Data), 0.02, x.Name)
		}
		var saved []Tensor
		for _, x := range state {
			x.Data = slices.Clone(x.Data)
			saved = append(saved, x)
		}
		weights := b.weights()
		gradients(half, 6)
		b.step()
		want := b.weights()
		require.NoError(t, b.o.Restore(b.th, Counters{Step: 5}, saved))
		for i, w := range weights {
			require.NoError(t, cuda.Upload(b.th, b.gpu[i].W, w))
		}
		b.step()
		require.Equal(t, want, b.weights())
	})
}

func TestGPUErrors(t *testing.T) {
	p := []GPUParam{{Name: "w", Class: Matrix, Rows: 4, Cols: 4, W: 256, G: 512}}
	muon := Options{Rules: map[Class]Rule{Matrix: {Kind: Muon}}}
	_, err := NewGPU(nil, nil, nil, p, muon)
	require.ErrorContains(t, err, "needs cuBLASLt")
	_, err = NewGPU(nil, nil, nil, append(p, GPUParam{Name: "v", Class: Matrix, Rows: 4, Cols: 4, W: 256, G: 512}), muon)
	require.ErrorContains(t, err, `shares its weights with "w"`)
	p[0].G = 0
	_, err = NewGPU(nil, nil, nil, p, muon)
	require.ErrorContains(t, err, "on the device")
	_, err = GPUMemoryOf(p, Options{})
	require.ErrorContains(t, err, "no rule for its class, matrix")
	_, err = New(network(1), Options{Rules: everyRule(), HalfState: true})
	require.ErrorContains(t, err, "HalfState is for a GPU")
}

// Matrices of one shape are orthogonalised together, but not more than fit.
func TestGPUBatches(t *testing.T) {
	var params []GPUParam
	for range 12 {
		for _, s := range [][2]int{{3 * 768, 768}, {768, 768}, {4096, 768}, {768, 2048}} {
			q := GPUParam{Name: string(binary.BigEndian.AppendUint32(nil, uint32(len(params)))), Class: Matrix, Rows: s[0], Cols: s[1]}
			if s[0] == 3*768 {
				q.Split = []int{768, 768, 768}
			}
			if s[0] == 4096 {
				q.Split = []int{2048, 2048}
			}
			params = append(params, q)
		}
	}
	p, err := newGPUPlan(params, Options{Rules: map[Class]Rule{Matrix: {Kind: Muon}}, BF16: true})
	require.NoError(t, err)
	require.Len(t, p.matrices, 12*7)
	sum := 0
	for i, b := range p.groups {
		require.Equal(t, sum, b.first)
		require.LessOrEqual(t, (b.last-b.first)*b.rows*b.cols, batchElements)
		for _, x := range p.matrices[b.first:b.last] {
			require.Equal(t, [2]int{b.rows, b.cols}, [2]int{x.rows, x.cols})
		}
		sum = b.last
		t.Log(i, b)
	}
	require.Equal(t, len(p.matrices), sum)
	require.Len(t, p.groups, 2+3+2)
	big, err := newGPUPlan([]GPUParam{{Name: "w", Class: Matrix, Rows: 8192, Cols: 4096}}, Options{Rules: map[Class]Rule{Matrix: {Kind: Muon}}})
	require.NoError(t, err)
	require.Len(t, big.groups, 1)
}
