//go:build cgo

package collective_test

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/collective"
	"github.com/architehc/nanochat/kernels/cuda"
	"github.com/architehc/nanochat/kernels/cuda/cudatest"
	"github.com/architehc/nanochat/kernels/dl"
)

func TestMain(m *testing.M) {
	code := m.Run()
	cudatest.Clean()
	os.Exit(code)
}

// devices opens n emulated devices, or the machine's, and NCCL. scene is pairs of environment variables and
// values.
func devices(t *testing.T, n string, scene ...string) ([]*cuda.Device, *cuda.NCCL) {
	t.Helper()
	for _, name := range []string{"FAKE_CUDA_FAIL", "FAKE_NCCL_FAIL", "FAKE_NCCL_LOST"} {
		t.Setenv(name, "")
		os.Unsetenv(name)
	}
	t.Setenv("FAKE_CUDA_DEVICES", n)
	for i := 0; i < len(scene); i += 2 {
		t.Setenv(scene[i], scene[i+1])
	}
	dirs, _, missing, err := cudatest.Setup(os.Getenv)
	if missing != "" {
		t.Skip(missing)
	}
	require.NoError(t, err)
	driver, err := cuda.OpenDriver(dirs...)
	require.NoError(t, err)
	list, err := driver.Devices()
	require.NoError(t, err)
	var open []*cuda.Device
	for _, d := range list {
		v, err := driver.Open(d.Ordinal)
		require.NoError(t, err)
		t.Cleanup(v.Close)
		open = append(open, v)
	}
	lib, err := cuda.OpenNCCL(dirs...)
	if err != nil && cudatest.OnGPU(os.Getenv) {
		t.Skip("NCCL is not here: ", err)
	}
	require.NoError(t, err)
	return open, lib
}

func emulated(t *testing.T) {
	t.Helper()
	if cudatest.OnGPU(os.Getenv) {
		t.Skip("the emulated devices fail on demand")
	}
}

// left is the members that are in no group any more, but were not given back.
func left(t *testing.T) int32 {
	t.Helper()
	dirs, _, _, err := cudatest.Setup(os.Getenv)
	require.NoError(t, err)
	lib, err := dl.Open(dl.Search{Files: []string{filepath.Join(dirs[0], "libnccl.so.2")}})
	require.NoError(t, err)
	var f struct {
		Left func() int32 `c:"fake_nccl_left"`
	}
	require.NoError(t, lib.Bind(&f))
	return f.Left()
}

// each runs f for every device at the same time and returns their errors.
func each(devices []*cuda.Device, f func(rank int, t *cuda.Thread) error) []error {
	errs := make([]error, len(devices))
	var wait sync.WaitGroup
	for rank, d := range devices {
		wait.Go(func() { errs[rank] = d.Do(func(th *cuda.Thread) error { return f(rank, th) }) })
	}
	wait.Wait()
	return errs
}

// numbers is memory of the device with values of its own.
func numbers[T float32 | float64](th *cuda.Thread, rank, n int) (cuda.Ptr, error) {
	v := make([]T, n)
	for i := range v {
		v[i] = T(i) + T(rank)*1e7 + T(rank+1)/3
	}
	p, err := th.Alloc(uint64(8 * n))
	if err != nil {
		return 0, err
	}
	return p, cuda.Upload(th, p, v)
}

