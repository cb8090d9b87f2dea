// Package cudatest is a GPU for tests on machines without one: an emulated driver whose
// kernels are the host builds of the sources in package cuda, and a compiler that makes them.
//
// What it builds is kept below build/cudatest of the checkout, by what it is made of, and is
// used again by other packages' tests.
package cudatest

import (
	"os/exec"
	"testing"

	"github.com/architehc/nanochat/kernels/cuda"
)

// Open opens the device of Setup, and gives the code of its kernels. The caller closes it. Where
// there is neither device the test is skipped, and says why.
func Open(t testing.TB, getenv func(string) string) (*cuda.Device, cuda.Image) {
	t.Helper()
	if OnGPU(getenv) {
		device, image, err := cuda.FromEnvironment(getenv, "").Open(0)
		if err != nil {
			t.Fatal(err)
		}
		return device, image
	}
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

// GPUVariable, set to 1, makes the tests use the GPU of the machine instead of the emulated
// one; its compiler is then found as users' is.
const GPUVariable = "NANOCHAT_TEST_GPU"

// OnGPU says whether the tests use the GPU of the machine.
func OnGPU(getenv func(string) string) bool { return getenv(GPUVariable) == "1" }

// Setup is the emulated GPU, or that of the machine, and the code of its kernels. missing, if
// not "", says why there is neither. Of the emulated one the first of dirs has the libraries; a
// kernel source is built when the image is asked for it.
func Setup(getenv func(string) string) (dirs []string, image cuda.Image, missing string, err error) {
	if OnGPU(getenv) {
		s := cuda.FromEnvironment(getenv, "")
		return s.LibDirs, s.Image(), "", nil
	}
	for _, cc := range []string{"gcc", "g++"} {
		if _, err := exec.LookPath(cc); err != nil {
			return nil, nil, "no " + cc + " to build the emulated GPU with", nil
		}
	}
	dir, err := libraries()
	return []string{dir}, Image, "", err
}

// Blas opens the products of the device of Setup.
func Blas(getenv func(string) string) (*cuda.BlasLibrary, error) {
	dirs, _, _, err := Setup(getenv)
	if err != nil {
		return nil, err
	}
	return cuda.OpenBlas(dirs...)
}

// Image gives the host build of a kernel source in the place of its code.
func Image(name, _ string) ([]byte, error) {
	path, err := kernels(name)
	if err != nil {
		return nil, err
	}
	return append([]byte(path), 0), nil
}
