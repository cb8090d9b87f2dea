package tokenizer

import (
	"context"
	"hash/maphash"
	"iter"
	"runtime"
	"sync"
	"sync/atomic"
)

// TrainOptions says what Train makes.
type TrainOptions struct {
	// VocabSize is the number of tokens: 256 bytes, the special tokens and merges.
	VocabSize int
	// Pre is the name of the pre-split. The default value is "nanochat".
	Pre string
	// MinCount is the number of times a pair must occur to be joined. The default
	// value is 2.
	MinCount int
	// MaxTokenBytes is the length of the longest token. The default value is 64.
	MaxTokenBytes int
	// Threads is the number of documents cut at the same time. The default value is
	// runtime.GOMAXPROCS(0). It does not change the result.
	Threads int
}

func (o TrainOptions) withDefaults() TrainOptions {
	if o.Pre == "" {
		o.Pre = "nanochat"
	}
	if o.MinCount <= 0 {
		o.MinCount = 2
	}
	if o.MaxTokenBytes <= 0 {
		o.MaxTokenBytes = 64
	}
	if o.Threads <= 0 {
		o.Threads = runtime.GOMAXPROCS(0)
	}
	return o
}

// TrainProgress is how far Train is. First the text is read: Tokens is 0. Then
// tokens are made: Bytes stays.
type TrainProgress struct {
	Bytes  int64 // of text read and counted
	Tokens int   // in the vocabulary so far
	Total  int   // tokens asked for
}

// Train makes a byte-level BPE vocabulary from documents: it joins the most frequent
// pair of neighbours, of several the one with the smallest ids, until the vocabulary
// has the size asked for. A pair whose text is a token already is left alone, so
// that every token is made in one way. Neighbours in different pieces of the
// pre-split or in different documents are never joined; the text of special tokens
// is text like any other. The result depends on the text and the options only, not on the order of
// the documents or the number of threads.
//
// docs gives the documents; an error it gives ends the training and is returned.
// Train reads it in one goroutine. progress may be nil; it is called now and then,
// from one goroutine at a time. When ctx ends, so does Train, with its error.
func Train(ctx context.Context, docs iter.Seq2[string, error], o TrainOptions, progress func(TrainProgress)) (*Tokenizer, error) {
	o = o.withDefaults()
	if o.VocabSize < MinVocab || o.VocabSize > 1<<24 {
		return nil, errf("", "a vocabulary of %d tokens, want %d to %d", o.VocabSize, MinVocab, 1<<24)
	}
	pre := presplitNamed(o.Pre)
	if pre == nil {
		return nil, errf("", "pre-split %q is not known, want one of %s", o.Pre, presplitNames())
	}
	if progress == nil {
		progress = func(TrainProgress) {}
	}
	words, size, err := countWords(ctx, docs, pre, o, progress)
	if err != nil {
		return nil, err
	}
	t, e := newOwn(o.VocabSize, 256+8*o.VocabSize)
	if e != nil {
		return nil, e
	}
	t.pre, t.merges = pre, newMerges(o.VocabSize-MinVocab)
	tr := newTrainer(words, o)
	for t.vocab.len() < o.VocabSize {
		if t.vocab.len()%256 == 0 {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			progress(TrainProgress{Bytes: size, Tokens: t.vocab.len(), Total: o.VocabSize})
		}
		left, right, ok := tr.best()
		if !ok {
			return nil, errf("", "%d bytes of text give %d tokens only, want %d", size, t.vocab.len(), o.VocabSize).
				hint("give more text or ask for a smaller vocabulary")
		}
		id := int32(t.vocab.len())
		text := string(t.vocab.piece(left)) + string(t.vocab.piece(right))
		if t.vocab.findString(text) >= 0 {
			tr.drop()
			continue
		}
		if e := t.vocab.add(text, Normal); e != nil {
			return nil, e
		}
		t.merges.add(left, right, id)
		tr.join(left, right, id, len(text))
	}
	progress(TrainProgress{Bytes: size, Tokens: t.vocab.len(), Total: o.VocabSize})
	return t.finish(), nil
}

