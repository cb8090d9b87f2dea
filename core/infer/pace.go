package infer

import "time"

// pace learns what steps cost, to keep answers flowing while prompts are read.
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

func (p *pace) learn(decoding, prefill int, took time.Duration) {
	t := took.Seconds()
	switch {
	case prefill == 0:
		mix(&p.decode, t)
	case decoding == 0:
		mix(&p.token, t/float64(prefill))
	default:
		mix(&p.token, max(t-p.decode, 0)/float64(prefill))
	}
}

// mix moves an average a quarter of the way to x. What is more than twice the average
// counts as twice: once is chance, and more often moves it all the same.
func mix(avg *float64, x float64) {
	if *avg == 0 {
		*avg = x
	}
	*avg += (min(x, 2**avg) - *avg) / 4
}
