package model

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/internal/rng"
	"github.com/architehc/nanochat/core/optim"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/team"
)

// newTrainer is a trainer with random weights in which every switch has an effect.
func newTrainer(t testing.TB, c config.Model, workers int, o TrainOptions) *Trainer {
	t.Helper()
	o.Team = team.New(workers, team.Options{})
	t.Cleanup(o.Team.Close)
	tr, err := NewTrainer(c, o)
	require.NoError(t, err)
	tr.Init(5)
	for i, p := range tr.Params() {
		std := 0.1
		switch {
		case p.Class == optim.MHC && p.Rows > 1:
			std = 1 / math.Sqrt(float64(p.Cols))
		case p.Class == optim.MHC:
			std = 0.5
		case p.Class != optim.Scalar:
			std = 0.5 / math.Sqrt(float64(p.Cols))
		}
		noise := make([]float32, len(p.W))
		rng.New(7, uint64(i)).FillNormal(noise, std)
		for j, v := range noise {
			p.W[j] += v
		}
	}
	require.NoError(t, tr.Refresh())
	return tr
}

// batchOf is rows of packed documents of several lengths, some tokens without a
// target.
func batchOf(c config.Model, rows, seqLen int) *TrainBatch {
	b := &TrainBatch{Rows: rows, SeqLen: seqLen, Tokens: text(c, rows*seqLen)}
	r := rng.New(3, 3)
	for range rows {
		start, left := int32(0), 0
		for i := range seqLen {
			if left == 0 {
				start, left = int32(i), 1+r.IntN(seqLen)
			}
			left--
			b.Starts = append(b.Starts, start)
			target := int32(r.IntN(c.Vocab))
			if i%5 == 3 {
				target = -1
			}
			b.Targets = append(b.Targets, target)
		}
	}
	return b
}

// trainLogits is the logits of every token of b by the taped forward.
func trainLogits(t testing.TB, tr *Trainer, b *TrainBatch) [][]float32 {
	t.Helper()
	_, err := tr.Evaluate(b)
	require.NoError(t, err)
	c := tr.m.cfg
	var out [][]float32
	require.NoError(t, tr.o.Team.Run(func(w *team.Worker) {
		if w.ID != 0 {
			return
		}
		wk := &tr.work.workers[0]
		for i := range b.Tokens {
			z := make([]float32, c.Vocab)
			wk.multiplyHead(z, i, 1, 0, c.Vocab)
			if c.LogitSoftcap > 0 {
				tr.o.Set.Softcap(z, float32(c.LogitSoftcap), z)
			}
			out = append(out, z)
		}
	}))
	return out
}

// What is trained is what is served: the taped forward, inference with the
// trainer's model, and with the file that it saves give the same logits.
func TestTrainedIsServed(t *testing.T) {
	for name, c := range axes() {
		t.Run(name, func(t *testing.T) {
			tr := newTrainer(t, c, 2, TrainOptions{Tokens: 80})
			b := batchOf(c, 2, 40)
			got := trainLogits(t, tr, b)
			path := filepath.Join(t.TempDir(), "m.gguf")
			require.NoError(t, tr.Model().Save(path))
			loaded, err := Load(open(t, path), Options{})
			require.NoError(t, err)
			for first := 0; first < len(b.Tokens); {
				last := first + 1
				for last%b.SeqLen != 0 && b.Starts[last] == b.Starts[first] {
					last++
				}
				for _, m := range []*Model{tr.Model(), loaded} {
					require.Equal(t, run(t, m, 1, kernels.KVF16, b.Tokens[first:last], last-first), got[first:last])
				}
				first = last
			}
		})
	}
}

// exactAttention is a set that keeps keys and values as they are and attends in
// float64, so that no rounding to half precision hides a gradient.
func exactAttention() *kernels.Set {
	type place struct{ page, pos, head int }
	var mu sync.Mutex
	keys, values := map[place][]float32{}, map[place][]float32{}
	s := *kernels.Best()
	at := func(kv *kernels.KV, pos, h int) place {
		h += kv.LayerOffset / kv.Type.HeadBytes(kv.HeadDim)
		return place{int(kv.Pages[pos/kernels.PageLen]), pos % kernels.PageLen, h}
	}
	s.KVStore = func(kv *kernels.KV, pos int, k, v []float32) {
		mu.Lock()
		defer mu.Unlock()
		for h := range kv.Heads {
			keys[at(kv, pos, h)] = slices.Clone(k[h*kv.HeadDim : (h+1)*kv.HeadDim])
			values[at(kv, pos, h)] = slices.Clone(v[h*kv.HeadDim : (h+1)*kv.HeadDim])
		}
	}
	s.Attention = func(dst []float32, ldd int, q []float32, ldq int, kv *kernels.KV, a kernels.Query, h0, h1 int, _ []byte) {
		mu.Lock()
		defer mu.Unlock()
		for i := range a.N {
			for h := h0; h < h1; h++ {
				sum, out := 0.0, make([]float64, kv.HeadDim)
				for p := range a.Pos + i + 1 {
					score := 0.0
					for j, v := range keys[at(kv, p, h/(a.Heads/kv.Heads))] {
						score += float64(v) * float64(q[i*ldq+h*kv.HeadDim+j])
					}
					e := math.Exp(score * float64(a.Scale))
					sum += e
					for j, v := range values[at(kv, p, h/(a.Heads/kv.Heads))] {
						out[j] += e * float64(v)
					}
				}
				for j, v := range out {
					dst[i*ldd+h*kv.HeadDim+j] = float32(v / sum)
				}
			}
		}
	}
	return &s
}

