//go:build cgo

package cuda_test

import (
	"errors"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/kernels/cuda"
	"github.com/architehc/nanochat/kernels/cuda/cudatest"
)

// relay sends rounds of numbers through one buffer of the device: each is prefetched while the stream
// still uses the one before. It returns how many arrive wrong.
func relay(t *testing.T, th *cuda.Thread, hold, await, sync bool) (wrong int) {
	t.Helper()
	const n, rounds = 64, 40
	src, err := cuda.Pinned[float32](th, n)
	require.NoError(t, err)
	got, err := cuda.Pinned[float32](th, rounds*n)
	require.NoError(t, err)
	buffer, err := th.Alloc(4 * n)
	require.NoError(t, err)
	for r := range rounds {
		if sync {
			require.NoError(t, th.SyncPrefetch())
		}
		for i := range src {
			src[i] = float32(r*n + i)
		}
		if hold {
			require.NoError(t, th.HoldPrefetch())
		}
		require.NoError(t, cuda.Prefetch(th, buffer, src))
		if await {
			require.NoError(t, th.AwaitPrefetch())
		}
		require.NoError(t, cuda.DownloadAsync(th, got[r*n:][:n], buffer))
		if r%2 == 1 {
			require.NoError(t, th.Wait())
		}
	}
	require.NoError(t, th.SyncPrefetch())
	require.NoError(t, th.Wait())
	for i, v := range got {
		if v != float32(i) {
			wrong++
		}
	}
	return wrong
}

func TestPrefetchBesideTheComputation(t *testing.T) {
	v, _ := cudatest.Open(t, os.Getenv)
	defer v.Close()
	require.NoError(t, v.Do(func(th *cuda.Thread) error {
		require.NoError(t, th.AwaitPrefetch(), "nothing was prefetched")
		require.NoError(t, th.SyncPrefetch())
		require.NoError(t, cuda.Prefetch(th, 0, []float32{}))
		require.NoError(t, cuda.DownloadAsync(th, []float32{}, 0))
		require.Zero(t, relay(t, th, true, true, true))
		if !cudatest.OnGPU(os.Getenv) { // the emulation finds what is missing
			require.NotZero(t, relay(t, th, false, true, true), "written before its last use")
			require.NotZero(t, relay(t, th, true, false, true), "read before it is there")
			require.NotZero(t, relay(t, th, true, true, false), "the host has written again")
		}
		return nil
	}))
}

func TestEventsAreUsedAgain(t *testing.T) {
	v, _ := cudatest.Open(t, os.Getenv)
	defer v.Close()
	require.NoError(t, v.Do(func(th *cuda.Thread) error {
		p, err := th.Alloc(1 << 20)
		require.NoError(t, err)
		var marks []*cuda.Event
		for range 3 {
			e, err := th.Record()
			require.NoError(t, err)
			marks = append(marks, e)
			require.NoError(t, th.Fill(p, 1, 1<<20))
		}
		for _, pair := range [][2]int{{0, 1}, {1, 2}, {0, 2}} { // each with several others
			s, err := th.Elapsed(marks[pair[0]], marks[pair[1]])
			require.NoError(t, err)
			require.Positive(t, s)
		}
		th.Release(marks...)
		th.Release(marks[0], nil) // twice is once
		for range 5 {
			a, err := th.Record()
			require.NoError(t, err)
			b, err := th.Record()
			require.NoError(t, err)
			require.NotEqual(t, *a, *b)
			_, err = th.Between(a, b)
			require.NoError(t, err)
		}
		return nil
	}))
}

