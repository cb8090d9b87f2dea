package data

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/tokenizer"
)

// byteTokenizer is a vocabulary of bytes and special tokens; BOS and EOS are one.
func byteTokenizer(t testing.TB) *tokenizer.Tokenizer {
	tok, err := tokenizer.NewByteLevel(tokenizer.MinVocab)
	require.NoError(t, err)
	return tok
}

// trainedTokenizer has merges, so that cutting a text changes its tokens.
func trainedTokenizer(t testing.TB) *tokenizer.Tokenizer {
	tok, err := tokenizer.Train(t.Context(), func(yield func(string, error) bool) {
		for i := range 40 {
			if !yield(sampleText(i), nil) {
				return
			}
		}
	}, tokenizer.TrainOptions{VocabSize: tokenizer.MinVocab + 80, Threads: 1}, nil)
	require.NoError(t, err)
	return tok
}

// sampleText is a small source file with characters of one to four bytes.
func sampleText(i int) string {
	return fmt.Sprintf("// größe %d → 😀\nfn function_%d(value: u32) -> u32 {\n    let result = value + %d;\n    println!(\"{}\", result);\n    result\n}\n", i, i*7919%1000, i) + strings.Repeat("// and so on\n", i%5)
}

// dataset makes shards of perShard documents each from texts.
func dataset(t testing.TB, v Vocabulary, perShard int, docs [][]int32) *Dataset {
	var shards []*Shard
	for len(docs) > 0 {
		b := shardBuilder{vocab: &v}
		for _, ids := range docs[:min(perShard, len(docs))] {
			n := 0
			for _, id := range ids {
				n += int(v.Bytes[id])
			}
			b.add(ids, n)
		}
		docs = docs[min(perShard, len(docs)):]
		header, rest := b.parts()
		s, err := ParseShard("memory", append(header, slices.Concat(rest...)...))
		require.NoError(t, err)
		require.NoError(t, s.Verify())
		shards = append(shards, s)
	}
	d, err := NewDataset(shards)
	require.NoError(t, err)
	return d
}

func encodeAll(tok *tokenizer.Tokenizer, n int) (docs [][]int32) {
	for i := range n {
		docs = append(docs, tok.Encode(nil, sampleText(i), tokenizer.EncodeOptions{}))
	}
	return docs
}

// numbered is documents whose tokens are all different: 16, 17, … in turn.
func numbered(lengths ...int) (Vocabulary, [][]int32) {
	next := int32(16)
	var docs [][]int32
	for _, n := range lengths {
		var ids []int32
		for range n {
			ids = append(ids, next)
			next++
		}
		docs = append(docs, ids)
	}
	v := Vocabulary{BOS: 1, EOS: 1, Bytes: make([]uint16, next)}
	for i := 16; i < int(next); i++ {
		v.Bytes[i] = uint16(i%3 + 1)
	}
	return v, docs
}

func load(t testing.TB, d *Dataset, o LoaderOptions) *Loader {
	l, err := NewLoader(d, o)
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	return l
}

// snapshot is what a batch was, without the time it took.
func snapshot(b *Batch) string {
	return fmt.Sprint(b.Epoch, b.Row, b.Count, b.TextBytes, b.Tokens, b.Targets, b.Starts)
}

func take(t testing.TB, l *Loader, n int) (out []string) {
	for range n {
		b, err := l.Next(context.Background())
		if err == io.EOF {
			return out
		}
		require.NoError(t, err)
		out = append(out, snapshot(b))
	}
	return out
}

