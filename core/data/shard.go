package data

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/architehc/nanochat/core/internal/fsx"
	"github.com/architehc/nanochat/core/tokenizer"
)

const (
	shardMagic   = "NCSHARD\n"
	shardVersion = 1
	headerSize   = 128
	hashAt       = 96
	// maxVocab is the largest vocabulary of a shard.
	maxVocab = 1 << 24
)

const rewriteHint = "delete the directory and run nanochat data prepare again"

// Vocabulary is what shards keep of the tokenizer that made them.
type Vocabulary struct {
	// Hash tells tokenizers apart; see TokenizerHash.
	Hash [32]byte
	// BOS and EOS are the ids put before and after a document, -1 if there is
	// none. They may be the same.
	BOS, EOS int32
	// Bytes is the number of bytes of text that each id stands for, 0 for special
	// tokens. Its length is the size of the vocabulary.
	Bytes []uint16
}

// NewVocabulary describes t.
func NewVocabulary(t *tokenizer.Tokenizer) Vocabulary {
	v := Vocabulary{Hash: TokenizerHash(t), BOS: -1, EOS: -1, Bytes: make([]uint16, t.Vocab())}
	if id, ok := t.Special(tokenizer.BOS); ok {
		v.BOS = id
	}
	if id, ok := t.Special(tokenizer.EOS); ok {
		v.EOS = id
	}
	for id := range v.Bytes {
		switch t.Kind(int32(id)) {
		case tokenizer.Control, tokenizer.Unknown, tokenizer.Unused:
		default:
			v.Bytes[id] = uint16(min(len(t.Piece(int32(id))), 1<<16-1))
		}
	}
	return v
}

// TokenizerHash is the SHA-256 of the metadata that t writes into model files:
// equal for tokenizers that give the same ids.
func TokenizerHash(t *tokenizer.Tokenizer) (sum [32]byte) {
	h := sha256.New()
	for _, kv := range t.Metadata(tokenizer.MetadataOptions{}) {
		switch v := kv.Value.(type) {
		case []string:
			fmt.Fprintf(h, "%q %d\n", kv.Key, len(v))
			for _, s := range v {
				fmt.Fprintf(h, "%q\n", s)
			}
		default:
			fmt.Fprintf(h, "%q %T %v\n", kv.Key, v, v)
		}
	}
	h.Sum(sum[:0])
	return sum
}

func (v *Vocabulary) width() int {
	if len(v.Bytes) <= 1<<16 {
		return 2
	}
	return 4
}

func (v *Vocabulary) equal(o *Vocabulary) bool {
	return v.Hash == o.Hash && v.BOS == o.BOS && v.EOS == o.EOS && len(v.Bytes) == len(o.Bytes)
}

// A shardBuilder collects the documents of one shard in memory.
type shardBuilder struct {
	vocab  *Vocabulary
	table  []byte // the document table without its last entry
	tokens []byte
	count  uint64 // tokens
	docs   uint64
	text   uint64 // bytes of text
}

func (b *shardBuilder) add(ids []int32, textBytes int) {
	b.table = binary.LittleEndian.AppendUint64(b.table, b.count)
	b.table = binary.LittleEndian.AppendUint64(b.table, b.text)
	if b.vocab.width() == 2 {
		for _, id := range ids {
			b.tokens = binary.LittleEndian.AppendUint16(b.tokens, uint16(id))
		}
	} else {
		for _, id := range ids {
			b.tokens = binary.LittleEndian.AppendUint32(b.tokens, uint32(id))
		}
	}
	b.count += uint64(len(ids))
	b.docs++
	b.text += uint64(textBytes)
}

// reset empties the builder and keeps its memory.
func (b *shardBuilder) reset() {
	*b = shardBuilder{vocab: b.vocab, table: b.table[:0], tokens: b.tokens[:0]}
}

