package infer

import (
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/kernels/team"
)

// New returns an engine that runs m. Close frees it; m stays.
func New(m *model.Model, o Options) (*Engine, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	b := &modelBackend{m: m, team: o.Team}
	c := m.Config()
	context := c.Context
	if o.Context > 0 {
		context = min(context, o.Context)
	}
	if o.KVPages == 0 {
		o.KVPages = o.MaxBatch * pagesFor(context)
		if o.KVBytes > 0 {
			o.KVPages = min(o.KVPages, int(o.KVBytes/int64(model.PageBytes(m, o.KVType))))
		}
	}
	if o.GPU != nil {
		b.pool, err = model.NewGPUPool(o.GPU, o.KVPages, o.KVType)
	} else {
		b.pool, err = model.NewPool(m, o.KVPages, o.KVType)
	}
	if err != nil {
		return nil, err
	}
	if b.team == nil && o.GPU == nil {
		b.team = team.New(o.Threads, team.Options{Pin: o.Pin})
		b.owned = true
	}
	if o.GPU != nil {
		b.work, err = model.NewGPUWork(o.GPU, o.MaxTokensPerStep)
	} else {
		b.work, err = model.NewWork(m, b.team, o.MaxTokensPerStep)
	}
	if err != nil {
		b.close()
		return nil, err
	}
	b.seqs = make([]model.Seq, o.MaxBatch)
	b.step.Seqs = make([]model.SeqStep, 0, o.MaxBatch)
	e, err := start(o, b, m.Set())
	if err != nil {
		b.close()
		return nil, err
	}
	return e, nil
}

// modelBackend computes steps with core/model.
type modelBackend struct {
	m     *model.Model
	team  *team.Team
	owned bool // the team
	work  *model.Work
	pool  *model.Pool
	seqs  []model.Seq
	step  model.Step
}

func (b *modelBackend) vocab() int   { return b.m.Config().Vocab }
func (b *modelBackend) context() int { return b.m.Config().Context }
func (b *modelBackend) pages() int   { return b.pool.Pages() }

func (b *modelBackend) alloc() (int32, bool) {
	if b.pool.Free() == 0 {
		return 0, false
	}
	page, err := b.pool.Alloc()
	return page, err == nil
}

func (b *modelBackend) free(page int32)     { b.pool.Release(page) }
func (b *modelBackend) copy(dst, src int32) { b.pool.Copy(dst, src) }

func (b *modelBackend) forward(w *batch) error {
	b.step.Tokens = w.tokens
	b.step.Seqs = b.step.Seqs[:0]
	for i, s := range w.spans {
		b.seqs[i] = model.Seq{Pages: s.pages, Len: s.pos}
		q := model.SeqStep{Seq: &b.seqs[i], N: s.n, Hidden: s.hidden}
		switch s.rows {
		case 0:
		case 1:
			q.Logits = model.LogitsLast
		default:
			q.Logits = model.LogitsAll
		}
		b.step.Seqs = append(b.step.Seqs, q)
	}
	return b.m.Forward(b.work, b.pool, &b.step)
}

func (b *modelBackend) row(i int) []float32       { return b.work.Logits(i) }
func (b *modelBackend) dim() int                  { return b.m.Config().Dim }
func (b *modelBackend) hidden(s, i int) []float32 { return b.work.Hidden(s, i) }

func (b *modelBackend) close() {
	if b.owned {
		b.team.Close()
		b.owned = false
	}
	b.work, b.pool = nil, nil
}