func TestWhatAGraphCannotRecord(t *testing.T) {
	v := device(t)
	require.NoError(t, v.Do(func(th *cuda.Thread) error {
		p, err := th.Alloc(256)
		require.NoError(t, err)
		pinned, err := cuda.Pinned[float32](th, 8)
		require.NoError(t, err)
		require.NoError(t, cuda.Prefetch(th, p, pinned))
		for name, f := range map[string]func() error{
			"waiting":  th.Wait,
			"upload":   func() error { return cuda.Upload(th, p, make([]float32, 8)) },
			"download": func() error { return cuda.Download(th, make([]float32, 8), p) },
			"event":    func() error { _, err := th.Record(); return err },
			"prefetch": th.AwaitPrefetch,
		} {
			_, err := th.Graph(f)
			require.ErrorContains(t, err, "CUDA_ERROR_90", name)
		}
		own := errors.New("its own")
		_, err = th.Graph(func() error { return own })
		require.Equal(t, own, err)
		require.Panics(t, func() { _, _ = th.Graph(func() error { panic("a fault") }) })

		g, err := th.Graph(func() error { return errors.Join(cuda.Upload(th, p, pinned), cuda.DownloadAsync(th, pinned[:4], p+16)) })
		require.NoError(t, err, "the stream is none the worse")
		pinned[7] = 5 // pinned memory is read when the graph is launched
		require.NoError(t, th.Replay(g))
		require.NoError(t, th.Wait())
		require.Equal(t, float32(5), pinned[3])
		th.Drop(g)
		return nil
	}))
}

func TestLostDevice(t *testing.T) {
	for _, c := range []struct{ value, hint string }{
		{"cuStreamSynchronize:719:1", "dmesg"}, {"cuStreamSynchronize:214:1", "ECC"}, {"cuStreamSynchronize:700:1", "report"},
		{"cuMemcpyHtoDAsync_v2:220:1", "NVLink"}, {"cuMemAlloc_v2:716:1", "aligned"},
	} {
		v := device(t, "FAKE_CUDA_FAIL", c.value)
		told := make(chan error, 2)
		v.OnLoss(func(err error) { told <- err })
		v.OnLoss(func(error) { panic("the listener's own fault") })
		err := v.Do(func(th *cuda.Thread) error {
			p, err := th.Alloc(16)
			if err == nil {
				err = cuda.Upload(th, p, []float32{1})
			}
			return errors.Join(err, th.Wait())
		})
		var lost *cuda.LostError
		require.ErrorAs(t, err, &lost)
		require.ErrorContains(t, err, "cuda: device 0 is lost: cu")
		var e *cuda.Error
		require.ErrorAs(t, err, &e)
		require.Contains(t, e.Hint, c.hint)
		require.Equal(t, lost, v.Do(func(*cuda.Thread) error { return nil }))
		require.Equal(t, lost, <-told)
		v.OnLoss(func(err error) { told <- err }) // too late is at once
		require.Equal(t, lost, <-told)
		v.Close()
	}
}

// Another fault than of the device itself: waiting ends with it.
func TestDeviceWhoseResultsAreWrong(t *testing.T) {
	v := device(t)
	fault := errors.New("another device failed")
	require.ErrorIs(t, v.Do(func(th *cuda.Thread) error {
		require.NoError(t, th.Wait())
		v.Fail(fault)
		v.Fail(errors.New("the second"))
		return th.Wait()
	}), fault)
	require.ErrorIs(t, v.Do(func(*cuda.Thread) error { return nil }), fault)
}

func TestFreeMemory(t *testing.T) {
	v := device(t, "FAKE_CUDA_MEMORY", "1000000")
	require.NoError(t, v.Do(func(th *cuda.Thread) error {
		_, err := th.Alloc(4096)
		require.NoError(t, err)
		free, total, err := th.FreeMemory()
		require.NoError(t, err)
		require.Equal(t, [2]uint64{1000000 - 4096, 1000000}, [2]uint64{free, total})
		return nil
	}))
}

// Pointers belong to a device.
func TestTwoDevices(t *testing.T) {
	d, err := emulated(t, "FAKE_CUDA_DEVICES", "2")
	require.NoError(t, err)
	var list [2]*cuda.Device
	var at [2]cuda.Ptr
	for i := range list {
		list[i], err = d.Open(i)
		require.NoError(t, err)
		require.NoError(t, list[i].Do(func(th *cuda.Thread) (err error) {
			at[i], err = th.Alloc(256)
			return errors.Join(err, cuda.Upload(th, at[i], []float32{float32(i)}))
		}))
	}
	for i := range list {
		require.NoError(t, list[i].Do(func(th *cuda.Thread) error {
			require.Equal(t, []float32{float32(i)}, get[float32](t, th, at[i], 1))
			require.Error(t, cuda.Upload(th, at[1-i], []float32{3}), "the other's")
			return nil
		}), "device %d", i)
		list[i].Close()
	}
	require.Zero(t, left(t))
}
