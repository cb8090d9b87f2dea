package kernels

import "math"

func checkRMSNorm(dst, x, weight []float32) {
	checkSame("RMSNorm", len(dst), len(x))
	if weight != nil {
		checkSame("RMSNorm", len(x), len(weight))
	}
}

// goRMSNorm multiplies in this order: (x · 1/sqrt(Σx²/n + eps)) · weight. The sum is
// canonical; division and square root round correctly.
func goRMSNorm(dst, x, weight []float32, eps float32) {
	checkRMSNorm(dst, x, weight)
	var s lanes
	for i, v := range x {
		s[i&15] = FMA32(v, v, s[i&15])
	}
	s.pad(len(x))
	inv := 1 / sqrt32(s.sum()/float32(len(x))+eps)
	for i, v := range x {
		v = float32(v * inv)
		if weight != nil {
			v *= weight[i]
		}
		dst[i] = v
	}
}

// sqrt32 rounds correctly: float64 has more than twice the digits of float32.
func sqrt32(x float32) float32 { return float32(math.Sqrt(float64(x))) }

func goAdd(dst, x, y []float32) {
	checkSame("Add", len(dst), len(x))
	checkSame("Add", len(dst), len(y))
	for i := range dst {
		dst[i] = x[i] + y[i]
	}
}

func goAxpy(dst []float32, a float32, x []float32) {
	checkSame("Axpy", len(dst), len(x))
	for i := range dst {
		dst[i] = FMA32(a, x[i], dst[i])
	}
}

func goScale(dst []float32, a float32, x []float32) {
	checkSame("Scale", len(dst), len(x))
	for i := range dst {
		dst[i] = a * x[i]
	}
}

// goSwiGLU computes gate/(1+exp(-gate))·up. A gate of -Inf gives NaN.
func goSwiGLU(dst, gate, up []float32) {
	checkSame("SwiGLU", len(dst), len(gate))
	checkSame("SwiGLU", len(dst), len(up))
	for i, g := range gate {
		dst[i] = float32(g/(1+exp32(-g))) * up[i]
	}
}

// relu32 is x if x > 0, NaN if x is NaN, else +0.
func relu32(x float32) float32 {
	if x <= 0 {
		return 0
	}
	return x
}

func goReLU2GLU(dst, gate, up []float32) {
	checkSame("ReLU2GLU", len(dst), len(gate))
	checkSame("ReLU2GLU", len(dst), len(up))
	for i, g := range gate {
		g = relu32(g)
		dst[i] = float32(g*g) * up[i]
	}
}

func goReLU2(dst, x []float32) {
	checkSame("ReLU2", len(dst), len(x))
	for i, v := range x {
		v = relu32(v)
		dst[i] = v * v
	}
}

func goSigmoid(dst, x []float32) {
	checkSame("Sigmoid", len(dst), len(x))
	for i, v := range x {
		dst[i] = sigmoid32(v)
	}
}

func goSoftcap(dst []float32, c float32, x []float32) {
	checkSame("Softcap", len(dst), len(x))
	for i, v := range x {
		dst[i] = c * tanh32(v/c)
	}
}
