package train

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/checkpoint"
	"github.com/architehc/nanochat/core/internal/fsx"
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/core/optim"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/cuda"
)

// fakeDevice is a network of the tests as a device has it: with weights of its own, which
// only Push and Pull copy, and batches that are copied when they are handed over. It fails
// the test if it is used in another order than a device may be.
type fakeDevice struct {
	t    testing.TB
	rank int
	all  *fakeGroup
	loss model.LossOptions

	host, own *fake
	opt       *optim.Optimizer
	pushed    bool
	staged    []*model.TrainBatch
	flying    []*model.TrainBatch
	scale     float64
	steps     int // taken, those that were undone by a restore included
	failAt    int // the step in which the device is lost; 0: never
	lost      bool
	closed    bool
}

// fakeGroup adds up the gradients of devices.
type fakeGroup struct {
	mu      sync.Mutex
	devices []*fakeDevice
	arrived int
	turn    chan struct{}
	aborted bool
}

// abort sends those away who wait.
func (g *fakeGroup) abort(error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.aborted = true; g.turn != nil {
		close(g.turn)
		g.turn = nil
	}
}

// meet waits for all devices; the last one runs f.
func (g *fakeGroup) meet(f func()) error {
	g.mu.Lock()
	if g.aborted {
		g.mu.Unlock()
		return errAborted
	}
	if g.turn == nil {
		g.turn = make(chan struct{})
	}
	turn := g.turn
	if g.arrived++; g.arrived == len(g.devices) {
		f()
		g.arrived, g.turn = 0, nil
		close(turn)
	}
	g.mu.Unlock()
	<-turn
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.aborted {
		return errAborted
	}
	return nil
}

var errAborted = errors.New("another device failed")

// onDevices makes runs learn on n devices, and tells of each what it is.
func onDevices(t testing.TB, n int, see func(*fakeDevice)) func(*Options) {
	return func(o *Options) {
		o.hooks.devices = func(r *run) (*devices, error) {
			d := &devices{r: r, kernel: fmt.Sprintf("fake x%d", n), rate: 1e12}
			group := &fakeGroup{}
			if n > 1 {
				d.abort = group.abort
			}
			for i := range n {
				f := &fakeDevice{t: t, rank: i, all: group, loss: model.LossOptions{}}
				for _, to := range []**fake{&f.host, &f.own} {
					made, err := newFake(r)
					if err != nil {
						return nil, err
					}
					*to = made.(*fake)
				}
				options := optimOptions(r)
				options.Set = r.set
				opt, err := optim.New(f.own.Params(), options)
				if err != nil {
					return nil, err
				}
				f.opt = opt
				group.devices, d.all = append(group.devices, f), append(d.all, f)
				if see != nil {
					see(f)
				}
			}
			return d, nil
		}
	}
}

// lostError is what a device gives that is lost.
func lostError() error {
	return fmt.Errorf("model: training on the GPU: %w", &cuda.Error{Call: "cuStreamSynchronize", Code: 700, Name: "CUDA_ERROR_700", Text: "an illegal address"})
}

func (f *fakeDevice) idle() error {
	require.False(f.t, f.closed, "used after Close")
	require.Nil(f.t, f.flying, "used while a step is under way")
	if f.lost {
		return lostError()
	}
	return nil
}

func (f *fakeDevice) Params() []optim.Param {
	list := slices.Clone(f.host.Params())
	for i := range list {
		list[i].G = nil
	}
	return list
}
func (f *fakeDevice) Init(seed uint64)         { f.host.Init(seed); f.pushed = false }
func (f *fakeDevice) Refresh() error           { return nil }
func (f *fakeDevice) Model() *model.Model      { return nil }
func (f *fakeDevice) Counters() optim.Counters { return f.opt.Counters() }
func (f *fakeDevice) DeviceParts() Parts       { return Parts{{"all", 8}} }
func (f *fakeDevice) InUse() int64             { return 8 }
func (f *fakeDevice) Timed(g func() error) ([]model.PartTime, error) {
	return []model.PartTime{{Name: "all", Seconds: 1}}, g()
}
func (f *fakeDevice) Close() error { f.closed = true; return nil }