// The whole network's gradient of every tensor, in float32, against central
// differences in a random direction.
//
// By default some configurations are left out that differ in nothing that a
// gradient could, and on the slow Go kernels, whose bits are those of the others, all
// but two; NANOCHAT_LONG=1 takes all.
func TestGradient(t *testing.T) {
	for name, c := range axes() {
		switch name {
		case "plain", "f16 head", "group row", "group 128", "group 256", "one head", "whole heads",
			"2 streams bvn false", "2 streams sinkhorn true", "4 streams bvn false", "4 streams sinkhorn true":
			if os.Getenv("NANOCHAT_LONG") == "" {
				continue
			}
		case "norms", "4 streams bvn true":
		default:
			if kernels.Best().Name == "go" && os.Getenv("NANOCHAT_LONG") == "" {
				continue
			}
		}
		t.Run(name, func(t *testing.T) {
			tr := newTrainer(t, c, 2, TrainOptions{Set: exactAttention(), Tokens: 40, Float: true, F32: true})
			b := batchOf(c, 2, 20)
			l := LossOptions{Scale: 1, Z: 1e-2, Entropy: 0.1, Smoothing: 0.1}
			_, err := tr.Backward(b, l)
			require.NoError(t, err)
			loss := func() float64 {
				require.NoError(t, tr.Refresh())
				s, err := tr.pass(b, l, false)
				require.NoError(t, err)
				return s.Objective
			}
			for i, p := range tr.Params() {
				dir, old := make([]float32, len(p.W)), append([]float32(nil), p.W...)
				rng.New(11, uint64(i)).FillNormal(dir, 1)
				want, norm := 0.0, 0.0
				for j, v := range dir {
					want += float64(v) * float64(p.G[j])
					norm += float64(p.G[j]) * float64(p.G[j])
				}
				h := 4e-2 / math.Sqrt(float64(p.Cols))
				shift := func(h float64) float64 {
					for j, v := range dir {
						p.W[j] = old[j] + float32(h)*v
					}
					return loss()
				}
				got := (8*(shift(h)-shift(-h)) - (shift(2*h) - shift(-2*h))) / (12 * h)
				copy(p.W, old)
				require.InDelta(t, want, got, 5e-3*math.Sqrt(norm)+1e-3, "%s: |g| %.3g", p.Name, math.Sqrt(norm))
			}
		})
	}
}

// Gradients do not depend on the number of workers, nor on recomputation.
func TestGradientBits(t *testing.T) {
	for name, c := range axes() {
		t.Run(name, func(t *testing.T) {
			b := batchOf(c, 3, 50)
			var want [][]float32
			var sum LossSum
			for i, o := range []TrainOptions{{}, {}, {Recompute: true}} {
				o.Tokens = 160
				tr := newTrainer(t, c, i+1, o)
				s, err := tr.Backward(b, LossOptions{Scale: 0.01, Z: 1e-4})
				require.NoError(t, err)
				var got [][]float32
				for _, p := range tr.Params() {
					got = append(got, p.G)
				}
				if want == nil {
					want, sum = got, s
				}
				require.Equal(t, sum, s)
				for j, p := range tr.Params() {
					require.Equal(t, want[j], got[j], "%s, run %d", p.Name, i)
				}
			}
		})
	}
}

