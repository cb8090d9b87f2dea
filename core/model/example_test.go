package model_test

import (
	"context"
	"fmt"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/team"
)

// A prompt of three tokens in one step, then the likeliest token in the next.
func Example() {
	c := config.DefaultModel()
	c.Dim, c.Layers, c.Heads, c.KVHeads, c.HeadDim, c.FFN, c.Vocab = 128, 2, 4, 2, 32, 256, 100
	m, err := model.Init(context.Background(), c, 1, model.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	workers := team.New(2, team.Options{})
	defer workers.Close()
	work, _ := model.NewWork(m, workers, 16)
	pool, _ := model.NewPool(m, 8, kernels.KVF16)

	seq := &model.Seq{}
	for tokens := []int32{5, 17, 42}; seq.Len < 8; {
		if err := pool.Grow(seq, len(tokens)); err != nil {
			fmt.Println(err)
			return
		}
		step := &model.Step{Tokens: tokens, Seqs: []model.SeqStep{{Seq: seq, N: len(tokens), Logits: model.LogitsLast}}}
		if err := m.Forward(work, pool, step); err != nil {
			fmt.Println(err)
			return
		}
		tokens = []int32{int32(m.Set().ArgMax(work.Logits(0)))}
	}
	fmt.Println(seq.Len, "positions,", pool.Free(), "pages free")
	// Output: 8 positions, 7 pages free
}
