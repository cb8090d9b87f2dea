// Package safetensors reads, checks, maps and writes safetensors files: named
// arrays of numbers behind a JSON header. It knows no model.
//
// # Format
//
//	0  8  length of the header in bytes, n, little-endian
//	8  n  JSON: {"NAME": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, …,
//	      "__metadata__": {"KEY": "VALUE", …}}, which may end in spaces
//	8+n   data, little-endian, rows first; offsets count from here
//
// The data of all tensors together is the data section: without holes, overlaps
// or anything after it.
//
// # Security
//
// A file is hostile until Parse, Open or New has checked it: every length and
// offset is compared with the bytes there are before anything is allocated or
// sliced. What a *File holds afterwards is in bounds, free of overlaps, and of
// the size that its shape and type say.
package safetensors