// Training on one batch learns it.
func TestTrainerLearns(t *testing.T) {
	for _, name := range []string{"norms", "relu2", "4 streams bvn true"} {
		t.Run(name, func(t *testing.T) {
			c := axes()[name]
			tm := team.New(2, team.Options{})
			defer tm.Close()
			tr, err := NewTrainer(c, TrainOptions{Team: tm, Tokens: 80})
			require.NoError(t, err)
			tr.Init(1)
			adam := optim.Rule{Kind: optim.AdamW, LR: 5e-3}
			opt, err := optim.New(tr.Params(), optim.Options{Team: tm, Rules: map[optim.Class]optim.Rule{
				optim.Matrix: {Kind: optim.Muon, LR: 2e-2}, optim.Embedding: adam, optim.Head: adam, optim.Scalar: adam, optim.MHC: adam,
			}})
			require.NoError(t, err)
			b := batchOf(c, 2, 40)
			var first, last float64
			for i := range 20 {
				require.NoError(t, tr.Refresh())
				tr.ClearGrads()
				s, err := tr.Backward(b, LossOptions{Scale: 1.0 / 64})
				require.NoError(t, err)
				_, err = opt.Step()
				require.NoError(t, err)
				last = s.NLL / float64(s.Count)
				if i == 0 {
					first = last
				}
			}
			require.InDelta(t, math.Log(float64(c.Vocab)), first, 0.3)
			require.Less(t, last, 0.5*first)
		})
	}
}

// What a Trainer will take is known before it is made.
func TestTrainMemory(t *testing.T) {
	for name, c := range axes() {
		for _, o := range []TrainOptions{{}, {Recompute: true}, {F32: true}, {Float: true}, {Float: true, F32: true}} {
			o.Team, o.Tokens = team.New(3, team.Options{}), 700
			defer o.Team.Close()
			tr, err := NewTrainer(c, o)
			require.NoError(t, err)
			want, err := TrainMemoryOf(c, o)
			require.NoError(t, err)
			require.Equal(t, want, tr.Memory(), "%s %+v", name, o)
		}
	}
	_, err := TrainMemoryOf(small(), TrainOptions{})
	require.ErrorContains(t, err, "want 1 to 65536")
}

// What a batch or weights have wrong is said, and nothing is computed.
func TestTrainerRefuses(t *testing.T) {
	c := axes()["tied q8_0"]
	tr, err := NewTrainer(c, TrainOptions{Tokens: 40})
	require.NoError(t, err)
	tr.Init(1)
	_, err = tr.Backward(batchOf(c, 2, 20), LossOptions{Scale: 1})
	require.ErrorContains(t, err, "call Refresh")
	require.NoError(t, tr.Refresh())
	for _, x := range []struct {
		want   string
		change func(b *TrainBatch)
	}{
		{"takes 1 to 40 tokens", func(b *TrainBatch) { *b = *batchOf(c, 3, 20) }},
		{"takes 1 to 40 tokens", func(b *TrainBatch) { b.Rows, b.SeqLen = 1<<62, 4 }},
		{"takes 1 to 40 tokens", func(b *TrainBatch) { b.Rows = 0 }},
		{"39 targets", func(b *TrainBatch) { b.Targets = b.Targets[:39] }},
		{"target 7 is 211", func(b *TrainBatch) { b.Targets[7] = 211 }},
		{"target 7 is -2", func(b *TrainBatch) { b.Targets[7] = -2 }},
		{"token 9 is 211", func(b *TrainBatch) { b.Tokens[9] = 211 }},
		{"begins at 1", func(b *TrainBatch) { b.Starts[0] = 1 }},
		{"place 0 of row 1", func(b *TrainBatch) { b.Starts[20] = -1 }},
		{"place 19 of row 0", func(b *TrainBatch) { b.Starts[19] = 3; b.Starts[18] = 0 }},
	} {
		b := batchOf(c, 2, 20)
		x.change(b)
		_, err := tr.Backward(b, LossOptions{Scale: 1})
		require.ErrorContains(t, err, x.want)
		_, err = tr.Evaluate(b)
		require.ErrorContains(t, err, x.want)
	}
	for _, p := range tr.Params() {
		require.Zero(t, slices.Max(p.G), p.Name)
		if p.Class != optim.Matrix && p.Class != optim.Embedding {
			continue
		}
		old := p.W[3]
		p.W[3] = float32(math.NaN())
		require.ErrorContains(t, tr.Refresh(), p.Name)
		_, err := tr.Evaluate(batchOf(c, 2, 20))
		require.ErrorContains(t, err, "call Refresh")
		p.W[3] = old
	}
	require.NoError(t, tr.Refresh())
	_, err = NewTrainer(c, TrainOptions{Tokens: 1 << 17})
	require.ErrorContains(t, err, "want 1 to 65536")
	c.Streams = 3
	_, err = NewTrainer(c, TrainOptions{Tokens: 40})
	require.ErrorContains(t, err, "streams")
}

// A batch of a size that was seen before allocates nothing.
func TestBackwardDoesNotAllocate(t *testing.T) {
	c := axes()["4 streams sinkhorn true"]
	tr := newTrainer(t, c, 1, TrainOptions{Tokens: 80})
	b := batchOf(c, 2, 40)
	pass := func() {
		_, err := tr.Backward(b, LossOptions{Scale: 1e-2, Smoothing: 0.1})
		require.NoError(t, err)
	}
	pass()
	require.Zero(t, testing.AllocsPerRun(3, pass))
}
