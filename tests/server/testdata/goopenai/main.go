// Command goopenai talks to `nanochat serve` with github.com/sashabaranov/go-openai,
// unmodified. It is a module of its own so that the client is no dependency of nanochat.
//
// usage: goopenai URL
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	openai "github.com/sashabaranov/go-openai"
)

const model = "nano-5m-rust"

func main() {
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(url string) error {
	ctx := context.Background()
	config := openai.DefaultConfig("none")
	config.BaseURL = url + "/v1"
	c := openai.NewClientWithConfig(config)

	seed := 3
	ask := openai.ChatCompletionRequest{Model: model, MaxTokens: 16, Seed: &seed, LogProbs: true, TopLogProbs: 2,
		Messages: []openai.ChatCompletionMessage{{Role: openai.ChatMessageRoleUser, Content: "fn main() {"}}}
	whole, err := c.CreateChatCompletion(ctx, ask)
	if err != nil {
		return err
	}
	want := whole.Choices[0].Message.Content
	if want == "" || whole.Usage.CompletionTokens == 0 || len(whole.Choices[0].LogProbs.Content) == 0 {
		return fmt.Errorf("incomplete: %+v", whole)
	}
	ask.StreamOptions = &openai.StreamOptions{IncludeUsage: true}
	stream, err := c.CreateChatCompletionStream(ctx, ask)
	if err != nil {
		return err
	}
	text, usage := "", 0
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		for _, choice := range part.Choices {
			text += choice.Delta.Content
		}
		if part.Usage != nil {
			usage = part.Usage.CompletionTokens
		}
	}
	if text != want || usage != whole.Usage.CompletionTokens {
		return fmt.Errorf("streamed %q (%d tokens), at once %q", text, usage, want)
	}

	fill, err := c.CreateCompletion(ctx, openai.CompletionRequest{Model: model, Prompt: []string{"fn a() {", "fn b() {"}, Suffix: "}", MaxTokens: 8, N: 2, LogProbs: 1})
	if err != nil {
		return err
	}
	if len(fill.Choices) != 4 {
		return fmt.Errorf("%d choices", len(fill.Choices))
	}
	vectors, err := c.CreateEmbeddings(ctx, openai.EmbeddingRequest{Model: model, Input: []string{"a", "b"}})
	if err != nil {
		return err
	}
	if len(vectors.Data) != 2 {
		return fmt.Errorf("%d embeddings", len(vectors.Data))
	}
	models, err := c.ListModels(ctx)
	if err != nil {
		return err
	}
	if len(models.Models) != 1 || models.Models[0].ID != model {
		return fmt.Errorf("models %+v", models)
	}

	ask.MaxTokens, ask.StreamOptions = 5000, nil
	_, err = c.CreateChatCompletion(ctx, ask)
	var api *openai.APIError
	if !errors.As(err, &api) || api.HTTPStatusCode != 400 || api.Param == nil || *api.Param != "max_tokens" {
		return fmt.Errorf("no error of the API: %w", err)
	}
	return nil
}
