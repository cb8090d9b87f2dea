package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/architehc/nanochat/core/tokenizer"
)

// vocabularyArg is where the commands of tokens find their vocabulary.
type vocabularyArg struct {
	Tokenizer string `arg:"" help:"A tokenizer.json, or a model file (.gguf)."`
}

type tokenizerEncodeCmd struct {
	vocabularyArg
	Text    *string `arg:"" optional:"" help:"The text; - or nothing reads standard input."`
	Special bool    `help:"Read the texts of special tokens as those tokens."`
	BOS     bool    `name:"bos" help:"Put the token first that begins a text."`
	Pieces  bool    `help:"Print a line for every token: its id and its text, quoted."`
	JSON    bool    `name:"json" help:"Print JSON: ids, pieces, bytes."`
}

// Help is the longer help text.
func (*tokenizerEncodeCmd) Help() string {
	return "Prints the ids on one line, with blanks between them. Whatever the text, decode makes it again, byte for byte."
}

// Run prints the tokens of a text.
func (c *tokenizerEncodeCmd) Run(a *app) error {
	t, err := loadTokenizer(c.Tokenizer)
	if err != nil {
		return err
	}
	var text string
	if c.Text != nil && *c.Text != "-" {
		text = *c.Text
	} else {
		if c.Text == nil && a.stdinTTY {
			return &usageError{"no text", "nanochat tokenizer encode TOKENIZER 'fn main() {', or pipe a text into it"}
		}
		b, err := a.readStdin(maxText)
		if err != nil {
			return err
		}
		text = string(b)
	}
	ids := t.Encode([]int32{}, text, tokenizer.EncodeOptions{AddBOS: c.BOS, ParseSpecial: c.Special})
	if c.JSON {
		pieces := make([]string, len(ids))
		for i, id := range ids {
			pieces[i] = pieceText(t, id)
		}
		return writeJSON(a.stdout, map[string]any{"ids": ids, "pieces": pieces, "bytes": len(text)})
	}
	w := bufio.NewWriter(a.stdout)
	for i, id := range ids {
		switch {
		case c.Pieces:
			fmt.Fprintf(w, "%d\t%q\n", id, t.Piece(id))
		case i > 0:
			fmt.Fprintf(w, " %d", id)
		default:
			fmt.Fprint(w, id)
		}
	}
	if !c.Pieces {
		fmt.Fprintln(w)
	}
	return w.Flush()
}

type tokenizerDecodeCmd struct {
	vocabularyArg
	IDs         []string `arg:"" optional:"" name:"ids" help:"The ids; - or nothing reads standard input, where commas and brackets count as blanks."`
	SkipSpecial bool     `help:"Leave special tokens out."`
	Pieces      bool     `help:"Print a line for every token: its id and its text, quoted."`
	JSON        bool     `name:"json" help:"Print JSON: text, ids, pieces."`
}

// Run prints the text of ids.
func (c *tokenizerDecodeCmd) Run(a *app) error {
	t, err := loadTokenizer(c.Tokenizer)
	if err != nil {
		return err
	}
	in := strings.Join(c.IDs, " ")
	if len(c.IDs) == 0 || in == "-" {
		if len(c.IDs) == 0 && a.stdinTTY {
			return &usageError{"no ids", "nanochat tokenizer decode TOKENIZER 72 105, or pipe ids into it"}
		}
		b, err := a.readStdin(maxText)
		if err != nil {
			return err
		}
		in = string(b)
	}
	ids := []int32{}
	for _, word := range strings.FieldsFunc(in, func(r rune) bool { return strings.ContainsRune(" \t\r\n,[]", r) }) {
		id, err := strconv.ParseInt(word, 10, 32)
		if err != nil {
			return &usageError{fmt.Sprintf("%.40q is not a token id", word), "ids are whole numbers, as nanochat tokenizer encode prints them"}
		}
		if id < 0 || id >= int64(t.Vocab()) {
			return &usageError{fmt.Sprintf("there is no token %d", id), fmt.Sprintf("the vocabulary of %s has the ids 0 to %d", c.Tokenizer, t.Vocab()-1)}
		}
		ids = append(ids, int32(id))
	}
	text := t.Decode(nil, ids, tokenizer.DecodeOptions{SkipSpecial: c.SkipSpecial})
	switch {
	case c.JSON:
		pieces := make([]string, len(ids))
		for i, id := range ids {
			pieces[i] = pieceText(t, id)
		}
		return writeJSON(a.stdout, map[string]any{"text": strings.ToValidUTF8(string(text), "\ufffd"), "ids": ids, "pieces": pieces})
	case c.Pieces:
		w := bufio.NewWriter(a.stdout)
		for _, id := range ids {
			fmt.Fprintf(w, "%d\t%q\n", id, t.Piece(id))
		}
		return w.Flush()
	}
	if a.stdoutTTY && len(text) > 0 && text[len(text)-1] != '\n' {
		text = append(text, '\n')
	}
	_, err = a.stdout.Write(text)
	return err
}

// maxText bounds what the commands of tokens read from standard input.
const maxText = 1 << 30

// readStdin reads standard input to its end, at most limit bytes.
func (a *app) readStdin(limit int64) ([]byte, error) {
	type input struct {
		b   []byte
		err error
	}
	read := make(chan input, 1) // a read cannot be interrupted; a wait can
	go func() {
		b, err := io.ReadAll(io.LimitReader(a.stdin, limit+1))
		read <- input{b, err}
	}()
	select {
	case <-a.ctx.Done():
		return nil, context.Cause(a.ctx)
	case in := <-read:
		if in.err != nil {
			return nil, fmt.Errorf("standard input: %w", in.err)
		}
		if int64(len(in.b)) > limit {
			return nil, fmt.Errorf("standard input: more than %s", bytesText(limit))
		}
		return in.b, nil
	}
}
