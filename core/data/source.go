package data

import (
	"bufio"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/architehc/nanochat/core/internal/fsx"
)

// Document is one text and where it came from.
type Document struct {
	Text string
	// Path is its name within its input.
	Path string
	// Group is the crate or repository it belongs to. All of a group is in one split.
	Group string
	// Licence is an SPDX expression, or "" if none was found.
	Licence string
	// long says that the text was too long to be read and is empty. size is then
	// its length.
	long bool
	size int
}

// maxLine is the longest line of a JSON-lines file, in bytes.
const maxLine = 1 << 28

// A source reads the documents of one input.
type source struct {
	fs         fsx.FS
	extensions []string
	groupBy    string
	maxBytes   int  // longer files are not read whole; below 0: no limit
	allStrings bool // of JSON lines, all strings make the text
	yield      func(Document) error
}

// read reads an input by its kind: a directory, or a file by its name. Errors are
// of type *Error or those of yield.
func (s *source) read(ctx context.Context, name string) error {
	info, err := s.fs.Stat(name)
	if err != nil {
		return fileError(name, err, "check the path")
	}
	if info.IsDir() {
		w := walk{source: s, root: filepath.Clean(name)}
		found, err := w.dir(ctx, w.root, project{})
		if err == nil && found == 0 {
			return &Error{Path: name, What: fmt.Sprintf("no file below it ends in one of %q", s.extensions),
				Hint: "name the extensions wanted; give .jsonl, .zst and .parquet files by their own names"}
		}
		return err
	}
	if !info.Mode().IsRegular() {
		return &Error{Path: name, What: "is neither a file nor a directory"}
	}
	f, err := s.fs.Open(name)
	if err != nil {
		return fileError(name, err, "check the path and its permissions")
	}
	defer f.Close()
	lower := strings.ToLower(name)
	if strings.HasSuffix(lower, ".parquet") {
		return s.parquet(ctx, name, f, info.Size())
	}
	var r io.Reader = f
	switch inner := strings.TrimSuffix(strings.TrimSuffix(lower, ".zst"), ".gz"); {
	case strings.HasSuffix(lower, ".zst"):
		z, err := zstd.NewReader(f, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(1<<30))
		if err != nil {
			return fileError(name, err, "the file is damaged; fetch it again")
		}
		defer z.Close()
		r, lower = z, inner
	case strings.HasSuffix(lower, ".gz"):
		z, err := gzip.NewReader(f)
		if err != nil {
			return fileError(name, err, "the file is damaged; fetch it again")
		}
		r, lower = z, inner
	}
	if strings.HasSuffix(lower, ".jsonl") || strings.HasSuffix(lower, ".ndjson") {
		if s.allStrings {
			return s.jsonStrings(ctx, name, r)
		}
		return s.jsonLines(ctx, name, r)
	}
	return s.plain(ctx, name, r)
}

// eachLine calls f with every line of r and its number, without the line break.
// The line is valid until f returns.
func eachLine(ctx context.Context, name string, r io.Reader, f func(n int, line []byte) error) error {
	br := bufio.NewReaderSize(r, 1<<20)
	var long []byte
	for n := 1; ; n++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		line, err := br.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			long = long[:0]
			for errors.Is(err, bufio.ErrBufferFull) {
				if long = append(long, line...); len(long) > maxLine {
					return &Error{Path: name, Place: fmt.Sprintf("line %d", n), What: fmt.Sprintf("longer than %d bytes", maxLine), Hint: "is this a JSON-lines file?"}
				}
				line, err = br.ReadSlice('\n')
			}
			long = append(long, line...)
			line = long
		}
		if err != nil && err != io.EOF {
			return &Error{Path: name, Place: fmt.Sprintf("line %d", n), What: err.Error(), Hint: "the file is damaged; fetch it again", Err: err}
		}
		if len(line) > 0 {
			if e := f(n, line); e != nil {
				return e
			}
		}
		if err == io.EOF {
			return nil
		}
	}
}

// The names that fields and columns go by, the preferred first.
var (
	textFields    = []string{"text", "content", "code"}
	pathFields    = []string{"path", "file_path", "max_stars_repo_path", "file_name", "filename"}
	groupFields   = []string{"group", "crate", "repo", "repo_name", "repository", "repository_name", "max_stars_repo_name"}
	licenceFields = []string{"licence", "license", "max_stars_repo_licenses", "licenses", "licences"}
)

