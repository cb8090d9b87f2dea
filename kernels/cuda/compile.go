package cuda

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"unsafe"

	"github.com/architehc/nanochat/kernels/dl"
)

//go:embed src/*.cu src/*.cuh
var sources embed.FS

// Sources is the names of the kernel sources, without directory and ending.
func Sources() []string {
	files, _ := fs.Glob(sources, "src/*.cu") // the pattern is right
	for i, f := range files {
		files[i] = strings.TrimSuffix(filepath.Base(f), ".cu")
	}
	return files
}

// Compiler is NVRTC, which turns CUDA C++ into code for a device. It needs no GPU.
type Compiler struct {
	api  nvrtc
	path string
	// Version of the compiler, such as "12.4".
	version string
}

// nvrtc is the functions of libnvrtc that are used, as nvrtc.h declares them.
type nvrtc struct {
	Version     func(major, minor *int32) int32                                                   `c:"nvrtcVersion"`
	ErrorString func(result int32) *byte                                                          `c:"nvrtcGetErrorString"`
	Create      func(p *handle, source, name *byte, n int32, headers, names unsafe.Pointer) int32 `c:"nvrtcCreateProgram"`
	Destroy     func(p *handle) int32                                                             `c:"nvrtcDestroyProgram"`
	Compile     func(p handle, n int32, options unsafe.Pointer) int32                             `c:"nvrtcCompileProgram"`
	LogSize     func(p handle, n *uint64) int32                                                   `c:"nvrtcGetProgramLogSize"`
	Log         func(p handle, log *byte) int32                                                   `c:"nvrtcGetProgramLog"`
	CubinSize   func(p handle, n *uint64) int32                                                   `c:"nvrtcGetCUBINSize"`
	Cubin       func(p handle, code *byte) int32                                                  `c:"nvrtcGetCUBIN"`
}

// OpenCompiler opens NVRTC. dirs are searched before the system's directories. A machine
// without it is a *dl.Error.
func OpenCompiler(dirs ...string) (*Compiler, error) {
	lib, err := openFor(dl.Search{
		Name: "the CUDA compiler NVRTC", Files: []string{"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"}, Dirs: dirs,
		Hint: "pip install nvidia-cuda-nvrtc, or install the CUDA toolkit; " + LibDirVariable + " names its directory",
	})
	if err != nil {
		return nil, err
	}
	c := &Compiler{path: lib.Path()}
	if err := lib.Bind(&c.api); err != nil {
		return nil, err
	}
	var major, minor int32
	if err := c.check("nvrtcVersion", c.api.Version(&major, &minor), ""); err != nil {
		return nil, err
	}
	c.version = fmt.Sprintf("%d.%d", major, minor)
	return c, nil
}

// Version of the compiler, such as "12.4".
func (c *Compiler) Version() string { return c.version }

// Path is the file of the compiler.
func (c *Compiler) Path() string { return c.path }

func (c *Compiler) check(call string, result int32, log string) error {
	if result == 0 {
		return nil
	}
	e := &Error{Call: call, Device: -1, Code: int(result), Name: text(c.api.ErrorString(result)), Text: "failed"}
	if log = strings.TrimSpace(log); log != "" {
		e.Text = log
	}
	return e
}

// options of every compilation. Products and sums are not contracted: where a fused one
// is meant the source says fmaf.
var options = []string{"-std=c++17", "--fmad=false", "--device-as-default-execution-space", "--restrict"}

// Compile makes a CUBIN of the source of that name for an architecture, such as "sm_90a".
func (c *Compiler) Compile(name, arch string) ([]byte, error) {
	source, err := sources.ReadFile("src/" + name + ".cu")
	if err != nil {
		return nil, fmt.Errorf("cuda: no kernel source %q; there are %s", name, strings.Join(Sources(), ", "))
	}
	return c.compile(name+".cu", source, arch)
}

func (c *Compiler) compile(name string, source []byte, arch string) ([]byte, error) {
	var pin runtime.Pinner
	defer pin.Unpin()
	text := func(s []byte) *byte {
		b := append(slices.Clone(s), 0)
		pin.Pin(&b[0])
		return &b[0]
	}
	list := func(texts ...*byte) unsafe.Pointer {
		pin.Pin(&texts[0])
		return unsafe.Pointer(&texts[0])
	}
	var headers, names []*byte
	files, _ := fs.Glob(sources, "src/*.cuh") // the pattern is right
	for _, f := range files {
		b, err := sources.ReadFile(f)
		if err != nil {
			return nil, fmt.Errorf("cuda: %w", err)
		}
		headers, names = append(headers, text(b)), append(names, text([]byte(filepath.Base(f))))
	}
	var p handle
	r := c.api.Create(&p, text(source), text([]byte(name)), int32(len(headers)), list(headers...), list(names...))
	if err := c.check("nvrtcCreateProgram", r, ""); err != nil {
		return nil, err
	}
	defer c.api.Destroy(&p)
	var flags []*byte
	for _, o := range append(slices.Clone(options), "--gpu-architecture="+arch) {
		flags = append(flags, text([]byte(o)))
	}
	r = c.api.Compile(p, int32(len(flags)), list(flags...))
	if err := c.check("nvrtcCompileProgram "+name+" for "+arch, r, c.log(p)); err != nil {
		return nil, err
	}
	var n uint64
	if err := c.check("nvrtcGetCUBINSize", c.api.CubinSize(p, &n), ""); err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, &Error{Call: "nvrtcGetCUBIN", Device: -1, Text: "the compiler made no code for " + arch}
	}
	code := make([]byte, n)
	return code, c.check("nvrtcGetCUBIN", c.api.Cubin(p, &code[0]), "")
}

