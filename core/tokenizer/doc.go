// Package tokenizer turns text into token ids and back.
//
// It reads, writes and trains byte-level BPE vocabularies: from and to GGUF
// metadata and Hugging Face tokenizer.json files. It knows no model, no chat
// template and no file: callers hand it bytes and metadata values.
//
// Every text round-trips: Decode(Encode(text)) is text, byte for byte, even
// where text is not valid UTF-8.
//
// A Tokenizer does not change after it is made and may be shared by goroutines.
// A StreamDecoder belongs to one goroutine.
//
// # Pre-splitting
//
// Text is first cut into pieces; merges never cross a cut. The cut is made by a
// hand-written scanner that is equal to a regular expression:
//
//	gpt-2      's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//	llama-bpe  (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
//	qwen2      llama-bpe with \p{N} in place of \p{N}{1,3}
//	nanochat   [\r\n]+[ \t]*|[^\S\r\n]{2,}|(?: |[^\s\p{L}\p{M}\p{N}])?[\p{L}\p{M}][\p{L}\p{M}\p{N}_]*| ?\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s
//
// The nanochat form is made for source code:
//
//   - line breaks are one piece with the indentation after them, and are never
//     joined with what stands before them: a prompt may end with "{" or after an
//     indentation and is still cut as the text was that the model learned from
//     (after a line break alone it is not: leave it out of a prompt that goes on
//     with an indented line);
//   - any other run of two or more blanks is one piece, whole;
//   - an identifier is one piece with its underscores and inner digits (to_string,
//     u32), and takes along one space or one punctuation mark before it;
//   - the digits of a number are single pieces, the first with the space before it;
//   - other runs of punctuation are one piece (::, ->, =>), with one space before it.
//
// A byte that is not part of valid UTF-8 counts as punctuation.
package tokenizer