// TestEveryTokenIsATargetOncePerEpoch counts the targets of epochs, for every
// kind of vocabulary.
func TestEveryTokenIsATargetOncePerEpoch(t *testing.T) {
	for _, c := range []struct{ bos, eos int32 }{{1, 1}, {1, 2}, {1, -1}, {-1, 2}, {-1, -1}} {
		for _, ordered := range []bool{false, true} {
			for _, seqLen := range []int{1, 2, 7, 64, 1000} {
				v, docs := numbered(5, 1, 40, 2, 17, 1, 1, 90, 3)
				v.BOS, v.EOS = c.bos, c.eos
				d := dataset(t, v, 4, docs)
				l := load(t, d, LoaderOptions{Rows: 3, SeqLen: seqLen, Seed: 5, Epochs: 2, Ordered: ordered, Workers: 2})
				counts := make([]int, len(v.Bytes))
				var text int64
				var count int
				for {
					b, err := l.Next(t.Context())
					if err == io.EOF {
						break
					}
					require.NoError(t, err)
					n := 0
					for _, id := range b.Targets {
						if id >= 0 {
							counts[id]++
							n++
						}
					}
					require.Equal(t, n, b.Count)
					text += b.TextBytes
					count += n
				}
				name := fmt.Sprintf("bos %d, eos %d, ordered %t, %d a row", c.bos, c.eos, ordered, seqLen)
				for _, doc := range docs {
					for i, id := range doc {
						want := 2
						if i == 0 && c.bos < 0 {
							want = 0 // nothing stands before it in its document
						}
						require.Equal(t, want, counts[id], "%s: token %d", name, id)
					}
				}
				if c.eos >= 0 {
					require.Equal(t, 2*len(docs), counts[c.eos], "%s: ends of documents", name)
				}
				if c.bos >= 0 && c.bos != c.eos {
					require.Zero(t, counts[c.bos], name)
				}
				if c.bos >= 0 {
					require.Equal(t, 2*d.TextBytes(), text, "%s: bytes of text", name)
				}
				require.Equal(t, l.Cursor().Row, 2*l.RowsPerEpoch())
			}
		}
	}
}

// TestRowsAreDocuments checks tokens, targets and starts against the documents:
// each target follows its token in its document.
func TestRowsAreDocuments(t *testing.T) {
	v, docs := numbered(5, 1, 40, 2, 17, 1, 1, 90, 3)
	next := map[int32]int32{}
	home := map[int32]int{}
	for k, doc := range docs {
		for i, id := range doc {
			home[id] = k
			next[id] = v.EOS
			if i+1 < len(doc) {
				next[id] = doc[i+1]
			}
		}
	}
	l := load(t, dataset(t, v, 4, docs), LoaderOptions{Rows: 4, SeqLen: 12, Seed: 9, Epochs: 3})
	for {
		b, err := l.Next(t.Context())
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
		for r := range b.Rows {
			tokens, targets, starts := b.Tokens[r*12:][:12], b.Targets[r*12:][:12], b.Starts[r*12:][:12]
			for i, id := range tokens {
				s := int(starts[i])
				require.True(t, s <= i && s >= 0 && int(starts[s]) == s, "starts %v", starts)
				if targets[i] < 0 {
					require.EqualValues(t, 1, id)
					continue
				}
				if i+1 < 12 {
					require.Equal(t, targets[i], tokens[i+1])
				}
				if id == v.BOS {
					require.Equal(t, i, s, "a document starts with its BOS")
					require.Equal(t, docs[home[targets[i]]][0], targets[i])
					continue
				}
				require.Equal(t, next[id], targets[i])
				for j := s; j < i; j++ {
					require.True(t, tokens[j] == v.BOS || home[tokens[j]] == home[id], "row %v, starts %v", tokens, starts)
				}
				if s > 0 {
					require.Equal(t, v.BOS, tokens[s])
				}
			}
		}
	}
}

func TestOrderDoesNotDependOnWorkers(t *testing.T) {
	tok := trainedTokenizer(t)
	d := dataset(t, NewVocabulary(tok), 7, encodeAll(tok, 40))
	o := LoaderOptions{Rows: 3, SeqLen: 50, Seed: 1, FIM: FIM{Rate: 0.5, SPM: 0.5}, Tokenizer: tok}
	var want []string
	for _, workers := range []int{1, 2, 7} {
		for _, depth := range []int{1, 2, 5} {
			o.Workers, o.Depth = workers, depth
			got := take(t, load(t, d, o), 120)
			if want == nil {
				want = got
				for _, w := range [][2]int{{0, 1}, {0, 60}} {
					require.NotEqual(t, want[w[0]], want[w[1]])
				}
			}
			require.Equal(t, want, got, "%d workers, %d ahead", workers, depth)
		}
	}
	o.Seed = 2
	require.NotEqual(t, want, take(t, load(t, d, o), 120))
}

func TestCursorContinuesExactly(t *testing.T) {
	tok := trainedTokenizer(t)
	d := dataset(t, NewVocabulary(tok), 7, encodeAll(tok, 40))
	o := LoaderOptions{Rows: 5, SeqLen: 31, Seed: 1, FIM: FIM{Rate: 0.3, SPM: 0.5}, Tokenizer: tok, Epochs: 3, Workers: 2}
	want := take(t, load(t, d, o), 1<<20)
	require.Greater(t, len(want), 30)
	for _, stop := range []int{0, 1, 2, 17, len(want) - 1, len(want)} {
		l := load(t, d, o)
		take(t, l, stop)
		require.NoError(t, l.Close())
		b, err := json.Marshal(l.Cursor())
		require.NoError(t, err)
		var c Cursor
		require.NoError(t, json.Unmarshal(b, &c))
		again := o
		again.Cursor, again.Workers, again.Depth = &c, 3, 1
		require.Equal(t, want[stop:], append([]string{}, take(t, load(t, d, again), 1<<20)...), "stopped after %d: %s", stop, b)
	}
}

