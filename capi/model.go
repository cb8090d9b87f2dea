package capi

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"strings"

	"github.com/architehc/nanochat/core/chat"
	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/infer"
	"github.com/architehc/nanochat/core/tokenizer"
	"github.com/architehc/nanochat/core/zoo"
	"github.com/architehc/nanochat/kernels"
	"github.com/architehc/nanochat/kernels/cuda"
	"github.com/architehc/nanochat/kernels/team"
	"github.com/architehc/nanochat/kernels/tune"
)

// handles holds what is open in this process.
var handles table

// maxText is NANOCHAT_MAX_TEXT.
const maxText = 64 << 20

// Flags of the header.
const (
	flagPin         = 1
	flagKVInt8      = 2
	flagNoHugePages = 4
	modelFlags      = flagPin | flagKVInt8 | flagNoHugePages

	flagBOS       = 1
	flagPrompt    = 2
	flagSpecial   = 4
	tokenizeFlags = flagBOS | flagPrompt | flagSpecial

	flagPlain       = 1
	detokenizeFlags = flagPlain
)

// checkFlags refuses bits outside known.
func checkFlags(flags, known uint32) error {
	if extra := flags &^ known; extra != 0 {
		return invalid(fmt.Sprintf("flags %#x are unknown", extra), "this library may be older than the header of the program")
	}
	return nil
}

// modelOptions is nanochat_model_options; kernel and device are empty where they are NULL.
type modelOptions struct {
	flags, threads, context, batch, speculate uint32
	kernel, device                            string
}

// environment reads a variable of the process as C sees it: Go's copy is from the
// start of the process.
type environment func(name string) string

func (o *modelOptions) chat(getenv environment) (chat.Options, error) {
	if err := checkFlags(o.flags, modelFlags); err != nil {
		return chat.Options{}, err
	}
	for _, f := range []struct {
		name        string
		value, most uint32
	}{{"threads", o.threads, team.MaxSize}, {"context", o.context, 1 << 24}, {"batch", o.batch, 1 << 12}, {"speculate", o.speculate, 1 << 10}} {
		if f.value > f.most {
			return chat.Options{}, invalid(fmt.Sprintf("%s is %d, at most %d is accepted", f.name, f.value, f.most), "0 is the default")
		}
	}
	threads := int(o.threads)
	if text := getenv("NANOCHAT_THREADS"); threads == 0 && text != "" {
		var err error
		if threads, err = threadsOf(text); err != nil {
			return chat.Options{}, invalid(err.Error(), "unset NANOCHAT_THREADS and the setting threads to use the cores this process may use")
		}
	}
	set, name, hint := kernels.Best(), o.kernel, "a NULL kernel is the best one"
	if name == "" {
		name, hint = getenv("NANOCHAT_KERNEL"), "unset NANOCHAT_KERNEL and the setting kernel to use the best"
	}
	if name != "" {
		var err error
		if set, err = kernels.ByName(name); err != nil {
			return chat.Options{}, invalid(err.Error(), hint)
		}
	}
	device := o.device
	if device == "" {
		device = getenv("NANOCHAT_DEVICE")
	}
	if err := checkDevice(device); err != nil {
		return chat.Options{}, invalid(err.Error(), "options of the model, NANOCHAT_DEVICE or the setting device say so")
	}
	c := chat.Options{Set: set, HugePages: o.flags&flagNoHugePages == 0, Device: device, CUDA: cuda.FromEnvironment(getenv, libraryPath()), Engine: infer.Options{
		Threads: threads, Pin: o.flags&flagPin != 0, Context: int(o.context), MaxBatch: int(o.batch), Speculate: int(o.speculate),
	}}
	if o.flags&flagKVInt8 != 0 {
		c.Engine.KVType = kernels.KVI8
	}
	mode, err := tune.ParseMode(getenv("NANOCHAT_TUNE"))
	if err != nil {
		return chat.Options{}, invalid(err.Error(), "NANOCHAT_TUNE or the setting tune says so")
	}
	if mode != tune.Off {
		dir, err := tune.DefaultDir()
		if err != nil {
			return chat.Options{}, invalid("no place to remember measurements: "+err.Error(), "set XDG_CACHE_HOME or HOME before the process starts, or do not tune")
		}
		c.Choose = chat.Tuned(tune.Options{Mode: mode, Dir: dir, Version: version, Fallback: set})
	}
	return c, nil
}

