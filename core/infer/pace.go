package infer

import "time"

// pace learns what steps cost, to keep answers flowing while prompts are read, and
// steps short enough for a cancellation to be noticed soon.
type pace struct {
	stall  float64
	decode float64 // seconds of a step that only decodes
	token  float64 // seconds that one prompt token adds
}

// quota is how many prompt tokens may join a step that decodes.
func (p *pace) quota() int {
	const few = 8 // also the floor: prompts always advance
	if p.decode == 0 || p.token == 0 {
		return few
	}
	return int(min(max((p.stall-1)*p.decode/p.token, few), maxStep))
}

// most is how many prompt tokens a step may have that decodes nothing. Nothing is asked
// in the middle of a step whether it is still wanted, so a step is to take no longer than
// longest; with fewer than some tokens the weights would be read too often.
func (p *pace) most() int {
	const (
		longest = 0.15 // seconds
		some    = 16
		first   = 32 // before anything is known
	)
	if p.token == 0 {
		return first
	}
	return int(min(max(longest/p.token, some), maxStep))
}

func (p *pace) learn(decoding, prefill int, took time.Duration) {
	t := took.Seconds()
	weight := float64(min(prefill, 32)) / 32 // a few tokens cost more each
	switch {
	case prefill == 0:
		mix(&p.decode, t, 1)
	case decoding == 0:
		mix(&p.token, t/float64(prefill), weight)
	default:
		mix(&p.token, max(t-p.decode, 0)/float64(prefill), weight)
	}
}

// mix moves an average a quarter of the way to x, or less by weight. What is more than
// twice the average counts as twice: once is chance, and more often moves it all the same.
func mix(avg *float64, x, weight float64) {
	if *avg == 0 {
		*avg = x
	}
	*avg += weight * (min(x, 2**avg) - *avg) / 4
}
