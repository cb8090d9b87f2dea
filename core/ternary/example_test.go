package ternary_test

import (
	"fmt"

	"github.com/architehc/nanochat/core/ternary"
)

func ExampleQuantize() {
	w, _ := ternary.Quantize([]float32{0.9, -0.2, -1.1, 0.6}, 1, 4, 0)
	back := make([]float32, 4)
	_ = ternary.Dequantize(back, w)
	fmt.Println(back)
	// Output: [0.7001953 0 -0.7001953 0.7001953]
}
