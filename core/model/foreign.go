package model

// The foreign architectures.
const (
	archLlama      = "llama"
	archBitnet     = "bitnet"
	archBitnetB158 = "bitnet-b1.58"
	archBitnet25   = "bitnet-25"
)

func (l *loader) foreign() error { return nil }
