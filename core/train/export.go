package train

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/architehc/nanochat/core/data"
	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/tokenizer"
)

// The names of the models that a run writes.
const (
	bestName  = "best.gguf"
	finalName = "model.gguf"
)

// export writes the model as it stands, with its tokenizer and where it came from. A
// float twin has no ternary file. A failure is reported, counted and returned.
func (r *run) export(name string) error {
	if r.cfg.Train.Float {
		return nil
	}
	meta, err := r.provenance()
	if err == nil {
		err = r.learn.Save(r.fs, r.path(name), meta)
	}
	if err != nil {
		r.failed++
		r.event(unsaved, "%s not written: %v", name, err)
		return &Error{What: "writing " + r.path(name), Err: err}
	}
	r.result.Model = r.path(name)
	return nil
}

// provenance is the metadata of the model file that is not the network's.
func (r *run) provenance() ([]gguf.KV, error) {
	kvs, err := gguf.Collect(r.tok.Pairs(tokenizer.MetadataOptions{}))
	if err != nil {
		return nil, err
	}
	put := func(key string, v gguf.Value) { kvs = append(kvs, gguf.KV{Key: key, Value: v}) }
	text := func(key, v string) {
		if v != "" {
			put(key, gguf.V(v))
		}
	}
	text("general.name", r.cfg.Name)
	text("general.description", r.cfg.Description)
	text("nanochat.training.program", strings.TrimSpace("nanochat "+r.o.Version))
	put("nanochat.training.steps", gguf.V(uint64(r.meta.Step)))
	put("nanochat.training.tokens", gguf.V(uint64(r.meta.Tokens)))
	put("nanochat.training.seconds", gguf.V(r.meta.Seconds))
	text("nanochat.training.config", r.cfg.TOML())
	text("nanochat.training.kernel", r.meta.Kernel)
	if v := r.meta.Val; v != nil && r.meta.ValStep == r.meta.Step {
		put("nanochat.training.val_bpb", gguf.V(v.BPB.digits()))
		put("nanochat.training.val_nats", gguf.V(v.Nats.digits()))
		put("nanochat.training.val_tokens", gguf.V(uint64(v.Tokens)))
	}
	text("nanochat.data.id", r.meta.Cursor.Dataset)
	text("nanochat.data.tokenizer_sha256", fmt.Sprintf("%x", data.TokenizerHash(r.tok)))
	text("nanochat.data.licence", r.licence())
	return kvs, nil
}

// licence is the configured note, or the licences of the documents by their number.
func (r *run) licence() string {
	if r.cfg.Data.Licence != "" {
		return r.cfg.Data.Licence
	}
	if r.manifest == nil {
		return ""
	}
	type count struct {
		name string
		n    int
	}
	var all []count
	for name, c := range r.manifest.Licences {
		all = append(all, count{name, c.Documents})
	}
	slices.SortFunc(all, func(a, b count) int {
		if a.n != b.n {
			return b.n - a.n
		}
		return strings.Compare(a.name, b.name)
	})
	var parts []string
	for i, c := range all {
		if i == 12 {
			parts = append(parts, fmt.Sprintf("and %d more", len(all)-i))
			break
		}
		parts = append(parts, fmt.Sprintf("%s: %d documents", c.name, c.n))
	}
	return strings.Join(parts, "; ")
}

// digits is n as it stands in a checkpoint, so that the file of a run that was resumed
// is that of one that was not.
func (n Number) digits() float64 {
	v, err := strconv.ParseFloat(fmt.Sprintf("%.6g", float64(n)), 64)
	if err != nil {
		return float64(n)
	}
	return v
}
