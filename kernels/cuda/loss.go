package cuda

import "fmt"

// This file queues the kernels of src/loss.cu.

// Loss is the kernels of the cross entropy. Its methods queue work on the thread that it was loaded on.
type Loss struct {
	t                 *Thread
	crossEntropy, sum *Kernel
}

// Loss loads the kernels.
func (t *Thread) Loss(image Image) (*Loss, error) {
	l := &Loss{t: t}
	err := t.loadKernels(image, "loss", map[string]**Kernel{"cross_entropy": &l.crossEntropy, "loss_sum": &l.sum}, "cross_entropy")
	if err != nil {
		return nil, err
	}
	return l, nil
}

// CrossEntropy is the loss of tokens as kernels.Loss defines it.
type CrossEntropy struct {
	Logits  Ptr // f32 [n][Stride]
	Scale   Ptr // f32 [n]: multiplies a token's logits, and is its gain: the scale of an int8 head's input; 0: none
	Targets Ptr // int32 [n], -1: none
	Options Ptr // f32 [5]: Scale, Z, Entropy, Smoothing, Cap
	// DZ bf16 [n][Stride] is Options.Scale times the gradient of the objective by the scaled logits, times the
	// gain; zero where there is no target, and behind Vocab. 0: it is not wanted.
	DZ      Ptr
	Results Ptr // f32 [n][4]: nll, lse, entropy, objective; zero where there is no target
	Vocab   int
	Stride  int // 0: Vocab. Multiples of 4 are faster, those of 8 better for the products.
}

type crossEntropyArgs struct {
	logits, scale, targets, options, dz, results Ptr
	vocab, stride, kept, _                       int32
}

// CrossEntropy queues a for n tokens.
func (l *Loss) CrossEntropy(a *CrossEntropy, n int) error {
	stride := a.Stride
	if stride == 0 {
		stride = a.Vocab
	}
	if a.Vocab < 1 || stride < a.Vocab || stride > 1<<30 {
		return fmt.Errorf("cuda: %d logits in rows of %d", a.Vocab, stride)
	}
	if err := checkTokens(n); err != nil {
		return err
	}
	threads, kept := 256, 0
	switch {
	case a.Vocab > 24<<10:
		threads = 1024 // one block fills the shared memory of a multiprocessor
	case a.Vocab > 2<<10:
		threads = 512
	}
	if a.DZ != 0 {
		kept = min((a.Vocab+3)&^3, l.t.device.dynamicShared()/4&^3)
	}
	return Launch(l.t, l.crossEntropy, Shape{Grid: [3]uint32{uint32(n), 1, 1}, Block: [3]uint32{uint32(threads), 1, 1}, Shared: uint32(4 * kept)}, &crossEntropyArgs{
		logits: a.Logits, scale: a.Scale, targets: a.Targets, options: a.Options, dz: a.DZ, results: a.Results,
		vocab: int32(a.Vocab), stride: int32(stride), kept: int32(kept),
	})
}

type lossSumArgs struct {
	dst, results, targets Ptr
	n, _                  int32
}

// Sum adds to dst f64 [6] the number of targets of n tokens and the sums of their nll, lse², entropy and
// objective, in a fixed order; the last element stays as it is.
func (l *Loss) Sum(dst, results, targets Ptr, n int) error {
	if err := checkTokens(n); err != nil {
		return err
	}
	return Launch(l.t, l.sum, Shape{Grid: [3]uint32{1, 1, 1}, Block: [3]uint32{1024, 1, 1}}, &lossSumArgs{dst: dst, results: results, targets: targets, n: int32(n)})
}
