package fsx

import (
	"errors"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
)

// ErrPowerLoss is what every operation of a Crash returns once it was stopped.
var ErrPowerLoss = errors.New("fsx: power lost")

// Op is one operation on a file system.
type Op struct {
	// Kind is "create", "open", "read", "write", "truncate", "sync", "close",
	// "rename", "remove", "mkdir", "readdir", "stat" or "syncdir".
	Kind string
	Path string
}

func (o Op) String() string { return o.Kind + " " + o.Path }

// sector is the unit in which unsynced contents survive or are lost.
const sector = 512

// Crash is a file system in memory that keeps apart what was written and what
// would survive a loss of power.
//
// The rules are those of POSIX, not of one kind file system: contents survive
// if the file was synced, names if their directory was synced. Everything else
// may survive or not, each sector and each change of a name by itself; a rename
// survives whole or not at all.
type Crash struct {
	mu      sync.Mutex
	seed    uint64
	root    *node
	pending []nameChange
	ops     []Op
	left    int // operations until the stop; negative: no stop
	stopped bool
	lastOp  Op
}

// node is a file or a directory.
type node struct {
	dir    bool
	names  map[string]*node // directory: as the program sees it
	stable map[string]*node // directory: as the disk has it
	data   []byte           // file: as the program sees it
	synced []byte           // file: as the disk has it
}

func newDir() *node {
	return &node{dir: true, names: map[string]*node{}, stable: map[string]*node{}}
}

// nameChange is one change of names not yet on the disk: from (if any) loses
// what, to (if any) gains it.
type nameChange struct {
	from, to         *node
	fromName, toName string
	what             *node
}

// NewCrash returns an empty file system. The seed chooses what survives where
// chance decides.
func NewCrash(seed uint64) *Crash {
	return &Crash{seed: seed, root: newDir(), left: -1}
}

// StopAfter runs fn, lets the first n changes of the disk through and fails
// everything after them with ErrPowerLoss. It reports whether fn got through
// with n changes. A stopped file system stays stopped; continue with
// AfterPowerLoss.
func (c *Crash) StopAfter(n int, fn func()) (done bool) {
	c.mu.Lock()
	c.left = n
	c.mu.Unlock()
	fn()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left = -1
	return !c.stopped
}

// LastOp is the operation that was refused first, or else the last one done.
func (c *Crash) LastOp() Op {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lastOp
}

// Ops is every change of the disk that was done.
func (c *Crash) Ops() []Op {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.ops)
}

// AfterPowerLoss returns the file system a restart would find. Of the contents
// not synced data percent survive, of the names not synced names percent, chosen
// by the seed; 0 and 100 leave nothing to chance.
func (c *Crash) AfterPowerLoss(data, names int) *Crash {
	c.mu.Lock()
	defer c.mu.Unlock()
	rnd := chance{c.seed}
	// What survives is worked out on copies, so that one stopped file system
	// can be restarted in several ways.
	copies := map[*node]*node{}
	root := copyStable(c.root, copies)
	for _, p := range c.pending {
		if !rnd.percent(names) {
			continue
		}
		what := copyStable(p.what, copies)
		if p.from != nil {
			if from := copyStable(p.from, copies); from.names[p.fromName] == what {
				delete(from.names, p.fromName)
			}
		}
		if p.to != nil {
			copyStable(p.to, copies).names[p.toName] = what
		}
	}
	// In a fixed order, so that the seed decides and not the map.
	var restart func(n *node)
	seen := map[*node]bool{}
	originals := make(map[*node]*node, len(copies))
	for o, n := range copies {
		originals[n] = o
	}
	restart = func(n *node) {
		if seen[n] {
			return
		}
		seen[n] = true
		if n.dir {
			for _, name := range slices.Sorted(maps.Keys(n.names)) {
				restart(n.names[name])
			}
			n.stable = maps.Clone(n.names)
			return
		}
		n.data = survive(originals[n], data, &rnd)
		n.synced = slices.Clone(n.data)
	}
	restart(root)
	return &Crash{seed: rnd.next(), root: root, left: -1}
}

// copyStable copies n and what the disk has below it.
func copyStable(n *node, copies map[*node]*node) *node {
	if c := copies[n]; c != nil {
		return c
	}
	c := &node{dir: n.dir}
	copies[n] = c
	if n.dir {
		c.names = map[string]*node{}
		for name, child := range n.stable {
			c.names[name] = copyStable(child, copies)
		}
	}
	return c
}

// survive is the contents of file n after a loss of power.
func survive(n *node, percent int, rnd *chance) []byte {
	if percent >= 100 {
		return slices.Clone(n.data)
	}
	b := slices.Clone(n.synced)
	for lo := 0; lo < len(n.data); lo += sector {
		if !rnd.percent(percent) {
			continue
		}
		hi := min(lo+sector, len(n.data))
		if hi > len(b) { // what lies between and did not survive reads as zeros
			b = append(b, make([]byte, hi-len(b))...)
		}
		copy(b[lo:hi], n.data[lo:hi])
	}
	if len(b) > len(n.data) && rnd.percent(percent) {
		b = b[:len(n.data)]
	}
	return b
}

// chance is SplitMix64 (Steele, Lea, Flood 2014).
type chance struct{ state uint64 }

func (r *chance) next() uint64 {
	r.state += 0x9e3779b97f4a7c15
	z := r.state
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

func (r *chance) percent(p int) bool {
	return p >= 100 || p > 0 && int(r.next()%100) < p
}

// change counts one change of the disk, or refuses it. c.mu is held.
func (c *Crash) change(kind, path string) error {
	if err := c.alive(kind, path); err != nil {
		return err
	}
	op := Op{kind, path}
	c.lastOp = op
	if c.left == 0 {
		c.stopped = true
		return &fs.PathError{Op: kind, Path: path, Err: ErrPowerLoss}
	}
	if c.left > 0 {
		c.left--
	}
	c.ops = append(c.ops, op)
	return nil
}

func (c *Crash) alive(kind, path string) error {
	if c.stopped {
		return &fs.PathError{Op: kind, Path: path, Err: ErrPowerLoss}
	}
	return nil
}

// split cleans a path into its elements. Relative paths start at the root.
func split(path string) []string {
	p := strings.Trim(filepath.ToSlash(filepath.Clean(path)), "/")
	if p == "" || p == "." {
		return nil
	}
	return strings.Split(p, "/")
}

// find returns the node at path.
func (c *Crash) find(kind, path string) (*node, error) {
	n := c.root
	for _, name := range split(path) {
		if !n.dir {
			return nil, &fs.PathError{Op: kind, Path: path, Err: syscall.ENOTDIR}
		}
		if n = n.names[name]; n == nil {
			return nil, &fs.PathError{Op: kind, Path: path, Err: fs.ErrNotExist}
		}
	}
	return n, nil
}

// parent returns the directory that holds path and the last element of path.
func (c *Crash) parent(kind, path string) (*node, string, error) {
	elems := split(path)
	if len(elems) == 0 {
		return nil, "", &fs.PathError{Op: kind, Path: path, Err: fs.ErrInvalid}
	}
	dir, err := c.find(kind, filepath.Dir(filepath.Clean(path)))
	if err != nil {
		return nil, "", err
	}
	if !dir.dir {
		return nil, "", &fs.PathError{Op: kind, Path: path, Err: syscall.ENOTDIR}
	}
	return dir, elems[len(elems)-1], nil
}
