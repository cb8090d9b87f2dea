package model

import (
	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/internal/fsx"
)

func writeFile(path string, meta []gguf.KV, tensors []gguf.Source) error {
	return gguf.Write(fsx.OS(), path, meta, tensors, gguf.WriteOptions{})
}
