//go:build cgo

package train

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/checkpoint"
	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/internal/fsx"
	"github.com/architehc/nanochat/kernels/cuda"
	"github.com/architehc/nanochat/kernels/cuda/cudatest"
)

// onGPU has runs open the emulated GPU, or that of the machine, with its variables as they
// are by then: FAKE_CUDA_FAIL and others.
func onGPU(t testing.TB) func(*Options) {
	dirs, image, missing, err := cudatest.Setup(os.Getenv)
	if missing != "" {
		t.Skip(missing)
	}
	require.NoError(t, err)
	return func(o *Options) {
		o.hooks.network = newNetwork
		o.CUDA = cuda.Setup{LibDirs: dirs}
		o.hooks.open = func(n int) (*gpus, error) {
			g, err := openGPUs(o.CUDA, n)
			if err == nil {
				g.image = image
			}
			return g, err
		}
	}
}

// small is a run of a tiny network that a device trains.
func small(t testing.TB, sets ...string) *config.Config {
	return settings(t, prepared(t), append([]string{"model.ffn_kind=relu2", "model.qk_norm=true", "model.sub_norm=true", "model.embedding=q8_0", "model.head=q8_0",
		"model.residual_scalars=true", "model.logit_softcap=15", "train.rows=2", "train.micro_rows=1", "train.eval_tokens=64", "optim.matrix.rule=muon", "optim.matrix.lr=0.005", "optim.embedding.lr=0.01", "optim.head.lr=0.002"}, sets...)...)
}

const cudaSet = "train.device=cuda"

// The losses on a GPU are those on the processor, to a hundredth of a nat at every step;
// what is measured besides is there too.
func TestGPULosses(t *testing.T) {
	gpu := onGPU(t)
	for name, sets := range map[string][]string{"one stream": nil, "two streams": {"model.streams=2", "train.steps=6"}} {
		t.Run(name, func(t *testing.T) {
			cpu, device := fsx.NewCrash(1), fsx.NewCrash(1)
			_, err := train(t, small(t, sets...), cpu, func(o *Options) { o.hooks.network = newNetwork })
			require.NoError(t, err)
			var log bytes.Buffer
			res, err := train(t, small(t, append(sets, cudaSet)...), device, gpu, func(o *Options) { o.Log = &log })
			require.NoError(t, err, log.String())
			require.Regexp(t, `^computing on .+: \d+\.\d MiB of its \d+\.\d GiB\n`, log.String())
			a, b := lines(t, cpu), lines(t, device)
			require.Len(t, b, len(a))
			most := 0.0
			for i := range a {
				d := math.Abs(a[i]["loss"].(float64) - b[i]["loss"].(float64))
				most = max(most, d)
				require.LessOrEqual(t, d, 0.01, "step %d: %v and %v", i+1, a[i]["loss"], b[i]["loss"])
				require.InEpsilon(t, a[i]["grad_norm"], b[i]["grad_norm"], 0.05, "step %d", i+1)
				require.InDelta(t, a[i]["flip_rate"], b[i]["flip_rate"], 0.02, "step %d", i+1)
				require.InDelta(t, a[i]["zero_fraction"], b[i]["zero_fraction"], 0.02, "step %d", i+1)
				require.Equal(t, a[i]["stream_cosine"] == nil, b[i]["stream_cosine"] == nil)
				require.Equal(t, a[i]["mhc_norms"] == nil, b[i]["mhc_norms"] == nil)
				require.Equal(t, a[i]["val"] == nil, b[i]["val"] == nil)
			}
			t.Logf("losses differ by %.6f at most", most)
			require.NotNil(t, res.Val)
			require.Less(t, float64(res.Val.Nats), 5.6)
			// The model file is that of the newest checkpoint.
			require.NotEmpty(t, readAll(t, device, "run/model.gguf"))
			require.NotEmpty(t, readAll(t, device, "run/best.gguf"))
		})
	}
}

