package cudatest

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/cpu"
)

// old is the age at which what was built for other sources is removed.
const old = 12 * time.Hour

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

// temporary is where things are built if the checkout cannot be written.
func temporary() string { return filepath.Join(os.TempDir(), fmt.Sprintf("cudatest-%d", os.Getpid())) }

// Clean removes what had to be built outside of the checkout: to be called once, at the end.
func Clean() { _ = os.RemoveAll(temporary()) } // a directory for temporary files

// place is the directory that keeps what is built.
var place = sync.OnceValues(func() (string, error) {
	home, err := Home()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(home, "..", "..", "build", "cudatest")
	if err := os.MkdirAll(dir, 0o755); err == nil {
		if f, err := os.CreateTemp(dir, ".try-*"); err == nil {
			return dir, errors.Join(f.Close(), os.Remove(f.Name()))
		}
	}
	dir = temporary()
	return dir, os.MkdirAll(dir, 0o700)
})

// target is something that is built: a directory with files.
type target struct {
	name    string
	sources []string // what it is made of, without what they include
	command [][]string
}

var (
	building sync.Mutex
	built    sync.Map // directories, by the name of the target
)

// build returns the directory of a target, built by this process or another if it is not there.
// Commands run with OUT for a new directory; when all succeeded it gets its name at once.
func (t *target) build() (string, error) {
	building.Lock()
	defer building.Unlock()
	if dir, ok := built.Load(t.name); ok {
		return dir.(string), nil
	}
	root, err := place()
	if err != nil {
		return "", err
	}
	for range 3 { // again if a source is changed meanwhile
		sum, err := t.sum()
		if err != nil {
			return "", err
		}
		dir := filepath.Join(root, t.name+"-"+sum)
		err = t.buildAt(root, dir)
		after, changed := t.sum()
		if changed == nil && after != sum {
			_ = os.RemoveAll(dir) // its name may be wrong
			continue
		}
		if err == nil {
			built.Store(t.name, dir)
		}
		return dir, err
	}
	return "", fmt.Errorf("cudatest: the sources of %s change while they are compiled", t.name)
}

func (t *target) buildAt(root, dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	unlock := lock(filepath.Join(root, "."+t.name+".lock")) // others need not do the same work
	defer unlock()
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	out, err := os.MkdirTemp(root, ".new-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(out)
	if err := os.Chmod(out, 0o755); err != nil {
		return err
	}
	for _, c := range t.command {
		c = slices.Clone(c)
		for i := range c {
			c[i] = strings.ReplaceAll(c[i], "OUT/", out+"/")
		}
		cmd := exec.Command(c[0], c[1:]...)
		if text, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("cudatest: %s: %w\n%s", cmd, err, text)
		}
	}
	if err := os.Rename(out, dir); err != nil {
		if _, there := os.Stat(dir); there != nil {
			return err
		}
	}
	prune(root, t.name, dir)
	return nil
}

// prune removes what was built for other sources long before dir, and what a process left that was
// killed.
func prune(root, name, dir string) {
	entries, err := os.ReadDir(root)
	now, missing := os.Stat(dir)
	if err != nil || missing != nil {
		return
	}
	for _, e := range entries {
		other := strings.HasPrefix(e.Name(), name+"-") || strings.HasPrefix(e.Name(), ".new-")
		if info, err := e.Info(); err == nil && other && now.ModTime().Sub(info.ModTime()) > old {
			_ = os.RemoveAll(filepath.Join(root, e.Name())) // is tried again
		}
	}
}

var include = regexp.MustCompile(`(?m)^\s*#\s*include\s+"([^"]+)"`)

// sum is a hash of the sources, all that they include, the commands and the compilers.
func (t *target) sum() (string, error) {
	h := sha256.New()
	for _, c := range t.command {
		v, err := compiler(c[0])
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%q %s\n", c, v)
	}
	seen := map[string]bool{}
	for list := slices.Clone(t.sources); len(list) > 0; {
		path := list[0]
		list = list[1:]
		if seen[path] {
			continue
		}
		seen[path] = true
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) && len(seen) > len(t.sources) {
			continue // a header of another place, or none: the compiler will say
		}
		if err != nil {
			return "", fmt.Errorf("cudatest: %w", err)
		}
		fmt.Fprintf(h, "%s %d\n%s", filepath.Base(path), len(text), text)
		for _, m := range include.FindAllSubmatch(text, -1) {
			list = append(list, filepath.Join(filepath.Dir(path), string(m[1])))
			if home, err := Home(); err == nil {
				list = append(list, filepath.Join(home, "src", string(m[1])))
			}
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:10]), nil
}

var versions sync.Map

// compiler is the version of a compiler.
func compiler(cc string) (string, error) {
	if v, ok := versions.Load(cc); ok {
		return v.(string), nil
	}
	out, err := exec.Command(cc, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("cudatest: %s --version: %w", cc, err)
	}
	versions.Store(cc, string(out))
	return string(out), nil
}

// NewNCCL is the directory, below that of the other libraries, of an NCCL with what 2.23 has more.
const NewNCCL = "new-nccl"

// libraries is the directory of the emulated libraries.
func libraries() (string, error) {
	home, err := Home()
	if err != nil {
		return "", err
	}
	root, err := place()
	if err != nil {
		return "", err
	}
	data := filepath.Join(home, "cudatest", "testdata")
	t := &target{name: "lib", command: [][]string{{"mkdir", "OUT/" + NewNCCL}}}
	for _, l := range [][]string{
		{"libcuda.so.1", "libcuda.c", "-ldl", "-lpthread"},
		{"libcublasLt.so.13", "libcublaslt.c", "-O3", "-ffp-contract=off", "-ldl"},
		{"libnccl.so.2", "libnccl.c", "-ldl", "-lpthread"},
		{NewNCCL + "/libnccl.so.2", "libnccl.c", "-ldl", "-lpthread", "-DNEW_NCCL"},
		{"libnvrtc.so.13", "libnvrtc.c", `-DHOME_OF_HOST="` + filepath.Join(home, "src") + `"`, `-DKEPT="` + filepath.Join(root, "compiled") + `"`},
	} {
		source := filepath.Join(data, l[1])
		t.sources = append(t.sources, source)
		t.command = append(t.command, append([]string{"gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", "OUT/" + l[0], source}, l[2:]...))
	}
	return t.build()
}

// kernels is the file of a built source.
func kernels(name string) (string, error) {
	home, err := Home()
	if err != nil {
		return "", err
	}
	source := filepath.Join(home, "src", name+".cu")
	t := &target{name: "kernels-" + name, sources: []string{source}, command: [][]string{compileKernel(home, "OUT/"+name+".so", source)}}
	dir, err := t.build()
	return filepath.Join(dir, name+".so"), err
}

// BuildKernel compiles a kernel source for the emulated driver.
func BuildKernel(out, source string) error {
	home, err := Home()
	if err != nil {
		return err
	}
	c := compileKernel(home, out, source)
	cmd := exec.Command(c[0], c[1:]...)
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cudatest: %s: %w\n%s", cmd, err, text)
	}
	return nil
}

func compileKernel(home, out, source string) []string {
	c := []string{"g++", "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-Wno-maybe-uninitialized", "-ffp-contract=off", "-shared", "-fPIC"}
	if cpu.X86.HasFMA && cpu.X86.HasAVX2 { // fmaf is then an instruction
		c = append(c, "-mfma", "-mavx2")
	}
	return append(c, "-I"+filepath.Join(home, "src"), "-x", "c++", source, "-o", out)
}
