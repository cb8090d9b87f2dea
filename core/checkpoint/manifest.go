package checkpoint

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/architehc/nanochat/core/internal/fsx"
)

// The files of a checkpoint.
const (
	manifestName  = "MANIFEST"
	weightsName   = "weights.safetensors"
	optimizerName = "optimizer.safetensors"
	stateName     = "state.json"
	keepName      = "KEEP"
	latestName    = "LATEST"
)

// fileNames is those that MANIFEST lists, in its order.
var fileNames = []string{weightsName, optimizerName, stateName}

// magic is the first line of MANIFEST.
const magic = "nanochat checkpoint 1"

// maxManifest is the most bytes a MANIFEST may have.
const maxManifest = 1 << 16

// Error reports a file that makes a checkpoint unusable.
type Error struct {
	// Path is the file or directory.
	Path string
	// What was found and what was expected.
	What string
	// Err is the cause, if there is one.
	Err error
}

// Error returns "checkpoint: PATH: WHAT: ERR" without the empty parts.
func (e *Error) Error() string {
	s := "checkpoint: " + e.Path + ": " + e.What
	if e.Err != nil {
		s = strings.TrimSuffix(s, ": ") + ": " + e.Err.Error()
	}
	return s
}

// Unwrap is the cause.
func (e *Error) Unwrap() error { return e.Err }

// manifest is what MANIFEST says.
type manifest struct {
	step, sequence int
	score          float64 // NaN: none
	files          [3]fileInfo
}

type fileInfo struct {
	size int64
	sum  [sha256.Size]byte
}

// bytes is the size of the files.
func (m *manifest) bytes() (n int64) {
	for _, f := range m.files {
		n += f.size
	}
	return n
}

// text is the contents of MANIFEST.
func (m *manifest) text() []byte {
	var b bytes.Buffer
	score := "none"
	if m.score == m.score {
		score = strconv.FormatFloat(m.score, 'g', -1, 64)
	}
	fmt.Fprintf(&b, "%s\nstep %d\nsequence %d\nscore %s\n", magic, m.step, m.sequence, score)
	for i, f := range m.files {
		fmt.Fprintf(&b, "file %s %d %x\n", fileNames[i], f.size, f.sum)
	}
	return seal(&b)
}

// seal ends the text of a file with the SHA-256 of what stands before.
func seal(b *bytes.Buffer) []byte {
	fmt.Fprintf(b, "sha256 %x\n", sha256.Sum256(b.Bytes()))
	return b.Bytes()
}

// unseal is the text that seal ended, which has to begin with a line; what is "" or says what is wrong.
func unseal(b []byte, first string) (body, what string) {
	const tail = len("sha256 ") + 2*sha256.Size + 1
	if len(b) < tail || !bytes.HasPrefix(b, []byte(first+"\n")) {
		return "", fmt.Sprintf("%d bytes, expected to begin with %q", len(b), first)
	}
	text, last := b[:len(b)-tail], string(b[len(b)-tail:])
	if want := fmt.Sprintf("sha256 %x\n", sha256.Sum256(text)); last != want {
		return "", fmt.Sprintf("ends in %q, expected %q: it was changed or cut short", strings.TrimSpace(last), strings.TrimSpace(want))
	}
	return string(text), ""
}