func (f *fakeDevice) Push() error {
	for i, p := range f.own.Params() {
		copy(p.W, f.host.Params()[i].W)
	}
	f.pushed = true
	return f.idle()
}

func (f *fakeDevice) Pull() error {
	for i, p := range f.host.Params() {
		copy(p.W, f.own.Params()[i].W)
	}
	return f.idle()
}

// copied is batches in memory of their own.
func copied(micro []*model.TrainBatch) (list []*model.TrainBatch) {
	for _, b := range micro {
		c := *b
		c.Tokens, c.Targets, c.Starts = slices.Clone(b.Tokens), slices.Clone(b.Targets), slices.Clone(b.Starts)
		list = append(list, &c)
	}
	return list
}

func (f *fakeDevice) Stage(micro []*model.TrainBatch) error {
	require.NotNil(f.t, f.flying, "staged while nothing computes")
	f.staged = copied(micro)
	return nil
}

func (f *fakeDevice) Begin(micro []*model.TrainBatch, scale float64) error {
	require.True(f.t, f.pushed)
	if err := f.idle(); err != nil {
		return err
	}
	if f.flying = copied(micro); micro == nil {
		require.NotNil(f.t, f.staged)
		f.flying = f.staged
	}
	f.staged, f.scale = nil, scale
	return nil
}

func (f *fakeDevice) End() (sum model.LossSum, report optim.Report, err error) {
	require.NotNil(f.t, f.flying)
	f.own.ClearGrads()
	for _, b := range f.flying {
		f.loss.Scale = f.scale
		part, err := f.own.Backward(b, f.loss)
		require.NoError(f.t, err)
		sum.Add(part)
	}
	f.flying = nil
	if f.steps++; f.steps == f.failAt {
		f.lost = true
		return sum, report, lostError()
	}
	if err := f.all.meet(func() {
		for i := range f.own.Params() {
			first := f.all.devices[0].own.Params()[i].G
			for _, other := range f.all.devices[1:] {
				for k, v := range other.own.Params()[i].G {
					first[k] += v
				}
			}
			for _, other := range f.all.devices[1:] {
				copy(other.own.Params()[i].G, first)
			}
		}
	}); err != nil {
		return sum, report, err
	}
	report, err = f.opt.Step()
	return sum, report, err
}

func (f *fakeDevice) Evaluate(b *model.TrainBatch) (model.LossSum, error) {
	if err := f.idle(); err != nil {
		return model.LossSum{}, err
	}
	return f.own.Evaluate(b)
}

func (f *fakeDevice) Projections() ([]*kernels.Ternary, error) { return nil, f.idle() }
func (f *fakeDevice) StreamCosine() (float64, bool, error)     { return 0.5, true, f.idle() }

func (f *fakeDevice) Tensors() (list []optim.Tensor, err error) {
	for _, x := range f.opt.Tensors() {
		x.Data = slices.Clone(x.Data)
		list = append(list, x)
	}
	return list, f.idle()
}

func (f *fakeDevice) Restore(c optim.Counters, tensors []optim.Tensor) error {
	return f.opt.Restore(c, tensors)
}

// weightsOf is the tensors of the newest checkpoint.
func weightsOf(t testing.TB, fsys fsx.FS) map[string][]float32 {
	path, _, err := checkpoint.Latest(fsys, "run/checkpoints")
	require.NoError(t, err)
	s, err := checkpoint.Load(fsys, path)
	require.NoError(t, err)
	m := map[string][]float32{}
	for _, x := range append(s.Weights, s.Optimizer...) {
		m[x.Name] = x.Data
	}
	return m
}

// same removes from lines of metrics what a device measures and the processor does not.
func same(list []map[string]any) []map[string]any {
	for _, m := range list {
		delete(m, "stream_cosine")
		delete(m, "events")
	}
	return list
}

