package data

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/internal/fsx"
)

// testShard is a small shard; wide asks for tokens of 4 bytes.
func testShard(vocab int) *shardBuilder {
	v := &Vocabulary{BOS: 1, EOS: 2, Bytes: make([]uint16, vocab)}
	for i := range v.Bytes {
		v.Bytes[i] = uint16(i % 5)
	}
	v.Hash[3] = 9
	b := &shardBuilder{vocab: v}
	b.add([]int32{3, 4, int32(vocab - 1)}, 12)
	b.add(nil, 0)
	b.add([]int32{7, 7, 7, 7}, 5)
	return b
}

func shardBytes(b *shardBuilder) []byte {
	header, rest := b.parts()
	return append(header, slices.Concat(rest...)...)
}

func TestShardRoundTrip(t *testing.T) {
	for _, vocab := range []int{20, 1 << 16, 1<<16 + 1} {
		b := testShard(vocab)
		path := filepath.Join(t.TempDir(), "a.shard")
		sum, err := b.write(fsx.OS(), path)
		require.NoError(t, err)
		s, err := OpenShard(path)
		require.NoError(t, err)
		require.NoError(t, s.Verify())
		require.Equal(t, sum, s.sum)
		require.Equal(t, *b.vocab, s.Vocabulary())
		require.Equal(t, 3, s.Docs())
		require.Equal(t, 7, s.Tokens())
		require.EqualValues(t, 17, s.TextBytes())
		for i, want := range [][]int32{{3, 4, int32(vocab - 1)}, nil, {7, 7, 7, 7}} {
			ids, n := s.Doc(nil, i)
			require.Equal(t, want, ids)
			require.EqualValues(t, []int{12, 0, 5}[i], n)
		}
		require.NoError(t, s.Close())
		b.reset()
		b.add([]int32{1}, 1)
		again, err := ParseShard("again", shardBytes(b))
		require.NoError(t, err)
		require.Equal(t, 1, again.Docs())
	}
}

// usable checks that whatever ParseShard and Verify accept can be loaded.
func usable(t testing.TB, s *Shard) {
	d, err := NewDataset([]*Shard{s})
	require.NoError(t, err)
	for _, ordered := range []bool{true, false} {
		l, err := NewLoader(d, LoaderOptions{Rows: 2, SeqLen: 5, Ordered: ordered, Epochs: 1})
		if err != nil {
			var typed *Error
			require.ErrorAs(t, err, &typed)
			return
		}
		for err == nil {
			_, err = l.Next(t.Context())
		}
		require.NoError(t, l.Close())
		var typed *Error
		require.True(t, err == io.EOF || errors.As(err, &typed), "%v", err)
	}
}

// TestShardDamage cuts a shard at every byte and flips every bit. Each is found,
// with the file's name and what to do; what only Verify finds can still be loaded.
func TestShardDamage(t *testing.T) {
	good := shardBytes(testShard(20))
	for n := range good {
		_, err := ParseShard("cut.shard", good[:n])
		var typed *Error
		require.ErrorAs(t, err, &typed, "%d bytes", n)
		require.Equal(t, "cut.shard", typed.Path)
		require.NotEmpty(t, typed.Hint)
	}
	for i := range good {
		for bit := range 8 {
			b := slices.Clone(good)
			b[i] ^= 1 << bit
			s, err := ParseShard("flip.shard", b)
			if err == nil {
				if i%4 == 0 {
					usable(t, s)
				}
				err = s.Verify()
			}
			var typed *Error
			require.ErrorAs(t, err, &typed, "byte %d bit %d", i, bit)
			require.Equal(t, "flip.shard", typed.Path)
			require.NotEmpty(t, typed.Hint)
		}
	}
}

