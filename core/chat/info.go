package chat

import (
	"fmt"
	"strings"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/infer"
	"github.com/architehc/nanochat/core/tokenizer"
)

// Info describes a model file. What the file does not say is "".
type Info struct {
	Name, Architecture, Licence, Description string
	// SHA256 is that of the tensor data, as the file states it.
	SHA256 string
	// FileBytes is the size of the file, WeightBytes that of its tensors.
	FileBytes, WeightBytes int64
	// BitsPerWeight is 8·WeightBytes divided by the number of weights.
	BitsPerWeight float64
	Params        config.ParamCount
	// ChatTemplate is the name of the model's chat template, "" if the file has none or
	// one that is not known.
	ChatTemplate string
	// FIM says that FIMPrompt works.
	FIM bool
	// Provenance is what the file says about its origin: every text, number and truth
	// value under the keys nanochat.training., nanochat.data. and general.
	Provenance map[string]string
}

// Info describes the model's file.
func (m *Model) Info() Info { return m.info.Info }

// Path is the model's file, as it was opened.
func (m *Model) Path() string { return m.info.path }

// fileInfo is Info and what is of use here only.
type fileInfo struct {
	Info
	path     string
	template *template // the model's own; nil if there is none or it is not known
	foreign  bool      // it has one that is not known
}

// provenanceKeys are the beginnings of the keys in Info.Provenance.
var provenanceKeys = []string{"general.", "nanochat.training.", "nanochat.data."}

func describe(f *gguf.File, c config.Model, t *tokenizer.Tokenizer) fileInfo {
	in := fileInfo{path: f.Path}
	text := func(key string) string {
		s, _ := f.StringOr(key, "") // a value that is no text says nothing
		return s
	}
	in.Name, in.Architecture, in.Licence = text("general.name"), text("general.architecture"), text("general.license")
	in.Description, in.SHA256 = text("general.description"), text("nanochat.sha256")
	in.FileBytes, in.Params = f.Size, c.Params()
	for i := range f.Tensors {
		in.WeightBytes += int64(f.Tensors[i].Size())
	}
	if n := in.Params.Total(); n > 0 {
		in.BitsPerWeight = 8 * float64(in.WeightBytes) / float64(n)
	}
	in.Provenance = map[string]string{}
	for _, kv := range f.Meta {
		for _, p := range provenanceKeys {
			if _, isArray := kv.Value.Elem(); strings.HasPrefix(kv.Key, p) && !isArray {
				in.Provenance[kv.Key] = fmt.Sprint(kv.Value.Any())
			}
		}
	}
	in.FIM = len(fimMissing(t)) == 0
	in.template, in.foreign = ownTemplate(text("nanochat.chat.template"), text("tokenizer.chat_template"))
	if in.template != nil {
		in.ChatTemplate = in.template.name
	}
	return in
}

// Stats counts what the model's engine has done.
func (m *Model) Stats() infer.Stats { return m.engine.Stats() }

// Prompt is the ids that Generate makes of a text: with special the texts of control
// tokens become those tokens.
func (m *Model) Prompt(text string, special bool) []int32 {
	return m.tok.Encode(nil, text, tokenizer.EncodeOptions{AddBOS: m.tok.AddsBOS(), ParseSpecial: special})
}

// FIMPrompt asks for the text between prefix and suffix. Neither is searched for special
// tokens. A model that has not the tokens for it gives a *UnsupportedError.
func (m *Model) FIMPrompt(prefix, suffix string) ([]int32, error) {
	if missing := fimMissing(m.tok); len(missing) > 0 {
		return nil, &UnsupportedError{
			What: "this model cannot fill gaps: its vocabulary has no token for " + strings.Join(missing, ", "),
			Hint: "use a model that was trained with fill-in-the-middle, or continue the text before the gap",
		}
	}
	var ids []int32
	var hidden []string
	for _, r := range fimRoles {
		if id, _ := m.tok.Special(r.role); m.tok.Kind(id) == tokenizer.UserDefined {
			hidden = append(hidden, string(m.tok.Piece(id)))
		}
	}
	if bos, ok := m.tok.Special(tokenizer.BOS); ok && m.tok.AddsBOS() {
		ids = append(ids, bos)
	}
	put := func(r tokenizer.Role, text string) {
		id, _ := m.tok.Special(r)
		ids = m.encode(append(ids, id), text, hidden)
	}
	put(tokenizer.FIMPrefix, prefix)
	put(tokenizer.FIMSuffix, suffix)
	put(tokenizer.FIMMiddle, "")
	return ids, nil
}

// fimRoles are the tokens for fill-in-the-middle.
var fimRoles = [...]struct {
	role tokenizer.Role
	name string
}{{tokenizer.FIMPrefix, "prefix"}, {tokenizer.FIMSuffix, "suffix"}, {tokenizer.FIMMiddle, "middle"}}

// fimMissing are the tokens for fill-in-the-middle that a vocabulary lacks.
func fimMissing(t *tokenizer.Tokenizer) (missing []string) {
	for _, r := range fimRoles {
		if _, ok := t.Special(r.role); !ok {
			missing = append(missing, r.name)
		}
	}
	return missing
}