// On one device a run has the batches, the losses and the weights that it has on the
// processor; its data is taken ahead, and every batch once.
func TestDevices(t *testing.T) {
	dir := prepared(t)
	cpu := fsx.NewCrash(1)
	_, err := train(t, settings(t, dir, "train.float=true"), cpu)
	require.NoError(t, err)
	one := fsx.NewCrash(1)
	var device *fakeDevice
	res, err := train(t, settings(t, dir, "train.float=true"), one, onDevices(t, 1, func(f *fakeDevice) { device = f }))
	require.NoError(t, err)
	require.Equal(t, 12, device.steps)
	require.True(t, device.closed)
	require.Equal(t, weightsOf(t, cpu), weightsOf(t, one))
	require.Equal(t, same(lines(t, cpu)), same(lines(t, one)))
	require.NotNil(t, res.Val)

	two := fsx.NewCrash(1)
	_, err = train(t, settings(t, dir, "train.float=true"), two, onDevices(t, 2, nil))
	require.NoError(t, err)
	for name, want := range weightsOf(t, cpu) {
		require.InDeltaSlice(t, want, weightsOf(t, two)[name], 2e-3, name)
	}
	a, b := lines(t, cpu), lines(t, two)
	for i := range a {
		require.InDelta(t, a[i]["loss"], b[i]["loss"], 1e-4, "step %d", i+1)
	}
}

// A run on devices that is cut off after any step goes on with the very data that comes
// next, though more had been taken ahead; so does one that goes on on the processor, or
// that began there.
func TestResumeOnDevices(t *testing.T) {
	dir := prepared(t)
	c := settings(t, dir, "train.float=true")
	whole := fsx.NewCrash(1)
	_, err := train(t, c, whole)
	require.NoError(t, err)
	processor := func(*Options) {}
	device := onDevices(t, 1, nil)
	for name, way := range map[string][2]func(*Options){"device": {device, device}, "to the processor": {device, processor}, "from the processor": {processor, device}} {
		for _, at := range []int{1, 5, 7} {
			fsys := fsx.NewCrash(1)
			ctx, cancel := context.WithCancel(context.Background())
			o := Options{FS: fsys, Peak: 1e12, hooks: hooks{network: newFake}, Progress: func(p *Progress) {
				if p.Step == at {
					cancel()
				}
			}}
			way[0](&o)
			res, err := Run(ctx, c, o)
			require.ErrorIs(t, err, context.Canceled, name)
			require.Equal(t, at, res.Steps)
			var log bytes.Buffer
			res, err = train(t, c, fsys, way[1], func(o *Options) { o.Log = &log })
			require.NoError(t, err)
			require.Equal(t, at, res.Resumed)
			require.Equal(t, weightsOf(t, whole), weightsOf(t, fsys), "%s, stopped after %d", name, at)
			require.Equal(t, same(lines(t, whole)), same(lines(t, fsys)))
			require.Equal(t, name != "device", strings.Contains(log.String(), "its results may differ in the last bits"), log.String())
		}
	}
}

// A device that is lost ends the run with an error that names the newest checkpoint; the
// same command then comes to the end of a run that was not disturbed.
func TestLostDevice(t *testing.T) {
	dir := prepared(t)
	c := settings(t, dir, "train.float=true")
	whole := fsx.NewCrash(1)
	_, err := train(t, c, whole, onDevices(t, 1, nil))
	require.NoError(t, err)
	for _, at := range []int{1, 5, 8, 12} {
		two := fsx.NewCrash(1)
		_, err := train(t, c, two, onDevices(t, 2, func(f *fakeDevice) { f.failAt = at * f.rank }))
		require.ErrorContains(t, err, "CUDA_ERROR_700")

		fsys := fsx.NewCrash(1)
		res, err := train(t, c, fsys, onDevices(t, 1, func(f *fakeDevice) { f.failAt = at }))
		var failed *DeviceError
		require.ErrorAs(t, err, &failed, "step %d", at)
		require.Equal(t, at-1, failed.Step)
		require.Equal(t, at-1, res.Steps)
		require.ErrorContains(t, err, fmt.Sprintf("the GPU failed after step %d: model: training on the GPU: cuda: cuStreamSynchronize: CUDA_ERROR_700", at-1))
		require.Contains(t, failed.Hint, "the same command goes on")
		if at <= 5 {
			require.Empty(t, failed.Checkpoint)
			require.ErrorContains(t, err, "there is no checkpoint yet")
		} else {
			want := fmt.Sprintf("run/checkpoints/step-%08d", (at-1)/5*5)
			require.Equal(t, want, failed.Checkpoint)
			_, err := checkpoint.Load(fsys, want)
			require.NoError(t, err)
		}
		_, err = train(t, c, fsys, onDevices(t, 1, nil))
		require.NoError(t, err)
		require.Equal(t, weightsOf(t, whole), weightsOf(t, fsys))
		require.Equal(t, lines(t, whole), lines(t, fsys))
	}
	// A device without room says what to do.
	r := &run{fs: fsx.NewCrash(1), cfg: c}
	var failed *DeviceError
	require.ErrorAs(t, r.deviceFailed(&cuda.MemoryError{Asked: 1 << 30}), &failed)
	require.Contains(t, failed.Hint, "train.micro_rows")
	other := errors.New("something else")
	require.Equal(t, other, r.deviceFailed(other))
	require.NoError(t, r.deviceFailed(nil))
}

