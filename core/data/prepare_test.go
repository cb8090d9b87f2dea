package data

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/parquet-go/parquet-go"
	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/internal/fsx"
	"github.com/architehc/nanochat/core/internal/rng"
	"github.com/architehc/nanochat/core/tokenizer"
)

// program is a source file of its own: its words are chosen by seed.
func program(seed uint64, lines int) string {
	r := rng.New(seed, 77)
	word := func() string {
		b := make([]byte, 3+r.IntN(5))
		for i := range b {
			b[i] = byte('a' + r.IntN(26))
		}
		return string(b)
	}
	var b strings.Builder
	for range lines {
		fmt.Fprintf(&b, "fn %s(%s: %s) {\n    let %s = %s.%s();\n}\n", word(), word(), word(), word(), word(), word())
	}
	return b.String()
}

func writeFile(t testing.TB, name, text string) string {
	require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o777))
	require.NoError(t, os.WriteFile(name, []byte(text), 0o666))
	return name
}

func jsonLines(t testing.TB, rows ...map[string]any) string {
	var b strings.Builder
	for _, r := range rows {
		line, err := json.Marshal(r)
		require.NoError(t, err)
		b.Write(append(line, '\n'))
	}
	return b.String()
}

func zst(t testing.TB, text string) string {
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b)
	require.NoError(t, err)
	_, err = w.Write([]byte(text))
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return b.String()
}

func gz(t testing.TB, text string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write([]byte(text))
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return b.String()
}

type parquetRow struct {
	Content  string   `parquet:"content"`
	Repo     string   `parquet:"repo_name,optional"`
	Path     *string  `parquet:"path,optional"`
	Licences []string `parquet:"licenses,list"`
	Size     int64    `parquet:"size"`
}

func prepare(t testing.TB, o PrepareOptions) (*Manifest, error) {
	if o.Tokenizer == nil {
		o.Tokenizer = byteTokenizer(t)
	}
	if o.Out == "" {
		o.Out = t.TempDir()
	}
	return Prepare(t.Context(), o, nil)
}

// texts decodes all documents of a split.
func texts(t testing.TB, dir, split string, tok *tokenizer.Tokenizer) []string {
	d, err := Open(dir, split, OpenOptions{})
	require.NoError(t, err)
	defer d.Close()
	var out []string
	var total int64
	for _, s := range d.shards {
		for i := range s.Docs() {
			ids, n := s.Doc(nil, i)
			text := string(tok.Decode(nil, ids, tokenizer.DecodeOptions{}))
			require.EqualValues(t, len(text), n)
			total += n
			out = append(out, text)
		}
	}
	require.Equal(t, total, d.TextBytes())
	return out
}

