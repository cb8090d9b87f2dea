package optim

import (
	"fmt"
	"math"
)

// Shape is the form of a schedule after its warm-up.
type Shape uint8

// The shapes.
const (
	// Constant stays at 1.
	Constant Shape = iota
	// Stable stays at 1 until the last Decay steps, which fall in a line to Final.
	Stable
	// Linear falls in a line from the warm-up to Final.
	Linear
	// Cosine falls in half a cosine from the warm-up to Final.
	Cosine
)

// Schedule gives a factor on learning rates for each step. The zero value is
// always 1.
type Schedule struct {
	Shape Shape
	// Warmup is the steps of a line from 0: step s has the factor s/Warmup.
	Warmup int
	// Total is the steps of the whole run. Final is the factor reached one step after
	// them, so that even with a Final of 0 the last step learns.
	Total int
	Final float64
	// Decay is the steps that a Stable schedule falls.
	Decay int
}

// Check says what is wrong with the schedule.
func (s Schedule) Check() error {
	switch {
	case s.Shape > Cosine:
		return fmt.Errorf("optim: there is no schedule of shape %d", s.Shape)
	case s.Warmup < 0 || s.Decay < 0 || s.Total < 0:
		return fmt.Errorf("optim: schedule of %d steps with %d of warm-up and %d of decay: none may be negative", s.Total, s.Warmup, s.Decay)
	case !(s.Final >= 0 && s.Final <= 1):
		return fmt.Errorf("optim: schedule ends at a factor of %v; it must be 0 to 1", s.Final)
	case s.Shape != Constant && s.Total < 1:
		return fmt.Errorf("optim: a schedule that falls needs Total, the steps of the run")
	case s.Shape != Constant && s.Warmup+s.Decay > s.Total:
		return fmt.Errorf("optim: schedule of %d steps with %d of warm-up and %d of decay: they do not fit", s.Total, s.Warmup, s.Decay)
	}
	return nil
}

// Factor is the factor of a step; the first step is 1. It is Final after Total.
func (s Schedule) Factor(step int) float64 {
	if step <= s.Warmup {
		return float64(max(step, 0)) / float64(s.Warmup)
	}
	fall := s.Total - s.Warmup
	switch s.Shape {
	case Constant:
		return 1
	case Stable:
		fall = s.Decay
	}
	left := float64(s.Total-step+1) / float64(fall) // NaN or infinite only if fall is 0
	if step > s.Total {
		left = 0
	}
	left = min(left, 1)
	if s.Shape == Cosine {
		left = (1 - math.Cos(math.Pi*left)) / 2
	}
	return s.Final + (1-s.Final)*left
}