// On a machine with one GPU this is a group of one.
func TestSumsInTheOrderOfRanks(t *testing.T) {
	list, lib := devices(t, "3")
	g, err := collective.New(list, lib)
	require.NoError(t, err)
	require.Equal(t, len(list), g.Ranks())
	require.NoError(t, g.Check())
	const n = 1000
	got, precise := make([][]float32, len(list)), make([][]float64, len(list))
	for _, err := range each(list, func(rank int, th *cuda.Thread) error {
		p, err := numbers[float32](th, rank, n)
		if err != nil {
			return err
		}
		q, err := numbers[float64](th, rank, 6)
		if err != nil {
			return err
		}
		// Twice, and then in a graph: what was summed is summed again.
		sums := func() error {
			return errors.Join(g.AllReduce(th, rank, p, n), g.AllReduce(th, rank, p, 0), g.AllReduceF64(th, rank, q, 6), g.AllReduce(th, rank, p, n))
		}
		if err := sums(); err != nil {
			return err
		}
		graph, err := th.Graph(sums)
		if err != nil {
			return err
		}
		defer th.Drop(graph)
		if err := th.Replay(graph); err != nil {
			return err
		}
		got[rank], precise[rank] = make([]float32, n), make([]float64, 6)
		return errors.Join(cuda.Download(th, got[rank], p), cuda.Download(th, precise[rank], q))
	}) {
		require.NoError(t, err)
	}
	ranks := len(list)
	for i := range n {
		var want float32
		for rank := range ranks {
			want += float32(i) + float32(rank)*1e7 + float32(rank+1)/3
		}
		for range 3 {
			v := want
			for range ranks - 1 {
				want += v
			}
		}
		for rank := range ranks {
			if cudatest.OnGPU(os.Getenv) {
				require.InEpsilon(t, want, got[rank][i], 1e-6)
			} else {
				require.Equal(t, want, got[rank][i])
			}
			require.Equal(t, got[0][i], got[rank][i], "all have the same")
		}
	}
	require.Equal(t, precise[0], precise[ranks-1])
	var first float64
	for rank := range ranks {
		first += float64(rank)*1e7 + float64(rank+1)/3
	}
	require.InEpsilon(t, first*float64(ranks), precise[0][0], 1e-14)
	require.NoError(t, g.Close())
	require.NoError(t, g.Close())
	require.ErrorContains(t, list[0].Do(func(th *cuda.Thread) error { return g.AllReduce(th, 0, 256, 1) }), "closed")
	require.NoError(t, list[0].Do(func(th *cuda.Thread) error { return th.Wait() }), "its devices stay open")
	if !cudatest.OnGPU(os.Getenv) {
		require.Zero(t, left(t))
	}
}

// Since 2.23 the identity of a group goes by its address, before that by value.
func TestNewerNCCL(t *testing.T) {
	emulated(t)
	list, _ := devices(t, "2")
	dirs, _, _, err := cudatest.Setup(os.Getenv)
	require.NoError(t, err)
	lib, err := cuda.OpenNCCL(filepath.Join(dirs[0], cudatest.NewNCCL))
	require.NoError(t, err)
	require.Equal(t, filepath.Join(dirs[0], cudatest.NewNCCL, "libnccl.so.2"), lib.Path())
	g, err := collective.New(list, lib)
	require.NoError(t, err)
	for _, err := range each(list, func(rank int, th *cuda.Thread) error {
		p, err := th.Alloc(8)
		got := make([]float64, 1)
		return errors.Join(err, cuda.Upload(th, p, []float64{float64(rank + 1)}), g.AllReduceF64(th, rank, p, 1), cuda.Download(th, got, p), is(got[0] == 3))
	}) {
		require.NoError(t, err)
	}
	require.NoError(t, g.Close())
}

func is(ok bool) error {
	if !ok {
		return errors.New("another sum")
	}
	return nil
}

