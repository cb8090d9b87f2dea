package sample

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/architehc/nanochat/core/internal/rng"
)

// stream separates the sampler's random numbers from others of the same seed.
const stream = 0x73616d706c65 // "sample"

// smallK is the largest TopK for which candidates are sorted; beyond it they
// are only separated from the rest.
const smallK = 128

// ErrNoToken reports logits or a bias that leave no token to choose.
var ErrNoToken = errors.New("sample: every token is excluded: no logit plus bias is above negative infinity")

// LogitError reports a logit that is not a number or is positive infinity.
type LogitError struct {
	// ID is the first such token, Pos the position it was computed for.
	ID    int32
	Pos   int
	Value float32
}

func (e *LogitError) Error() string {
	return fmt.Sprintf("sample: logit of token %d at position %d is %v: the model's weights or its file are damaged", e.ID, e.Pos, e.Value)
}

// Candidate is one of the most likely tokens.
type Candidate struct {
	ID      int32
	Logprob float32
}

// Sampler chooses the tokens of one sequence. It is for one goroutine at a time.
type Sampler struct {
	o       Options
	vocab   int
	inv     float32 // 1/Temperature
	repeat  float32
	present float32
	freq    float32
	history *history // nil: no penalties
	bias    []biasOf // ascending ids
	top     []Candidate
}

type biasOf struct {
	id  int32
	add float32
}

// New returns a sampler with an empty history, or an *OptionError.
func New(o Options, vocab int) (*Sampler, error) {
	if err := o.Validate(vocab); err != nil {
		return nil, err
	}
	s := &Sampler{o: o, vocab: vocab, repeat: float32(o.RepeatPenalty),
		present: float32(o.PresencePenalty), freq: float32(o.FrequencyPenalty)}
	if o.Temperature > 0 {
		s.inv = float32(1 / o.Temperature)
	}
	if s.repeat == 0 {
		s.repeat = 1
	}
	if o.penalises() {
		s.history = newHistory(vocab, o.PenaltyWindow)
	}
	for id, add := range o.LogitBias {
		s.bias = append(s.bias, biasOf{id, add})
	}
	slices.SortFunc(s.bias, func(a, b biasOf) int { return int(a.id) - int(b.id) })
	s.o.LogitBias = nil // the caller's map; not read again
	s.top = make([]Candidate, min(o.TopLogprobs, vocab))
	return s, nil
}

// Reset forgets all accepted tokens and takes prompt as the history.
func (s *Sampler) Reset(prompt []int32) {
	if s.history == nil {
		return
	}
	s.history.reset()
	if w := s.o.PenaltyWindow; w > 0 && len(prompt) > w {
		prompt = prompt[len(prompt)-w:]
	}
	for _, id := range prompt {
		if id >= 0 && int(id) < s.vocab {
			s.history.add(id, false)
		}
	}
}

// Accept appends a generated token to the history.
func (s *Sampler) Accept(id int32) {
	if s.history != nil && id >= 0 && int(id) < s.vocab {
		s.history.add(id, true)
	}
}

// Top is the Options.TopLogprobs most likely tokens of the last row sampled,
// most likely first. The next Sample overwrites it.
func (s *Sampler) Top() []Candidate { return s.top }

// Sample chooses the token for position pos of the sequence from logits
// [vocab], which it does not change. The history is not changed either: see
// Accept. logprob is 0 unless Options.Logprobs is set.
//
// It returns a *LogitError if a logit is not a number or positive infinity,
// and ErrNoToken if nothing is left to choose.
func (s *Sampler) Sample(ws *Workspace, logits []float32, pos int) (id int32, logprob float32, err error) {
	if len(logits) != s.vocab || ws.vocab != s.vocab {
		return 0, 0, fmt.Errorf("sample: %d logits and a workspace for %d, the sampler is for %d", len(logits), ws.vocab, s.vocab)
	}
	if err := check(logits, pos); err != nil {
		return 0, 0, err
	}
	if s.inv == 0 {
		id, err = s.greedy(ws, logits)
	} else {
		id, err = s.draw(ws, logits, pos)
	}
	if err != nil {
		return 0, 0, err
	}
	return id, s.score(ws, logits, id), nil
}

// Score is Sample where the token of position pos is given: it returns its logprob, and
// Top is that of logits. It returns a *LogitError as Sample does.
func (s *Sampler) Score(ws *Workspace, logits []float32, pos int, id int32) (logprob float32, err error) {
	if len(logits) != s.vocab || ws.vocab != s.vocab || id < 0 || int(id) >= s.vocab {
		return 0, fmt.Errorf("sample: token %d, %d logits and a workspace for %d, the sampler is for %d", id, len(logits), ws.vocab, s.vocab)
	}
	if err := check(logits, pos); err != nil {
		return 0, err
	}
	return s.score(ws, logits, id), nil
}