// A run on a GPU that is stopped and goes on comes to the same bits; so does one that lost
// its device, whose newest checkpoint is named and whole.
func TestGPUResume(t *testing.T) {
	gpu := onGPU(t)
	c := small(t, cudaSet, "train.steps=8", "train.checkpoint_every=3", "train.eval_every=3")
	whole := fsx.NewCrash(1)
	_, err := train(t, c, whole, gpu)
	require.NoError(t, err)
	want, wantLines := weightsOf(t, whole), lines(t, whole)

	t.Run("stopped", func(t *testing.T) {
		fsys := fsx.NewCrash(1)
		ctx, cancel := context.WithCancel(context.Background())
		o := Options{FS: fsys, Peak: 1e12, Progress: func(p *Progress) {
			if p.Step == 4 {
				cancel()
			}
		}}
		gpu(&o)
		_, err := Run(ctx, c, o)
		require.ErrorIs(t, err, context.Canceled)
		res, err := train(t, c, fsys, gpu)
		require.NoError(t, err)
		require.Equal(t, 4, res.Resumed)
		require.Equal(t, want, weightsOf(t, fsys))
		require.Equal(t, wantLines, lines(t, fsys))
	})
	if cudatest.OnGPU(os.Getenv) {
		return // it cannot be told to fail
	}
	for name, call := range map[string]string{"in a wait": "cuStreamSynchronize:700:", "in a launch": "cuGraphLaunch:719:"} {
		t.Run("lost "+name, func(t *testing.T) {
			var fsys *fsx.Crash
			failed := &DeviceError{}
			n := 9
			if strings.Contains(call, "Stream") {
				n = 120
			}
			for ; ; n += n / 3 { // until it is after the first checkpoint
				require.Less(t, n, 600, "the run never gets as far")
				fsys = fsx.NewCrash(1)
				t.Setenv("FAKE_CUDA_FAIL", fmt.Sprint(call, n))
				_, err := train(t, c, fsys, gpu)
				t.Setenv("FAKE_CUDA_FAIL", "")
				require.Error(t, err, "call %d", n)
				if list, _ := checkpoint.List(fsys, "run/checkpoints"); len(list) > 0 {
					require.ErrorAs(t, err, &failed)
					break
				}
			}
			t.Logf("call %d: %v", n, failed)
			require.Contains(t, failed.Error(), "CUDA_ERROR_7")
			require.NotEmpty(t, failed.Checkpoint)
			require.NotEmpty(t, failed.Hint)
			_, err := checkpoint.Load(fsys, failed.Checkpoint)
			require.NoError(t, err)
			res, err := train(t, c, fsys, gpu)
			require.NoError(t, err)
			require.Positive(t, res.Resumed)
			require.Equal(t, want, weightsOf(t, fsys))
			require.Equal(t, wantLines, lines(t, fsys))
		})
	}
}

// Momentum in bfloat16 with stochastic rounding comes to the same bits after a stop, too.
func TestGPUHalfState(t *testing.T) {
	gpu := onGPU(t)
	sets := []string{cudaSet, "train.half_state=true", "train.steps=6", "schedule.decay=2", "train.eval_every=0", "optim.head.rule=lion", "optim.head.lr=0.001"}
	whole, fsys := fsx.NewCrash(1), fsx.NewCrash(1)
	_, err := train(t, small(t, sets...), whole, gpu)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	o := Options{FS: fsys, Peak: 1e12, Progress: func(p *Progress) {
		if p.Step == 3 {
			cancel()
		}
	}}
	gpu(&o)
	_, err = Run(ctx, small(t, sets...), o)
	require.ErrorIs(t, err, context.Canceled)
	_, err = train(t, small(t, sets...), fsys, gpu)
	require.NoError(t, err)
	require.Equal(t, weightsOf(t, whole), weightsOf(t, fsys))
	full := fsx.NewCrash(1)
	_, err = train(t, small(t, append(sets, "train.half_state=false")...), full, gpu)
	require.NoError(t, err)
	require.NotEqual(t, weightsOf(t, whole), weightsOf(t, full))
	a, b := lines(t, whole), lines(t, full)
	require.InDelta(t, b[5]["loss"], a[5]["loss"], 0.02)
}

// Checkpoints of the processor go on on a GPU and the other way round, with a warning.
func TestGPUInterchange(t *testing.T) {
	gpu := onGPU(t)
	processor := func(o *Options) { o.hooks.network = newNetwork }
	for name, way := range map[string]struct {
		sets  [2]string
		first func(*Options)
		then  func(*Options)
	}{
		"to the processor":   {[2]string{cudaSet, "train.device=cpu"}, gpu, processor},
		"from the processor": {[2]string{"train.device=cpu", cudaSet}, processor, gpu},
	} {
		t.Run(name, func(t *testing.T) {
			fsys := fsx.NewCrash(1)
			short := []string{"train.steps=4", "schedule.decay=1", "train.eval_every=0"}
			_, err := train(t, small(t, append(short, way.sets[0])...), fsys, way.first)
			require.NoError(t, err)
			var log bytes.Buffer
			res, err := train(t, small(t, "train.steps=6", "schedule.decay=1", "train.eval_every=0", way.sets[1]), fsys, way.then, func(o *Options) { o.Log = &log })
			require.NoError(t, err)
			require.Equal(t, 4, res.Resumed)
			require.Contains(t, log.String(), "its results may differ in the last bits")
			all := lines(t, fsys)
			require.Len(t, all, 6)
			require.Less(t, all[5]["loss"], all[0]["loss"])
		})
	}
}

