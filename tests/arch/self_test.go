package arch

import (
	"go/parser"
	"path"
	"strings"
	"testing"
)

// The rules must be able to fail: each row is a file that breaks one.
func TestRulesCatchOffenders(t *testing.T) {
	for _, c := range []struct{ path, src, want string }{
		{"core/sample/x.go", `import "github.com/architehc/nanochat/core/model"`, "layer"},
		{"core/model/x.go", `import "github.com/architehc/nanochat/cmd/nanochat"`, "nothing imports it"},
		{"core/model/x.go", `import "github.com/architehc/nanochat/core/new"`, "no row"},
		{"core/model/x.go", `import "github.com/stretchr/testify/assert"`, "may not import"},
		{"core/gguf/x.go", `import "unsafe"`, "unsafe stands only"},
		{"core/model/x.go", `import "C"`, "C stands only"},
		{"core/gguf/x.go", `import "os"; var _ = os.Open`, "through fsx"},
		{"core/gguf/x.go", `import o "os"; var _ = o.Exit`, "returns errors"},
		{"core/infer/x.go", `import "time"; var _ = time.Now()`, "clock"},
		{"core/infer/x.go", `import "math/rand/v2"; var _ = rand.Int()`, "rng"},
		{"core/infer/x.go", `import "os"; var _ = os.Getenv("X")`, "environment"},
		{"core/infer/x.go", `import "log"; var _ = log.Println`, "not log"},
		{"core/infer/x_test.go", `import "os"; var _ = os.Getenv("X")`, ""},
		{"core/infer/x_test.go", `import "github.com/stretchr/testify/assert"`, ""},
		{"core/gguf/view.go", `import "unsafe"`, ""},
		{"kernels/cgo.go", `import "C"`, ""},
		{"cmd/nanochat/main.go", `import "os"; var _ = os.Exit`, ""},
	} {
		f, err := parser.ParseFile(fset, c.path, "package x; "+c.src, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		s := source{path: c.path, dir: path.Dir(c.path), test: strings.HasSuffix(c.path, "_test.go"), ast: f}
		faults := banFaults(s)
		for _, i := range f.Imports {
			if why := importFault(s, layers[s.dir], importPath(i)); why != "" {
				faults = append(faults, why)
			}
		}
		got := strings.Join(faults, "; ")
		if c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("%s with %s: faults %q, want %q", c.path, c.src, got, c.want)
		}
	}
	for src, want := range map[string]int{
		"func F() {}": 1, "// F is.\nfunc F() {}": 0, "func f() {}": 0, "type T int": 1, "const (\n A = 1 // a\n B = 2\n)": 1,
		"type t int\nfunc (t) M() {}": 0, "// T is.\ntype T int\nfunc (T) M() {}": 1,
	} {
		f, err := parser.ParseFile(fset, "x.go", "package x\n\n"+src, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, d := range f.Decls {
			n += len(undocumented(d))
		}
		if n != want {
			t.Errorf("%q: %d undocumented names, want %d", src, n, want)
		}
	}
}

func TestMutationsAreSeen(t *testing.T) {
	for src, want := range map[string]int{
		"var v int; func f() { v = 1 }":                                 1,
		"var v int; func f() { v++ }":                                   1,
		"var v []int; func f() { v[0] = 1 }":                            1,
		"var v struct{ a int }; func f() { v.a += 1 }":                  1,
		"func f() { v = 1 }":                                            1, // v of another file
		"var v int; func f() { v := 2; v = 1; _ = v }":                  0,
		"var v int; func f(v int) { v = 1 }":                            0,
		"var v int; func f() int { return v }":                          0,
		"type t struct{ v int }; func (x *t) f() { x.v = 1 }":           0,
		"func g() (v int) { v = 3; return }":                            0,
		"func f() { for v := range 3 { _ = v } }; func g() { v = nil }": 1,
	} {
		f, err := parser.ParseFile(fset, "x.go", "package x; "+src, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		if got := len(mutations(f, map[string]bool{"v": true})); got != want {
			t.Errorf("%s: %d mutations, want %d", src, got, want)
		}
	}
}