// makeRoom lets calls from C in while an engine computes: each needs a processor of Go's
// scheduler, and the workers of an engine hold as many as they are.
func makeRoom(threads int) {
	if runtime.GOMAXPROCS(0) > threads {
		return
	}
	if before := runtime.GOMAXPROCS(threads + 1); before > threads+1 { // another call was quicker
		runtime.GOMAXPROCS(before)
	}
}

// checkDevice refuses what is no name of a device; "" is one.
func checkDevice(name string) error {
	switch name {
	case "", chat.DeviceCPU, chat.DeviceCUDA, chat.DeviceAuto:
		return nil
	}
	return fmt.Errorf("device is %.40q, must be %s, %s or %s", name, chat.DeviceCPU, chat.DeviceCUDA, chat.DeviceAuto)
}

// openModel opens the model of a path or name and gives it a handle.
func openModel(path string, o modelOptions, getenv environment) (uintptr, error) {
	c, err := o.chat(getenv)
	if err != nil {
		return 0, err
	}
	found, err := findModel(path, getenv, libraryPath())
	if err != nil {
		return 0, err
	}
	path = found.Path
	m, err := chat.Open(context.Background(), path, c)
	if err != nil {
		return 0, err
	}
	makeRoom(m.Threads())
	info, err := json.Marshal(infoOf(found, m))
	if err != nil {
		m.Close()
		return 0, err
	}
	value := &openedModel{Model: m, info: info}
	logs.write(levelInfo, "model opened", "path", path, "kernel", m.Kernel(), "threads", m.Threads())
	return handles.add(kindModel, value, func() { m.Close() }), nil
}

// openedModel is the value of a model's handle.
type openedModel struct {
	*chat.Model
	info []byte
}

// useModel finds the model of a handle; the entry is to be released.
func useModel(h uintptr) (*entry, *openedModel, error) {
	e, err := handles.use(kindModel, h)
	if err != nil {
		return nil, nil, err
	}
	return e, e.value.(*openedModel), nil
}

func closeHandle(k kind, h uintptr) error {
	if h == 0 {
		return nil
	}
	e, err := handles.remove(k, h)
	if err != nil {
		return err
	}
	switch v := e.value.(type) {
	case *stream:
		v.cancel(errClosed)
		v.over.Store(true)
	case *job:
		v.stop()
	}
	e.release()
	return nil
}

// infoReport is the JSON of nanochat_model_info.
type infoReport struct {
	Path       string           `json:"path"`
	Source     string           `json:"source"`
	Revision   string           `json:"revision,omitempty"`
	Kernel     string           `json:"kernel"`
	Device     string           `json:"device"`
	Threads    int              `json:"threads"`
	Context    int              `json:"context"`
	Vocabulary vocabReport      `json:"vocabulary"`
	Config     map[string]any   `json:"config"`
	Params     map[string]int64 `json:"params"`

	Name          string            `json:"name"`
	Architecture  string            `json:"architecture"`
	Licence       string            `json:"licence"`
	Description   string            `json:"description"`
	SHA256        string            `json:"sha256"`
	FileBytes     int64             `json:"file_bytes"`
	WeightBytes   int64             `json:"weight_bytes"`
	BitsPerWeight float64           `json:"bits_per_weight"`
	ChatTemplate  string            `json:"chat_template"`
	FIM           bool              `json:"fim"`
	Provenance    map[string]string `json:"provenance"`
}

