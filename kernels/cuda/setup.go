package cuda

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// Setup is where the libraries and the compiled kernels are.
type Setup struct {
	// LibDirs are searched for the driver and the compiler before the system's directories.
	LibDirs []string
	// CacheDir keeps compiled kernels; "" keeps none.
	CacheDir string
	// KernelDirs have compiled kernels, of Compiler.CompileTo, and are only read.
	KernelDirs []string
	// Off names what is not to be used although the GPU has it; see Features.
	Off []string
}

// OffVariable names, separated by commas, what of Features is not to be used.
const OffVariable = "NANOCHAT_CUDA_OFF"

// The Features that can be turned off, where a GPU or its driver gets them wrong. Results do not change.
const (
	// FeatureHopper is the products of src/hopper.cu.
	FeatureHopper = "hopper"
	// FeatureEarly is kernels of decoding that begin before the one in front of them has ended.
	FeatureEarly = "early"
)

// Features lists them.
func Features() []string { return []string{FeatureHopper, FeatureEarly} }

// KernelsVariable names directories, separated by colons, with kernels that are compiled already.
const KernelsVariable = "NANOCHAT_CUDA_KERNELS"

// FromEnvironment is the setup that the environment asks for: LibDirs, the directories of KernelsVariable,
// Off, and for the cache one below XDG_CACHE_HOME or HOME. file is that of the program or the library, whose
// package may have compiled kernels in ../share/nanochat/cuda; "": there is none.
func FromEnvironment(getenv func(string) string, file string) Setup {
	s := Setup{LibDirs: LibDirs(getenv)}
	if dir := getenv("XDG_CACHE_HOME"); filepath.IsAbs(dir) {
		s.CacheDir = filepath.Join(dir, "nanochat", "cuda")
	} else if home := getenv("HOME"); filepath.IsAbs(home) {
		s.CacheDir = filepath.Join(home, ".cache", "nanochat", "cuda")
	}
	for _, dir := range filepath.SplitList(getenv(KernelsVariable)) {
		if dir != "" {
			s.KernelDirs = append(s.KernelDirs, dir)
		}
	}
	for _, name := range strings.Split(getenv(OffVariable), ",") {
		if name = strings.TrimSpace(name); name != "" {
			s.Off = append(s.Off, name)
		}
	}
	if file != "" {
		s.KernelDirs = append(s.KernelDirs, filepath.Join(filepath.Dir(file), "..", "share", "nanochat", "cuda"))
	}
	return s
}

// Image gives the code of kernels: that of KernelDirs, of the cache, or else the compiler's, whose absence
// is the error of one that is in neither.
func (s Setup) Image() Image {
	cache := &CodeCache{Dir: s.CacheDir, Ready: s.KernelDirs}
	cache.Compiler, cache.Err = OpenCompiler(s.LibDirs...)
	return cache.Cubin
}

// Open opens a device, and gives the code of its kernels.
func (s Setup) Open(ordinal int) (*Device, Image, error) {
	driver, err := OpenDriver(s.LibDirs...)
	if err != nil {
		return nil, nil, err
	}
	for _, name := range s.Off {
		if !slices.Contains(Features(), name) {
			return nil, nil, &Error{Call: "open", Device: ordinal, Text: fmt.Sprintf("there is no %q to turn off", name),
				Hint: OffVariable + " takes " + strings.Join(Features(), " and ")}
		}
	}
	driver.off = s.Off
	device, err := driver.Open(ordinal)
	if err != nil {
		return nil, nil, err
	}
	return device, s.Image(), nil
}

// Blas opens the library of products of dense matrices, which training needs.
func (s Setup) Blas() (*BlasLibrary, error) { return OpenBlas(s.LibDirs...) }

// NCCL opens the library of operations of several devices, which training on several needs.
func (s Setup) NCCL() (*NCCL, error) { return OpenNCCL(s.LibDirs...) }