// TestPrepareReadsEveryKind gives each kind of input a document and finds it,
// whole, with its group and licence.
func TestPrepareReadsEveryKind(t *testing.T) {
	dir := t.TempDir()
	want := map[string][2]string{} // text: group and licence
	text := func(i int, group, licence string) string {
		s := program(uint64(i), 6) + "// größe 😀\n"
		want[s] = [2]string{group, licence}
		return s
	}
	reg := filepath.Join(dir, "registry")
	writeFile(t, reg+"/serde-1.0.200/Cargo.toml", "[package]\nname = \"serde\"\nversion = \"1.0.200\"\nlicense = \"MIT OR Apache-2.0\"\n[dependencies]\nname = \"x\"\n")
	writeFile(t, reg+"/serde-1.0.200/src/lib.rs", text(1, "serde", "MIT OR Apache-2.0"))
	writeFile(t, reg+"/serde-1.0.200/derive/Cargo.toml", "[package]\nname = 'derive'\nlicense.workspace = true\n")
	writeFile(t, reg+"/serde-1.0.200/derive/src/lib.rs", text(2, "serde", "MIT OR Apache-2.0"))
	writeFile(t, reg+"/tool/Cargo.toml", "[workspace.package]\nlicense = \"MPL-2.0\"\n")
	writeFile(t, reg+"/tool/part/Cargo.toml", "[package]\nname = \"part\"\nlicense = { workspace = true }\n")
	writeFile(t, reg+"/tool/part/a.rs", text(3, "tool", "MPL-2.0"))
	writeFile(t, reg+"/tool/part/spdx.rs", "// SPDX-License-Identifier: ISC\n"+program(4, 6))
	want["// SPDX-License-Identifier: ISC\n"+program(4, 6)] = [2]string{"tool", "ISC"}
	writeFile(t, reg+"/other/.git", "")
	writeFile(t, reg+"/other/LICENSE", "Permission is hereby granted, free of\ncharge, to any person")
	writeFile(t, reg+"/other/a.rs", text(5, "other", "MIT"))
	writeFile(t, reg+"/other/target/gen.rs", program(90, 6))
	writeFile(t, reg+"/other/.hidden/gen.rs", program(91, 6))
	writeFile(t, reg+"/other/readme.md", program(92, 6))
	require.NoError(t, os.Symlink(reg, reg+"/other/loop"))

	lines := jsonLines(t,
		map[string]any{"path": "vendor/bit-set-0.5.3/src/lib.rs", "text": text(10, "bit-set", "unknown")},
		map[string]any{"content": text(11, "me/repo", "MIT AND ISC"), "repo_name": "me/repo", "license": []string{"MIT", "ISC"}, "size": 3}) + "\n  \n"
	long := jsonLines(t, map[string]any{"text": text(12, "l.jsonl.zst#1", "unknown"), "pad": strings.Repeat("x", 3<<20)})
	p := "compiler/x/src/a.rs"
	rows := []parquetRow{{Content: text(20, "r1", "MIT"), Repo: "r1", Licences: []string{"MIT"}}, {Content: text(21, "compiler/x", "unknown"), Path: &p}}
	require.NoError(t, parquet.WriteFile(filepath.Join(dir, "p.parquet"), rows))

	out := t.TempDir()
	inputs := []string{reg,
		writeFile(t, dir+"/a.jsonl", lines), writeFile(t, dir+"/l.jsonl.zst", zst(t, long)),
		writeFile(t, dir+"/b.jsonl.gz", gz(t, jsonLines(t, map[string]any{"code": text(13, "c", "unknown"), "crate": "c"}))),
		filepath.Join(dir, "p.parquet"), writeFile(t, dir+"/plain.txt", text(30, "plain.txt", "unknown"))}
	m, err := prepare(t, PrepareOptions{Inputs: inputs, Out: out})
	require.NoError(t, err)
	require.Empty(t, m.Dropped)
	groups := map[string]bool{}
	for _, g := range m.Groups {
		groups[g.Name] = true
	}
	licences := map[string]int{}
	for text, w := range want {
		require.Contains(t, texts(t, out, Train, byteTokenizer(t)), text)
		require.True(t, groups[w[0]], "group %s of %v", w[0], groups)
		licences[w[1]]++
	}
	require.Equal(t, len(want), m.Splits[Train].Documents)
	for l, n := range licences {
		require.Equal(t, n, m.Licences[l].Documents, "licence %s in %v", l, m.Licences)
	}
	again, err := ReadManifest(out)
	require.NoError(t, err)
	require.Equal(t, m, again)

	// By crate, the crates of a workspace are groups of their own.
	m, err = prepare(t, PrepareOptions{Inputs: []string{reg}, GroupBy: ByCrate})
	require.NoError(t, err)
	require.True(t, slices.ContainsFunc(m.Groups, func(g Group) bool { return g.Name == "part" && g.Licence == "MPL-2.0; ISC" }), "%v", m.Groups)

	m, err = prepare(t, PrepareOptions{Inputs: []string{reg}, Licences: []string{"mit"}})
	require.NoError(t, err)
	require.Equal(t, 3, m.Splits[Train].Documents)
	require.Equal(t, 2, m.Dropped[ReasonLicence].Documents)
}