// parseManifest reads what text wrote. It has one way to be written, so that a
// change of any byte is found.
func parseManifest(b []byte) (*manifest, string) {
	body, what := unseal(b, magic)
	if what != "" {
		return nil, what
	}
	m := &manifest{score: math.NaN()}
	bad := func(line int, want string) (*manifest, string) {
		return nil, fmt.Sprintf("line %d: expected %s", line, want)
	}
	lines := strings.Split(body, "\n")
	if len(lines) != 5+len(fileNames) || lines[len(lines)-1] != "" {
		return nil, fmt.Sprintf("%d lines, expected %d", len(lines), 5+len(fileNames))
	}
	number := func(line, word string) (int, bool) {
		rest, ok := strings.CutPrefix(line, word+" ")
		n, err := strconv.Atoi(rest)
		return n, ok && err == nil && n >= 0
	}
	var ok bool
	if m.step, ok = number(lines[1], "step"); !ok {
		return bad(2, "\"step N\"")
	}
	if m.sequence, ok = number(lines[2], "sequence"); !ok {
		return bad(3, "\"sequence N\"")
	}
	switch rest, ok := strings.CutPrefix(lines[3], "score "); {
	case !ok:
		return bad(4, "\"score X\" or \"score none\"")
	case rest != "none":
		var err error
		if m.score, err = strconv.ParseFloat(rest, 64); err != nil || m.score-m.score != 0 {
			return bad(4, "\"score X\" or \"score none\"")
		}
	}
	for i := range m.files {
		f := strings.Split(lines[4+i], " ")
		want := "\"file " + fileNames[i] + " SIZE SHA-256\""
		if len(f) != 4 || f[0] != "file" || f[1] != fileNames[i] {
			return bad(5+i, want)
		}
		size, err := strconv.ParseInt(f[2], 10, 64)
		sum, err2 := hex.DecodeString(f[3])
		if err != nil || err2 != nil || size < 0 || len(sum) != sha256.Size {
			return bad(5+i, want)
		}
		m.files[i].size = size
		copy(m.files[i].sum[:], sum)
	}
	if !bytes.Equal(m.text(), b) {
		return nil, "a number is not written as it should be"
	}
	return m, ""
}

// readManifest reads MANIFEST of the checkpoint at path.
func readManifest(fsys fsx.FS, path string) (*manifest, error) {
	name := filepath.Join(path, manifestName)
	b, err := fsx.ReadFile(fsys, name, maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &Error{Path: name, What: "is missing; this is no complete checkpoint"}
	}
	if err != nil {
		return nil, &Error{Path: name, What: "cannot be read", Err: err}
	}
	m, what := parseManifest(b)
	if m == nil {
		return nil, &Error{Path: name, What: what}
	}
	return m, nil
}

// checkSizes compares the sizes of the files with MANIFEST.
func (m *manifest) checkSizes(fsys fsx.FS, path string) error {
	for i, want := range m.files {
		name := filepath.Join(path, fileNames[i])
		info, err := fsys.Stat(name)
		if err != nil {
			return &Error{Path: name, Err: err}
		}
		if err := checkSize(name, info, want.size); err != nil {
			return err
		}
	}
	return nil
}

func checkSize(name string, info fs.FileInfo, want int64) error {
	if info.IsDir() || info.Size() != want {
		return &Error{Path: name, What: fmt.Sprintf("has %d bytes, expected %d", info.Size(), want)}
	}
	return nil
}

// verify compares all of a checkpoint with its MANIFEST.
func verify(fsys fsx.FS, path string) error {
	m, err := readManifest(fsys, path)
	if err != nil {
		return err
	}
	if err := m.checkSizes(fsys, path); err != nil { // the quick look first
		return err
	}
	for i := range m.files {
		f, _, err := m.open(fsys, path, i)
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return &Error{Path: filepath.Join(path, fileNames[i]), Err: err}
		}
	}
	return nil
}

// open opens file i after comparing its contents with MANIFEST.
func (m *manifest) open(fsys fsx.FS, path string, i int) (fsx.File, int64, error) {
	name := filepath.Join(path, fileNames[i])
	f, err := fsys.Open(name)
	if err != nil {
		return nil, 0, &Error{Path: name, Err: err}
	}
	if err := m.files[i].compare(name, f, nil); err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, m.files[i].size, nil
}

// compare reads all of f, passes it on to w if that is not nil, and says how it differs.
func (want fileInfo) compare(name string, f fsx.File, w io.Writer) error {
	info, err := f.Stat()
	if err != nil {
		return &Error{Path: name, Err: err}
	}
	if err := checkSize(name, info, want.size); err != nil {
		return err
	}
	h := sha256.New()
	out := io.Writer(h)
	if w != nil {
		out = io.MultiWriter(h, w)
	}
	n, err := io.CopyBuffer(out, io.NewSectionReader(f, 0, want.size), make([]byte, 1<<18))
	switch sum := h.Sum(nil); {
	case err != nil:
		return &Error{Path: name, What: fmt.Sprintf("cannot be read at byte %d", n), Err: err}
	case n != want.size:
		return &Error{Path: name, What: fmt.Sprintf("ends at byte %d, expected %d", n, want.size)}
	case !bytes.Equal(sum, want.sum[:]):
		return &Error{Path: name, What: fmt.Sprintf("its SHA-256 is %x, expected %x: it was changed after it was written", sum, want.sum)}
	}
	return nil
}
