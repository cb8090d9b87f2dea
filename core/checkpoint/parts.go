package checkpoint

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/architehc/nanochat/core/internal/fsx"
)

// partsName is the manifest of a directory of parts.
const partsName = "PARTS"

// partsMagic is its first line.
const partsMagic = "nanochat parts 1"

// maxParts is the most bytes that it may have, and MinPart the least size of a part.
const (
	maxParts = 1 << 22
	MinPart  = 1 << 12
)

var (
	partName = regexp.MustCompile(`^part-\d{4,}$`)
	// joinable are the files that parts may hold, by their paths in the directory of a run.
	joinable = regexp.MustCompile(`^(checkpoints/step-\d{8,}(\.\d+)?/(MANIFEST|KEEP|weights\.safetensors|optimizer\.safetensors|state\.json)|config\.toml|metrics\.jsonl|best\.gguf|model\.gguf)$`)
)

// Parts is a checkpoint, with what belongs to its run, cut into numbered files: part-0001
// and so on are the bytes of all Files one after the other.
type Parts struct {
	// Step is that of the checkpoint, Checkpoint its path in the directory of the run, with
	// slashes.
	Step       int    `json:"step"`
	Checkpoint string `json:"checkpoint"`
	// Size is the most bytes of a part.
	Size  int64  `json:"size"`
	Files []Part `json:"files"`
	Parts []Part `json:"parts"`
}

// Part is a file by its name, size and contents.
type Part struct {
	Name   string `json:"name"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// Bytes is the size of all files together.
func (p *Parts) Bytes() (n int64) {
	for _, f := range p.Files {
		n += f.Bytes
	}
	return n
}

// text is the contents of PARTS.
func (p *Parts) text() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\nstep %d\ncheckpoint %s\nsize %d\n", partsMagic, p.Step, p.Checkpoint, p.Size)
	for _, f := range p.Files {
		fmt.Fprintf(&b, "file %s %d %s\n", f.Name, f.Bytes, f.SHA256)
	}
	for _, f := range p.Parts {
		fmt.Fprintf(&b, "part %s %d %s\n", f.Name, f.Bytes, f.SHA256)
	}
	return seal(&b)
}

// parseParts reads what text wrote; what is "" or says what is wrong.
func parseParts(b []byte) (p *Parts, what string) {
	body, what := unseal(b, partsMagic)
	if what != "" {
		return nil, what
	}
	p = &Parts{}
	for i, line := range strings.Split(strings.TrimSuffix(body, "\n"), "\n") {
		f := strings.Split(line, " ")
		number := func(at int) int64 {
			n, err := strconv.ParseInt(f[at], 10, 64)
			if err != nil || n < 0 {
				what = fmt.Sprintf("line %d: %q is no size", i+1, f[at])
			}
			return n
		}
		switch {
		case i == 0:
		case i == 1 && len(f) == 2 && f[0] == "step":
			p.Step = int(number(1))
		case i == 2 && len(f) == 2 && f[0] == "checkpoint":
			p.Checkpoint = f[1]
		case i == 3 && len(f) == 2 && f[0] == "size":
			p.Size = number(1)
		case i > 3 && len(f) == 4 && (f[0] == "file" || f[0] == "part"):
			x := Part{f[1], number(2), f[3]}
			if sum, err := hex.DecodeString(x.SHA256); err != nil || len(sum) != sha256.Size {
				what = fmt.Sprintf("line %d: %q is no SHA-256", i+1, x.SHA256)
			}
			if f[0] == "file" {
				p.Files = append(p.Files, x)
			} else {
				p.Parts = append(p.Parts, x)
			}
		default:
			what = fmt.Sprintf("line %d is not one of such a file", i+1)
		}
		if what != "" {
			return nil, what
		}
	}
	if what := p.check(); what != "" {
		return nil, what
	}
	if !bytes.Equal(p.text(), b) {
		return nil, "it is not written as it should be"
	}
	return p, ""
}

// check says what is wrong with names and sizes: those of a file that someone made up must
// not lead anywhere else.
func (p *Parts) check() string {
	seen := map[string]bool{}
	for _, f := range p.Files {
		if seen[f.Name] || !joinable.MatchString(f.Name) {
			return fmt.Sprintf("a file %q, which does not belong to a run or is there twice", f.Name)
		}
		if strings.HasPrefix(f.Name, "checkpoints/") && !strings.HasPrefix(f.Name, p.Checkpoint+"/") {
			return fmt.Sprintf("a file %q beside the checkpoint %s", f.Name, p.Checkpoint)
		}
		seen[f.Name] = true
	}
	for _, name := range append([]string{manifestName}, fileNames...) {
		if !seen[p.Checkpoint+"/"+name] {
			return fmt.Sprintf("no file %s/%s", p.Checkpoint, name)
		}
	}
	var total int64
	for i, x := range p.Parts {
		if x.Name != nameOfPart(i) || x.Bytes < 1 || x.Bytes > p.Size {
			return fmt.Sprintf("part %q of %d bytes, expected %s of at most %d", x.Name, x.Bytes, nameOfPart(i), p.Size)
		}
		total += x.Bytes
	}
	if total != p.Bytes() {
		return fmt.Sprintf("parts of %d bytes for files of %d", total, p.Bytes())
	}
	return ""
}

// nameOfPart is the name of part i, from 0.
func nameOfPart(i int) string { return fmt.Sprintf("part-%04d", i+1) }

// ReadParts reads the manifest of a directory that Split wrote. Its parts are not looked at.
func ReadParts(fsys fsx.FS, dir string) (*Parts, error) {
	if fsys == nil {
		fsys = fsx.OS()
	}
	name := filepath.Join(dir, partsName)
	b, err := fsx.ReadFile(fsys, name, maxParts)
	if err != nil {
		return nil, &Error{Path: name, What: "there are no parts of a checkpoint", Err: err}
	}
	p, what := parseParts(b)
	if p == nil {
		return nil, &Error{Path: name, What: what}
	}
	return p, nil
}
