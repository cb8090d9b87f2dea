package data

import (
	"math/bits"
	"unicode/utf8"

	"github.com/architehc/nanochat/core/internal/rng"
	"github.com/architehc/nanochat/core/tokenizer"
)

// FIM says how much text is learned as fill-in-the-middle.
type FIM struct {
	// Rate is the share of documents, as they stand in rows, that are transformed.
	// 0 is none. Up to about 0.3 is advisable for models that see less than 10^8
	// tokens; at scale 0.5 to 0.9 cost nothing (arXiv 2207.14255).
	Rate float64
	// SPM is the share of those in the order suffix, prefix, middle:
	// <prefix><suffix> S <middle> P M <eos>. The others are in the order prefix,
	// suffix, middle: <prefix> P <suffix> S <middle> M <eos>.
	SPM float64
	// MinTokens is the length from which a document in a row is transformed. The
	// default value is 16.
	MinTokens int
}

// fimSpecials is the number of tokens that FIM adds.
const fimSpecials = 4

// A fimMaker transforms the tokens of a document in place.
type fimMaker struct {
	FIM
	tok                      *tokenizer.Tokenizer
	prefix, suffix, mid, eos int32
	rng                      rng.Source
	text                     []byte
	part                     [3][]int32 // prefix, middle, suffix
	done, tried              int        // documents transformed, and considered
}

// newFIM checks that tok has the tokens that o needs.
func newFIM(o FIM, tok *tokenizer.Tokenizer) (*fimMaker, error) {
	if o.MinTokens == 0 {
		o.MinTokens = 16
	}
	f := &fimMaker{FIM: o, tok: tok}
	for _, r := range []struct {
		role tokenizer.Role
		id   *int32
		name string
	}{{tokenizer.FIMPrefix, &f.prefix, "FIM prefix"}, {tokenizer.FIMSuffix, &f.suffix, "FIM suffix"},
		{tokenizer.FIMMiddle, &f.mid, "FIM middle"}, {tokenizer.EOS, &f.eos, "EOS"}} {
		id, ok := tok.Special(r.role)
		if !ok {
			return nil, optionError("FIM.Rate is %g, but the tokenizer has no %s token; use rate 0 or another tokenizer", o.Rate, r.name)
		}
		*r.id = id
	}
	return f, nil
}

// apply transforms ids, or leaves them as they are: by chance, because they are
// few, or because the parts do not fit in their place. Places left over become
// -1.
func (f *fimMaker) apply(ids []int32) {
	chance, spm := f.rng.Float64(), f.rng.Float64()
	if len(ids) < f.MinTokens {
		return
	}
	f.tried++
	if chance >= f.Rate {
		return
	}
	// What the parts take more than the text did is given up at the end of the text,
	// before it is cut, so that a middle may reach to the end.
	use := len(ids) - fimSpecials - 2
	cut, again := f.rng.Uint64(), f.rng.Uint64()
	for tries := 0; ; tries++ {
		if tries == 4 || use < 1 {
			return
		}
		f.text = f.tok.Decode(f.text[:0], ids[:use], tokenizer.DecodeOptions{})
		a, b := f.cuts(cut, again)
		for i, s := range [...][]byte{f.text[:a], f.text[a:b], f.text[b:]} {
			f.part[i] = f.tok.Encode(f.part[i][:0], string(s), tokenizer.EncodeOptions{})
		}
		over := len(f.part[0]) + len(f.part[1]) + len(f.part[2]) + fimSpecials - len(ids)
		if over <= len(f.part[2]) {
			f.part[2] = f.part[2][:len(f.part[2])-max(over, 0)]
			break
		}
		use -= over
	}
	p, m, s := f.part[0], f.part[1], f.part[2]
	out := append(ids[:0], f.prefix)
	if spm < f.SPM {
		out = append(out, f.suffix)
		out = append(out, s...)
		out = append(out, f.mid)
		out = append(out, p...)
	} else {
		out = append(out, p...)
		out = append(out, f.suffix)
		out = append(out, s...)
		out = append(out, f.mid)
	}
	out = append(out, m...)
	out = append(out, f.eos)
	for len(out) < len(ids) {
		out = append(out, -1)
	}
	f.done++
}

// cuts returns two places in the text, in order, uniform over the boundaries of
// characters for uniform x and y.
func (f *fimMaker) cuts(x, y uint64) (a, b int) {
	chars := 0
	for _, c := range f.text {
		if utf8.RuneStart(c) {
			chars++
		}
	}
	i, _ := bits.Mul64(x, uint64(chars+1))
	j, _ := bits.Mul64(y, uint64(chars+1))
	return f.offset(int(min(i, j))), f.offset(int(max(i, j)))
}

// offset is where character n begins.
func (f *fimMaker) offset(n int) int {
	for i, c := range f.text {
		if utf8.RuneStart(c) {
			if n == 0 {
				return i
			}
			n--
		}
	}
	return len(f.text)
}
