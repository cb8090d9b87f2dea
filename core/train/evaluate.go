package train

import (
	"context"
	"errors"
	"io"

	"github.com/architehc/nanochat/core/data"
	"github.com/architehc/nanochat/core/model"
)

// evalSeed chooses the rows of an evaluation on a part of the validation data.
const evalSeed = 1

// evaluate measures the model on the validation split: on all of it in its order, or
// on the first EvalTokens targets of a fixed shuffled order, so that a part of it is
// not a part of its crates. Every evaluation of a run sees the same rows.
func (r *run) evaluate(ctx context.Context) (*Eval, error) {
	if r.val == nil {
		return nil, nil
	}
	t := &r.cfg.Train
	began := r.clock.Now()
	l, err := data.NewLoader(r.val, data.LoaderOptions{
		Rows: t.MicroRows, SeqLen: t.SeqLen, Seed: evalSeed, Ordered: t.EvalTokens == 0, Epochs: 1, Depth: 2, Clock: r.clock,
	})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	var sum model.LossSum
	var bytes int64
	for t.EvalTokens == 0 || int64(sum.Count) < t.EvalTokens {
		b, err := l.Next(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if ctx.Err() != nil {
			return nil, errStopped
		}
		if err != nil {
			return nil, err
		}
		part, err := r.learn.Evaluate(batchOf(b, 0, b.Rows))
		if err != nil {
			return nil, err
		}
		sum.Add(part)
		bytes += b.TextBytes
	}
	return &Eval{
		Nats: Number(sum.NLL / float64(max(sum.Count, 1))), BPB: Number(bpb(sum.NLL, bytes)), Tokens: sum.Count, Bytes: bytes,
		Seconds: Number(r.clock.Now().Sub(began).Seconds()),
	}, nil
}
