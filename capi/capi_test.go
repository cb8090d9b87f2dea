package capi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/architehc/nanochat/core/chat"
	"github.com/architehc/nanochat/core/checkpoint"
	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/data"
	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/infer"
	"github.com/architehc/nanochat/core/model"
	"github.com/architehc/nanochat/core/sample"
	"github.com/architehc/nanochat/core/tokenizer"
	"github.com/architehc/nanochat/core/train"
	"github.com/architehc/nanochat/core/zoo"
	"github.com/architehc/nanochat/kernels/cuda"
)

// none is an empty environment.
func none(string) string { return "" }

// file writes a model with random weights and 128 positions.
func file(t testing.TB) string {
	t.Helper()
	c, err := config.Preset("tiny", "model.dim=64", "model.ffn=64", "model.layers=1", "model.context=128", "model.vocab=300")
	require.NoError(t, err)
	m, err := model.Init(t.Context(), c.Model, 3, model.Options{})
	require.NoError(t, err)
	tok, err := tokenizer.NewByteLevel(300)
	require.NoError(t, err)
	meta, err := gguf.Collect(tok.Pairs(tokenizer.MetadataOptions{}))
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "m.gguf")
	require.NoError(t, m.Save(path, meta...))
	return path
}

func open(t testing.TB, o modelOptions) uintptr {
	t.Helper()
	before := handles.len()
	h, err := openModel(file(t), o, none)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, closeHandle(kindModel, h))
		require.Equal(t, before, handles.len(), "handles are left open")
	})
	return h
}

// requireStatus says that err is a failure with this status and part of a message.
func requireStatus(t testing.TB, want status, part string, err error) {
	t.Helper()
	require.Error(t, err)
	f := failureOf(err)
	require.Equal(t, want, f.status, "%v", f)
	require.Contains(t, f.message, part)
}

func TestHandles(t *testing.T) {
	var table table
	freed := 0
	a := table.add(kindModel, "a", func() { freed++ })
	b := table.add(kindStream, "b", nil)
	require.NotEqual(t, a, b)
	for _, tt := range []struct {
		name   string
		handle uintptr
		want   status
		part   string
	}{
		{"NULL", 0, statusInvalid, "is NULL"},
		{"another kind", b, statusInvalid, "is a stream, not a model"},
		{"an even number", a + 1, statusInvalid, "no handle"},
		{"one not given out yet", a + 5<<numberShift, statusInvalid, "no handle"},
		{"the number 0", 1, statusInvalid, "no handle"},
		{"no kind", a &^ (kindMask << kindShift), statusInvalid, "no handle"},
		{"kind 7", a | kindMask<<kindShift, statusInvalid, "no handle"},
		{"all bits", ^uintptr(0), statusInvalid, "no handle"},
		{"the number of the stream as a model", b&^(kindMask<<kindShift) | uintptr(kindModel)<<kindShift, statusClosed, "closed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := table.use(kindModel, tt.handle)
			requireStatus(t, tt.want, tt.part, err)
			_, err = table.remove(kindModel, tt.handle)
			requireStatus(t, tt.want, tt.part, err)
		})
	}
	inUse, err := table.use(kindModel, a)
	require.NoError(t, err)
	closed, err := table.remove(kindModel, a)
	require.NoError(t, err)
	closed.release()
	_, err = table.use(kindModel, a)
	requireStatus(t, statusClosed, "closed already", err)
	require.Zero(t, freed, "freed during a call")
	inUse.release()
	require.Equal(t, 1, freed)
	require.Greater(t, table.add(kindModel, "c", nil), b, "a number was used again")
}

// TestHandlesAgainstAModel compares random operations with a map of what is open.
func TestHandlesAgainstAModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var table table
		open, ever := map[uintptr]int{}, []uintptr{0}
		freed := map[int]int{}
		for i := range rapid.IntRange(1, 60).Draw(t, "operations") {
			h := rapid.SampledFrom(ever).Draw(t, "handle")
			value, is := open[h]
			switch rapid.IntRange(0, 2).Draw(t, "operation") {
			case 0:
				h = table.add(kindModel, i, func() { freed[i]++ })
				if _, again := open[h]; again {
					t.Fatalf("handle %d was given out twice", h)
				}
				open[h] = i
				ever = append(ever, h)
			case 1:
				e, err := table.use(kindModel, h)
				if is != (err == nil) || is && e.value != value {
					t.Fatalf("use of %d: %v, open %v", h, err, is)
				}
				if err == nil {
					e.release()
				}
			case 2:
				e, err := table.remove(kindModel, h)
				if is != (err == nil) {
					t.Fatalf("remove of %d: %v, open %v", h, err, is)
				}
				if err == nil {
					e.release()
					delete(open, h)
					if freed[value] != 1 {
						t.Fatalf("value %d was freed %d times", value, freed[value])
					}
				}
			}
		}
		if table.len() != len(open) {
			t.Fatalf("%d handles open, not %d", table.len(), len(open))
		}
	})
}

