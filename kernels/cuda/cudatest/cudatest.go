// Package cudatest is a GPU for tests on machines without one: an emulated driver whose
// kernels are the host builds of the sources in package cuda, and a compiler that makes them.
package cudatest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/architehc/nanochat/kernels/cuda"
)

// build compiles the driver, the compiler and the kernels, once in a process, and returns their
// directory.
var build = sync.OnceValues(func() (string, error) {
	dir := place()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	home, err := Home()
	if err != nil {
		return dir, err
	}
	if err := compile(filepath.Join(dir, "libcuda.so.1"), "gcc", "-std=c11", "-O1", filepath.Join(home, "cudatest", "testdata", "libcuda.c"), "-ldl", "-lpthread"); err != nil {
		return dir, err
	}
	if err := compile(filepath.Join(dir, "libnvrtc.so.13"), "gcc", "-std=gnu11", "-O1", `-DHOME_OF_HOST="`+filepath.Join(home, "src")+`"`,
		filepath.Join(home, "cudatest", "testdata", "libnvrtc.c")); err != nil {
		return dir, err
	}
	for _, name := range cuda.Sources() {
		if err := BuildKernel(filepath.Join(dir, name+".so"), filepath.Join(home, "src", name+".cu")); err != nil {
			return dir, err
		}
	}
	return dir, nil
})

// Open opens the device of Setup, and gives the code of its kernels. The caller closes it. Where
// there is neither device the test is skipped, and says why.
func Open(t testing.TB, getenv func(string) string) (*cuda.Device, cuda.Image) {
	t.Helper()
	dirs, image, missing, err := Setup(getenv)
	if missing != "" {
		t.Skip(missing)
	}
	var driver *cuda.Driver
	if err == nil {
		driver, err = cuda.OpenDriver(dirs...)
	}
	var device *cuda.Device
	if err == nil {
		device, err = driver.Open(0)
	}
	if err != nil {
		t.Fatal(err)
	}
	return device, image
}

// Clean removes what Setup has built, if it has: to be called once, at the end.
func Clean() { _ = os.RemoveAll(place()) } // a directory for temporary files

// place is the directory of build.
func place() string { return filepath.Join(os.TempDir(), fmt.Sprintf("cudatest-%d", os.Getpid())) }

// Home is the directory of package cuda in the checkout that the test runs in.
func Home() (string, error) {
	dir, err := os.Getwd()
	for err == nil {
		if _, missing := os.Stat(filepath.Join(dir, "go.mod")); missing == nil {
			return filepath.Join(dir, "kernels", "cuda"), nil
		}
		if dir == filepath.Dir(dir) {
			break
		}
		dir = filepath.Dir(dir)
	}
	return "", fmt.Errorf("cudatest: no go.mod above the working directory: %w", err)
}

// BuildKernel compiles a kernel source for the emulated driver.
func BuildKernel(out, source string) error {
	home, err := Home()
	if err != nil {
		return err
	}
	return compile(out, "g++", "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-Wno-maybe-uninitialized", "-ffp-contract=off",
		"-I"+filepath.Join(home, "src"), "-x", "c++", source)
}

func compile(out, cc string, args ...string) error {
	cmd := exec.Command(cc, append([]string{"-shared", "-fPIC", "-o", out}, args...)...)
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cudatest: %s: %w\n%s", cmd, err, text)
	}
	return nil
}

// GPUVariable, set to 1, makes the tests use the GPU of the machine instead of the emulated
// one; its compiler is then found as users' is.
const GPUVariable = "NANOCHAT_TEST_GPU"

// OnGPU says whether the tests use the GPU of the machine.
func OnGPU(getenv func(string) string) bool { return getenv(GPUVariable) == "1" }

// Setup is the emulated GPU, or that of the machine, and the code of its kernels. missing, if
// not "", says why there is neither.
func Setup(getenv func(string) string) (dirs []string, image cuda.Image, missing string, err error) {
	if OnGPU(getenv) {
		s := cuda.FromEnvironment(getenv)
		cache := &cuda.CodeCache{Dir: s.CacheDir}
		cache.Compiler, cache.Err = cuda.OpenCompiler(s.LibDirs...)
		return s.LibDirs, cache.Cubin, "", nil
	}
	for _, cc := range []string{"gcc", "g++"} {
		if _, err := exec.LookPath(cc); err != nil {
			return nil, nil, "no " + cc + " to build the emulated GPU with", nil
		}
	}
	dir, err := build()
	return []string{dir}, Image(dir), "", err
}

// Image gives the host build of a kernel source in the place of its code; dir is that of
// Build.
func Image(dir string) cuda.Image {
	return func(name, _ string) ([]byte, error) {
		return append([]byte(filepath.Join(dir, name+".so")), 0), nil
	}
}