// Whatever happens to one member, the others' waiting ends, with the reason.
func TestMemberThatFailsEndsTheOthersWaiting(t *testing.T) {
	emulated(t)
	for _, c := range []struct {
		name, variable, value, text string
	}{
		{"sum", "FAKE_NCCL_FAIL", "ncclAllReduce:3@1", "device 1 of the group failed"},
		{"something else", "", "", "the corpus ended"},
	} {
		t.Run(c.name, func(t *testing.T) {
			list, lib := devices(t, "3")
			g, err := collective.New(list, lib)
			require.NoError(t, err)
			if c.variable != "" {
				t.Setenv(c.variable, c.value)
			}
			errs := each(list, func(rank int, th *cuda.Thread) error {
				p, err := numbers[float32](th, rank, 8)
				if err != nil {
					return err
				}
				if rank == 1 && c.variable == "" {
					g.Abort(errors.New("the corpus ended"))
					return th.Wait()
				}
				if err := g.AllReduce(th, rank, p, 8); err != nil {
					return err
				}
				return th.Wait()
			})
			for rank, err := range errs {
				var e *collective.Error
				require.ErrorAs(t, err, &e, "rank %d", rank)
				require.ErrorContains(t, err, c.text)
				require.Contains(t, e.Hint, "checkpoint")
				require.Equal(t, err, list[rank].Do(func(*cuda.Thread) error { return nil }))
			}
			require.ErrorContains(t, g.Check(), c.text)
			require.NoError(t, g.Close())
			require.Zero(t, left(t))
		})
	}
}

func TestDeviceThatIsLostEndsTheOthersWaiting(t *testing.T) {
	emulated(t)
	list, lib := devices(t, "2", "FAKE_CUDA_FAIL", "cuMemsetD8Async:719:1@1")
	g, err := collective.New(list, lib)
	require.NoError(t, err)
	errs := each(list, func(rank int, th *cuda.Thread) error {
		p, err := numbers[float32](th, rank, 8)
		if err != nil {
			return err
		}
		if rank == 1 {
			return th.Fill(p, 0, 32)
		}
		if err := g.AllReduce(th, rank, p, 8); err != nil {
			return err
		}
		return th.Wait()
	})
	var lost *cuda.LostError
	require.ErrorAs(t, errs[0], &lost)
	require.Equal(t, 1, lost.Device)
	require.ErrorContains(t, errs[0], "device 1 of the group failed")
	require.ErrorAs(t, errs[1], &lost)
	require.NoError(t, g.Close())
	require.Zero(t, left(t))
}

func TestGroupThatCannotBe(t *testing.T) {
	emulated(t)
	list, lib := devices(t, "2")
	_, err := collective.New(nil, lib)
	require.ErrorContains(t, err, "no devices")
	_, err = collective.New([]*cuda.Device{list[0], list[0]}, lib)
	require.ErrorContains(t, err, "twice")
	for _, c := range []string{"ncclGetUniqueId:2", "ncclCommInitRank:1@0", "ncclCommInitRank:1@1", "ncclCommGetAsyncError:3@0"} {
		t.Setenv("FAKE_NCCL_FAIL", c)
		_, err = collective.New(list, lib)
		var e *cuda.Error
		require.ErrorAs(t, err, &e, c)
		require.Contains(t, e.Hint, "NCCL_DEBUG")
		require.Zero(t, left(t), c)
	}
	t.Setenv("FAKE_NCCL_FAIL", "")
	g, err := collective.New(list, lib) // the devices are none the worse
	require.NoError(t, err)
	require.ErrorContains(t, list[0].Do(func(th *cuda.Thread) error { return g.AllReduce(th, 1, 256, 1) }), "is not rank 1 of 2")
	t.Setenv("FAKE_NCCL_FAIL", "ncclCommFinalize:2")
	require.ErrorContains(t, g.Close(), "ncclSystemError")
	require.Zero(t, left(t))
}

func TestDeviceThatIsClosedCannotJoin(t *testing.T) {
	emulated(t)
	list, lib := devices(t, "2")
	list[1].Close()
	_, err := collective.New(list, lib)
	require.ErrorIs(t, err, cuda.ErrClosed)
	require.Zero(t, left(t))
}

func TestMachineWithoutNCCL(t *testing.T) {
	_, err := cuda.OpenNCCL(t.TempDir())
	if err == nil {
		t.Skip("this machine has NCCL")
	}
	var e *dl.Error
	require.ErrorAs(t, err, &e)
	require.ErrorContains(t, err, "NCCL was not found")
	require.Contains(t, e.Hint, "nvidia-nccl")
}