func TestFailures(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want status
	}{
		{&infer.RequestError{Field: "stop"}, statusInvalid},
		{&sample.OptionError{Option: "top_p"}, statusInvalid},
		{sample.ErrNoToken, statusInvalid},
		{&model.LimitError{}, statusInvalid},
		{&infer.ContextError{}, statusContextFull},
		{&infer.QueueError{}, statusBusy},
		{&infer.PanicError{}, statusInternal},
		{&gguf.FormatError{}, statusFormat},
		{&tokenizer.Error{Hint: "convert it"}, statusFormat},
		{&sample.LogitError{}, statusFormat},
		{infer.ErrClosed, statusClosed},
		{&infer.CancelError{Cause: context.Canceled}, statusCancelled},
		{context.DeadlineExceeded, statusTimeout},
		{syscall.ENOMEM, statusNoMemory},
		{&fs.PathError{Err: syscall.ENOENT}, statusNotFound},
		{&fs.PathError{Err: syscall.EACCES}, statusIO},
		{&fs.PathError{Err: syscall.EIO}, statusIO},
		{errors.New("unforeseen"), statusInternal},
		{&zoo.Error{Kind: zoo.ErrName}, statusInvalid},
		{&zoo.Error{Kind: zoo.ErrSetting}, statusInvalid},
		{&zoo.Error{Kind: zoo.ErrNotFound}, statusNotFound},
		{&zoo.Error{Kind: zoo.ErrPlanned}, statusPlanned},
		{&zoo.Error{Kind: zoo.ErrOffline}, statusOffline},
		{&zoo.Error{Kind: zoo.ErrNetwork}, statusNetwork},
		{&zoo.Error{Kind: zoo.ErrDenied}, statusNetwork},
		{&zoo.Error{Kind: zoo.ErrChecksum}, statusChecksum},
		{&zoo.Error{Kind: zoo.ErrNoHash}, statusChecksum},
		{&zoo.Error{Kind: zoo.ErrBusy}, statusBusy},
		{&zoo.Error{Kind: zoo.ErrCache}, statusIO},
		{&chat.UnsupportedError{Hint: "convert it"}, statusUnsupported},
		{infer.ErrBusy, statusBusy},
		{train.ErrDiverged, statusDiverged},
		{&train.Error{What: "stopped", Err: train.ErrDiverged}, statusDiverged},
		{&train.Error{What: "no length"}, statusInvalid},
		{&data.Error{Path: data.OptionsPath}, statusInvalid},
		{&data.Error{Path: "shard", What: "damaged", Hint: "convert it"}, statusFormat},
		{&data.Error{Path: "shard", Err: &fs.PathError{Err: syscall.EIO}}, statusIO},
		{&checkpoint.Error{Path: "step", What: "damaged"}, statusFormat},
		{&cuda.Error{Call: "cuInit"}, statusUnsupported},
		{&cuda.MemoryError{}, statusNoMemory},
		{&train.DeviceError{Step: 3, Err: &cuda.Error{Call: "cuStreamSynchronize"}}, statusUnsupported},
	} {
		f := failureOf(fmt.Errorf("somewhere: %w", tt.err))
		require.Equal(t, tt.want, f.status, "%T: %v", tt.err, tt.err)
		require.NotContains(t, f.message, "convert it")
	}
	require.Equal(t, "a b c", oneLine(" a\nb\t c\n"))
	require.NotContains(t, oneLine("a\x00b"), "\x00")
	f := panicked("boom")
	require.Equal(t, statusInternal, f.status)
	require.Contains(t, f.message, "boom")
	require.Contains(t, f.message, "capi_test.go")
}