// TestCursorWithAnotherLength: half an epoch at one length leaves half an epoch
// at the other.
func TestCursorWithAnotherLength(t *testing.T) {
	v, docs := numbered(400, 200, 300, 100)
	d := dataset(t, v, 2, docs)
	l := load(t, d, LoaderOptions{Rows: 5, SeqLen: 10})
	take(t, l, 31) // one epoch is 101 rows
	c := l.Cursor()
	m := load(t, d, LoaderOptions{Rows: 1, SeqLen: 20, Cursor: &c, Epochs: 2})
	require.EqualValues(t, 101, l.RowsPerEpoch())
	require.EqualValues(t, 51, m.RowsPerEpoch())
	require.Equal(t, uint64(51+27), m.Cursor().Row) // 54 rows of 10 are 27 of 20
}

func TestCursorErrors(t *testing.T) {
	v, docs := numbered(400)
	d := dataset(t, v, 2, docs)
	good := load(t, d, LoaderOptions{Rows: 1, SeqLen: 8, Seed: 3}).Cursor()
	for want, change := range map[string]func(*Cursor){
		"resume with the data":    func(c *Cursor) { c.Dataset = strings.Repeat("0", 64) },
		"use the seed of the run": func(c *Cursor) { c.Seed++ },
		"ordered true":            func(c *Cursor) { c.Ordered = true },
		"use an older one":        func(c *Cursor) { c.SeqLen = 0 },
		"row 1844674407370955161": func(c *Cursor) { c.Row = math.MaxUint64 },
	} {
		c := good
		change(&c)
		_, err := NewLoader(d, LoaderOptions{Rows: 1, SeqLen: 8, Seed: 3, Cursor: &c})
		var typed *Error
		require.ErrorAs(t, err, &typed)
		require.ErrorContains(t, err, want)
	}
}

func TestLoaderOptionErrors(t *testing.T) {
	v, docs := numbered(400)
	d := dataset(t, v, 2, docs)
	for _, o := range []LoaderOptions{
		{}, {Rows: 1}, {Rows: 1 << 30, SeqLen: 4}, {Rows: 1, SeqLen: 1, Workers: -1}, {Rows: 1, SeqLen: 1, Depth: 5000},
		{Rows: 1, SeqLen: 1, Epochs: -1}, {Rows: 1, SeqLen: 1, FIM: FIM{Rate: 2}}, {Rows: 1, SeqLen: 1, FIM: FIM{Rate: math.NaN()}},
		{Rows: 1, SeqLen: 1, FIM: FIM{Rate: 0.5}}, {Rows: 1, SeqLen: 1, FIM: FIM{Rate: 0.5}, Tokenizer: byteTokenizer(t)},
	} {
		_, err := NewLoader(d, o)
		var typed *Error
		require.ErrorAs(t, err, &typed, "%+v", o)
	}
	v, docs = numbered(0)
	_, err := NewLoader(dataset(t, v, 1, docs), LoaderOptions{Rows: 1, SeqLen: 1})
	require.ErrorContains(t, err, "too few")
}

// TestCloseMidEpoch closes loaders in every state and counts goroutines.
func TestCloseMidEpoch(t *testing.T) {
	tok := byteTokenizer(t)
	d := dataset(t, NewVocabulary(tok), 7, encodeAll(tok, 40))
	before := runtime.NumGoroutine()
	for _, workers := range []int{1, 4, 32} { // more workers than batches ahead, too
		for _, taken := range []int{0, 1, 9} {
			l, err := NewLoader(d, LoaderOptions{Rows: 64, SeqLen: 512, Workers: workers, Depth: 2})
			require.NoError(t, err)
			take(t, l, taken)
			start := time.Now()
			require.NoError(t, l.Close())
			require.NoError(t, l.Close())
			require.Less(t, time.Since(start), time.Second)
			_, err = l.Next(t.Context())
			require.ErrorIs(t, err, ErrClosed)
		}
	}
	noMoreGoroutines(t, before)
}

