package kernels_test

import (
	"testing"

	. "github.com/architehc/nanochat/kernels"
)

// BenchmarkRoofline measures the limits that the other benchmarks are compared with.
func BenchmarkRoofline(b *testing.B) {
	l, ok := Roofline()
	if !ok {
		b.Skip("needs a build with cgo")
	}
	for _, p := range []Peak{l.Dot8, l.FMA, l.DotBF16} {
		if p.Run == nil {
			continue
		}
		b.Run(p.Name, func(b *testing.B) {
			const n = 100000
			for b.Loop() {
				p.Run(n)
			}
			b.ReportMetric(float64(p.Ops)*n*float64(b.N)/b.Elapsed().Seconds()/1e9, "GOPS")
		})
	}
	for _, s := range []struct {
		name  string
		bytes int
	}{{"16KiB", 16 << 10}, {"512KiB", 512 << 10}, {"8MiB", 8 << 20}, {"512MiB", 512 << 20}} {
		b.Run("read"+s.name, func(b *testing.B) {
			buf := make([]byte, s.bytes)
			for i := range buf {
				buf[i] = byte(i)
			}
			b.SetBytes(int64(len(buf)))
			for b.Loop() {
				l.Read(buf)
			}
		})
	}
}
