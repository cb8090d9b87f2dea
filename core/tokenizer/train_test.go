package tokenizer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// documents gives docs without an error.
func documents(docs []string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for _, d := range docs {
			if !yield(d, nil) {
				return
			}
		}
	}
}

// TestTrainMatchesDefinition compares with training by definition.
func TestTrainMatchesDefinition(t *testing.T) {
	r := rand.New(rand.NewPCG(21, 22))
	random := make([]string, 20)
	for i := range random {
		random[i] = randomText(r, r.IntN(3000))
	}
	for name, docs := range map[string][]string{
		"random":   random,
		"overlaps": {strings.Repeat("a", 300) + " " + strings.Repeat("ab", 200) + " " + strings.Repeat("aab", 70) + " aaa aaaa aaaaa abab"},
		"spaces":   {strings.Repeat("x\n    y\n        z\n            w  v   u\n", 30), "\n      "},
		"binary":   {"\xff\xfe\xff\xfe\xff\xfe \xff\xfe", "\xff\xfe"},
	} {
		for _, o := range []TrainOptions{{}, {Pre: "gpt-2", Threads: 3}, {MaxTokenBytes: 5, Threads: 1}} {
			size := MinVocab + 250
			want := slowTrain(t, o.withDefaults().Pre, docs, size, o.withDefaults().MaxTokenBytes)
			o.VocabSize = want.Vocab()
			got, err := Train(t.Context(), documents(docs), o, nil)
			require.NoError(t, err, name)
			require.Equal(t, want.merges.list, got.merges.list, "%s %+v", name, o)
			require.Equal(t, want.vocab.text, got.vocab.text, "%s %+v", name, o)
			same(t, want, got)

			o.VocabSize = size + 1 // more than there is
			if want.Vocab() < size {
				_, err = Train(t.Context(), documents(docs), o, nil)
				require.ErrorContains(t, err, fmt.Sprintf("give %d tokens only, want %d", want.Vocab(), size+1))
			}
		}
	}
}

// TestTrainIsDeterministic: neither threads nor the order of documents change a bit
// of the file.
func TestTrainIsDeterministic(t *testing.T) {
	r := rand.New(rand.NewPCG(31, 32))
	docs := make([]string, 100)
	for i := range docs {
		docs[i] = randomText(r, 10_000)
	}
	file := func(threads int) []byte {
		tok, err := Train(t.Context(), documents(docs), TrainOptions{VocabSize: 1200, Threads: threads}, nil)
		require.NoError(t, err)
		var b bytes.Buffer
		require.NoError(t, tok.WriteHF(&b))
		return b.Bytes()
	}
	want := file(1)
	for _, threads := range []int{2, 3, 8} {
		slices.Reverse(docs)
		require.True(t, bytes.Equal(want, file(threads)), "%d threads", threads)
	}
}

// TestTrainedVocabularyWorks: what training would do to a text is what Encode does,
// every token is reachable, and both file forms keep it.
func TestTrainedVocabularyWorks(t *testing.T) {
	docs := []string{randomText(rand.New(rand.NewPCG(41, 42)), 400_000)}
	tok, err := Train(t.Context(), documents(docs), TrainOptions{VocabSize: 1500}, nil)
	require.NoError(t, err)
	require.Equal(t, 1500, tok.Vocab())
	require.Equal(t, "nanochat", tok.Pre())
	require.True(t, tok.AddsBOS())
	e := tok.take()
	for id := range int32(tok.Vocab()) {
		if p := string(tok.Piece(id)); tok.Kind(id) == Normal {
			require.Equal(t, []int32{id}, tok.mergeLong(nil, e, p), "token %d %q is not made by merges", id, p)
		}
	}
	ids := tok.Encode(nil, docs[0], EncodeOptions{})
	require.Less(t, len(ids), len(docs[0])/2)
	again, err := FromMetadata("", asMap(tok))
	require.NoError(t, err)
	same(t, tok, again)
}