// score is the logprob of id, if it was asked for, and leaves the most likely tokens in top.
func (s *Sampler) score(ws *Workspace, logits []float32, id int32) float32 {
	if !s.o.Logprobs && len(s.top) == 0 {
		return 0
	}
	lse := ws.set.LogSumExp(logits)
	if len(s.top) > 0 {
		ws.set.TopK(ws.ids[:len(s.top)], logits)
	}
	for i := range s.top {
		s.top[i] = Candidate{ws.ids[i], logits[ws.ids[i]] - lse}
	}
	return logits[id] - lse
}

// greedy is the arg max of the adjusted logits.
func (s *Sampler) greedy(ws *Workspace, logits []float32) (int32, error) {
	x := logits
	if s.adjusts() {
		x = ws.p
		copy(x, logits)
		s.adjust(x, logits, 1)
	}
	id := ws.set.ArgMax(x)
	if math.IsInf(float64(x[id]), -1) {
		return 0, ErrNoToken
	}
	return int32(id), nil
}

func (s *Sampler) draw(ws *Workspace, logits []float32, pos int) (int32, error) {
	set, p := ws.set, ws.p
	set.Scale(p, s.inv, logits)
	s.adjust(p, logits, s.inv)
	w := rng.Block(s.o.Seed, stream, uint64(pos))
	unit := float64((uint64(w[0])|uint64(w[1])<<32)>>11) * (1.0 / (1 << 53)) // in [0, 1)

	if k := s.o.TopK; k > 0 && k <= smallK && k < s.vocab {
		return s.drawSmall(ws, k, unit)
	}
	best := set.ArgMax(p)
	if math.IsInf(float64(p[best]), -1) {
		return 0, ErrNoToken
	}
	set.Softmax(p, p)
	for _, b := range s.bias {
		if math.IsInf(float64(b.add), -1) {
			p[b.id] = 0 // exactly, however the kernel rounds exp(-inf)
		}
	}
	return ws.drawWide(s.o, best, unit), nil
}

// drawSmall sorts the k best tokens of ws.p, adjusted and scaled logits, and
// draws from a beginning of them.
func (s *Sampler) drawSmall(ws *Workspace, k int, unit float64) (int32, error) {
	ids, q := ws.ids[:k], ws.q[:k]
	ws.set.TopK(ids, ws.p)
	for len(ids) > 0 && math.IsInf(float64(ws.p[ids[len(ids)-1]]), -1) {
		ids = ids[:len(ids)-1]
	}
	if len(ids) == 0 {
		return 0, ErrNoToken
	}
	q = q[:len(ids)]
	for i, id := range ids {
		q[i] = ws.p[id]
	}
	ws.set.Softmax(q, q)
	mass := 0.0
	for _, v := range q {
		mass += float64(v)
	}
	keep := len(q)
	if s.o.TopP > 0 && s.o.TopP < 1 {
		want := float64(s.o.TopP * mass)
		mass = 0
		for i, v := range q {
			mass += float64(v)
			if mass >= want {
				keep = i + 1
				break
			}
		}
	}
	if cut := float64(s.o.MinP * float64(q[0])); float64(q[keep-1]) < cut {
		mass = 0
		keep = 0
		for keep < len(q) && float64(q[keep]) >= cut {
			mass += float64(q[keep])
			keep++
		}
	}
	return ids[walk(q[:keep], float64(unit*mass))], nil
}

// adjusts says whether some logits differ from the model's.
func (s *Sampler) adjusts() bool {
	return len(s.bias) > 0 || (s.history != nil && len(s.history.seen) > 0)
}

// adjust writes scale·l' for every token with a penalty or a bias to dst.
func (s *Sampler) adjust(dst, logits []float32, scale float32) {
	if s.history != nil {
		for _, c := range s.history.seen {
			dst[c.id] = scale * s.penalised(c, logits[c.id])
		}
	}
	for _, b := range s.bias {
		l := logits[b.id]
		if s.history != nil && s.history.slot[b.id] != 0 {
			l = s.penalised(s.history.seen[s.history.slot[b.id]-1], l)
		}
		dst[b.id] = scale * (l + b.add)
	}
}

// penalised is l after the penalties. Every product is rounded before it is
// added, so that no compiler fuses the two.
func (s *Sampler) penalised(c count, l float32) float32 {
	if l > 0 {
		l /= s.repeat
	} else {
		l *= s.repeat
	}
	if c.generated > 0 {
		l -= s.present
		l -= float32(s.freq * float32(c.generated))
	}
	return l
}

// check finds logits that no draw can be made from. The sum of finite numbers
// is finite or overflows; only then every logit is looked at.
func check(logits []float32, pos int) error {
	var a, b, c, d float32
	i := 0
	for ; i+8 <= len(logits); i += 8 {
		x := logits[i : i+8 : i+8]
		a += x[0] + x[4]
		b += x[1] + x[5]
		c += x[2] + x[6]
		d += x[3] + x[7]
	}
	for _, x := range logits[i:] {
		a += x
	}
	if sum := a + b + c + d; sum-sum == 0 {
		return nil
	}
	for i, x := range logits {
		if x != x || x > math.MaxFloat32 {
			return &LogitError{ID: int32(i), Pos: pos, Value: x}
		}
	}
	return nil
}
