//go:build cgo

package cuda_test

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/ternary"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/cuda"
	"github.com/architehc/nanochat/kernels/cuda/cudatest"
)

// withLatent runs f with the kernels on a device of its own.
func withLatent(t *testing.T, f func(*cuda.Thread, *cuda.Latent)) {
	t.Helper()
	onDevice(t, nil, (*cuda.Thread).Latent, f)
}

// room is device memory full of ones, with guards of 64 bytes on both sides.
type room struct {
	at    cuda.Ptr
	bytes int
}

const guard = 64

func newRoom(t *testing.T, th *cuda.Thread, bytes int) room {
	t.Helper()
	p := put(t, th, slices.Repeat([]uint8{0xA5}, bytes+2*guard))
	return room{p + guard, bytes}
}

// read downloads, and checks that nothing was written beside.
func (r room) read(t *testing.T, th *cuda.Thread) []byte {
	t.Helper()
	b := get[uint8](t, th, r.at-guard, r.bytes+2*guard)
	for i, v := range append(slices.Clone(b[:guard]), b[guard+r.bytes:]...) {
		require.Equal(t, uint8(0xA5), v, "byte %d beside the result", i)
	}
	return b[guard : guard+r.bytes]
}

func words(b []byte) []uint16 {
	w := make([]uint16, len(b)/2)
	for i := range w {
		w[i] = binary.LittleEndian.Uint16(b[2*i:])
	}
	return w
}

// latents are weights near and at what decides: multiples of halves, zeros, tiny and huge ones.
func latents(r *rand.Rand, rows, cols int, kind string) []float32 {
	w := vector(r, rows*cols)
	for i := range w {
		switch {
		case kind == "tiny":
			w[i] *= 1e-7
		case kind == "denormal":
			w[i] *= 1e-40
		case kind == "huge":
			w[i] *= 9000
		case kind == "zero":
			w[i] = float32(math.Copysign(0, float64(w[i])))
		case kind == "steps": // quotients of exactly one half
			w[i] = float32(i%2) + 0.5 // of mean 1 in an even number
			if r.IntN(2) == 0 {
				w[i] = -w[i]
			}
		case kind == "sparse" && r.IntN(100) > 0:
			w[i] = 0
		}
	}
	return w
}

func TestPackGivesTheBitsOfTheQuantiser(t *testing.T) {
	r := cudatest.Rand(os.Getenv, 1, 2)
	shapes := []struct{ rows, cols, group int }{
		{16, 128, 64}, {48, 256, 128}, {32, 512, 256}, {32, 768, 768}, {16, 320, 128}, {17, 80, 80}, {5, 33, 33}, {31, 304, 48}, {16, 96, 16}, {33, 1000, 1000}, {16, 64, 64}, {16, 544, 256},
	}
	seed, _ := strconv.ParseUint(os.Getenv("NANOCHAT_TEST_SEED"), 10, 64) // 0 if there is none
	for other := cudatest.Rand(os.Getenv, seed, 3); len(shapes) < 20; {
		s := struct{ rows, cols, group int }{1 + other.IntN(60), 1 + other.IntN(600), 16 * (1 + other.IntN(12))}
		if other.IntN(3) == 0 {
			s.group = s.cols
		} else if other.IntN(2) == 0 {
			s.cols = s.cols/4*4 + 4
		}
		shapes = append(shapes, s)
	}
	kinds := []string{"normal", "tiny", "denormal", "huge", "zero", "steps", "sparse"}
	withLatent(t, func(th *cuda.Thread, l *cuda.Latent) {
		var list []cuda.PackJob
		var tiles, scales, used []room
		var want []*kernels.Ternary
		for i, s := range shapes {
			for k, kind := range kinds {
				if k > 0 && (i+k)%3 != 0 { // each kind with some shapes
					continue
				}
				w := latents(r, s.rows, s.cols, kind)
				q, err := ternary.Quantize(w, s.rows, s.cols, s.group)
				require.NoError(t, err)
				want = append(want, q)
				d := &cuda.Ternary{Rows: s.rows, Cols: s.cols, Group: s.group, Gain: 1}
				tiles = append(tiles, newRoom(t, th, len(q.Tiles)))
				scales = append(scales, newRoom(t, th, 2*len(q.Scales)))
				used = append(used, newRoom(t, th, 2*len(w)))
				d.Tiles, d.Scales = tiles[len(tiles)-1].at, scales[len(scales)-1].at
				list = append(list, cuda.PackJob{Dst: d, Used: used[len(used)-1].at, W: put(t, th, w)})
			}
		}
		bad := put(t, th, make([]int32, len(list)))
		check := func() {
			for i, q := range want {
				require.Equal(t, q.Tiles, tiles[i].read(t, th), "%+v", list[i].Dst)
				require.Equal(t, q.Scales, words(scales[i].read(t, th)), "%+v", list[i].Dst)
				factors := make([]uint16, q.Rows*q.Cols)
				kernels.Best().TernaryBF16(factors, q.Cols, q, 0, q.Rows)
				require.Equal(t, factors, words(used[i].read(t, th)), "%+v", list[i].Dst)
			}
			require.Equal(t, make([]int32, len(list)), get[int32](t, th, bad, len(list)))
		}
		plan, err := l.Plan(list, nil)
		require.NoError(t, err)
		require.NoError(t, plan.Run(bad))
		check()
		require.NoError(t, plan.Free())
		for i := range list { // one by one, over what is there
			require.NoError(t, th.Fill(tiles[i].at, 0xA5, uint64(tiles[i].bytes)))
			require.NoError(t, th.Fill(used[i].at, 0xA5, uint64(used[i].bytes)))
			require.NoError(t, l.Pack(list[i].Dst, list[i].Used, list[i].W, bad+cuda.Ptr(4*i)))
		}
		check()
	})
}

