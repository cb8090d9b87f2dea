package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/architehc/nanochat/core/data"
	"github.com/architehc/nanochat/core/tokenizer"
	"github.com/architehc/nanochat/core/train"
)

type tokenizerCmd struct {
	Train  tokenizerTrainCmd  `cmd:"" help:"Make a vocabulary from text."`
	Encode tokenizerEncodeCmd `cmd:"" help:"Turn text into token ids."`
	Decode tokenizerDecodeCmd `cmd:"" help:"Turn token ids into text."`
}

type tokenizerTrainCmd struct {
	Files     []string `arg:"" help:"Text to learn from: directories of source files, .jsonl, .jsonl.zst, .jsonl.gz, .parquet or text files."`
	Vocab     size     `default:"4096" placeholder:"N" help:"Tokens: 256 bytes, the special tokens and merges (default: ${default})."`
	Out       string   `short:"o" default:"tokenizer.json" placeholder:"FILE" help:"The file to write (default: ${default})."`
	Pre       string   `enum:"nanochat,gpt-2,llama-bpe,qwen2" default:"nanochat" help:"How text is cut before merges: nanochat (made for code), gpt-2, llama-bpe, qwen2 (default: ${default})."`
	MinCount  int      `default:"2" placeholder:"N" help:"Times a pair must occur to be merged (default: ${default})."`
	MaxToken  int      `default:"64" placeholder:"BYTES" help:"Length of the longest token (default: ${default})."`
	Extension []string `sep:"none" placeholder:".EXT" help:"Files wanted from directories (default: .rs). May be repeated."`
	Threads   int      `env:"NANOCHAT_THREADS" placeholder:"N" help:"Threads (default: the cores this process may use). The result does not depend on it."`
	outputFlags
}

// Help is the longer help text.
func (*tokenizerTrainCmd) Help() string {
	return "Makes a byte-level BPE vocabulary with special tokens for ends of text, chat and fill-in-the-middle, and writes it in the tokenizer.json " +
		"form of the tokenizers package, which gives the same ids. The result depends on the text and these flags only."
}

// Run trains.
func (c *tokenizerTrainCmd) Run(a *app) error {
	switch {
	case c.Vocab < tokenizer.MinVocab || c.Vocab > 1<<20:
		return &usageError{fmt.Sprintf("--vocab %d is outside %d to %d", c.Vocab, tokenizer.MinVocab, 1<<20), "4096 suits a model of 5 M weights, 16384 one of 100 M"}
	case c.MinCount < 1 || c.MaxToken < 1:
		return &usageError{"--min-count and --max-token are at least 1", "leave them out for the defaults"}
	}
	threads, err := workers(c.Threads)
	if err != nil {
		return err
	}
	if err := c.check(c.Out); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Dir(c.Out)); err != nil {
		return fmt.Errorf("output %s: %w", c.Out, err)
	}
	var bytes int64
	docs := 0
	texts := func(yield func(string, error) bool) {
		for d, err := range data.Read(a.ctx, c.Files, data.ReadOptions{Extensions: c.Extension}) {
			docs++
			bytes += int64(len(d.Text))
			if !yield(d.Text, err) || err != nil {
				return
			}
		}
	}
	line := a.counter()
	t, err := tokenizer.Train(a.ctx, texts, tokenizer.TrainOptions{VocabSize: int(c.Vocab), Pre: c.Pre, MinCount: c.MinCount, MaxTokenBytes: c.MaxToken, Threads: threads},
		func(p tokenizer.TrainProgress) {
			if p.Tokens == 0 {
				line.show("reading: %s", bytesText(p.Bytes))
			} else {
				line.show("merging: %d of %d tokens", p.Tokens, p.Total)
			}
		})
	line.done()
	if err != nil && bytes == 0 && a.ctx.Err() == nil {
		if e, ok := errors.AsType[*data.Error](err); ok {
			return e
		}
		return &hinted{errors.New("there is no text in the input"), "name files with text, or give --extension for what directories hold"}
	}
	if e, ok := errors.AsType[*tokenizer.Error](err); ok {
		return &hinted{fmt.Errorf("tokenizer: %s", e.What), e.Hint} // no file is damaged
	}
	if err != nil {
		return err
	}
	if err := c.write(a, c.Out, t); err != nil {
		return err
	}
	if c.JSON {
		return writeJSON(a.stdout, map[string]any{
			"path": c.Out, "vocab": t.Vocab(), "pre": t.Pre(), "documents": docs, "bytes": bytes, "sha256": fmt.Sprintf("%x", data.TokenizerHash(t)),
		})
	}
	_, err = fmt.Fprintf(a.stderr, "wrote %s: %d tokens, learned from %s, %s\n", c.Out, t.Vocab(), plural(docs, "document"), bytesText(bytes))
	return err
}

// write makes the tokenizer.json path, or nothing.
func (o *outputFlags) write(a *app, path string, t *tokenizer.Tokenizer) error {
	o.begin(a, path)
	if err := t.SaveHF(path); err != nil {
		return o.failed(path, err)
	}
	return nil
}

// loadTokenizer reads the vocabulary of a tokenizer.json or of a model file.
func loadTokenizer(path string) (*tokenizer.Tokenizer, error) {
	t, err := train.OpenTokenizer(path)
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		hint := "name a tokenizer.json or a model file (.gguf)"
		if errors.Is(err, fs.ErrNotExist) {
			hint = "make one: nanochat tokenizer train FILES --vocab 4096 -o " + path
		}
		return nil, &hinted{fmt.Errorf("tokenizer %s: %w", path, p.Err), hint}
	}
	return t, err
}
