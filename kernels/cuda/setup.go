package cuda

import (
	"path/filepath"
)

// Setup is where the libraries and the compiled kernels are.
type Setup struct {
	// LibDirs are searched for the driver and the compiler before the system's directories.
	LibDirs []string
	// CacheDir keeps compiled kernels; "" keeps none.
	CacheDir string
	// KernelDirs have compiled kernels, of Compiler.CompileTo, and are only read.
	KernelDirs []string
}

// KernelsVariable names directories, separated by colons, with kernels that are compiled already.
const KernelsVariable = "NANOCHAT_CUDA_KERNELS"

// FromEnvironment is the setup that the environment asks for: LibDirs, the directories of KernelsVariable,
// and for the cache one below XDG_CACHE_HOME or HOME. file is that of the program or the library, whose
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