// TestPrepareIsDeterministic: the same bytes for any number of threads, and
// nothing left of what was there before.
func TestPrepareIsDeterministic(t *testing.T) {
	in := filepath.Join(t.TempDir(), "a.jsonl")
	var rows []map[string]any
	for i := range 600 {
		rows = append(rows, map[string]any{"text": program(uint64(i%550), 5+i%550%7), "group": fmt.Sprint("g", i%40), "path": fmt.Sprint(i)})
	}
	writeFile(t, in, jsonLines(t, rows...))
	var want map[string]string
	out := t.TempDir()
	for _, threads := range []int{1, 2, 5} {
		m, err := prepare(t, PrepareOptions{Inputs: []string{in}, Out: out, ValFraction: 0.2, Threads: threads, ShardTokens: 20000, Overwrite: true})
		require.NoError(t, err)
		require.Greater(t, len(m.Splits[Train].Shards), 5)
		require.NotZero(t, m.Splits[Val].Documents)
		require.Equal(t, 50, m.Dropped[ReasonExact].Documents+m.Dropped[ReasonNear].Documents)
		got := map[string]string{}
		entries, err := os.ReadDir(out)
		require.NoError(t, err)
		for _, e := range entries {
			b, err := os.ReadFile(filepath.Join(out, e.Name()))
			require.NoError(t, err)
			got[e.Name()] = string(b)
		}
		require.Len(t, got, 1+len(m.Splits[Train].Shards)+len(m.Splits[Val].Shards))
		if want == nil {
			want = got
		}
		require.True(t, equalFiles(want, got), "%d threads", threads)
	}
	// Larger shards leave none of the smaller ones.
	m, err := prepare(t, PrepareOptions{Inputs: []string{in}, Out: out, Overwrite: true})
	require.NoError(t, err)
	require.Len(t, m.Splits, 1)
	entries, err := os.ReadDir(out)
	require.NoError(t, err)
	require.Len(t, entries, 2)
	_, err = prepare(t, PrepareOptions{Inputs: []string{in}, Out: out})
	require.ErrorContains(t, err, "there is prepared data already")
}

func equalFiles(a, b map[string]string) bool {
	for name := range a {
		if a[name] != b[name] {
			return false
		}
	}
	return len(a) == len(b)
}

// TestSplitByGroup: no group is in both splits, the seed chooses, and the share is
// about what was asked for.
func TestSplitByGroup(t *testing.T) {
	var rows []map[string]any
	for i := range 1200 {
		rows = append(rows, map[string]any{"text": program(uint64(i), 3), "group": fmt.Sprint("g", i%400)})
	}
	in := writeFile(t, filepath.Join(t.TempDir(), "a.jsonl"), jsonLines(t, rows...))
	val := map[uint64][]string{}
	for _, seed := range []uint64{0, 1} {
		m, err := prepare(t, PrepareOptions{Inputs: []string{in}, ValFraction: 0.25, Seed: seed})
		require.NoError(t, err)
		require.Len(t, m.Groups, 400)
		for _, g := range m.Groups {
			require.Equal(t, 3, g.Documents)
			if g.Split == Val {
				val[seed] = append(val[seed], g.Name)
			}
		}
		require.InDelta(t, 100, len(val[seed]), 40)
	}
	require.NotEqual(t, val[0], val[1])

	m, err := prepare(t, PrepareOptions{Inputs: []string{in}, ValFraction: 1e-9})
	require.NoError(t, err)
	require.Len(t, m.Warnings, 1)
	require.Contains(t, m.Warnings[0], "the validation split is empty")
}

// TestValInputs: their documents, near copies of them and their groups are not
// trained on.
func TestValInputs(t *testing.T) {
	dir := t.TempDir()
	one := func(text, group string) map[string]any { return map[string]any{"text": text, "group": group} }
	val := writeFile(t, dir+"/val.jsonl", jsonLines(t, one(program(1, 40), "v"), one(program(2, 40), "w")))
	train := writeFile(t, dir+"/train.jsonl", jsonLines(t, one(program(1, 40), "x"), one(program(2, 38)+program(9, 2), "y"),
		one(program(3, 40), "v"), one(program(4, 40), "x")))
	m, err := prepare(t, PrepareOptions{Inputs: []string{train}, ValInputs: []string{val}})
	require.NoError(t, err)
	require.Equal(t, 2, m.Splits[Val].Documents)
	require.Equal(t, 1, m.Splits[Train].Documents)
	for _, reason := range []string{ReasonExact, ReasonNear, ReasonValGroup} {
		require.Equal(t, 1, m.Dropped[reason].Documents, "%s: %v", reason, m.Dropped)
	}
}