func TestTrainErrors(t *testing.T) {
	docs := documents([]string{"a text"})
	for want, o := range map[string]TrainOptions{
		"a vocabulary of 100 tokens, want 272 to": {VocabSize: 100},
		`pre-split "x" is not known`:              {VocabSize: 300, Pre: "x"},
		"give 272 tokens only, want 300":          {VocabSize: 300},
	} {
		_, err := Train(t.Context(), docs, o, nil)
		var e *Error
		require.ErrorAs(t, err, &e)
		require.ErrorContains(t, err, want)
	}
	broken := errors.New("the disk is gone")
	_, err := Train(t.Context(), func(yield func(string, error) bool) { _ = yield("text", nil) && yield("", broken) },
		TrainOptions{VocabSize: 300}, nil)
	require.ErrorIs(t, err, broken)
}

// TestTrainStops: a cancelled context ends both phases.
func TestTrainStops(t *testing.T) {
	big := randomText(rand.New(rand.NewPCG(51, 52)), batchBytes/4)
	ctx, cancel := context.WithCancel(t.Context())
	n := 0
	_, err := Train(ctx, func(yield func(string, error) bool) {
		for yield(big, nil) { // endless
			if n++; n == 5 {
				cancel()
			}
		}
	}, TrainOptions{VocabSize: 1000}, nil)
	require.ErrorIs(t, err, context.Canceled)

	ctx, cancel = context.WithCancel(t.Context())
	_, err = Train(ctx, documents([]string{big}), TrainOptions{VocabSize: 4000}, func(p TrainProgress) {
		if p.Tokens > 500 {
			cancel()
		}
	})
	require.ErrorIs(t, err, context.Canceled)
}

func TestTrainProgress(t *testing.T) {
	docs := make([]string, 40)
	for i := range docs {
		docs[i] = strings.Repeat(randomText(rand.New(rand.NewPCG(61, uint64(i))), 1<<12), 32)
	}
	var last TrainProgress
	_, err := Train(t.Context(), documents(docs), TrainOptions{VocabSize: 1000}, func(p TrainProgress) {
		require.GreaterOrEqual(t, p.Bytes, last.Bytes)
		require.GreaterOrEqual(t, p.Tokens, last.Tokens)
		last = p
	})
	require.NoError(t, err)
	total := 0
	for _, d := range docs {
		total += len(d)
	}
	require.Equal(t, TrainProgress{Bytes: int64(total), Tokens: 1000, Total: 1000}, last)
}

// textFiles returns the files of the folder NANOCHAT_TEXT, or made-up text.
func textFiles(b *testing.B) (docs []string, size int) {
	folder := os.Getenv("NANOCHAT_TEXT")
	if folder == "" {
		for i := range 64 {
			docs = append(docs, randomText(rand.New(rand.NewPCG(71, uint64(i))), 1<<16))
			size += len(docs[i])
		}
		return docs, size
	}
	require.NoError(b, filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		docs, size = append(docs, string(text)), size+len(text)
		return err
	}))
	return docs, size
}

// BenchmarkTrain/vocab/threads: bytes of text per second, of the folder
// NANOCHAT_TEXT if that is set.
func BenchmarkTrain(b *testing.B) {
	docs, size := textFiles(b)
	for _, vocab := range []int{4096, 16384} {
		for _, threads := range []int{1, 2} {
			b.Run(fmt.Sprintf("%d/%d", vocab, threads), func(b *testing.B) {
				b.SetBytes(int64(size))
				for b.Loop() {
					_, err := Train(b.Context(), documents(docs), TrainOptions{VocabSize: vocab, Threads: threads}, nil)
					require.NoError(b, err)
				}
			})
		}
	}
}

// BenchmarkEncodeText: bytes per second of the folder NANOCHAT_TEXT with a
// vocabulary trained on a part of it.
func BenchmarkEncodeText(b *testing.B) {
	docs, size := textFiles(b)
	for _, vocab := range []int{4096, 16384} {
		tok, err := Train(b.Context(), documents(docs[:1+len(docs)/8]), TrainOptions{VocabSize: vocab}, nil)
		require.NoError(b, err)
		b.Run(fmt.Sprint(vocab), func(b *testing.B) {
			b.SetBytes(int64(size))
			var ids []int32
			n := 0
			for b.Loop() {
				n = 0
				for _, d := range docs {
					ids = tok.Encode(ids[:0], d, EncodeOptions{})
					n += len(ids)
				}
			}
			b.ReportMetric(float64(size)/float64(n), "bytes/token")
		})
	}
}