// A stack of parts has the bits of its parts, and addresses that are no multiples of 16 bytes do
// not matter.
func TestPackAtAnyAddress(t *testing.T) {
	r := cudatest.Rand(os.Getenv, 3, 4)
	withLatent(t, func(th *cuda.Thread, l *cuda.Latent) {
		w := latents(r, 32, 192, "normal")
		q, err := ternary.Quantize(w, 32, 192, 64)
		require.NoError(t, err)
		tiles, scales, used := newRoom(t, th, len(q.Tiles)), newRoom(t, th, 2*len(q.Scales)), newRoom(t, th, 2*len(w)+2)
		d := &cuda.Ternary{Rows: 32, Cols: 192, Group: 64, Gain: 1, Tiles: tiles.at, Scales: scales.at}
		require.NoError(t, l.Pack(d, used.at+2, put(t, th, append([]float32{7}, w...))+4, 0))
		require.Equal(t, q.Tiles, tiles.read(t, th))
		require.Equal(t, q.Scales, words(scales.read(t, th)))
		factors := make([]uint16, len(w))
		kernels.Best().TernaryBF16(factors, 192, q, 0, 32)
		require.Equal(t, factors, words(used.read(t, th))[1:])
		require.NoError(t, l.Pack(d, 0, put(t, th, w), 0), "without factors")
		require.ErrorContains(t, l.Pack(&cuda.Ternary{Rows: 16, Cols: 192, Group: 40, Tiles: 1, Scales: 1}, 0, 1, 0), "groups of 40")
		require.ErrorContains(t, l.Pack(d, 0, 0, 0), "without weights")
		d.Gain = 0
		require.ErrorContains(t, l.Pack(d, 0, 256, 0), "gain of 0")
	})
}

func TestPackFlagsWhatIsNotFinite(t *testing.T) {
	r := cudatest.Rand(os.Getenv, 5, 6)
	nan, inf := float32(math.NaN()), float32(math.Inf(-1))
	withLatent(t, func(th *cuda.Thread, l *cuda.Latent) {
		for _, group := range []int{64, 320} {
			var list []cuda.PackJob
			for _, v := range []float32{1, nan, inf, 3e38} {
				w := latents(r, 33, 320, "normal")
				for i := range 8 {
					w[32*320+i] = v // in the last row
				}
				d, err := th.UploadTernary(random(r, 33, 320, group))
				require.NoError(t, err)
				list = append(list, cuda.PackJob{Dst: &d, W: put(t, th, w)})
			}
			bad := put(t, th, make([]int32, 6))
			plan, err := l.Plan(list, []cuda.DenseJob{
				{W: list[1].W, Rows: 33, Cols: 320, Kind: kernels.F16}, {W: list[0].W, Rows: 33, Cols: 320, Kind: kernels.Q8_0},
			})
			require.NoError(t, err)
			require.NoError(t, plan.Run(bad))
			require.Equal(t, []int32{0, 1, 1, 1, 1, 0}, get[int32](t, th, bad, 6))
			require.NoError(t, plan.Run(0))
		}
	})
}

