package cuda

import (
	"fmt"

	"github.com/architehc/nanochat/kernels"
)

// Latent is the kernels that quantise latent weights. What they write has the bits of
// core/ternary and core/gguf.
type Latent struct {
	t                                     *Thread
	pack, packOne, dense, denseOne, flips *Kernel
}

// Latent loads the kernels.
func (t *Thread) Latent(image Image) (*Latent, error) {
	l := &Latent{t: t}
	return l, t.loadKernels(image, "latent", map[string]**Kernel{
		"pack": &l.pack, "pack_one": &l.packOne, "pack_dense": &l.dense, "pack_dense_one": &l.denseOne, "flips": &l.flips,
	})
}

// PackJob is one ternary matrix: latents W, float32 [Rows][Cols], that go to the tiles and scales
// of Dst and, unless that is 0, as bfloat16 (trit·scale)·gain to Used [Rows][Cols].
type PackJob struct {
	Dst     *Ternary
	Used, W Ptr
}

// DenseJob is one table: latents W, float32 [Rows][Cols], that go to Table as a file of Kind (F32,
// F16 or Q8_0) has them, and what is stored there as half precision to Half and as bfloat16 to
// Used. Each of the three may be 0.
type DenseJob struct {
	Table, Half, Used, W Ptr
	Kind                 kernels.DType
	Rows, Cols           int
}

type packWork struct{ job, first int32 }

type packJob struct {
	w, tiles, scales, used              Ptr
	rows, cols, group, groups, colTiles int32
	gain                                float32
	vector, _                           int32
}

type packArgs struct{ jobs, work, bad Ptr }

type packOneArgs struct {
	job packJob
	bad Ptr
}

type denseJob struct {
	w, table, half, used Ptr
	n                    int64
	kind, vector         int32
}

type denseArgs struct{ jobs, work, bad Ptr }

type denseOneArgs struct {
	job denseJob
	bad Ptr
}

const (
	packItems = 8    // of a thread block
	denseRun  = 4096 // elements of a thread block
)

func aligned(unit Ptr, all ...Ptr) int32 {
	for _, p := range all {
		if p%unit != 0 {
			return 0
		}
	}
	return 1
}

// job is what the kernel gets, and the number of its items.
func (j *PackJob) job() (packJob, int, error) {
	d, tile := j.Dst, kernels.TileSide
	switch {
	case d == nil || d.Tiles == 0 || d.Scales == 0 || j.W == 0:
		return packJob{}, 0, fmt.Errorf("cuda: a matrix to quantise without weights, tiles or scales")
	case d.Rows < 1 || d.Cols < 1 || d.Group < 1 || d.Group%tile != 0 && d.Group != d.Cols:
		return packJob{}, 0, fmt.Errorf("cuda: a matrix [%d][%d] in groups of %d cannot be quantised", d.Rows, d.Cols, d.Group)
	case d.Gain == 0:
		return packJob{}, 0, fmt.Errorf("cuda: a matrix to quantise with a gain of 0; it is 1 unless the scales are to be larger than they are")
	}
	p := packJob{
		w: j.W, tiles: d.Tiles, scales: d.Scales, used: j.Used, rows: int32(d.Rows), cols: int32(d.Cols), group: int32(d.Group),
		groups: int32((d.Cols + d.Group - 1) / d.Group), colTiles: int32((d.Cols + tile - 1) / tile), gain: d.Gain,
	}
	if d.Cols%4 == 0 {
		p.vector = aligned(16, j.W) & aligned(8, j.Used)
	}
	items := (d.Rows + tile - 1) / tile * int(p.groups) * 2
	return p, items, nil
}

// job is what the kernel gets, and the number of its runs.
func (j *DenseJob) job() (denseJob, int, error) {
	n := int64(j.Rows) * int64(j.Cols)
	switch {
	case j.W == 0 || j.Rows < 1 || j.Cols < 1 || j.Kind == kernels.Q8_0 && j.Cols%32 != 0:
		return denseJob{}, 0, fmt.Errorf("cuda: a table [%d][%d] cannot be stored as type %d", j.Rows, j.Cols, j.Kind)
	case j.Kind != kernels.F32 && j.Kind != kernels.F16 && j.Kind != kernels.Q8_0:
		return denseJob{}, 0, fmt.Errorf("cuda: a table of type %d; F32, F16 and Q8_0 can be made", j.Kind)
	case j.Kind == kernels.Q8_0 && j.Table%2 != 0:
		return denseJob{}, 0, fmt.Errorf("cuda: a table at an odd address")
	}
	d := denseJob{w: j.W, table: j.Table, half: j.Half, used: j.Used, n: n, kind: int32(j.Kind)}
	d.vector = aligned(16, j.W) & aligned(8, j.Half, j.Used)
	if j.Kind == kernels.F16 {
		d.vector &= aligned(8, j.Table)
	}
	return d, int((n + denseRun - 1) / denseRun), nil
}