// noMoreGoroutines waits for goroutines that are about to end.
func noMoreGoroutines(t testing.TB, before int) {
	for end := time.Now().Add(time.Second); runtime.NumGoroutine() > before && time.Now().Before(end); {
		runtime.Gosched()
	}
	require.LessOrEqual(t, runtime.NumGoroutine(), before)
}

func TestNextEndsWithItsContext(t *testing.T) {
	v, docs := numbered(4000)
	l := load(t, dataset(t, v, 1, docs), LoaderOptions{Rows: 1, SeqLen: 8})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var got []string
	for len(got) < 50 { // a cancelled call may find a batch ready; none is lost either way
		b, err := l.Next(ctx)
		if err == nil {
			got = append(got, snapshot(b))
			continue
		}
		require.ErrorIs(t, err, context.Canceled)
		got = append(got, take(t, l, 1)...)
	}
	require.Equal(t, take(t, load(t, l.data, LoaderOptions{Rows: 1, SeqLen: 8}), 50), got)
}

// TestBadIDIsAnError: an id outside of the vocabulary, in a shard not verified.
func TestBadIDIsAnError(t *testing.T) {
	v, docs := numbered(50)
	d := dataset(t, v, 1, docs)
	d.vocab.Bytes = d.vocab.Bytes[:40]
	l := load(t, d, LoaderOptions{Rows: 1, SeqLen: 50})
	for range 3 {
		_, err := l.Next(t.Context())
		var typed *Error
		require.ErrorAs(t, err, &typed)
		require.ErrorContains(t, err, "vocabulary of 40")
		require.False(t, errors.Is(err, io.EOF))
	}
}

func TestNoAllocationsPerBatch(t *testing.T) {
	v, docs := numbered(20000, 3, 20000)
	l := load(t, dataset(t, v, 1, docs), LoaderOptions{Rows: 4, SeqLen: 16, Workers: 2})
	ctx := context.Background()
	take(t, l, 20)
	n := testing.AllocsPerRun(200, func() {
		if _, err := l.Next(ctx); err != nil {
			t.Fatal(err)
		}
	})
	require.Zero(t, n)
}

func TestPermutation(t *testing.T) {
	for _, n := range []uint64{1, 2, 3, 4, 5, 16, 17, 1000, 4096, 4097} {
		p := newPermutation(n, 3, rowStream)
		seen := make([]bool, n)
		for i := range n {
			j := p.at(i)
			require.False(t, seen[j], "n %d: %d comes twice", n, j)
			seen[j] = true
		}
	}
	// Neighbours end up far apart: the mean distance of random places is n/3.
	p := newPermutation(10000, 3, rowStream)
	sum := 0.0
	for i := range uint64(9999) {
		sum += math.Abs(float64(p.at(i)) - float64(p.at(i+1)))
	}
	require.InDelta(t, 10000.0/3, sum/9999, 150)
}

// BenchmarkLoader measures how fast rows are made by one worker.
func BenchmarkLoader(b *testing.B) {
	tok := trainedTokenizer(b)
	var docs [][]int32
	for i := range 400 {
		docs = append(docs, tok.Encode(nil, strings.Repeat(sampleText(i), 30), tokenizer.EncodeOptions{}))
	}
	d := dataset(b, NewVocabulary(tok), 100, docs)
	for _, rate := range []float64{0, 0.25} {
		b.Run(fmt.Sprintf("fim%g/64x256", rate), func(b *testing.B) {
			l := load(b, d, LoaderOptions{Rows: 64, SeqLen: 256, FIM: FIM{Rate: rate, SPM: 0.5}, Tokenizer: tok})
			b.ReportAllocs()
			for b.Loop() {
				if _, err := l.Next(context.Background()); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(64*256*b.N)/b.Elapsed().Seconds()/1e6, "Mtok/s")
		})
	}
}

// TestWaitIsMeasured: a consumer that does nothing else waits most of the time.
func TestWaitIsMeasured(t *testing.T) {
	v, docs := numbered(30000)
	l := load(t, dataset(t, v, 1, docs), LoaderOptions{Rows: 64, SeqLen: 4096})
	start := time.Now()
	var sum time.Duration
	for range 10 {
		b, err := l.Next(t.Context())
		require.NoError(t, err)
		require.GreaterOrEqual(t, b.Wait, time.Duration(0))
		sum += b.Wait
	}
	require.Positive(t, sum)
	require.LessOrEqual(t, sum, time.Since(start))
}
