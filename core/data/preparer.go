package data

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"path/filepath"
	"sync"

	"github.com/architehc/nanochat/core/internal/fsx"
	"github.com/architehc/nanochat/core/tokenizer"
)

// A preparer is the state of one Prepare.
type preparer struct {
	o         PrepareOptions
	progress  func(PrepareProgress)
	done      PrepareProgress
	manifest  *Manifest
	vocab     Vocabulary
	overlap   *overlap
	dedup     *dedup
	hashers   []*hasher
	words     [][]uint64 // memory of each thread
	builders  map[string]*shardBuilder
	groups    map[string]*Group
	valGroups map[string]bool // of ValInputs
}

func newPreparer(o PrepareOptions, progress func(PrepareProgress)) *preparer {
	p := &preparer{o: o, progress: progress, vocab: NewVocabulary(o.Tokenizer), overlap: newOverlap(o.NGram), dedup: newDedup(o.Dedup),
		builders: map[string]*shardBuilder{}, groups: map[string]*Group{}, valGroups: map[string]bool{}, words: make([][]uint64, o.Threads)}
	for range o.Threads {
		p.hashers = append(p.hashers, newHasher())
	}
	p.manifest = &Manifest{
		Version:   manifestVersion,
		Tokenizer: TokenizerInfo{SHA256: hex.EncodeToString(p.vocab.Hash[:]), Vocab: len(p.vocab.Bytes)},
		Settings: Settings{Seed: o.Seed, ValFraction: o.ValFraction, GroupBy: o.GroupBy, Extensions: o.Extensions, Licences: o.Licences,
			Filter: o.Filter, Dedup: o.Dedup, NGram: o.NGram, ShardTokens: o.ShardTokens},
		Splits: map[string]*Split{}, Dropped: map[string]Count{}, Licences: map[string]Count{},
	}
	return p
}

// clear makes the directory and removes the manifest of data that is replaced.
func (p *preparer) clear() error {
	path := filepath.Join(p.o.Out, ManifestName)
	if err := makeDir(p.o.FS, p.o.Out); err != nil {
		return fileError(p.o.Out, err, "choose a directory that can be written")
	}
	_, err := p.o.FS.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fileError(path, err, "check its permissions")
	}
	if !p.o.Overwrite {
		return &Error{Path: path, What: "there is prepared data already", Hint: "choose another directory or ask to overwrite"}
	}
	if err = p.o.FS.Remove(path); err == nil {
		err = p.o.FS.SyncDir(p.o.Out)
	}
	if err != nil {
		return fileError(path, err, "check its permissions")
	}
	return nil
}

// makeDir makes a directory and its parents so that they survive a loss of power.
func makeDir(fsys fsx.FS, dir string) error {
	if _, err := fsys.Stat(dir); err == nil {
		return nil
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := makeDir(fsys, parent); err != nil {
			return err
		}
	}
	if err := fsys.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	return fsys.SyncDir(parent)
}

// learn enters an evaluation file.
func (p *preparer) learn(ctx context.Context, in string) error {
	info := InputInfo{Path: in, Use: "evaluation"}
	digest := sha256.New()
	before := p.overlap.short
	err := p.readEvaluation(ctx, in, func(d Document) error {
		p.overlap.learn(d.Text)
		count(&info, digest, &d)
		return nil
	})
	if err != nil {
		return err
	}
	if info.Documents == 0 {
		return &Error{Path: in, What: "no evaluation documents in it", Hint: "check the path"}
	}
	if n := p.overlap.short - before; n > 0 {
		p.warn("%s: %d of %d documents have no %d words in a row that tell them apart; copies of them are not found", in, n, info.Documents, p.o.NGram)
	}
	p.finishInput(&info, digest)
	return nil
}

// count adds a document to what is said of its input.
func count(info *InputInfo, digest hash.Hash, d *Document) {
	info.Documents++
	info.Bytes += int64(max(len(d.Text), d.size))
	fmt.Fprintf(digest, "%d %d %d\n", len(d.Path), len(d.Text), d.size)
	io.WriteString(digest, d.Path)
	io.WriteString(digest, d.Text)
}

func (p *preparer) finishInput(info *InputInfo, digest hash.Hash) {
	info.SHA256 = hex.EncodeToString(digest.Sum(nil))
	p.manifest.Inputs = append(p.manifest.Inputs, *info)
}

func (p *preparer) warn(format string, args ...any) {
	p.manifest.Warnings = append(p.manifest.Warnings, fmt.Sprintf(format, args...))
}

// Documents are handled in blocks: one is read while the one before is worked on.
const (
	blockDocs  = 2048
	blockBytes = 8 << 20
)

type entry struct {
	Document
	reason string
	sign   signature
	split  string
	ids    []int32
}

