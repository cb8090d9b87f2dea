//go:build cgo

package model

import (
	"errors"
	"os"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/collective"
	"github.com/architehc/nanochat/kernels/cuda"
	"github.com/architehc/nanochat/kernels/cuda/cudatest"
)

// twoDevices opens two emulated devices as a group.
func twoDevices(t *testing.T) (*collective.Group, []*cuda.Device, cuda.Image) {
	t.Helper()
	t.Setenv("FAKE_CUDA_DEVICES", "2")
	dirs, image, missing, err := cudatest.Setup(os.Getenv)
	if missing != "" {
		t.Skip(missing)
	}
	require.NoError(t, err)
	driver, err := cuda.OpenDriver(dirs...)
	require.NoError(t, err)
	var devices []*cuda.Device
	for i := range 2 {
		d, err := driver.Open(i)
		require.NoError(t, err)
		t.Cleanup(d.Close)
		devices = append(devices, d)
	}
	lib, err := cuda.OpenNCCL(dirs...)
	require.NoError(t, err)
	group, err := collective.New(devices, lib)
	require.NoError(t, err)
	t.Cleanup(func() { group.Close() })
	return group, devices, image
}

// together calls f for two ranks at the same time.
func together(t *testing.T, f func(i int) error) {
	t.Helper()
	var errs [2]error
	var wg sync.WaitGroup
	for i := range errs {
		wg.Add(1)
		go func() {
			defer wg.Done()
			errs[i] = f(i)
		}()
	}
	wg.Wait()
	require.NoError(t, errors.Join(errs[:]...))
}

// Two devices with half of the micro batches each have the weights of one with all of them,
// but for the order of sums, and the bits of each other.
func TestGPUTrainInParallel(t *testing.T) {
	if cudatest.OnGPU(os.Getenv) {
		t.Skip("one device of the machine's")
	}
	group, devices, image := twoDevices(t)
	c := gpuAxes()["norms"]
	b := []*TrainBatch{batchOf(c, 2, 32), batchOf(c, 1, 20)}
	one := newGPUTrainer(t, c, devices[0], image, GPUTrainOptions{Tokens: 64, SeqLen: 32})
	one.Init(1)
	require.NoError(t, one.Push())
	want := one.steps(t, 2, b...)
	runs := make([]gpuRun, 2)
	ranks := make([]*GPUTrainer, 2)
	for i := range ranks {
		ranks[i] = newGPUTrainer(t, c, devices[i], image, GPUTrainOptions{Tokens: 64, SeqLen: 32, Graph: true, Group: group, Rank: i})
		ranks[i].Init(1)
		require.NoError(t, ranks[i].Push())
	}
	for range 2 {
		together(t, func(i int) error { return ranks[i].Begin(b[i:i+1], 1.0/64) })
		together(t, func(i int) error {
			sum, report, err := ranks[i].End()
			runs[i].sums, runs[i].reports = append(runs[i].sums, sum), append(runs[i].reports, report)
			return err
		})
	}
	for i, g := range ranks {
		require.NoError(t, g.Pull())
		for k, p := range g.Params() {
			require.Equal(t, ranks[0].Params()[k].W, p.W, p.Name)
			require.InDeltaSlice(t, want.weights[k], p.W, 2e-3, p.Name)
		}
		require.Equal(t, runs[0].reports[1].GradNorm, runs[i].reports[1].GradNorm)
	}
	for s := range want.sums {
		require.Equal(t, want.sums[s].Count, runs[0].sums[s].Count+runs[1].sums[s].Count)
		require.InDelta(t, want.sums[s].NLL, runs[0].sums[s].NLL+runs[1].sums[s].NLL, 0.05)
	}
}
