package team

import (
	"fmt"
	"testing"
)

// BenchmarkRun is a round trip: publish the function, run nothing, complete.
func BenchmarkRun(b *testing.B) {
	for _, pin := range []bool{false, true} {
		for _, n := range []int{1, 2} {
			b.Run(fmt.Sprintf("pin=%t/%d", pin, n), func(b *testing.B) {
				tm := New(n, Options{Pin: pin})
				defer tm.Close()
				fn := func(*Worker) {}
				b.ReportAllocs()
				for b.Loop() {
					_ = tm.Run(fn)
				}
			})
		}
	}
}

// BenchmarkBarrier is one barrier inside Run.
func BenchmarkBarrier(b *testing.B) {
	for _, n := range []int{1, 2, 4} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			tm := New(n, Options{})
			defer tm.Close()
			b.ReportAllocs()
			_ = tm.Run(func(w *Worker) {
				for range b.N {
					w.Barrier()
				}
			})
		})
	}
}