func TestEvaluationOverlapIsDropped(t *testing.T) {
	dir := t.TempDir()
	body := "    let mut best = None;\n    for (index, item) in items.iter().enumerate() {\n        if item.weight > limit { best = Some(index); }\n    }\n    best\n"
	eval := writeFile(t, dir+"/eval.jsonl.gz", gz(t, jsonLines(t,
		map[string]any{"task_id": "R/0", "prompt": "/* find the heaviest */", "solution": map[string]any{"code": body}, "n": 3, "tests": []string{"a", "b"}},
		map[string]any{"prompt": "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17"})))
	in := writeFile(t, dir+"/a.jsonl", jsonLines(t,
		map[string]any{"text": program(1, 5) + strings.ToUpper(strings.Join(strings.Fields(body), "\n")) + program(2, 5)},
		map[string]any{"text": program(3, 5) + "let x = [1,2,3,4,5,6,7,8,9,10,11,12,13,14,15];\n"},
		map[string]any{"text": program(4, 5) + body[:60]}))
	m, err := prepare(t, PrepareOptions{Inputs: []string{in}, Evaluation: []string{eval}})
	require.NoError(t, err)
	require.Equal(t, 1, m.Dropped[ReasonEval].Documents)
	require.Equal(t, 2, m.Splits[Train].Documents)
	require.Len(t, m.Warnings, 1) // the list of numbers cannot be looked for
	require.Equal(t, 2, m.Inputs[0].Documents)
}

// TestPrepareErrors: each names the file, the place and what to do.
func TestPrepareErrors(t *testing.T) {
	dir := t.TempDir()
	good := writeFile(t, dir+"/good.jsonl", jsonLines(t, map[string]any{"text": program(1, 9)}))
	require.NoError(t, os.Mkdir(dir+"/empty", 0o777))
	var pq bytes.Buffer
	require.NoError(t, parquet.Write(&pq, []parquetRow{{Content: program(1, 9)}}))
	var wrong bytes.Buffer
	require.NoError(t, parquet.Write(&wrong, []struct{ A int }{{3}}))
	z := zst(t, jsonLines(t, map[string]any{"text": program(1, 900)}))
	for name, c := range map[string]struct{ text, want string }{
		"a.jsonl":     {"{\"text\": \"x\"}\n{\"text\": \n", "a.jsonl: line 2: not a JSON object"},
		"b.jsonl":     {"{\"body\": \"x\"}\n", "line 1: no string in any of the fields"},
		"c.jsonl":     {"", "no documents in it"},
		"d.jsonl.gz":  {"nothing", "the file is damaged"},
		"e.jsonl.zst": {z[:len(z)/2], "the file is damaged"},
		"f.parquet":   {"PAR1 nothing of the kind", "f.parquet"},
		"g.parquet":   {pq.String()[:200], "g.parquet"},
		"h.parquet":   {wrong.String(), `there are ["A"]`},
		"i.rs":        {"fn main() {}\n", "nothing is left to train on of 1 documents; left out: short 1; loosen the filters"},
	} {
		_, err := prepare(t, PrepareOptions{Inputs: []string{writeFile(t, filepath.Join(dir, "bad", name), c.text)}})
		var typed *Error
		require.ErrorAs(t, err, &typed, name)
		require.ErrorContains(t, err, c.want)
		require.NotEmpty(t, typed.Hint, name)
	}
	for want, o := range map[string]PrepareOptions{
		"no inputs":                  {},
		"no such file":               {Inputs: []string{dir + "/none"}},
		"no file below it ends in":   {Inputs: []string{dir + "/empty"}},
		"group by \"x\"":             {Inputs: []string{good}, GroupBy: "x"},
		"a validation fraction of 1": {Inputs: []string{good}, ValFraction: 1},
		"overlaps of 2 words":        {Inputs: []string{good}, NGram: 2},
		"shards of -1 tokens":        {Inputs: []string{good}, ShardTokens: -1},
		"similarity of -1":           {Inputs: []string{good}, Dedup: DedupOptions{Near: -1}},
		"no evaluation documents":    {Inputs: []string{good}, Evaluation: []string{writeFile(t, dir+"/none.jsonl", "\n")}},
		"not JSON":                   {Inputs: []string{good}, Evaluation: []string{writeFile(t, dir+"/bad.jsonl", "{")}},
	} {
		_, err := prepare(t, o)
		var typed *Error
		require.ErrorAs(t, err, &typed, want)
		require.ErrorContains(t, err, want)
	}
	_, err := Open(dir, Train, OpenOptions{})
	require.ErrorContains(t, err, "run nanochat data prepare")
}

