package infer_test

import (
	"context"
	"fmt"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/infer"
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/core/sample"
)

func ExampleEngine() {
	c := config.DefaultModel()
	c.Dim, c.Layers, c.Heads, c.KVHeads, c.HeadDim, c.FFN, c.Vocab, c.Context = 64, 1, 2, 2, 32, 128, 100, 128
	m, err := model.Init(context.Background(), c, 1, model.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	e, err := infer.New(m, infer.Options{Threads: 1})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer e.Close()

	ctx := context.Background()
	s, err := e.Generate(ctx, infer.Request{
		Prompt: []int32{1, 2, 3}, MaxTokens: 5,
		Sample: sample.Options{Temperature: .8, TopP: .95, Seed: 7},
	})
	if err != nil {
		fmt.Println(err) // such as *infer.ContextError
		return
	}
	n := 0
	for {
		if _, err = s.Next(ctx); err != nil {
			break // io.EOF after the last token
		}
		n++
	}
	fmt.Println(n, s.Result().Reason, err)

	_, err = e.Generate(ctx, infer.Request{Prompt: make([]int32, 128)})
	fmt.Println(err)
	// Output:
	// 5 length EOF
	// infer: prompt has 128 tokens, the context holds 128 and one must be left for the answer: shorten the prompt by at least 1
}
