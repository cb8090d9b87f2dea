package mhc

import "math"

// States gathers what the streams of tokens look like at one place. The zero value
// is empty.
type States struct {
	tokens               int
	energy, cosine, rank float64
}

// Add counts a token whose n streams are x, [n·dim].
func (s *States) Add(x []float32, n int) {
	s.tokens++
	s.cosine += Similarity(x, n)
	s.rank += EffectiveRank(x, n)
	energy := 0.0
	for _, v := range x {
		energy += float64(v) * float64(v)
	}
	s.energy += energy / float64(len(x))
}

// RMS is the root mean square of all values, 0 without tokens.
func (s *States) RMS() float64 { return math.Sqrt(s.mean(s.energy)) }

// Similarity is the mean of Similarity over the tokens.
func (s *States) Similarity() float64 { return s.mean(s.cosine) }

// EffectiveRank is the mean of EffectiveRank over the tokens.
func (s *States) EffectiveRank() float64 { return s.mean(s.rank) }

func (s *States) mean(sum float64) float64 { return sum / float64(max(s.tokens, 1)) }

// Mixings gathers the mixing of tokens at one site. The zero value is empty.
type Mixings struct {
	n, tokens   int
	sum, square [2*MaxStreams + MaxStreams*MaxStreams]float64
}

// Mixing is what a site does on the mean over tokens.
type Mixing struct {
	// Pre and Post have a value for each stream; Res[i][j] is what new stream i takes
	// from old stream j.
	Pre  []float64   `json:"pre"`
	Post []float64   `json:"post"`
	Res  [][]float64 `json:"res"`
	// Kept is the mean of the diagonal of Res: 1 is the identity, 1/n complete mixing.
	Kept float64 `json:"kept"`
	// Spread is the largest standard deviation of any of these over the tokens; 0 for
	// a static site.
	Spread float64 `json:"spread"`
}

// Add counts a token's mixing.
func (m *Mixings) Add(c *Coef) {
	m.n = c.n
	m.tokens++
	at := 0
	count := func(v float32) {
		m.sum[at] += float64(v)
		m.square[at] += float64(v) * float64(v)
		at++
	}
	for i := range c.n {
		count(c.Pre[i])
		count(c.Post[i])
		for _, v := range c.Res[i][:c.n] {
			count(v)
		}
	}
}

// Mean is the mean over the tokens; nil without any, or with one stream.
func (m *Mixings) Mean() *Mixing {
	if m.tokens == 0 || m.n < 2 {
		return nil
	}
	mean, at := &Mixing{}, 0
	next := func() float64 {
		v := m.sum[at] / float64(m.tokens)
		mean.Spread = max(mean.Spread, m.square[at]/float64(m.tokens)-v*v)
		at++
		return v
	}
	for i := range m.n {
		mean.Pre = append(mean.Pre, next())
		mean.Post = append(mean.Post, next())
		row := make([]float64, m.n)
		for j := range row {
			row[j] = next()
		}
		mean.Res = append(mean.Res, row)
		mean.Kept += row[i] / float64(m.n)
	}
	mean.Spread = math.Sqrt(mean.Spread)
	if mean.Spread < 1e-7 { // the rounding of the sums
		mean.Spread = 0
	}
	return mean
}