// input reads one input and adds what is kept of it to the shards.
func (p *preparer) input(ctx context.Context, in, use string) error {
	ctx, cancel := context.WithCancel(ctx)
	blocks := make(chan []entry, 1)
	info := InputInfo{Path: in, Use: use}
	digest := sha256.New()
	var readErr error
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		defer close(blocks)
		defer func() {
			if r := recover(); r != nil {
				readErr = &Error{Path: in, What: fmt.Sprintf("reading failed: %v", r)}
			}
		}()
		var block []entry
		size := 0
		send := func() error {
			select {
			case blocks <- block:
				block, size = nil, 0
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		readErr = p.source(func(d Document) error {
			count(&info, digest, &d)
			block = append(block, entry{Document: d})
			if size += len(d.Text); len(block) >= blockDocs || size >= blockBytes {
				return send()
			}
			return nil
		}).read(ctx, in)
		if readErr == nil {
			readErr = send()
		}
	}()
	var err error
	for block := range blocks {
		if err = p.block(ctx, block, use); err != nil {
			break
		}
	}
	cancel()
	wg.Wait()
	if err == nil {
		err = readErr
	}
	if err != nil {
		return err
	}
	if info.Documents == 0 {
		return &Error{Path: in, What: "no documents in it", Hint: "check the path"}
	}
	p.finishInput(&info, digest)
	return nil
}

func (p *preparer) source(yield func(Document) error) *source {
	return &source{fs: p.o.FS, extensions: p.o.Extensions, groupBy: p.o.GroupBy, maxBytes: p.o.Filter.MaxBytes, yield: yield}
}

// block decides about documents and tokenises those that are kept. Only what
// depends on earlier documents is done in order, by one goroutine.
func (p *preparer) block(ctx context.Context, block []entry, use string) error {
	if err := p.each(ctx, block, p.examine); err != nil {
		return err
	}
	for i := range block {
		e := &block[i]
		if use == Val {
			p.valGroups[e.Group] = true
		}
		if e.reason == "" {
			e.split = p.split(e.Group, use)
			if use == Train && p.valGroups[e.Group] {
				e.reason = ReasonValGroup
			} else {
				e.reason = p.dedup.reject(&e.sign)
			}
		}
		p.done.Documents++
		p.done.Bytes += int64(max(len(e.Text), e.size))
		if e.reason != "" {
			c := p.manifest.Dropped[e.reason]
			c.add(max(len(e.Text), e.size))
			p.manifest.Dropped[e.reason] = c
		}
	}
	if err := p.each(ctx, block, p.encode); err != nil {
		return err
	}
	for i := range block {
		if block[i].reason == "" {
			if err := p.keep(&block[i]); err != nil {
				return err
			}
		}
	}
	if p.progress != nil {
		p.progress(p.done)
	}
	return nil
}

// each calls f for every entry, in several goroutines.
func (p *preparer) each(ctx context.Context, block []entry, f func(thread int, e *entry)) error {
	var mu sync.Mutex
	var failed error
	next := 0
	take := func() int {
		mu.Lock()
		defer mu.Unlock()
		if failed != nil || ctx.Err() != nil || next >= len(block) {
			return -1
		}
		next++
		return next - 1
	}
	one := func(thread, i int) {
		defer func() {
			if r := recover(); r != nil {
				mu.Lock()
				failed = &Error{Path: block[i].Path, What: fmt.Sprintf("examining the document failed: %v", r)}
				mu.Unlock()
			}
		}()
		f(thread, &block[i])
	}
	var wg sync.WaitGroup
	for t := range p.o.Threads {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := take(); i >= 0; i = take() {
				one(t, i)
			}
		}()
	}
	wg.Wait()
	if failed != nil {
		return failed
	}
	return ctx.Err()
}

// examine is what can be said of a document by itself.
func (p *preparer) examine(thread int, e *entry) {
	switch {
	case e.long:
		e.reason = ReasonLong
	case len(p.o.Licences) > 0 && !permitted(e.Licence, p.o.Licences):
		e.reason = ReasonLicence
	default:
		e.reason = p.o.Filter.reject(e.Text)
	}
	if e.reason != "" {
		return
	}
	var hit bool
	if hit, p.words[thread] = p.overlap.found(e.Text, p.words[thread]); hit {
		e.reason = ReasonEval
		return
	}
	if !p.o.Dedup.Off {
		e.sign = p.hashers[thread].sign(e.Text)
	}
}

func (p *preparer) encode(_ int, e *entry) {
	if e.reason == "" {
		e.ids = p.o.Tokenizer.Encode(make([]int32, 0, len(e.Text)/3+8), e.Text, tokenizer.EncodeOptions{})
	}
}

// split chooses the split of a group: a number in [0, 1) made of its name and the
// seed, compared with ValFraction.
func (p *preparer) split(group, use string) string {
	if use == Val {
		return Val
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%d\n%s", p.o.Seed, group))
	var x uint64
	for _, b := range sum[:8] {
		x = x<<8 | uint64(b)
	}
	if float64(x>>11)/(1<<53) < p.o.ValFraction {
		return Val
	}
	return Train
}