// jsonLines reads an object a line. Invalid UTF-8 in a line stays in the text, so
// that it is counted there.
func (s *source) jsonLines(ctx context.Context, name string, r io.Reader) error {
	return eachLine(ctx, name, r, func(n int, line []byte) error {
		if len(strings.TrimSpace(string(line[:min(len(line), 8)]))) == 0 && strings.TrimSpace(string(line)) == "" {
			return nil
		}
		place := fmt.Sprintf("line %d", n)
		var fields map[string]json.RawMessage
		if err := json.Unmarshal(line, &fields); err != nil {
			return &Error{Path: name, Place: place, What: "not a JSON object: " + err.Error(), Hint: "correct or remove the line", Err: err}
		}
		text, ok := firstString(fields, textFields)
		if !ok {
			return &Error{Path: name, Place: place, What: fmt.Sprintf("no string in any of the fields %q", textFields), Hint: "rename the field that holds the text"}
		}
		if invalidUTF8(fields, textFields) {
			text += "\xff" // the decoder has put U+FFFD in its place
		}
		d := Document{Text: text}
		d.Path, _ = firstString(fields, pathFields)
		d.Group, _ = firstString(fields, groupFields)
		d.Licence, _ = firstString(fields, licenceFields)
		if d.Path == "" {
			d.Path = fmt.Sprintf("%s#%d", filepath.Base(name), n)
		}
		if d.Group == "" {
			d.Group = groupOfPath(d.Path)
		}
		return s.yield(d)
	})
}

// plain reads a text file. One that is too long is cut at line breaks.
func (s *source) plain(ctx context.Context, name string, r io.Reader) error {
	base := filepath.Base(name)
	part := 0
	var text []byte
	give := func(last bool) error {
		if len(text) == 0 {
			return nil
		}
		d := Document{Text: string(text), Path: base, Group: base}
		if part++; part > 1 || !last {
			d.Path = fmt.Sprintf("%s#%d", base, part)
		}
		text = text[:0]
		return s.yield(d)
	}
	err := eachLine(ctx, name, r, func(_ int, line []byte) error {
		if s.maxBytes >= 0 && len(text) > 0 && len(text)+len(line) > s.maxBytes {
			if err := give(false); err != nil {
				return err
			}
		}
		text = append(text, line...)
		return nil
	})
	if err != nil {
		return err
	}
	return give(true)
}

// A walk reads a directory tree.
type walk struct {
	*source
	root string
}

// dir reads a directory and what is below it, in the order of names. p is the
// project it belongs to. Hidden directories, links, and directories of build
// results and installed packages are left out.
func (w *walk) dir(ctx context.Context, dir string, p project) (found int, err error) {
	if err := ctx.Err(); err != nil {
		return found, err
	}
	entries, err := w.fs.ReadDir(dir)
	if err != nil {
		return found, fileError(dir, err, "check its permissions")
	}
	p = w.enter(dir, entries, p)
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		switch {
		case strings.HasPrefix(e.Name(), "."):
		case e.IsDir():
			if e.Name() == "target" || e.Name() == "node_modules" || e.Name() == "__pycache__" {
				continue
			}
			n, err := w.dir(ctx, name, p)
			found += n
			if err != nil {
				return found, err
			}
		case e.Type().IsRegular() && w.wanted(e.Name()):
			if err := w.file(name, p); err != nil {
				return found, err
			}
			found++
		}
	}
	return found, nil
}

func (w *walk) wanted(name string) bool {
	for _, ext := range w.extensions {
		if strings.HasSuffix(name, ext) {
			return true
		}
	}
	return false
}

func (w *walk) file(name string, p project) error {
	rel, err := filepath.Rel(w.root, name)
	if err != nil {
		return fileError(name, err, "")
	}
	rel = path.Join(filepath.ToSlash(filepath.Base(w.root)), filepath.ToSlash(rel))
	d := Document{Path: rel, Group: p.name, Licence: p.licence}
	if d.Group == "" {
		d.Group = groupOfPath(rel)
	}
	info, err := w.fs.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // removed meanwhile
	}
	if err != nil {
		return fileError(name, err, "check its permissions")
	}
	if w.maxBytes >= 0 && info.Size() > int64(w.maxBytes) {
		d.long, d.size = true, int(info.Size())
		return w.yield(d)
	}
	b, err := fsx.ReadFile(w.fs, name, info.Size()+1<<20)
	if err != nil {
		return fileError(name, err, "check its permissions")
	}
	d.Text = string(b)
	if own := spdxTag(d.Text); own != "" {
		d.Licence = own
	}
	return w.yield(d)
}