// PackPlan is a list of weights to quantise. Run does it as often as is wanted.
type PackPlan struct {
	l                         *Latent
	ternaryArgs               packArgs
	denseArgs                 denseArgs
	ternary, ternaryN, denseN int // matrices; thread blocks
	memory                    []Ptr
}

// Plan keeps the list on the device. It waits; Free takes it back.
func (l *Latent) Plan(ternary []PackJob, dense []DenseJob) (*PackPlan, error) {
	p := &PackPlan{l: l, ternary: len(ternary)}
	packs, tables := make([]packJob, len(ternary)), make([]denseJob, len(dense))
	var packed, stored []packWork
	for i := range ternary {
		j, items, err := ternary[i].job()
		if err != nil {
			return nil, err
		}
		packs[i] = j
		for k := 0; k < items; k += packItems {
			packed = append(packed, packWork{int32(i), int32(k)})
		}
	}
	for i := range dense {
		j, runs, err := dense[i].job()
		if err != nil {
			return nil, err
		}
		tables[i] = j
		for k := range runs {
			stored = append(stored, packWork{int32(i), int32(k)})
		}
	}
	p.ternaryN, p.denseN = len(packed), len(stored)
	err := upload(p, &p.ternaryArgs.jobs, packs)
	if err == nil {
		err = upload(p, &p.ternaryArgs.work, packed)
	}
	if err == nil {
		err = upload(p, &p.denseArgs.jobs, tables)
	}
	if err == nil {
		err = upload(p, &p.denseArgs.work, stored)
	}
	if err != nil {
		_ = p.Free() // the first error says more
		return nil, err
	}
	return p, nil
}

// upload puts a table on the device.
func upload[T any](p *PackPlan, at *Ptr, table []T) (err error) {
	if len(table) == 0 {
		return nil
	}
	bytes := raw(table)
	if *at, err = p.l.t.Alloc(uint64(len(bytes))); err != nil {
		return err
	}
	p.memory = append(p.memory, *at)
	return Upload(p.l.t, *at, bytes)
}

// Free gives the memory of the list back.
func (p *PackPlan) Free() error {
	for len(p.memory) > 0 {
		if err := p.l.t.Free(p.memory[0]); err != nil {
			return err
		}
		p.memory = p.memory[1:]
	}
	p.ternaryN, p.denseN = 0, 0
	return nil
}

// Run quantises all. bad is an int32 for every matrix, then one for every table, or 0: it becomes 1
// where a weight is not finite or too large to be stored, and what is written there means nothing.
func (p *PackPlan) Run(bad Ptr) error {
	if p.ternaryN > 0 {
		a := p.ternaryArgs
		a.bad = bad
		if err := Launch(p.l.t, p.l.pack, Shape{Grid: [3]uint32{uint32(p.ternaryN), 1, 1}, Block: [3]uint32{256, 1, 1}}, &a); err != nil {
			return err
		}
	}
	if p.denseN == 0 {
		return nil
	}
	a := p.denseArgs
	if bad != 0 {
		a.bad = bad + Ptr(4*p.ternary)
	}
	return Launch(p.l.t, p.l.dense, Shape{Grid: [3]uint32{uint32(p.denseN), 1, 1}, Block: [3]uint32{256, 1, 1}}, &a)
}

// Pack quantises one matrix; *bad as in PackPlan.Run.
func (l *Latent) Pack(dst *Ternary, used, w, bad Ptr) error {
	j, items, err := (&PackJob{Dst: dst, Used: used, W: w}).job()
	if err != nil {
		return err
	}
	blocks := uint32((items + packItems - 1) / packItems)
	return Launch(l.t, l.packOne, Shape{Grid: [3]uint32{blocks, 1, 1}, Block: [3]uint32{256, 1, 1}}, &packOneArgs{job: j, bad: bad})
}

// PackDense stores one table; *bad as in PackPlan.Run.
func (l *Latent) PackDense(d *DenseJob, bad Ptr) error {
	j, runs, err := d.job()
	if err != nil {
		return err
	}
	return Launch(l.t, l.denseOne, Shape{Grid: [3]uint32{uint32(runs), 1, 1}, Block: [3]uint32{256, 1, 1}}, &denseOneArgs{job: j, bad: bad})
}

type flipArgs struct {
	count, x, y Ptr
	n           int64
}

// Flips adds the trits in which two matrices of one shape differ to *count, an int32:
// ternary.Flips. x and y are their tiles, of that many bytes.
func (l *Latent) Flips(count, x, y Ptr, bytes int) error {
	if bytes < 64 || bytes%64 != 0 || count == 0 || x == 0 || y == 0 {
		return fmt.Errorf("cuda: %d bytes of tiles to compare", bytes)
	}
	blocks := uint32(min((bytes/16+255)/256, 512))
	a := flipArgs{count: count, x: x, y: y, n: int64(bytes / 16)}
	return Launch(l.t, l.flips, Shape{Grid: [3]uint32{blocks, 1, 1}, Block: [3]uint32{256, 1, 1}}, &a)
}