const (
	// batchBytes is how much text a worker gets at once.
	batchBytes = 1 << 19
	// maxWord is the longest piece counted as one, in bytes. Longer ones, such as
	// rows of a thousand dashes, are counted in parts; else each merge would have to
	// walk over them.
	maxWord = 256
)

// countWords cuts documents into pieces and counts equal ones. It returns the
// counts and the number of bytes read.
func countWords(ctx context.Context, docs iter.Seq2[string, error], pre *presplit, o TrainOptions, progress func(TrainProgress)) (*wordTable, int64, error) {
	var (
		wg     sync.WaitGroup
		done   atomic.Int64 // bytes counted
		queue  = make(chan []string, o.Threads)
		tables = make([]*wordTable, o.Threads)
		seed   = maphash.MakeSeed()
		class  = classes()
	)
	for i := range tables {
		tables[i] = newWordTable(seed)
		wg.Go(func() {
			for batch := range queue {
				n := 0
				for _, doc := range batch {
					n += len(doc)
					for len(doc) > 0 {
						k := min(pre.next(class, doc), maxWord)
						tables[i].add(doc[:k], 1)
						doc = doc[k:]
					}
				}
				done.Add(int64(n))
			}
		})
	}
	err := func() error {
		defer close(queue)
		var batch []string
		size := 0
		for doc, err := range docs {
			if err != nil {
				return err
			}
			batch, size = append(batch, doc), size+len(doc)
			if size < batchBytes {
				continue
			}
			select {
			case queue <- batch:
			case <-ctx.Done():
				return ctx.Err()
			}
			batch, size = nil, 0
			progress(TrainProgress{Bytes: done.Load(), Total: o.VocabSize})
		}
		select {
		case queue <- batch:
			return ctx.Err()
		case <-ctx.Done():
			return ctx.Err()
		}
	}()
	wg.Wait()
	if err != nil {
		return nil, 0, err
	}
	// Add up the tables in pairs, pairs at the same time.
	for n := len(tables); n > 1; n = (n + 1) / 2 {
		for i := range n / 2 {
			wg.Go(func() { tables[i].addAll(tables[n-1-i]) })
		}
		wg.Wait()
	}
	return tables[0], done.Load(), nil
}

// wordTable counts texts: an open-addressed hash table whose texts lie in one
// buffer.
type wordTable struct {
	seed  maphash.Seed
	slots []wordSlot // length is a power of two
	used  int
	text  []byte
}

type wordSlot struct {
	count uint64
	start uint64 // in text
	hash  uint32
	len   uint32 // 0: the slot is free
}

func newWordTable(seed maphash.Seed) *wordTable {
	return &wordTable{seed: seed, slots: make([]wordSlot, 1<<12)}
}

// add counts word n more times. A word is not empty.
func (t *wordTable) add(word string, n uint64) {
	t.addHashed(word, uint32(maphash.String(t.seed, word)), n)
}

func (t *wordTable) addHashed(word string, hash uint32, n uint64) {
	mask := len(t.slots) - 1
	for i := int(hash) & mask; ; i = (i + 1) & mask {
		s := &t.slots[i]
		if s.len == 0 {
			*s = wordSlot{n, uint64(len(t.text)), hash, uint32(len(word))}
			t.text = append(t.text, word...)
			if t.used++; 2*t.used > len(t.slots) {
				t.grow()
			}
			return
		}
		if s.hash == hash && string(t.text[s.start:s.start+uint64(s.len)]) == word {
			s.count += n
			return
		}
	}
}

func (t *wordTable) grow() {
	old := t.slots
	t.slots = make([]wordSlot, 2*len(old))
	mask := len(t.slots) - 1
	for _, s := range old {
		if s.len == 0 {
			continue
		}
		i := int(s.hash) & mask
		for t.slots[i].len != 0 {
			i = (i + 1) & mask
		}
		t.slots[i] = s
	}
}

// addAll adds the counts of u.
func (t *wordTable) addAll(u *wordTable) {
	text := string(u.text)
	for _, s := range u.slots {
		if s.len > 0 {
			t.addHashed(text[s.start:s.start+uint64(s.len)], s.hash, s.count)
		}
	}
}
