// Package data turns source code into training batches: it prepares corpora
// once, as token shards, and loads them for as long as a training runs. It knows
// texts, tokens and files; it knows no model and no loss.
//
// # Preparing
//
// Prepare reads documents from directories, JSON lines, Parquet and text files,
// filters them, removes exact and near duplicates and what overlaps evaluation
// data, splits the rest by crate or repository, and writes shards and
// manifest.json. The same inputs and options give the same bytes, whatever the
// number of threads.
//
// # Loading
//
// Open maps the shards of one split. A Loader cuts them into batches in its own
// goroutines. Each row of a batch is a pure function of the seed and of its
// number, so that the order does not depend on the number of workers, and a
// Cursor of a few numbers continues it exactly.
//
// An epoch is: the documents in an order shuffled by (seed, epoch), each behind
// a BOS token and, where the vocabulary has another token for ends, before an
// EOS token; this stream cut into rows of SeqLen tokens, whatever document they
// belong to; the rows in an order shuffled by (seed, epoch). Every token of text
// is a target exactly once per epoch, and so is every end of a document: EOS, or
// the BOS of the next one where they are the same token. (Without a BOS token
// nothing stands before the first token of a document, and it is no target.)
// Batch.Starts says for each token where in its row its document begins, so that
// attention can be kept within documents.
//
// Cutting the stream wastes nothing, in contrast to packing that crops documents
// so that every row begins with one: at 256 tokens a row a source file fills
// about nine of them.
//
// # Fill in the middle
//
// FIM works on the part of a document within one row, because a whole document
// seldom fits a row and its middle would be learned without its prefix and
// suffix (Bavarian et al., arXiv 2207.14255, find this "context level" slightly
// better, too). The part is decoded, cut at two uniform character positions and
// its three parts are tokenised on their own, as they are at inference: cuts
// between tokens would never show the model the middle of a word. The price is
// that the parts need a few tokens more than the text did: so many are given up
// at the end of the part, and are not learned in that epoch.
//
// # Shard format, version 1
//
// Integers are little-endian. Offsets are in bytes from the start of the file.
//
//	  0  8  "NCSHARD\n"
//	  8  4  version: 1
//	 12  4  width of a token in bytes: 2 or 4
//	 16  8  tokens
//	 24  8  documents
//	 32  8  bytes of text of all documents
//	 40  4  size of the vocabulary
//	 44  4  BOS id, -1 if none
//	 48  4  EOS id, -1 if none
//	 52 12  zero
//	 64 32  SHA-256 of the tokenizer, see TokenizerHash
//	 96 32  SHA-256 of bytes 0 to 95 and of everything from byte 128 on
//	128     per document, and once more for the end: index of its first token
//	        (8 bytes), bytes of text before it (8 bytes)
//	        per token of the vocabulary: bytes of text it stands for (2 bytes;
//	        0 for special tokens), then zeros up to a multiple of 8
//	        tokens, of the width given, without any BOS or EOS
package data