// log is what the compiler said.
func (c *Compiler) log(p handle) string {
	var n uint64
	if c.api.LogSize(p, &n) != 0 || n == 0 {
		return ""
	}
	b := make([]byte, n)
	if c.api.Log(p, &b[0]) != 0 {
		return ""
	}
	return string(bytes.TrimRight(b, "\x00"))
}

// CodeCache keeps compiled kernels in a directory, so that a compiler is needed once only.
type CodeCache struct {
	// Dir holds the files; it is made when one is written. "" keeps nothing.
	Dir string
	// Ready are directories of CompileTo that are only read, before Dir.
	Ready []string
	// Compiler is asked for what is not there; nil: there is none, because of Err.
	Compiler *Compiler
	Err      error
}

// Again, behind the architecture, asks an Image for code that is compiled anew: what it gave before cannot
// be loaded by the driver, because a newer compiler has made it.
const Again = "+again"

// Cubin is the code of a kernel source for an architecture. A directory that cannot be
// written is no error. It is an Image.
func (c *CodeCache) Cubin(name, arch string) ([]byte, error) {
	arch, again := strings.CutSuffix(arch, Again)
	file := codeFile(name, arch)
	var files []string
	for _, dir := range c.Ready {
		files = append(files, filepath.Join(dir, file), filepath.Join(dir, codeFile(name, baseArch(arch))))
	}
	if c.Dir != "" {
		files = append(files, filepath.Join(c.Dir, file))
	}
	for _, f := range files {
		if code, err := os.ReadFile(f); !again && err == nil && bytes.HasPrefix(code, []byte("\x7fELF")) {
			return code, nil
		}
	}
	if c.Compiler == nil {
		return nil, c.Err
	}
	code, err := c.Compiler.Compile(name, arch)
	if err == nil && c.Dir != "" {
		_ = keep(filepath.Join(c.Dir, file), code) // what fails is made again next time
	}
	return code, err
}

// baseArch is the first architecture of arch's generation, whose code runs on all of it: of sm_86 it is sm_80,
// of sm_103a sm_100. Hopper has one only, with instructions of its own: sm_90a.
func baseArch(arch string) string {
	base := strings.TrimSuffix(arch, "a")
	if base == "sm_90" || len(base) < len("sm_80") {
		return arch
	}
	return base[:len(base)-1] + "0"
}

// codeFile is the name of a file with code: it is that of these sources and options.
func codeFile(name, arch string) string {
	return fmt.Sprintf("%s-%s-%s.cubin", name, arch, codeVersion())
}

// codeVersion is a hash of all sources and options.
var codeVersion = sync.OnceValue(func() string {
	h := sha256.New()
	files, _ := fs.Glob(sources, "src/*") // the pattern is right
	for _, f := range files {
		if b, err := sources.ReadFile(f); err == nil {
			fmt.Fprintf(h, "%s %d\n%s", f, len(b), b)
		}
	}
	fmt.Fprintf(h, "%q", options)
	return hex.EncodeToString(h.Sum(nil)[:12])
})

// CompileTo compiles every source for these architectures into a directory, for CodeCache.Ready of machines
// without a compiler; as many at once as there are processors. wrote is called after each file. What is
// there already is not compiled again.
func (c *Compiler) CompileTo(dir string, arches []string, wrote func(file string)) error {
	names := Sources()
	return together(len(names)*len(arches), func(i int) (done func(), err error) {
		name, arch := names[i%len(names)], arches[i/len(names)]
		path := filepath.Join(dir, codeFile(name, arch))
		if _, err := os.Stat(path); err != nil {
			code, err := c.Compile(name, arch)
			if err == nil {
				err = keep(path, code)
			}
			if err != nil {
				return nil, err
			}
		}
		return func() { wrote(path) }, nil
	})
}

// together calls f for 0 ... n-1, as many at once as there are processors, and what it returned one at a
// time. It ends early at an error, the first of which it returns.
func together(n int, f func(i int) (done func(), err error)) error {
	var mu sync.Mutex
	var wait sync.WaitGroup
	var first error
	next := 0
	take := func() int { // the next one, or n
		mu.Lock()
		defer mu.Unlock()
		if first != nil {
			return n
		}
		next++
		return min(next-1, n)
	}
	for range min(runtime.NumCPU(), n) {
		wait.Go(func() {
			for i := take(); i < n; i = take() {
				done, err := recovered(i, f)
				if err == nil {
					_, err = recovered(i, func(int) (func(), error) {
						mu.Lock()
						defer mu.Unlock()
						done()
						return nil, nil
					})
				}
				mu.Lock()
				if first == nil {
					first = err
				}
				mu.Unlock()
			}
		})
	}
	wait.Wait()
	return first
}

func recovered(i int, f func(int) (func(), error)) (done func(), err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("cuda: internal error: %v", r)
		}
	}()
	return f(i)
}

// keep writes a file so that others see all of it or nothing.
func keep(path string, code []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("cuda: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".cubin-*")
	if err != nil {
		return fmt.Errorf("cuda: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(code)
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("cuda: %w", err)
	}
	return nil
}