// slowDisk is a disk that keeps those who write a checkpoint waiting until it is opened.
type slowDisk struct {
	fsx.FS
	name string
	open chan struct{}
}

func (s slowDisk) MkdirAll(path string, perm fs.FileMode) error {
	if strings.Contains(path, s.name) {
		<-s.open
	}
	return s.FS.MkdirAll(path, perm)
}

// On devices the next steps do not wait for the disk that takes a checkpoint, whose state is
// that of its step all the same.
func TestSavingBesideSteps(t *testing.T) {
	dir := prepared(t)
	c := settings(t, dir, "train.float=true", "train.keep_last=9")
	whole := fsx.NewCrash(1)
	_, err := train(t, c, whole)
	require.NoError(t, err)
	disk, w := slowDisk{fsx.NewCrash(1), "step-00000005", make(chan struct{})}, &witness{}
	_, err = train(t, c, disk, onDevices(t, 1, nil), func(o *Options) {
		o.Observer = w
		o.Progress = func(p *Progress) {
			if p.Step == 8 { // three steps later
				close(disk.open)
			}
		}
	})
	require.NoError(t, err)
	require.Less(t, slices.Index(w.calls, "stepped 8 false"), slices.Index(w.calls, "saved 5 true"))
	require.Less(t, slices.Index(w.calls, "saved 5 true"), slices.Index(w.calls, "saved 10 true"))
	for _, name := range []string{"step-00000005", "step-00000010", "step-00000012"} {
		for _, file := range []string{"weights.safetensors", "optimizer.safetensors"} {
			at := "run/checkpoints/" + name + "/" + file
			require.True(t, bytes.Equal(readAll(t, whole, at), readAll(t, disk, at)), at)
		}
	}
	// A disk that is full is told, and the run goes on.
	inner := fsx.NewCrash(1)
	fault := fsx.NewFault(inner, fsx.FaultOptions{FailAt: 1, Err: syscall.ENOSPC, Only: func(o fsx.Op) bool {
		return o.Kind == "write" && strings.Contains(o.Path, "00000005")
	}})
	var log bytes.Buffer
	res, err := train(t, c, fault, onDevices(t, 1, nil), func(o *Options) { o.Log = &log })
	require.NoError(t, err)
	require.Equal(t, 1, res.Failed)
	require.Contains(t, log.String(), "warning: step 5: checkpoint not saved")
}

// Power is lost after any change of the disk while a device goes on computing: the resumed
// run comes to the same weights.
func TestPowerLossBesideSteps(t *testing.T) {
	c := settings(t, prepared(t), "train.float=true")
	whole := fsx.NewCrash(1)
	_, err := train(t, c, whole, onDevices(t, 1, nil))
	require.NoError(t, err)
	want, ops := weightsOf(t, whole), len(whole.Ops())
	const points = 12
	for i := range points {
		n := i*ops/points + i%3
		disk := fsx.NewCrash(uint64(i))
		disk.StopAfter(n, func() { _, _ = train(t, c, disk, onDevices(t, 1, nil)) })
		at := disk.LastOp()
		disk = disk.AfterPowerLoss(i%3*50, 100-i%2*100)
		res, err := train(t, c, disk, onDevices(t, 1, nil))
		require.NoError(t, err, "after %d of %d changes, at %v", n, ops, at)
		require.Equal(t, want, weightsOf(t, disk), "after %d of %d changes, at %v, resumed from step %d", n, ops, at, res.Resumed)
		checkMetrics(t, disk)
	}
}