// parts returns the header with its hash, and the rest of the file.
func (b *shardBuilder) parts() (header []byte, rest [][]byte) {
	le := binary.LittleEndian
	table := le.AppendUint64(b.table, b.count)
	table = le.AppendUint64(table, b.text)
	sizes := make([]byte, 0, pad8(2*len(b.vocab.Bytes)))
	for _, n := range b.vocab.Bytes {
		sizes = le.AppendUint16(sizes, n)
	}
	rest = [][]byte{table, sizes[:cap(sizes)], b.tokens}

	h := append(make([]byte, 0, headerSize), shardMagic...)
	h = le.AppendUint32(h, shardVersion)
	h = le.AppendUint32(h, uint32(b.vocab.width()))
	h = le.AppendUint64(h, b.count)
	h = le.AppendUint64(h, b.docs)
	h = le.AppendUint64(h, b.text)
	h = le.AppendUint32(h, uint32(len(b.vocab.Bytes)))
	h = le.AppendUint32(h, uint32(b.vocab.BOS))
	h = le.AppendUint32(h, uint32(b.vocab.EOS))
	h = append(h, make([]byte, 12)...)
	h = append(h, b.vocab.Hash[:]...)
	sum := sha256.New()
	sum.Write(h[:hashAt])
	for _, p := range rest {
		sum.Write(p)
	}
	return sum.Sum(h), rest
}