type vocabReport struct {
	Size    int     `json:"size"`
	Split   string  `json:"split"`
	BOS     *int32  `json:"bos"`
	AddsBOS bool    `json:"adds_bos"`
	Stops   []int32 `json:"stops"`
}

func infoOf(found zoo.Found, m *chat.Model) infoReport {
	t, c := m.Tokenizer(), m.Config()
	r := infoReport{
		Path: strings.ToValidUTF8(found.Path, "\ufffd"), Source: found.Source, Revision: found.Revision, Kernel: m.Kernel(), Threads: m.Threads(), Context: c.Context,
		Vocabulary: vocabReport{Size: t.Vocab(), Split: t.Pre(), AddsBOS: t.AddsBOS(), Stops: append([]int32{}, t.Stops()...)},
		Config:     map[string]any{},
	}
	r.Device, _ = m.Device()
	in := m.Info()
	r.Name, r.Architecture, r.Licence, r.Description = in.Name, in.Architecture, in.Licence, in.Description
	r.SHA256, r.FileBytes, r.WeightBytes, r.BitsPerWeight = in.SHA256, in.FileBytes, in.WeightBytes, in.BitsPerWeight
	r.ChatTemplate, r.FIM, r.Provenance = in.ChatTemplate, in.FIM, in.Provenance
	if id, ok := t.Special(tokenizer.BOS); ok {
		r.Vocabulary.BOS = &id
	}
	whole := config.Config{Model: c}
	for _, s := range whole.Settings() {
		if key, ok := strings.CutPrefix(s.Key, "model."); ok {
			r.Config[key] = s.Value
		}
	}
	p := c.Params()
	r.Params = map[string]int64{"total": p.Total(), "ternary": p.Ternary, "embedding": p.Embedding, "head": p.Head, "norms": p.Norms, "mhc": p.MHC}
	return r
}

// systemReport is the JSON of nanochat_system_info.
type systemReport struct {
	Version   string   `json:"version"`
	ABI       uint32   `json:"abi_version"`
	Commit    string   `json:"commit,omitempty"`
	Go        string   `json:"go"`
	CCompiler string   `json:"c_compiler,omitempty"`
	System    string   `json:"system"`
	Kernels   []string `json:"kernels"`
	Threads   int      `json:"threads"`
	Templates []string `json:"templates"`
}

// commit is set by the build: -X github.com/architehc/nanochat/capi.commit=...
var commit string

func systemInfo(version string, abi uint32) ([]byte, error) {
	r := systemReport{
		Version: version, ABI: abi, Commit: commit, Go: runtime.Version(), CCompiler: kernels.Compiler(),
		System: runtime.GOOS + "/" + runtime.GOARCH, Threads: team.DefaultSize(), Templates: chat.Templates(),
	}
	for _, s := range kernels.All() {
		r.Kernels = append(r.Kernels, s.Name)
	}
	return json.Marshal(r)
}

// tokenize is the ids of a text.
func tokenize(h uintptr, text string, flags uint32) ([]int32, error) {
	e, m, err := useModel(h)
	if err != nil {
		return nil, err
	}
	defer e.release()
	if err := checkFlags(flags, tokenizeFlags); err != nil {
		return nil, err
	}
	t := m.Tokenizer()
	o := tokenizer.EncodeOptions{
		AddBOS:       flags&flagBOS != 0 || flags&flagPrompt != 0 && t.AddsBOS(),
		ParseSpecial: flags&flagSpecial != 0,
	}
	return t.Encode(nil, text, o), nil
}

// detokenize is the bytes of ids.
func detokenize(h uintptr, ids []int32, flags uint32) ([]byte, error) {
	e, m, err := useModel(h)
	if err != nil {
		return nil, err
	}
	defer e.release()
	if err := checkFlags(flags, detokenizeFlags); err != nil {
		return nil, err
	}
	if err := m.checkIDs(ids); err != nil {
		return nil, err
	}
	return m.Tokenizer().Decode(nil, ids, tokenizer.DecodeOptions{SkipSpecial: flags&flagPlain != 0}), nil
}
