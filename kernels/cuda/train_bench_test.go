//go:build cgo

package cuda_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/cuda"
	"github.com/architehc/nanochat/kernels/cuda/cudatest"
)

// trainBench is device memory for the token-wise kernels of a shape of network; what is in it does not matter.
type trainBench struct {
	t                               *testing.T
	th                              *cuda.Thread
	n, dim, ffn, heads, hd, streams int
	gated                           bool
	bandwidth                       float64 // of a copy, bytes a second
	total, floor                    float64 // seconds
}

// memory is that many bytes of numbers that are near 0.01 in float32, in bfloat16 and in half precision 1.
func (b *trainBench) memory(bytes int) cuda.Ptr {
	p, err := b.th.Alloc(uint64(bytes))
	require.NoError(b.t, err)
	require.NoError(b.t, b.th.Fill(p, 0x3C, uint64(bytes)))
	return p
}

func (b *trainBench) act(cols int) *cuda.Act {
	stride := kernels.ActStride(cols)
	return &cuda.Act{Tokens: b.n, Cols: cols, Stride: stride, Group: cols, Q: b.memory(b.n * stride), Scale: b.memory(4 * b.n)}
}

// time prints what a kernel reaches that moves so many bytes for a token.
func (b *trainBench) time(name string, bytes int, f func() error) {
	seconds := median(b.t, b.th, 5, f)
	moved := float64(bytes) * float64(b.n)
	b.total, b.floor = b.total+seconds, b.floor+moved/b.bandwidth
	fmt.Printf("  %-28s %8.1f us, %5d bytes a token, %5.0f GB/s (%.2f of a copy)\n", name, 1e6*seconds, bytes, moved/seconds/1e9, moved/seconds/b.bandwidth)
}

// TestTrainSpeed prints what the token-wise kernels of training reach on the machine's GPU, medians of 9 by
// events, beside the bandwidth of a copy. docs/CUDA.md says where the bytes come from.
//
//	NANOCHAT_TEST_GPU=1 go test ./kernels/cuda -run TestTrainSpeed -v
func TestTrainSpeed(t *testing.T) {
	if !cudatest.OnGPU(os.Getenv) {
		t.Skip("the emulated GPU has no speed; " + cudatest.GPUVariable + "=1 uses the machine's")
	}
	const n, vocab = 32 << 10, 16 << 10
	for _, b := range []*trainBench{
		{n: n, dim: 768, ffn: 3072, heads: 12, hd: 64, streams: 1}, {n: n, dim: 768, ffn: 2048, heads: 12, hd: 64, streams: 2, gated: true},
		{n: n, dim: 2048, ffn: 5632, heads: 16, hd: 128, streams: 1, gated: true},
	} {
		b.t = t
		training(t, 0, func(th *cuda.Thread, x *cuda.Train) {
			b.th = th
			b.run(x, vocab)
		})
		b.loss(vocab)
	}
}