// write writes the shard and returns its hash.
func (b *shardBuilder) write(fsys fsx.FS, path string) (sum [32]byte, err error) {
	header, rest := b.parts()
	copy(sum[:], header[hashAt:])
	err = fsx.WriteAtomic(fsys, path, func(w io.Writer) error {
		if _, err := w.Write(header); err != nil {
			return err
		}
		for _, p := range rest {
			if _, err := w.Write(p); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return sum, fileError(path, err, "make room on the disk or choose another directory, then run the command again")
	}
	return sum, nil
}

func pad8(n int) int { return (n + 7) &^ 7 }

// Shard is one file of token ids. It is safe for concurrent use.
type Shard struct {
	path    string
	vocab   Vocabulary
	width   int
	count   int
	docs    int
	text    int64
	sum     [32]byte
	table   []byte
	tokens  []byte
	content []byte
	mapping *fsx.Mapping
}

// OpenShard maps the file path and checks everything but the hash; see Verify.
// Errors are of type *Error.
func OpenShard(path string) (*Shard, error) {
	m, err := fsx.Map(path)
	if err != nil {
		return nil, fileError(path, err, rewriteHint)
	}
	var s *Shard
	err = fsx.Guard(path, func() (e error) {
		s, e = ParseShard(path, m.Bytes())
		return e
	})
	if err != nil {
		m.Close()
		if _, ok := err.(*Error); !ok {
			err = fileError(path, err, rewriteHint)
		}
		return nil, err
	}
	s.mapping = m
	return s, nil
}

// ParseShard checks everything but the hash of a shard that is in memory, and
// keeps b. path names it in errors, which are of type *Error.
func ParseShard(path string, b []byte) (*Shard, error) {
	bad := func(off int, format string, args ...any) (*Shard, error) {
		return nil, damaged(path, fmt.Sprintf("byte %d", off), format, args...)
	}
	if len(b) < headerSize {
		return bad(len(b), "the file ends; a shard has at least %d bytes", headerSize)
	}
	if string(b[:8]) != shardMagic {
		return bad(0, "%q where a token shard has %q", b[:8], shardMagic)
	}
	le := binary.LittleEndian
	if v := le.Uint32(b[8:]); v != shardVersion {
		return bad(8, "version %d; this program reads version %d", v, shardVersion)
	}
	s := &Shard{path: path, width: int(le.Uint32(b[12:])), content: b}
	vocab := le.Uint32(b[40:])
	if vocab == 0 || vocab > maxVocab {
		return bad(40, "a vocabulary of %d tokens, want 1 to %d", vocab, maxVocab)
	}
	if s.width != 2 && s.width != 4 || s.width == 2 && vocab > 1<<16 {
		return bad(12, "tokens of %d bytes for a vocabulary of %d", s.width, vocab)
	}
	// Each count is limited by the file's size before it is used in arithmetic.
	tokens, docs, text := le.Uint64(b[16:]), le.Uint64(b[24:]), le.Uint64(b[32:])
	size := uint64(len(b))
	if tokens > size || docs > size {
		return bad(16, "%d tokens and %d documents in a file of %d bytes", tokens, docs, size)
	}
	tableEnd := headerSize + 16*(docs+1)
	sizesEnd := tableEnd + uint64(pad8(2*int(vocab)))
	if want := sizesEnd + tokens*uint64(s.width); want != size {
		return bad(len(b), "the file has %d bytes, its header asks for %d", size, want)
	}
	if text > 1<<62 {
		return bad(32, "%d bytes of text", text)
	}
	if !bytes.Equal(b[52:64], make([]byte, 12)) {
		return bad(52, "a reserved field is not zero")
	}
	s.count, s.docs, s.text = int(tokens), int(docs), int64(text)
	s.vocab.BOS, s.vocab.EOS = int32(le.Uint32(b[44:])), int32(le.Uint32(b[48:]))
	for i, id := range []int32{s.vocab.BOS, s.vocab.EOS} {
		if id < -1 || id >= int32(vocab) {
			return bad(44+4*i, "id %d of a vocabulary of %d", id, vocab)
		}
	}
	copy(s.vocab.Hash[:], b[64:])
	copy(s.sum[:], b[hashAt:])
	s.table = b[headerSize:tableEnd:tableEnd]
	s.tokens = b[sizesEnd:]
	s.vocab.Bytes = make([]uint16, vocab)
	for i := range s.vocab.Bytes {
		s.vocab.Bytes[i] = le.Uint16(b[int(tableEnd)+2*i:])
	}
	var lastToken, lastText uint64
	for i := range s.docs + 1 {
		at, txt := le.Uint64(s.table[16*i:]), le.Uint64(s.table[16*i+8:])
		if at < lastToken || txt < lastText || at > tokens || txt > text || i == 0 && at+txt != 0 {
			return bad(headerSize+16*i, "document %d starts at token %d and text byte %d, its predecessor at %d and %d", i, at, txt, lastToken, lastText)
		}
		lastToken, lastText = at, txt
	}
	if lastToken != tokens || lastText != text {
		return bad(headerSize+16*s.docs, "documents end at token %d of %d, text byte %d of %d", lastToken, tokens, lastText, text)
	}
	return s, nil
}

// Verify computes the SHA-256 of the contents and checks that all ids are in the
// vocabulary. Errors are of type *Error.
func (s *Shard) Verify() error {
	err := fsx.Guard(s.path, func() error {
		h := sha256.New()
		h.Write(s.content[:hashAt])
		h.Write(s.content[headerSize:])
		if got := h.Sum(nil); !bytes.Equal(got, s.sum[:]) {
			return damaged(s.path, "", "the contents have SHA-256 %x, the header says %x", got, s.sum)
		}
		for i := range s.count {
			if id := s.token(i); int(id) >= len(s.vocab.Bytes) {
				return damaged(s.path, fmt.Sprintf("token %d", i), "id %d of a vocabulary of %d", id, len(s.vocab.Bytes))
			}
		}
		return nil
	})
	if err == nil {
		return nil
	}
	if _, ok := err.(*Error); ok {
		return err
	}
	return fileError(s.path, err, rewriteHint)
}

// Close unmaps the file. The shard must not be used afterwards.
func (s *Shard) Close() error {
	if s.mapping == nil {
		return nil
	}
	return s.mapping.Close()
}

// Docs is the number of documents.
func (s *Shard) Docs() int { return s.docs }

// Tokens is the number of tokens; BOS and EOS are not among them.
func (s *Shard) Tokens() int { return s.count }

// TextBytes is the number of bytes of the text of all documents.
func (s *Shard) TextBytes() int64 { return s.text }

// Vocabulary is what the shard keeps of its tokenizer.
func (s *Shard) Vocabulary() Vocabulary { return s.vocab }

// Doc appends the tokens of document i to dst and returns them with the number
// of bytes of its text. i must be below Docs.
func (s *Shard) Doc(dst []int32, i int) (ids []int32, textBytes int64) {
	lo, hi := s.span(i)
	le := binary.LittleEndian
	return s.read(dst, lo, hi), int64(le.Uint64(s.table[16*i+24:]) - le.Uint64(s.table[16*i+8:]))
}

// span is the first token of document i and of the next one.
func (s *Shard) span(i int) (lo, hi int) {
	le := binary.LittleEndian
	return int(le.Uint64(s.table[16*i:])), int(le.Uint64(s.table[16*i+16:]))
}

func (s *Shard) token(i int) uint32 {
	if s.width == 2 {
		return uint32(binary.LittleEndian.Uint16(s.tokens[2*i:]))
	}
	return binary.LittleEndian.Uint32(s.tokens[4*i:])
}

// read appends tokens lo to hi-1.
func (s *Shard) read(dst []int32, lo, hi int) []int32 {
	if s.width == 2 {
		for b := s.tokens[2*lo : 2*hi]; len(b) >= 2; b = b[2:] {
			dst = append(dst, int32(binary.LittleEndian.Uint16(b)))
		}
		return dst
	}
	for b := s.tokens[4*lo : 4*hi]; len(b) >= 4; b = b[4:] {
		dst = append(dst, int32(binary.LittleEndian.Uint32(b)))
	}
	return dst
}
