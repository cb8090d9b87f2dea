package zoo

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

//go:embed index.json
var builtin []byte

// The ways in which a model of the index can be had.
const (
	// Bundled models come with the program; they may be downloadable as well.
	Bundled = "bundled"
	// Published models can be downloaded.
	Published = "published"
	// Planned models do not exist yet.
	Planned = "planned"
)

// Model is one entry of an index.
type Model struct {
	Name        string `json:"name"`
	Revision    string `json:"revision"`
	Status      string `json:"status"`
	File        string `json:"file"`
	Size        int64  `json:"size,omitempty"` // bytes
	SHA256      string `json:"sha256,omitempty"`
	Licence     string `json:"licence"`
	Description string `json:"description"`
	// URLs are tried in this order; hub:OWNER/REPO/FILE@REVISION is a file of the hub
	// or of the mirror that stands in for it.
	URLs []string `json:"urls,omitempty"`
	// Instead is the model to use while this one is planned.
	Instead string `json:"instead,omitempty"`
}

// Index is the models that have names. The first entry of a name is the revision
// that the bare name means.
type Index struct {
	Updated string  `json:"updated"`
	Models  []Model `json:"models"`
}

// BuiltIn is the index of this release.
func BuiltIn() *Index {
	x, err := ParseIndex(builtin)
	if err != nil { // the tests parse it
		return &Index{}
	}
	return x
}

// ParseIndex reads and checks an index.
func ParseIndex(b []byte) (*Index, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	x := &Index{}
	if err := d.Decode(x); err != nil {
		return nil, &Error{Kind: ErrSetting, What: "the index is not valid JSON of its form", Err: err}
	}
	seen := map[string]bool{}
	for i := range x.Models {
		m := &x.Models[i]
		if err := m.check(); err != nil {
			return nil, &Error{Kind: ErrSetting, Model: m.Name, What: fmt.Sprintf("entry %d of the index", i+1), Err: err}
		}
		if seen[m.ref()] {
			return nil, &Error{Kind: ErrSetting, Model: m.ref(), What: "the index names it twice"}
		}
		seen[m.ref()] = true
	}
	return x, nil
}

func (m *Model) ref() string { return m.Name + "@" + m.Revision }

func (m *Model) check() error {
	switch {
	case !ValidName(m.Name):
		return fmt.Errorf("%q is no name", m.Name)
	case !ValidName(m.Revision):
		return fmt.Errorf("%q is no revision", m.Revision)
	case !ValidName(m.File) || !strings.HasSuffix(m.File, ".gguf"):
		return fmt.Errorf("%q is not the name of a .gguf file", m.File)
	case m.SHA256 != "" && !validDigest(m.SHA256):
		return fmt.Errorf("%q is no SHA-256 in lower-case hexadecimal", m.SHA256)
	case m.Size < 0:
		return fmt.Errorf("the size is %d", m.Size)
	case !slices.Contains([]string{Bundled, Published, Planned}, m.Status):
		return fmt.Errorf("the status %q is none of bundled, published, planned", m.Status)
	case m.Status == Planned && len(m.URLs) > 0, m.Status == Published && len(m.URLs) == 0:
		return fmt.Errorf("%s with %d URLs", m.Status, len(m.URLs))
	case len(m.URLs) > 0 && (m.SHA256 == "" || m.Size == 0):
		return fmt.Errorf("what can be downloaded has a size and a SHA-256")
	}
	return nil
}

// find is the entry of a name and, unless it is empty, a revision.
func (x *Index) find(name, revision string) *Model {
	for i := range x.Models {
		if m := &x.Models[i]; m.Name == name && (revision == "" || m.Revision == revision) {
			return m
		}
	}
	return nil
}

// nearest is the name of the index most like a wrong one, or "".
func (x *Index) nearest(name string) string {
	plain := func(s string) string {
		return strings.NewReplacer("-", "", "_", "", ".", "").Replace(strings.ToLower(s))
	}
	best, least := "", len(name)/2+1
	for _, m := range x.Models {
		d := distance(strings.ToLower(name), m.Name)
		if a, b := plain(name), plain(m.Name); len(a) > 3 && strings.HasPrefix(b, a) { // as nano5m of nano-5m-rust
			d = min(d, 1)
		}
		if d < least {
			best, least = m.Name, d
		}
	}
	return best
}

// distance is the number of letters to put in, take out or change.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		left := row[0]
		row[0] = i + 1
		for j := range len(b) {
			d := left
			if a[i] != b[j] {
				d = 1 + min(left, row[j], row[j+1])
			}
			left, row[j+1] = row[j+1], d
		}
	}
	return row[len(b)]
}

var (
	namePattern   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$`)
	digestPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)
	// Files of these names are devices on Windows, whatever follows a dot.
	deviceName = regexp.MustCompile(`^(?i:con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?$`)
)

// ValidName says whether s can be a name, a revision or a file name on every system.
func ValidName(s string) bool {
	return namePattern.MatchString(s) && !deviceName.MatchString(s) && !strings.HasSuffix(s, ".") && !strings.Contains(s, "..")
}

func validDigest(s string) bool { return digestPattern.MatchString(s) }
