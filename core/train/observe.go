package train

import (
	"fmt"
	"time"

	"github.com/architehc/nanochat/core/config"
)

// Observer is told how a run goes. It is called from the loop, which waits for it: it
// must be quick, and keep nothing that it is given but copies. One that panics is not
// called again.
type Observer interface {
	// Began comes once the state of the run is there, before the first step.
	Began(*Beginning)
	// Stepped comes after every step, evaluation included, with where its time went.
	Stepped(*Metrics, []Phase)
	// Saved comes after a checkpoint, or the attempt at one.
	Saved(*Saving)
	// Ended comes last, with what Run returns.
	Ended(*Result, error)
	// Dropped is how many of its observations were lost so far.
	Dropped() int64
}

// Beginning is what a run begins as.
type Beginning struct {
	Config *config.Config
	// Step steps and Tokens tokens are done, of Steps.
	Step, Steps int
	Tokens      int64
	Kernel      string
	Threads     int
	At          time.Time
}

// Phase is a part of a step: PhaseStep, of all but the evaluation, or one of its parts.
// There are as many forwards and backwards as the step has micro-batches.
type Phase struct {
	Name     string
	From, To time.Time
}

// The names of phases.
const (
	PhaseStep      = "step"
	PhaseData      = "data"
	PhaseForward   = "forward"
	PhaseBackward  = "backward" // the head and the loss are part of it
	PhaseOptimizer = "optimizer"
	PhaseDevice    = "device" // all of them together, on a GPU, with the fetching of the next data
	PhaseEvaluate  = "evaluation"
)

// Saving is a checkpoint that was saved, or failed.
type Saving struct {
	Step     int
	Path     string // "" if there is none
	Err      error
	From, To time.Time
}

// observers are those of the run: the one of Options and that of TensorBoard.
func (r *run) observe(f func(Observer)) {
	for i, o := range r.observers {
		if o == nil {
			continue
		}
		func() {
			defer func() {
				if p := recover(); p != nil {
					r.observers[i] = nil
					r.event(unseen, "an observer failed and is not called again: %v", p)
				}
			}()
			f(o)
		}()
	}
}

// dropped is the observations that were lost.
func (r *run) dropped() (n int64) {
	r.observe(func(o Observer) { n += o.Dropped() })
	return n
}

// startObservers calls everyone together.
func (r *run) startObservers() {
	if r.o.Observer != nil {
		r.observers = append(r.observers, r.o.Observer)
	}
	if r.cfg.Telemetry.TensorBoard {
		r.observers = append(r.observers, newBoard(r))
	}
	b := &Beginning{Config: r.cfg, Step: r.meta.Step, Steps: r.total, Tokens: r.meta.Tokens, Kernel: r.learn.Kernel(), Threads: r.team.Size(), At: r.clock.Now()}
	r.observe(func(o Observer) { o.Began(b) })
}

// tellDropped says once that observations are lost.
func (r *run) tellDropped() {
	if r.toldDropped {
		return
	}
	if n := r.dropped(); n > 0 {
		r.toldDropped = true
		r.event(unseen, "%d observations could not be written or sent; the training goes on without them", n)
	}
}

// phase notes a part of the step at hand, from a time until now, which it returns.
func (r *run) phase(name string, from time.Time) time.Time {
	now := r.clock.Now()
	r.phases = append(r.phases, Phase{name, from, now})
	return now
}

// ended tells everyone that it is over.
func (r *run) ended(err error) {
	r.observe(func(o Observer) { o.Ended(&r.result, err) })
}

// fenced is text as a block of code in Markdown.
func fenced(language, text string) string { return fmt.Sprintf("```%s\n%s\n```\n", language, text) }
