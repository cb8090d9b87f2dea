package data

import (
	"encoding/hex"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"github.com/architehc/nanochat/core/internal/fsx"
)

// keep adds a document to its shard.
func (p *preparer) keep(e *entry) error {
	b := p.builders[e.split]
	if b == nil {
		b = &shardBuilder{vocab: &p.vocab}
		p.builders[e.split] = b
		p.manifest.Splits[e.split] = &Split{}
	}
	b.add(e.ids, len(e.Text))
	p.done.Kept++
	p.done.Tokens += int64(len(e.ids))
	licence := e.Licence
	if licence == "" {
		licence = "unknown"
	}
	c := p.manifest.Licences[licence]
	c.add(len(e.Text))
	p.manifest.Licences[licence] = c
	key := e.split + "\n" + e.Group
	g := p.groups[key]
	if g == nil {
		g = &Group{Name: e.Group, Split: e.split, Licence: licence}
		p.groups[key] = g
	}
	if !slices.Contains(strings.Split(g.Licence, "; "), licence) {
		g.Licence += "; " + licence
	}
	g.Documents++
	g.Bytes += int64(len(e.Text))
	if b.count >= uint64(p.o.ShardTokens) {
		return p.flush(e.split)
	}
	return nil
}

// flush writes the shard of a split that is being filled.
func (p *preparer) flush(split string) error {
	b, s := p.builders[split], p.manifest.Splits[split]
	info := ShardInfo{File: fmt.Sprintf("%s-%05d.shard", split, len(s.Shards)), Documents: int(b.docs), Tokens: int64(b.count), Bytes: int64(b.text)}
	sum, err := b.write(p.o.FS, filepath.Join(p.o.Out, info.File))
	if err != nil {
		return err
	}
	info.SHA256 = hex.EncodeToString(sum[:])
	s.Shards = append(s.Shards, info)
	s.Documents += info.Documents
	s.Tokens += info.Tokens
	s.Bytes += info.Bytes
	b.reset()
	return nil
}

// finish writes the last shards and the manifest, and removes shards of data that
// was replaced.
func (p *preparer) finish() (*Manifest, error) {
	m := p.manifest
	for _, split := range []string{Train, Val} {
		if b := p.builders[split]; b != nil && b.docs > 0 {
			if err := p.flush(split); err != nil {
				return nil, err
			}
		}
	}
	if m.Splits[Train] == nil {
		var reasons []string
		for reason, c := range m.Dropped {
			reasons = append(reasons, fmt.Sprintf("%s %d", reason, c.Documents))
		}
		sort.Strings(reasons)
		return nil, &Error{Path: p.o.Out, What: fmt.Sprintf("nothing is left to train on of %d documents; left out: %s", p.done.Documents, strings.Join(reasons, ", ")),
			Hint: "loosen the filters, or lower the validation fraction"}
	}
	if m.Splits[Val] == nil && (p.o.ValFraction > 0 || len(p.o.ValInputs) > 0) {
		p.warn("the validation split is empty: there are %d groups; raise the validation fraction, group by crate, or give validation inputs", len(p.groups))
	}
	for _, g := range p.groups {
		m.Groups = append(m.Groups, *g)
	}
	sort.Slice(m.Groups, func(i, j int) bool {
		a, b := &m.Groups[i], &m.Groups[j]
		return a.Name < b.Name || a.Name == b.Name && a.Split < b.Split
	})
	text, err := m.encode()
	path := filepath.Join(p.o.Out, ManifestName)
	if err == nil {
		err = fsx.WriteAtomic(p.o.FS, path, func(w io.Writer) error {
			_, err := w.Write(text)
			return err
		})
	}
	if err != nil {
		return nil, fileError(path, err, "make room on the disk or choose another directory, then run the command again")
	}
	return m, p.removeOld()
}

// removeOld removes shards that the manifest does not list.
func (p *preparer) removeOld() error {
	known := map[string]bool{}
	for _, s := range p.manifest.Splits {
		for _, i := range s.Shards {
			known[i.File] = true
		}
	}
	entries, err := p.o.FS.ReadDir(p.o.Out)
	if err != nil {
		return fileError(p.o.Out, err, "check its permissions")
	}
	for _, e := range entries {
		n := e.Name()
		if !strings.HasSuffix(n, ".shard") || known[n] || !strings.HasPrefix(n, Train+"-") && !strings.HasPrefix(n, Val+"-") {
			continue
		}
		if err := p.o.FS.Remove(filepath.Join(p.o.Out, n)); err != nil {
			return fileError(n, err, "remove it by hand")
		}
	}
	return nil
}
