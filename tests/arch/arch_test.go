package arch

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

const module = "github.com/architehc/nanochat"

// A source is one parsed Go file.
type source struct {
	path string // from the root, with slashes
	dir  string
	test bool
	ast  *ast.File
}

var fset = token.NewFileSet()

// tree parses the whole repository once.
var tree = sync.OnceValues(func() ([]source, error) {
	var out []source
	err := walk(func(p string) error {
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		f, err := parser.ParseFile(fset, filepath.Join(root, p), nil, parser.ParseComments)
		if err != nil {
			return err
		}
		out = append(out, source{path: p, dir: path.Dir(p), test: strings.HasSuffix(p, "_test.go"), ast: f})
		return nil
	})
	return out, err
})

const root = "../.."

// walk calls f for every file of the repository that is not hidden or built.
func walk(f func(p string) error) error {
	return filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		hidden := strings.HasPrefix(d.Name(), ".") && rel != "."
		if d.IsDir() {
			if hidden || rel == "build" || rel == "dist" || d.Name() == "testdata" || d.Name() == "__pycache__" {
				return filepath.SkipDir
			}
			return nil
		}
		if hidden {
			return nil
		}
		return f(rel)
	})
}

func sources(t *testing.T) []source {
	t.Helper()
	s, err := tree()
	if err != nil {
		t.Fatal(err)
	}
	if len(s) < 20 {
		t.Fatalf("only %d Go files found", len(s))
	}
	return s
}

func at(n ast.Node) string {
	p := fset.Position(n.Pos())
	rel, err := filepath.Rel(root, p.Filename)
	if err != nil {
		rel = p.Filename
	}
	return fmt.Sprintf("%s:%d", filepath.ToSlash(rel), p.Line)
}

func importPath(i *ast.ImportSpec) string {
	p, err := strconv.Unquote(i.Path.Value)
	if err != nil {
		return i.Path.Value
	}
	return p
}

// under says whether import path p is module m or inside it.
func under(p, m string) bool { return p == m || strings.HasPrefix(p, m+"/") }

func TestLayers(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range sources(t) {
		r, ok := layers[s.dir]
		if !ok {
			if !seen[s.dir] {
				t.Errorf("package %s has no row in the layer table", s.dir)
			}
			seen[s.dir] = true
			continue
		}
		seen[s.dir] = true
		for _, i := range s.ast.Imports {
			if why := importFault(s, r, importPath(i)); why != "" {
				t.Errorf("%s: %s", at(i), why)
			}
		}
	}
}

// importFault says why s, a file of row r, may not import p.
func importFault(s source, r row, p string) string {
	if own, ok := strings.CutPrefix(p, module+"/"); ok {
		to, known := layers[own]
		switch {
		case !known:
			return own + " has no row in the layer table"
		case own == s.dir:
			return "" // an external test package imports its own
		case strings.HasPrefix(own, s.dir+"/") && s.test && strings.HasSuffix(own, "test"):
			return "" // and the helpers of its tests
		case s.test && strings.HasSuffix(own, "test") && layers[path.Dir(own)].layer < r.layer:
			return "" // and those of the packages below it
		case strings.HasPrefix(own, "cmd/") || strings.HasPrefix(own, "capi/"):
			return own + " is a program; nothing imports it"
		case to.layer >= r.layer:
			return fmt.Sprintf("%s (layer %d) imports %s (layer %d); only lower layers may be imported", s.dir, r.layer, own, to.layer)
		}
		return ""
	}
	if first, _, _ := strings.Cut(p, "/"); !strings.Contains(first, ".") {
		return "" // the standard library; bans look at it
	}
	allowed := r.modules
	if s.test {
		allowed = append(slices.Clone(testModules), allowed...)
	}
	if slices.ContainsFunc(allowed, func(m string) bool { return under(p, m) }) {
		return ""
	}
	return fmt.Sprintf("%s may not import %s", s.dir, p)
}

func TestBans(t *testing.T) {
	for _, s := range sources(t) {
		for _, why := range banFaults(s) {
			t.Error(why)
		}
	}
}

func banFaults(s source) (faults []string) {
	if s.test && !importsC(s.ast) {
		return nil
	}
	// local maps the name a package goes by in this file to its path.
	local := map[string]string{}
	for _, i := range s.ast.Imports {
		p := importPath(i)
		name := path.Base(p)
		if name == "v2" {
			name = path.Base(path.Dir(p))
		}
		if i.Name != nil {
			name = i.Name.Name
		}
		local[name] = p
		for _, b := range bans {
			if b.name == "" && b.pkg == p && !b.except.MatchString(s.path) {
				faults = append(faults, fmt.Sprintf("%s: imports %s: %s", at(i), p, b.why))
			}
		}
	}
	ast.Inspect(s.ast, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		x, ok := sel.X.(*ast.Ident)
		if !ok {
			return true
		}
		for _, b := range bans {
			if b.name == sel.Sel.Name && local[x.Name] == b.pkg && !b.except.MatchString(s.path) {
				faults = append(faults, fmt.Sprintf("%s: uses %s.%s: %s", at(sel), b.pkg, b.name, b.why))
			}
		}
		return true
	})
	return faults
}

func importsC(f *ast.File) bool {
	return slices.ContainsFunc(f.Imports, func(i *ast.ImportSpec) bool { return importPath(i) == "C" })
}

func TestNoInitAndNoUtils(t *testing.T) {
	vague := regexp.MustCompile(`^(utils?|common|helpers?|misc|shared)$`)
	for _, s := range sources(t) {
		if vague.MatchString(strings.TrimSuffix(s.ast.Name.Name, "_test")) {
			t.Errorf("%s: package %s: a name says what a package is for", s.path, s.ast.Name.Name)
		}
		for _, d := range s.ast.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
				t.Errorf("%s: init() hides the order things happen in; call it where it is needed", at(f))
			}
		}
	}
}