// TestDamagedParquet flips bytes of a Parquet file: an error or documents, never a
// panic.
func TestDamagedParquet(t *testing.T) {
	var pq bytes.Buffer
	p := "a/b.rs"
	require.NoError(t, parquet.Write(&pq, []parquetRow{{Content: program(1, 9), Path: &p, Licences: []string{"a", "b"}}, {Content: program(2, 9)}}))
	path := filepath.Join(t.TempDir(), "a.parquet")
	good := pq.Bytes()
	for i := 0; i < len(good); i += 13 {
		b := slices.Clone(good)
		b[i] ^= 0x55
		require.NoError(t, os.WriteFile(path, b, 0o666))
		s := &source{fs: fsx.OS(), maxBytes: -1, yield: func(Document) error { return nil }}
		if err := s.read(t.Context(), path); err != nil {
			var typed *Error
			require.ErrorAs(t, err, &typed, "byte %d", i)
		}
	}
}

// TestPrepareDamage: shards changed or lost after preparing are found when they
// are opened.
func TestPrepareDamage(t *testing.T) {
	dir := t.TempDir()
	in := writeFile(t, dir+"/a.jsonl", jsonLines(t, map[string]any{"text": program(1, 50)}))
	out := filepath.Join(dir, "out")
	m, err := prepare(t, PrepareOptions{Inputs: []string{in}, Out: out})
	require.NoError(t, err)
	shard := filepath.Join(out, m.Splits[Train].Shards[0].File)
	good, err := os.ReadFile(shard)
	require.NoError(t, err)
	for _, b := range [][]byte{append(slices.Clone(good[:len(good)-1]), good[len(good)-1]^1), good[:50], shardBytes(testShard(20))} {
		require.NoError(t, os.WriteFile(shard, b, 0o666))
		_, err = Open(out, Train, OpenOptions{})
		var typed *Error
		require.ErrorAs(t, err, &typed)
		require.Equal(t, shard, typed.Path)
		require.Contains(t, typed.Hint, "nanochat data prepare")
	}
	require.NoError(t, os.Remove(shard))
	_, err = Open(out, Train, OpenOptions{})
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = Open(out, Val, OpenOptions{})
	require.ErrorContains(t, err, `no split "val" with documents; there are ["train"]`)
	for _, text := range []string{"{", `{"version": 9}`, `{"version":1,"splits":{"train":null}}`, `{"version":1,"splits":{"train":{"shards":[{"file":"../x"}]}}}`} {
		writeFile(t, filepath.Join(out, ManifestName), text)
		_, err = Open(out, Train, OpenOptions{})
		var typed *Error
		require.ErrorAs(t, err, &typed)
	}
}

// TestPrepareSurvivesPowerLoss cuts the power during a replacement: afterwards
// there is the old data, the new, or none, but no mixture.
func TestPrepareSurvivesPowerLoss(t *testing.T) {
	run := func(c fsx.FS, seed uint64) (*Manifest, error) {
		return prepare(t, PrepareOptions{Inputs: []string{"in.jsonl"}, Out: "out", Overwrite: true, FS: c, ValFraction: 0.5, Seed: seed, Threads: 1})
	}
	for n := 0; ; n++ {
		c := fsx.NewCrash(uint64(n))
		f, err := fsx.Create(c, "in.jsonl")
		require.NoError(t, err)
		_, err = f.Write([]byte(jsonLines(t, map[string]any{"text": program(1, 9), "group": "a"}, map[string]any{"text": program(2, 9), "group": "b"},
			map[string]any{"text": program(3, 9), "group": "c"}, map[string]any{"text": program(4, 9), "group": "d"})))
		require.NoError(t, err)
		require.NoError(t, f.Close())
		before, err := run(c, 1)
		require.NoError(t, err)
		var after *Manifest
		done := c.StopAfter(n, func() { after, err = run(c, 2) })
		for _, percent := range []int{0, 50, 100} {
			disk := c.AfterPowerLoss(percent, percent)
			b, readErr := fsx.ReadFile(disk, "out/"+ManifestName, 1<<20)
			if readErr != nil {
				require.Nil(t, after)
				continue
			}
			m, parseErr := parseManifest("m", b)
			require.NoError(t, parseErr)
			if m.Settings.Seed == 1 {
				require.Equal(t, before, m)
			}
			for split := range m.Splits {
				for _, s := range m.Splits[split].Shards {
					b, err := fsx.ReadFile(disk, "out/"+s.File, 1<<20)
					require.NoError(t, err)
					sh, err := ParseShard(s.File, b)
					require.NoError(t, err)
					require.NoError(t, sh.Verify())
					require.Equal(t, s.SHA256, fmt.Sprintf("%x", sh.sum))
				}
			}
		}
		if done {
			require.NoError(t, err)
			require.Greater(t, n, 10)
			return
		}
		require.Error(t, err)
	}
}