func TestShardErrorTexts(t *testing.T) {
	good := shardBytes(testShard(20))
	for _, c := range []struct {
		at   int
		b    byte
		want string
	}{
		{0, 'X', `data: f: byte 0: "XCSHARD\n" where a token shard has "NCSHARD\n"; delete the directory and run nanochat data prepare again`},
		{8, 2, "version 2; this program reads version 1"},
		{12, 3, "tokens of 3 bytes"},
		{16, 8, "its header asks for"},
		{23, 0xff, "tokens and 3 documents in a file of"},
		{31, 0x80, "documents in a file of"},
		{43, 0xff, "a vocabulary of"},
		{44, 99, "id 99 of a vocabulary of 20"},
		{60, 1, "a reserved field is not zero"},
		{headerSize, 1, "document 0 starts at token 1"},
		{headerSize + 16, 9, "document 1 starts at token 9"},
		{32, 9, "document 1 starts at"},
		{32, 99, "text byte 17 of 99"},
	} {
		b := slices.Clone(good)
		b[c.at] = c.b
		_, err := ParseShard("f", b)
		require.ErrorContains(t, err, c.want)
	}
	_, err := OpenShard(filepath.Join(t.TempDir(), "none"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

// TestShardIsWrittenWhole fails each operation on the disk in turn, and cuts the
// power: the file is the old or the new one.
func TestShardIsWrittenWhole(t *testing.T) {
	older, newer := testShard(20), testShard(30)
	for n := 0; ; n++ {
		c := fsx.NewCrash(1)
		_, err := older.write(c, "a.shard")
		require.NoError(t, err)
		done := c.StopAfter(n, func() { _, err = newer.write(c, "a.shard") })
		for _, percent := range []int{0, 50, 100} {
			got, readErr := fsx.ReadFile(c.AfterPowerLoss(percent, percent), "a.shard", 1<<20)
			require.NoError(t, readErr)
			require.True(t, bytes.Equal(got, shardBytes(newer)) || err != nil && bytes.Equal(got, shardBytes(older)), "operation %d", n)
		}
		if done {
			break
		}
		var typed *Error
		require.ErrorAs(t, err, &typed)
	}
	full := fsx.NewFault(fsx.NewCrash(1), fsx.FaultOptions{Space: 100})
	_, err := newer.write(full, "a.shard")
	require.ErrorContains(t, err, "make room on the disk")
}

// TestFileCutWhileMapped: a page that is gone is an error, not the end of the
// process.
func TestFileCutWhileMapped(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.shard")
	b := testShard(20)
	ids := make([]int32, 1<<16)
	b.add(ids, 0)
	_, err := b.write(fsx.OS(), path)
	require.NoError(t, err)
	s, err := OpenShard(path)
	require.NoError(t, err)
	d, err := NewDataset([]*Shard{s})
	require.NoError(t, err)
	defer d.Close()
	require.NoError(t, os.Truncate(path, 4096))
	l, err := NewLoader(d, LoaderOptions{Rows: 1, SeqLen: 1 << 15})
	require.NoError(t, err)
	defer l.Close()
	_, err = l.Next(t.Context())
	var typed *Error
	require.ErrorAs(t, err, &typed)
	require.ErrorContains(t, err, "cut short")
	require.ErrorContains(t, s.Verify(), "cut short")
}

// FuzzShard: any bytes are an *Error or a shard whose every token can be loaded,
// and which is the same again when it is written again.
func FuzzShard(f *testing.F) {
	f.Add(shardBytes(testShard(20)))
	f.Add(shardBytes(testShard(1<<16 + 1))[:4096])
	f.Add(shardBytes(&shardBuilder{vocab: &Vocabulary{BOS: -1, EOS: -1, Bytes: make([]uint16, 3)}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseShard("f", b)
		if err != nil {
			var typed *Error
			require.ErrorAs(t, err, &typed)
			return
		}
		usable(t, s)
		verified := s.Verify() == nil
		again := shardBuilder{vocab: &s.vocab}
		for i := range s.Docs() {
			ids, n := s.Doc(nil, i)
			again.add(ids, int(n))
		}
		if got := shardBytes(&again); verified && !bytes.Equal(got, b) {
			// Only the padding after the sizes is not kept.
			require.Equal(t, len(b), len(got))
			require.NotZero(t, bits.OnesCount(uint(len(s.vocab.Bytes)%4)), "a shard written again differs")
		}
	})
}

func ExampleParseShard() {
	_, err := ParseShard("train-00000.shard", []byte("NCSH"))
	fmt.Println(err)
	// Output: data: train-00000.shard: byte 4: the file ends; a shard has at least 128 bytes; delete the directory and run nanochat data prepare again
}