// Two devices learn what one does: the same rows, added up in another order.
func TestTwoGPUs(t *testing.T) {
	if cudatest.OnGPU(os.Getenv) {
		t.Skip("the machine may have one")
	}
	gpu := onGPU(t)
	one, two := fsx.NewCrash(1), fsx.NewCrash(1)
	sets := []string{cudaSet, "train.steps=4", "schedule.decay=1", "train.eval_every=0", "train.rows=2"}
	_, err := train(t, small(t, sets...), one, gpu)
	require.NoError(t, err)
	t.Setenv("FAKE_CUDA_DEVICES", "2")
	_, err = train(t, small(t, append(sets, "train.devices=2")...), two, gpu)
	require.NoError(t, err)
	a, b := lines(t, one), lines(t, two)
	for i := range a {
		require.InDelta(t, a[i]["loss"], b[i]["loss"], 0.005, "step %d", i+1)
		require.InEpsilon(t, a[i]["grad_norm"], b[i]["grad_norm"], 0.02, "step %d", i+1)
	}
	// One of them is lost: the other does not wait for it for ever.
	t.Setenv("FAKE_CUDA_FAIL", "cuStreamSynchronize:700:40")
	_, err = train(t, small(t, append(sets, "train.devices=2")...), fsx.NewCrash(1), gpu)
	require.ErrorContains(t, err, "CUDA_ERROR_700")
	t.Setenv("FAKE_CUDA_FAIL", "")
	_, err = train(t, small(t, append(sets, "train.devices=3", "train.rows=3")...), fsx.NewCrash(1), gpu)
	require.ErrorContains(t, err, "cuDeviceGet")
}

// Where a GPU cannot be used auto takes the processor and says why in one line, cuda is an
// error that says what is missing, and a plan is a forecast.
func TestWithoutGPU(t *testing.T) {
	if _, err := os.Stat("/dev/nvidiactl"); err == nil {
		t.Skip("this machine has a GPU")
	}
	gpu := onGPU(t)
	none := func(o *Options) { o.hooks.network, o.CUDA = newNetwork, cuda.Setup{LibDirs: []string{t.TempDir()}} }
	little := func(o *Options) {
		gpu(o)
		t.Setenv("FAKE_CUDA_MEMORY", "30000000")
	}
	short := []string{"train.steps=2", "schedule.decay=0", "schedule.warmup=1", "train.eval_every=0"}
	for _, c := range []struct {
		name, want, hint string
		sets             []string
		how              func(*Options)
	}{
		{"no driver", "the CUDA driver was not found", "", nil, none},
		{"no room", "of memory on the GPU, which has 28.6 MiB", "train.micro_rows", nil, little},
		{"a float network", "the float network", "train.float = false", []string{"train.float=true"}, gpu},
		{"a shape", "model.ffn of 72", "multiple of 32", []string{"model.ffn=72"}, gpu},
	} {
		t.Run(c.name, func(t *testing.T) {
			sets := append(short, c.sets...)
			fsys := fsx.NewCrash(1)
			_, err := train(t, small(t, append(sets, cudaSet)...), fsys, c.how)
			require.ErrorContains(t, err, c.want)
			require.Contains(t, hintOf(err), c.hint)
			require.Empty(t, fsys.Ops(), "nothing was written")
			var log bytes.Buffer
			_, err = train(t, small(t, append(sets, "train.device=auto")...), fsys, c.how, func(o *Options) { o.Log = &log })
			require.NoError(t, err)
			require.Equal(t, 1, strings.Count(log.String(), "computing on the processor: "))
			require.Contains(t, log.String(), c.want)
		})
	}
	p, err := MakePlan(context.Background(), small(t, cudaSet), planned(none))
	require.NoError(t, err)
	require.Zero(t, p.StepSeconds)
	require.Contains(t, p.Note, "the CUDA driver was not found")
	require.Positive(t, p.DeviceMemory.Total())
	p, err = MakePlan(context.Background(), small(t, "train.device=auto"), planned(none))
	require.NoError(t, err)
	require.Equal(t, "cpu", p.Device)
	require.Positive(t, p.StepSeconds)
	require.Contains(t, p.Note, "the CUDA driver was not found")
	require.Nil(t, p.DeviceMemory)
}

func planned(change func(*Options)) Options {
	o := Options{FS: fsx.NewCrash(1), Peak: 1e12}
	change(&o)
	return o
}

// What a plan says of a GPU's memory is what a step takes, and its time was measured.
func TestGPUPlan(t *testing.T) {
	p, err := MakePlan(context.Background(), small(t, cudaSet), planned(onGPU(t)))
	require.NoError(t, err)
	require.True(t, p.Fits())
	require.Equal(t, 1, p.Devices)
	require.NotEqual(t, "cpu", p.Device)
	require.Positive(t, p.StepSeconds)
	require.NotEmpty(t, p.StepParts)
	require.Positive(t, p.DeviceTotal)
	require.InEpsilon(t, p.DeviceMemory.Total(), p.DevicePeak, 0.1)
}

// The peak of a device is measured with the products that it can do in little time.
func TestMeasuredPeak(t *testing.T) {
	o := planned(onGPU(t))
	g, err := o.hooks.open(1)
	require.NoError(t, err)
	defer g.close()
	r, err := open(small(t), o)
	require.NoError(t, err)
	defer r.close()
	rate, err := measurePeak(g.devices[0], g.blas, r.clock)
	require.NoError(t, err)
	require.Positive(t, rate)
	if cudatest.OnGPU(os.Getenv) {
		require.Greater(t, rate, 1e12)
	}
}
