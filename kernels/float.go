package kernels

import "fmt"

// lanes are the 16 partial sums of a canonical sum: element i goes to lane i mod 16.
type lanes [16]float32

// pad adds the zeros that fill the last 16 of n elements, as every vector kernel
// does; it turns a lane of -0 into +0.
func (s *lanes) pad(n int) {
	if n %= 16; n != 0 {
		for l := n; l < 16; l++ {
			s[l] += 0
		}
	}
}

// sum is the fixed tree: lanes 8 apart, then 4, 2, 1.
func (s *lanes) sum() float32 {
	for h := 8; h > 0; h /= 2 {
		for l := range h {
			s[l] += s[l+h]
		}
	}
	return s[0]
}

// max is the largest value of x that is not NaN, or -Inf: lane by lane, then the
// tree of sum. Of +0 and -0 the one met first stays.
func maxOf(x []float32) float32 {
	var s lanes
	for l := range s {
		s[l] = negInf()
	}
	for i, v := range x {
		if v > s[i&15] {
			s[i&15] = v
		}
	}
	for h := 8; h > 0; h /= 2 {
		for l := range h {
			if s[l+h] > s[l] {
				s[l] = s[l+h]
			}
		}
	}
	return s[0]
}

// floatGo fills in the float ops of the reference set.
func floatGo(s *Set) {
	s.DenseGEMV = goDenseGEMV
	s.DenseGEMM = goDenseGEMM
	s.DenseRow = goDenseRow
	s.RMSNorm = goRMSNorm
	s.Add = goAdd
	s.Axpy = goAxpy
	s.Scale = goScale
	s.SwiGLU = goSwiGLU
	s.ReLU2GLU = goReLU2GLU
	s.ReLU2 = goReLU2
	s.Sigmoid = goSigmoid
	s.Softcap = goSoftcap
	s.Softmax = goSoftmax
	s.LogSumExp = goLogSumExp
	s.ArgMax = goArgMax
	s.TopK = goTopK
	s.RoPE = goRoPE
	s.KVStore = goKVStore
	s.Attention = goAttention
}

// checkSame panics unless b is as long as a.
func checkSame(op string, a, b int) {
	if a != b {
		panic(fmt.Sprintf("kernels: %s of slices of length %d and %d", op, a, b))
	}
}
