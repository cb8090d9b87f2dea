package mhc

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/kernels"
)

func TestStates(t *testing.T) {
	var s States
	require.Zero(t, s.RMS())
	same := make([]float32, 20)
	Expand(same, normal(1, 10))
	apart := make([]float32, 20)
	apart[0], apart[10+1] = 2, 2
	s.Add(same, 2)
	s.Add(apart, 2)
	require.InDelta(t, 0.5, s.Similarity(), 1e-6)
	require.InDelta(t, 1.5, s.EffectiveRank(), 1e-3)
	energy := 8. / 20
	for _, v := range same {
		energy += float64(v) * float64(v) / 20
	}
	require.InDelta(t, energy/2, s.RMS()*s.RMS(), 1e-6)
}

func TestMixings(t *testing.T) {
	var m Mixings
	require.Nil(t, m.Mean())
	k := kernels.All()[0]
	c := Config{Streams: 2, Dim: 3}
	s, err := New(c)
	require.NoError(t, err)
	s.Prepare(k) // logits 0: all 1/2, but Post 1
	for range 3 {
		m.Add(s.Coef(k, nil, nil, nil))
	}
	require.Equal(t, &Mixing{Pre: []float64{.5, .5}, Post: []float64{1, 1}, Res: [][]float64{{.5, .5}, {.5, .5}}, Kept: .5}, m.Mean())

	m = Mixings{}
	a := Coef{n: 4, Post: [4]float32{1, 2, 3, 4}}
	b := Coef{n: 4, Post: [4]float32{1, 2, 3, 6}}
	for i := range 4 {
		a.Res[i][i], b.Res[i][i] = 1, 1
	}
	m.Add(&a)
	m.Add(&b)
	got := m.Mean()
	require.Equal(t, []float64{1, 2, 3, 5}, got.Post)
	require.Equal(t, 1., got.Kept)
	require.InDelta(t, 1, got.Spread, 1e-9)
	require.Equal(t, []float64{0, 0, 1, 0}, got.Res[2])

	one, err := New(Config{Streams: 1, Dim: 3})
	require.NoError(t, err)
	one.Prepare(k)
	m = Mixings{}
	m.Add(one.Coef(k, nil, nil, nil))
	require.Nil(t, m.Mean())
}
