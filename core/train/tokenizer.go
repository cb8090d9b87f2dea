package train

import (
	"bytes"
	"errors"
	"io"

	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/internal/fsx"
	"github.com/architehc/nanochat/core/tokenizer"
)

// maxTokenizer bounds a tokenizer.json.
const maxTokenizer = 1 << 28

// OpenTokenizer reads the vocabulary of a tokenizer.json or of a model file.
func OpenTokenizer(path string) (*tokenizer.Tokenizer, error) {
	f, err := fsx.OS().Open(path)
	if err != nil {
		return nil, err
	}
	var magic [4]byte
	n, err := f.ReadAt(magic[:], 0)
	f.Close()
	if n == 0 && err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if string(magic[:n]) == "GGUF" {
		g, err := gguf.Open(path)
		if err != nil {
			return nil, err
		}
		defer g.Close()
		return tokenizer.FromMetadata(path, g)
	}
	b, err := fsx.ReadFile(fsx.OS(), path, maxTokenizer)
	if err != nil {
		return nil, err
	}
	if !bytes.HasPrefix(bytes.TrimLeft(b[:min(len(b), 64)], " \t\r\n\ufeff"), []byte("{")) {
		return nil, &tokenizer.Error{Path: path, What: "neither a tokenizer.json nor a model file", Hint: "make one: nanochat tokenizer train FILES --vocab 4096 -o tokenizer.json"}
	}
	return tokenizer.LoadHF(path, b)
}
