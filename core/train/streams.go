package train

import "github.com/architehc/nanochat/core/model"

// streamTokens is the length of the text that streams are measured with.
const streamTokens = 64

// lookAtStreams measures the residual streams and their mixing, where there are several.
func (r *run) lookAtStreams(m *Metrics) {
	net := r.modelOf()
	if net == nil || net.Config().Streams < 2 {
		return
	}
	s, err := net.StreamStats(r.team, net.RandomTokens(min(streamTokens, net.Config().Context), evalSeed))
	if err != nil {
		return
	}
	r.streams = s
	v := Number(gain(s))
	m.Gain = &v
}

// gain is the largest sum of a row of the product of all mixings, in the order of the
// network: 1 if each is doubly stochastic.
func gain(sites []model.StreamStats) float64 {
	var p [][]float64
	for i := range sites {
		x := sites[i].Mixing
		if x == nil {
			continue
		}
		if p == nil {
			p = x.Res
			continue
		}
		q := make([][]float64, len(p))
		for i, row := range x.Res {
			q[i] = make([]float64, len(p))
			for k, v := range row {
				for j := range q[i] {
					q[i][j] += v * p[k][j]
				}
			}
		}
		p = q
	}
	most := 0.
	for _, row := range p {
		sum := 0.
		for _, v := range row {
			sum += max(v, -v)
		}
		most = max(most, sum)
	}
	return most
}