func TestNoPackageLevelState(t *testing.T) {
	vars := map[string]map[string]bool{} // of each directory
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		if vars[s.dir] == nil {
			vars[s.dir] = map[string]bool{}
		}
		for name := range packageVars(s.ast) {
			vars[s.dir][name] = true
		}
	}
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		for _, m := range mutations(s.ast, vars[s.dir]) {
			t.Errorf("%s: changes the package variable %s; keep state in a value that has an owner", at(m), m.Name)
		}
	}
}

func packageVars(f *ast.File) map[string]bool {
	names := map[string]bool{}
	for _, d := range f.Decls {
		if g, ok := d.(*ast.GenDecl); ok && g.Tok == token.VAR {
			for _, sp := range g.Specs {
				for _, n := range sp.(*ast.ValueSpec).Names {
					names[n.Name] = true
				}
			}
		}
	}
	return names
}

// mutations lists the package variables, of those named, that f assigns to.
func mutations(f *ast.File, vars map[string]bool) (out []*ast.Ident) {
	global := map[*ast.Ident]bool{}
	for _, id := range f.Unresolved { // declared in another file
		global[id] = true
	}
	changed := func(e ast.Expr) {
		for {
			switch x := e.(type) {
			case *ast.SelectorExpr:
				e = x.X
			case *ast.IndexExpr:
				e = x.X
			case *ast.ParenExpr:
				e = x.X
			case *ast.Ident:
				inFile := f.Scope.Lookup(x.Name) != nil && x.Obj == f.Scope.Lookup(x.Name)
				if vars[x.Name] && (global[x] || inFile) {
					out = append(out, x)
				}
				return
			default:
				return
			}
		}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			if n.Tok != token.DEFINE {
				for _, e := range n.Lhs {
					changed(e)
				}
			}
		case *ast.IncDecStmt:
			changed(n.X)
		}
		return true
	})
	return out
}

func TestEveryExportedNameIsDocumented(t *testing.T) {
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		for _, d := range s.ast.Decls {
			for _, n := range undocumented(d) {
				t.Errorf("%s: exported %s has no comment", at(d), n)
			}
		}
	}
}

// undocumented lists the exported names that d declares without a comment: on
// the name itself, on its line, or on its group.
func undocumented(d ast.Decl) (names []string) {
	switch d := d.(type) {
	case *ast.FuncDecl:
		if !d.Name.IsExported() || d.Doc != nil || d.Recv != nil && !exportedType(d.Recv.List[0].Type) {
			return nil
		}
		// The methods of error, Stringer and the like say nothing new.
		if d.Recv != nil && slices.Contains([]string{"Error", "String", "Unwrap", "Is", "Len", "Less", "Swap", "Read", "Write", "Close"}, d.Name.Name) {
			return nil
		}
		return []string{d.Name.Name}
	case *ast.GenDecl:
		for _, sp := range d.Specs {
			switch sp := sp.(type) {
			case *ast.TypeSpec:
				if sp.Name.IsExported() && d.Doc == nil && sp.Doc == nil && sp.Comment == nil {
					names = append(names, sp.Name.Name)
				}
			case *ast.ValueSpec:
				for _, n := range sp.Names {
					if n.IsExported() && d.Doc == nil && sp.Doc == nil && sp.Comment == nil {
						names = append(names, n.Name)
					}
				}
			}
		}
	}
	return names
}

func exportedType(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.StarExpr:
		return exportedType(e.X)
	case *ast.IndexExpr:
		return exportedType(e.X)
	case *ast.Ident:
		return e.IsExported()
	}
	return true
}

func TestEveryPackageHasACommentAndATest(t *testing.T) {
	type state struct{ comments, tests, code int }
	packages := map[string]*state{}
	for _, s := range sources(t) {
		p := packages[s.dir]
		if p == nil {
			p = &state{}
			packages[s.dir] = p
		}
		switch {
		case s.test:
			p.tests++
		default:
			p.code++
			if s.ast.Doc != nil {
				p.comments++
				// A program's comment begins with its command, a library's with its package.
				if text := s.ast.Doc.Text(); s.ast.Name.Name != "main" && !strings.HasPrefix(text, "Package "+s.ast.Name.Name+" ") {
					t.Errorf("%s: the package comment does not begin \"Package %s\"", s.path, s.ast.Name.Name)
				}
			}
		}
	}
	for dir, p := range packages {
		if p.code > 0 && p.comments != 1 {
			t.Errorf("%s has %d package comments, not 1", dir, p.comments)
		}
		// Tested from outside, by tests/e2e and tests/c.
		if p.tests == 0 && dir != "cmd/nanochat" && dir != "capi/libnanochat" {
			t.Errorf("%s has no test", dir)
		}
	}
}

func TestFileLength(t *testing.T) {
	if len(longFiles) > 3 {
		t.Errorf("%d files are allowed to be long; at most 3", len(longFiles))
	}
	err := walk(func(p string) error {
		switch path.Ext(p) {
		case ".go", ".c", ".h", ".py", ".cu":
		default:
			return nil
		}
		b, err := os.ReadFile(filepath.Join(root, p))
		if err != nil {
			return err
		}
		generated := strings.HasPrefix(path.Base(p), "z") || strings.HasPrefix(path.Base(p), "gen_")
		if n := bytes.Count(b, []byte("\n")); n > maxLines && !generated && !longFiles[p] {
			t.Errorf("%s has %d lines; the limit is %d", p, n, maxLines)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