func (b *trainBench) run(x *cuda.Train, vocab int) {
	t, th, n, d, s, q := b.t, b.th, b.n, b.dim, b.streams, b.heads*b.hd
	from, to := b.memory(512*n), b.memory(512*n)
	b.bandwidth = 2 * 512 * float64(n) / median(t, th, 10, func() error { return th.Copy(to, from, uint64(512*n)) })
	fmt.Printf("%s, %d tokens, dim %d, FFN %d (gated: %v), %d streams; a copy reaches %.0f GB/s\n", th.Device().Name, n, d, b.ffn, b.gated, s, b.bandwidth/1e9)

	wide, kind := b.ffn, cuda.ReLU2
	if b.gated {
		wide, kind = 2*b.ffn, cuda.SwiGLU
	}
	in, ff, attOut := b.act(d), b.act(b.ffn), b.act(q)
	big := b.memory(4 * n * max(wide, 3*q))
	grad, factor, dyb := b.memory(4*n*max(b.ffn, q)), b.memory(2*n*max(b.ffn, d, q)), b.memory(2*n*max(wide, 3*q))
	weight, partial := b.memory(4*max(b.ffn, d)), b.memory(int(x.PartialBytes(n, d, b.ffn, q, 2*b.hd)))
	dx, streams, y, initial, dembed := b.memory(4*n*s*d), b.memory(4*n*s*d), b.memory(4*n*d), b.memory(4*n*d), b.memory(4*n*d)
	coef, coefGrad, nextGrad, scalars := b.memory(96), b.memory(96*n), b.memory(96*n), b.memory(8)
	fixed := 0 // of reading with the writing in front of it: the mixing, its gradients and y
	if s > 1 {
		fixed = 192 + 4*d
	}

	b.time("activations, with norm", 2*b.ffn+6*wide+3*d, func() error {
		_, err := x.ActivateBack(&cuda.ActivateBack{D: grad, HalfD: true, Rows: big, Weight: weight, Partial: partial, Act: ff, DYB: dyb, Input: cuda.Factor{Act: in, BF16: factor}, FFN: b.ffn, Kind: kind, Eps: 1e-5}, n)
		return err
	})
	b.time("activations", 2*b.ffn+6*wide+3*d, func() error {
		_, err := x.ActivateBack(&cuda.ActivateBack{D: grad, HalfD: true, Rows: big, Act: ff, DYB: dyb, Input: cuda.Factor{Act: in, BF16: factor}, FFN: b.ffn, Kind: kind}, n)
		return err
	})
	leave := &cuda.Leave{DX: dx, Old: dx, X: streams, Y: y, Coef: coef, CoefGrad: nextGrad, DYB: dyb, Input: cuda.Factor{Act: ff, BF16: factor}, Streams: s, Dim: d}
	bytes := 6*d + 3*b.ffn
	if s > 1 {
		bytes += 12*s*d + 176
	}
	b.time("writing", bytes, func() error { return x.Leave(leave, n) })
	enter := cuda.Enter{D: grad, HalfD: true, DX: dx, X: streams, Weight: weight, Partial: partial, Act: in, Coef: coef, CoefGrad: coefGrad, Streams: s, Dim: d, Eps: 1e-5}
	queue := func(e cuda.Enter) func() error {
		return func() error {
			_, _, err := x.Enter(&e, n)
			return err
		}
	}
	b.time("reading", 2*d+12*s*d, queue(enter))
	enter.Next = leave
	b.time("reading and writing", 2*d+12*s*d+2*d+fixed+3*b.ffn, queue(enter))
	enter.Residual = &cuda.Residual{Before: streams, Initial: initial, Scalars: scalars, DEmbed: dembed}
	b.time("the same, residual scalars", 2*d+12*s*d+2*d+fixed+3*b.ffn+12*d, queue(enter))
	b.time("norm of attention", 2*q+4*q+2*q, func() error {
		_, err := x.SubNormBack(&cuda.SubNormBack{D: grad, HalfD: true, Weight: weight, X: big, Partial: partial, Act: attOut, Dst: dyb, Width: q, Eps: 1e-5}, n)
		return err
	})
	starts := put(t, th, make([]int32, n))
	seq := min(n, 1024)
	docs := cuda.Docs{Starts: starts, Rows: n / seq, SeqLen: seq}
	table := b.memory(4 * seq * b.hd / 2)
	rot := cuda.TrainRotation{X: big, QNorm: weight, KNorm: weight, Cosine: table, Sine: table, Heads: b.heads, KVHeads: b.heads, HeadDim: b.hd, Half: b.hd / 2, Eps: 1e-5}
	b.time("positions forward", 6*3*q, func() error { return x.Rotate(dyb, &rot, docs) })
	b.time("positions, with norms", 4*3*q+4*2*q+3*d, func() error {
		_, _, err := x.RotateBack(&cuda.RotateBack{TrainRotation: rot, DQ: grad, DK: grad, DV: grad, HalfD: true, DYB: dyb, Input: cuda.Factor{Act: in, BF16: factor}, Partial: partial}, docs)
		return err
	})
	rows := int(x.PartialBytes(n, d)) / (4 * (d + 4))
	b.time("six sums of partial sums", 6*rows*d*4/n, func() error {
		var sums []cuda.PartialSum
		for i := range 6 {
			sums = append(sums, cuda.NewPartialSum(grad+cuda.Ptr(4*d*i), partial, rows, d, d+4))
		}
		return x.AddPartials(sums...)
	})
	b.embedding(x, dx, dembed, vocab)
	fmt.Printf("  all of them %.0f us; at the speed of a copy %.0f us\n", 1e6*b.total, 1e6*b.floor)
}

// embedding has ids as a text has them: some are frequent.
func (b *trainBench) embedding(x *cuda.Train, dx, dembed cuda.Ptr, vocab int) {
	r := rand.New(rand.NewPCG(71, 72))
	ids, order := make([]int32, b.n), make([]int32, b.n)
	for i := range ids {
		ids[i], order[i] = int32(float64(vocab)*r.Float64()*r.Float64()*r.Float64()*r.Float64()), int32(i)
	}
	slices.Sort(ids)
	r.Shuffle(b.n, func(i, j int) { order[i], order[j] = order[j], order[i] })
	e := &cuda.EmbedBack{
		G: b.memory(4 * vocab * b.dim), DX: dx, DEmbed: dembed, Ids: put(b.t, b.th, ids), Tokens: put(b.t, b.th, order),
		Partial: b.memory(int(cuda.EmbedBackBytes(b.n, b.dim))), Streams: b.streams, Dim: b.dim,
	}
	b.time("embedding", 4*b.dim*(b.streams+1), func() error { return x.EmbedBack(e, b.n) })
}

func (b *trainBench) loss(vocab int) {
	losses(b.t, 1<<20, func(th *cuda.Thread, l *cuda.Loss) {
		b.th = th
		for _, v := range []int{vocab, 2 * vocab, 50257 * vocab / (16 << 10)} {
			n := b.n / 8
			stride := (v + 7) &^ 7
			for _, softcap := range []float32{0, 15} {
				c := &cuda.CrossEntropy{
					Logits: b.memory(4 * n * stride), Targets: put(b.t, th, make([]int32, n)), Options: put(b.t, th, []float32{1, 0, 0, 0, softcap}),
					DZ: b.memory(2 * n * stride), Results: b.memory(16 * n), Vocab: v, Stride: stride,
				}
				whole := *b
				whole.n = n
				whole.time(fmt.Sprintf("loss, %d logits, cap %v", v, softcap), 6*v, func() error { return l.CrossEntropy(c, n) })
			}
		}
	})
}