func TestModelOptions(t *testing.T) {
	env := map[string]string{}
	getenv := func(name string) string { return env[name] }
	path := file(t)
	for _, tt := range []struct {
		name string
		env  map[string]string
		o    modelOptions
		part string
	}{
		{"flags", nil, modelOptions{flags: 8}, "flags 0x8"},
		{"threads", nil, modelOptions{threads: 1 << 20}, "threads is 1048576"},
		{"context", nil, modelOptions{context: 1 << 30}, "context is"},
		{"context beyond the model", nil, modelOptions{context: 129}, "128"},
		{"batch", nil, modelOptions{batch: 1 << 30}, "batch is"},
		{"speculate", nil, modelOptions{speculate: 1 << 30}, "speculate is"},
		{"kernel", nil, modelOptions{kernel: "abacus"}, "abacus"},
		{"device", nil, modelOptions{device: "abacus"}, "abacus"},
		{"NANOCHAT_DEVICE", map[string]string{"NANOCHAT_DEVICE": "abacus"}, modelOptions{}, "abacus"},
		{"NANOCHAT_KERNEL", map[string]string{"NANOCHAT_KERNEL": "abacus"}, modelOptions{}, "abacus"},
		{"NANOCHAT_THREADS", map[string]string{"NANOCHAT_THREADS": "many"}, modelOptions{}, `"many"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			env = tt.env
			_, err := openModel(path, tt.o, getenv)
			requireStatus(t, statusInvalid, tt.part, err)
		})
	}
	env = map[string]string{"NANOCHAT_KERNEL": "go", "NANOCHAT_THREADS": "1"}
	for _, tt := range []struct {
		o       modelOptions
		kernel  string
		threads int
	}{
		{modelOptions{}, "go", 1},
		{modelOptions{threads: 2}, "go", 2},
	} {
		h, err := openModel(path, tt.o, getenv)
		require.NoError(t, err)
		e, m, err := useModel(h)
		require.NoError(t, err)
		var info infoReport
		require.NoError(t, json.Unmarshal(m.info, &info))
		require.Equal(t, tt.kernel, info.Kernel)
		require.Equal(t, tt.threads, info.Threads)
		require.Equal(t, 300, info.Vocabulary.Size)
		require.EqualValues(t, 64, info.Config["dim"])
		require.Positive(t, info.Params["ternary"])
		e.release()
		require.NoError(t, closeHandle(kindModel, h))
	}
}

// A machine without a GPU says so, and auto is content with the processor.
func TestDevices(t *testing.T) {
	path := file(t)
	h, err := openModel(path, modelOptions{device: "cuda", threads: 1}, none)
	if err != nil {
		requireStatus(t, statusUnsupported, "", err)
		require.NotEmpty(t, failureOf(err).hint)
	} else {
		require.NoError(t, closeHandle(kindModel, h))
	}
	h, err = openModel(path, modelOptions{threads: 1}, func(name string) string { return map[string]string{"NANOCHAT_DEVICE": "auto"}[name] })
	require.NoError(t, err)
	e, m, err := useModel(h)
	require.NoError(t, err)
	require.Contains(t, string(m.info), `"device":`)
	e.release()
	require.NoError(t, closeHandle(kindModel, h))
}

func TestFilesThatAreNoModels(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	require.NoError(t, syscall.Mkfifo(fifo, 0o600))
	for path, want := range map[string]status{
		"": statusInvalid, dir: statusInvalid, fifo: statusInvalid,
		filepath.Join(dir, "none"): statusNotFound, filepath.Join(fifo, "x"): statusIO,
		"capi_test.go": statusFormat,
	} {
		_, err := openModel(path, modelOptions{}, none)
		requireStatus(t, want, "", err)
	}
}

func TestTokens(t *testing.T) {
	h := open(t, modelOptions{threads: 1})
	ids, err := tokenize(h, "größe\x00\xff", 0)
	require.NoError(t, err)
	require.Len(t, ids, 9)
	text, err := detokenize(h, ids, 0)
	require.NoError(t, err)
	require.Equal(t, "größe\x00\xff", string(text))
	with, err := tokenize(h, "a", flagBOS)
	require.NoError(t, err)
	require.Len(t, with, 2)
	plain, err := detokenize(h, with, flagPlain)
	require.NoError(t, err)
	require.Equal(t, "a", string(plain))
	_, err = tokenize(h, "a", 8)
	requireStatus(t, statusInvalid, "flags", err)
	_, err = detokenize(h, ids, 2)
	requireStatus(t, statusInvalid, "flags", err)
	_, err = detokenize(h, []int32{0, 300}, 0)
	requireStatus(t, statusInvalid, "ids[1] is 300", err)
}

// answer reads a stream to its end through a buffer that grows when it must.
func answer(t testing.TB, h uintptr) (text string, ids []int32, finish int32) {
	t.Helper()
	e, s, err := useStream(h)
	require.NoError(t, err)
	defer e.release()
	var b []byte
	for {
		p, err := s.next(forever, b)
		if err != nil {
			requireStatus(t, statusBufferTooSmall, "needed", err)
			require.Greater(t, p.length, len(b))
			b = make([]byte, p.length)
			continue
		}
		text += string(b[:p.length])
		if p.token >= 0 {
			ids = append(ids, p.token)
		}
		if p.finish != 0 {
			return text, ids, p.finish
		}
	}
}

func TestStreams(t *testing.T) {
	h := open(t, modelOptions{threads: 1})
	o := generateOptions{maxTokens: 50, flags: flagIgnoreEnd, sample: sample.Options{Temperature: 1.2, Seed: 4}}
	s, err := openStream(h, "fn ä", o)
	require.NoError(t, err)
	text, ids, finish := answer(t, s)
	require.Len(t, ids, 50)
	require.Equal(t, finishOf(infer.ReasonLength), finish)
	again, _, finish := answer(t, s)
	require.Empty(t, again)
	require.Equal(t, finishOf(infer.ReasonLength), finish)
	require.NoError(t, cancelStream(s))
	_, _, finish = answer(t, s) // what was read stays
	require.Equal(t, finishOf(infer.ReasonLength), finish)
	require.NoError(t, closeHandle(kindStream, s))
	requireStatus(t, statusClosed, "", closeHandle(kindStream, s))
	requireStatus(t, statusClosed, "", cancelStream(s))

	word := strings.Fields(text)[3]
	o.stops, o.flags = []string{word}, o.flags|flagLogprobs
	o.sample.TopLogprobs = 3
	s, err = openStream(h, "fn ä", o)
	require.NoError(t, err)
	got, _, finish := answer(t, s)
	before, _, _ := strings.Cut(text, word)
	require.Equal(t, before, got)
	require.Equal(t, finishOf(infer.ReasonStop), finish)
	require.NoError(t, closeHandle(kindStream, s))

	for _, bad := range []generateOptions{
		{flags: 128}, {maxTokens: 1 << 31}, {stops: []string{""}}, {sample: sample.Options{TopP: 2}}, {sample: sample.Options{Temperature: -1}},
	} {
		_, err := openStream(h, "x", bad)
		requireStatus(t, statusInvalid, "", err)
	}
	_, err = openStream(h, strings.Repeat("a", 500), generateOptions{})
	requireStatus(t, statusContextFull, "128", err)
}

func TestTopIsOfThePieceReadLast(t *testing.T) {
	h := open(t, modelOptions{threads: 1})
	s, err := openStream(h, "x", generateOptions{maxTokens: 5, flags: flagIgnoreEnd | flagLogprobs, sample: sample.Options{TopLogprobs: 3}})
	require.NoError(t, err)
	e, value, err := useStream(s)
	require.NoError(t, err)
	for {
		p, err := value.next(forever, make([]byte, 64))
		require.NoError(t, err)
		top, err := value.candidates()
		require.NoError(t, err)
		if p.token < 0 {
			require.Empty(t, top)
			if p.finish != 0 {
				break
			}
			continue
		}
		require.Len(t, top, 3)
		require.Equal(t, p.token, top[0].ID) // greedy
		require.Equal(t, p.logprob, top[0].Logprob)
		require.Negative(t, p.logprob)
	}
	e.release()
	require.NoError(t, closeHandle(kindStream, s))
}

// long starts an answer that does not end by itself soon, in a model that reads on
// only as far as 64 tokens ahead.
func long(t testing.TB, h uintptr) uintptr {
	t.Helper()
	s, err := openStream(h, "x", generateOptions{flags: flagIgnoreEnd})
	require.NoError(t, err)
	return s
}

func TestCancelAndCloseReachAWaitingReader(t *testing.T) {
	h := open(t, modelOptions{threads: 1})
	for _, tt := range []struct {
		name string
		end  func(uintptr) error
		want status
	}{
		{"cancel", cancelStream, statusCancelled},
		{"close", func(s uintptr) error { return closeHandle(kindStream, s) }, statusClosed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for range 50 {
				s := long(t, h)
				e, value, err := useStream(s)
				require.NoError(t, err)
				var wg sync.WaitGroup
				wg.Add(1)
				go func() {
					defer wg.Done()
					if err := tt.end(s); err != nil {
						t.Error(err)
					}
				}()
				b := make([]byte, 64)
				for err == nil {
					_, err = value.next(forever, b)
					if errors.Is(value.err, io.EOF) {
						break // it was quicker
					}
				}
				wg.Wait()
				if err != nil {
					requireStatus(t, tt.want, "", err)
				}
				e.release()
				if tt.want == statusCancelled {
					require.NoError(t, closeHandle(kindStream, s))
				}
			}
		})
	}
}

func TestTimeoutLosesNothing(t *testing.T) {
	h := open(t, modelOptions{threads: 1})
	read := func(timeout uint32) (ids []int32, timeouts int) {
		s, err := openStream(h, "x", generateOptions{maxTokens: 40, flags: flagIgnoreEnd})
		require.NoError(t, err)
		defer closeHandle(kindStream, s)
		e, value, err := useStream(s)
		require.NoError(t, err)
		defer e.release()
		for b := make([]byte, 64); ; {
			p, err := value.next(timeout, b)
			switch {
			case errors.Is(err, errTimeout):
				timeouts++
				time.Sleep(time.Millisecond)
				continue
			case err != nil:
				require.NoError(t, err)
			case p.finish != 0:
				return ids, timeouts
			}
			ids = append(ids, p.token)
		}
	}
	want, _ := read(forever)
	got, timeouts := read(0)
	require.Equal(t, want, got)
	require.Positive(t, timeouts)
	got, _ = read(1)
	require.Equal(t, want, got)
}

func TestOneReader(t *testing.T) {
	h := open(t, modelOptions{threads: 1})
	s := long(t, h)
	e, value, err := useStream(s)
	require.NoError(t, err)
	value.reader.Lock()
	_, err = value.next(0, nil)
	requireStatus(t, statusBusy, "", err)
	_, err = value.candidates()
	requireStatus(t, statusBusy, "", err)
	_, err = value.result()
	requireStatus(t, statusBusy, "", err)
	value.reader.Unlock()
	_, err = value.result()
	require.NoError(t, err)
	e.release()
	require.NoError(t, closeHandle(kindStream, s))
}

func TestStreamsOutliveTheirModel(t *testing.T) {
	path := file(t)
	h, err := openModel(path, modelOptions{threads: 1}, none)
	require.NoError(t, err)
	o := generateOptions{maxTokens: 30, flags: flagIgnoreEnd}
	s1, err := openStream(h, "x", o)
	require.NoError(t, err)
	s2, err := openStream(h, "x", o)
	require.NoError(t, err)
	want, _, _ := answer(t, s1)
	require.NoError(t, closeHandle(kindModel, h))
	_, err = openStream(h, "x", o)
	requireStatus(t, statusClosed, "", err)
	_, err = tokenize(h, "x", 0)
	requireStatus(t, statusClosed, "", err)
	got, _, _ := answer(t, s2)
	require.Equal(t, want, got)
	require.NoError(t, closeHandle(kindStream, s1))
	require.NoError(t, closeHandle(kindStream, s2))
	require.Zero(t, handles.len())
}

func TestCloseOfNothing(t *testing.T) {
	require.NoError(t, closeHandle(kindModel, 0))
	require.NoError(t, closeHandle(kindStream, 0))
	requireStatus(t, statusInvalid, "no handle", closeHandle(kindStream, 12345<<numberShift))
}

func TestSystemInfo(t *testing.T) {
	b, err := systemInfo("1.2.3", 9)
	require.NoError(t, err)
	var r systemReport
	require.NoError(t, json.Unmarshal(b, &r))
	require.Equal(t, "1.2.3", r.Version)
	require.EqualValues(t, 9, r.ABI)
	require.Contains(t, r.Kernels, "go")
	require.Positive(t, r.Threads)
}