func TestPackDenseGivesTheBitsOfGGUF(t *testing.T) {
	r := cudatest.Rand(os.Getenv, 7, 8)
	withLatent(t, func(th *cuda.Thread, l *cuda.Latent) {
		for _, s := range []struct{ rows, cols int }{{3, 32}, {40, 128}, {17, 352}} {
			for _, kind := range []kernels.DType{kernels.F16, kernels.Q8_0, kernels.F32} {
				for _, values := range []string{"normal", "tiny", "denormal", "zero", "steps", "sparse", "halves"} {
					w := latents(r, s.rows, s.cols, values)
					if values == "halves" { // products that end in one half
						for i := range w {
							w[i] = float32(r.IntN(509)-254) / 2
							if i%32 == 0 {
								w[i] = 127
							}
						}
					}
					want := make([]byte, kind.RowBytes(s.cols)*s.rows)
					require.NoError(t, gguf.Quantize(want, gguf.Type(kind), w))
					stored := make([]float32, len(w))
					dense := &kernels.Dense{Rows: s.rows, Cols: s.cols, Type: kind, Data: want}
					half, used := make([]uint16, len(w)), make([]uint16, len(w))
					for i := range s.rows {
						kernels.Best().DenseRow(stored[i*s.cols:(i+1)*s.cols], dense, i)
					}
					for i, v := range stored {
						half[i], used[i] = kernels.F32ToF16(v), kernels.F32ToBF16(v)
					}
					table, h, u := newRoom(t, th, len(want)), newRoom(t, th, 2*len(w)), newRoom(t, th, 2*len(w))
					bad := put(t, th, []int32{0})
					job := cuda.DenseJob{Table: table.at, Half: h.at, Used: u.at, W: put(t, th, w), Kind: kind, Rows: s.rows, Cols: s.cols}
					require.NoError(t, l.PackDense(&job, bad))
					require.Equal(t, want, table.read(t, th), "%v %v %s", s, kind, values)
					require.Equal(t, half, words(h.read(t, th)), "%v %v %s", s, kind, values)
					require.Equal(t, used, words(u.read(t, th)), "%v %v %s", s, kind, values)
					require.Equal(t, []int32{0}, get[int32](t, th, bad, 1))
				}
			}
		}
		w := make([]float32, 70) // elements one by one, and what cannot be stored
		w[69] = 65520
		bad := put(t, th, []int32{0})
		table := newRoom(t, th, 140)
		job := cuda.DenseJob{Table: table.at, W: put(t, th, append([]float32{1}, w...)) + 4, Kind: kernels.F16, Rows: 2, Cols: 35}
		require.NoError(t, l.PackDense(&job, bad))
		require.Equal(t, []int32{1}, get[int32](t, th, bad, 1))
		require.Equal(t, uint16(0x7c00), words(table.read(t, th))[69])
		job.Kind = kernels.Q8_0
		require.ErrorContains(t, l.PackDense(&job, bad), "[2][35]")
	})
}

func TestFlipsAreCounted(t *testing.T) {
	r := cudatest.Rand(os.Getenv, 9, 10)
	withLatent(t, func(th *cuda.Thread, l *cuda.Latent) {
		a, b := random(r, 33, 1000, 1000), random(r, 33, 1000, 1000)
		want, _, err := ternary.Flips(a, b)
		require.NoError(t, err)
		x, y, count := put(t, th, a.Tiles), put(t, th, b.Tiles), put(t, th, []int32{5})
		require.NoError(t, l.Flips(count, x, y, len(a.Tiles)))
		require.NoError(t, l.Flips(count, x, x, len(a.Tiles)))
		require.Equal(t, []int32{int32(want) + 5}, get[int32](t, th, count, 1))
		require.ErrorContains(t, l.Flips(count, x, y, 65), "65 bytes")
	})
}
