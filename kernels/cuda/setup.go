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
}

// FromEnvironment is the setup that the environment asks for: LibDirs, and a directory below
// XDG_CACHE_HOME or HOME.
func FromEnvironment(getenv func(string) string) Setup {
	s := Setup{LibDirs: LibDirs(getenv)}
	if dir := getenv("XDG_CACHE_HOME"); filepath.IsAbs(dir) {
		s.CacheDir = filepath.Join(dir, "nanochat", "cuda")
	} else if home := getenv("HOME"); filepath.IsAbs(home) {
		s.CacheDir = filepath.Join(home, ".cache", "nanochat", "cuda")
	}
	return s
}

// Open opens a device, and gives the code of its kernels: from the cache, or else from the
// compiler, whose absence is the error of an image that is not in the cache.
func (s Setup) Open(ordinal int) (*Device, Image, error) {
	driver, err := OpenDriver(s.LibDirs...)
	if err != nil {
		return nil, nil, err
	}
	device, err := driver.Open(ordinal)
	if err != nil {
		return nil, nil, err
	}
	cache := &CodeCache{Dir: s.CacheDir}
	cache.Compiler, cache.Err = OpenCompiler(s.LibDirs...)
	return device, cache.Cubin, nil
}

// Blas opens the library of products of dense matrices, which training needs.
func (s Setup) Blas() (*BlasLibrary, error) { return OpenBlas(s.LibDirs...) }

// NCCL opens the library of operations of several devices, which training on several needs.
func (s Setup) NCCL() (*NCCL, error) { return OpenNCCL(s.LibDirs...) }