func TestPrepareEndsWithItsContext(t *testing.T) {
	in := writeFile(t, filepath.Join(t.TempDir(), "a.jsonl"), strings.Repeat(jsonLines(t, map[string]any{"text": program(1, 900)}), 250))
	before := runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(t.Context())
	blocks := 0
	var start time.Time
	_, err := Prepare(ctx, PrepareOptions{Inputs: []string{in}, Out: t.TempDir(), Tokenizer: byteTokenizer(t)}, func(p PrepareProgress) {
		blocks++
		start = time.Now()
		cancel()
	})
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, 1, blocks)
	require.Less(t, time.Since(start), time.Second)
	noMoreGoroutines(t, before)
}

// TestPrepareEveryOperationFails fails each operation on the disk in turn: the
// error is typed, and there is no manifest unless all its shards are there.
func TestPrepareEveryOperationFails(t *testing.T) {
	text := jsonLines(t, map[string]any{"text": program(1, 9), "group": "a"}, map[string]any{"text": program(2, 9), "group": "b"})
	for n := 1; ; n++ {
		c := fsx.NewCrash(1)
		f, err := fsx.Create(c, "in.jsonl")
		require.NoError(t, err)
		_, err = f.Write([]byte(text))
		require.NoError(t, err)
		require.NoError(t, f.Close())
		broken := fsx.NewFault(c, fsx.FaultOptions{FailAt: n, Short: n%2 == 0})
		_, err = prepare(t, PrepareOptions{Inputs: []string{"in.jsonl"}, Out: "a/out", FS: broken, ShardTokens: 1, Threads: 1})
		if err != nil {
			var typed *Error
			require.ErrorAs(t, err, &typed, "operation %d", n)
		}
		if b, readErr := fsx.ReadFile(c, "a/out/"+ManifestName, 1<<20); readErr == nil {
			m, err := parseManifest("m", b)
			require.NoError(t, err)
			for _, s := range m.Splits[Train].Shards {
				b, err := fsx.ReadFile(c, "a/out/"+s.File, 1<<20)
				require.NoError(t, err)
				sh, err := ParseShard(s.File, b)
				require.NoError(t, err)
				require.NoError(t, sh.Verify())
			}
		} else {
			require.Error(t, err, "operation %d", n)
		}
		if !broken.Failed() {
			require.NoError(t, err)
			require.Greater(t, n, 20)
			return
		}
	}
}

// Example prepares a file, opens what came of it and takes a batch.
func Example() {
	dir, err := os.MkdirTemp("", "data")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	in := filepath.Join(dir, "corpus.jsonl")
	line, _ := json.Marshal(map[string]string{"path": "vendor/a-1.0.0/src/lib.rs", "text": program(1, 20), "license": "MIT"})
	if err := os.WriteFile(in, line, 0o666); err != nil {
		panic(err)
	}
	tok, _ := tokenizer.NewByteLevel(tokenizer.MinVocab)
	out := filepath.Join(dir, "tokens")
	m, err := Prepare(context.Background(), PrepareOptions{Inputs: []string{in}, Out: out, Tokenizer: tok}, nil)
	if err != nil {
		panic(err)
	}
	fmt.Println(m.Groups[0].Name, m.Groups[0].Licence, m.Splits[Train].Documents)

	d, err := Open(out, Train, OpenOptions{})
	if err != nil {
		panic(err)
	}
	defer d.Close()
	l, err := NewLoader(d, LoaderOptions{Rows: 2, SeqLen: 64, Seed: 1})
	if err != nil {
		panic(err)
	}
	defer l.Close()
	b, err := l.Next(context.Background())
	if err != nil {
		panic(err)
	}
	fmt.Println(len(b.Tokens), len(b.Targets), b.Count, b.Epoch, l.Cursor().Row)
	// Output:
	// a MIT 1
	// 128 128 128 0 2
}
