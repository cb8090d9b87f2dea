// Package gguf reads, checks, maps and writes GGUF files. It knows no model.
//
// # Security
//
// A file is hostile until Parse has checked it: every count, length and offset
// is compared with the bytes there are before anything is allocated or sliced.
// What a *File holds afterwards is in bounds, aligned and free of overlaps, its
// dimensions are not zero and their product does not overflow. What the keys
// and tensors mean is for their readers to check. Memory used for a header is at
// most a small multiple of the header's own size.
//
// A *File is thread-safe. Tensor data is a view of the mapped file: it must not
// be written to, nor used after Close.
package gguf
