// Package dl opens shared libraries that may or may not be on a machine, and binds
// their functions.
//
// It is the only door to such libraries: what is not there is an *Error that says
// which files were tried and which symbols are missing, never a panic. It knows no
// library; the names and signatures are its callers'. A program built without cgo is
// static and loads nothing: there every library is missing.
package dl

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
)

// Search says how to find a library.
type Search struct {
	// Name is what messages call it, such as "the CUDA driver".
	Name string
	// Files are names to try, the best first, such as "libcuda.so.1". Those without a
	// slash are also left to the loader of the system, with its own search path.
	Files []string
	// Dirs are looked in before the loader's search path, in this order. They may have
	// the wildcards of path/filepath.Match.
	Dirs []string
	// Hint says how to get it; it becomes the hint of the error.
	Hint string
}

// Error is a library that cannot be used.
type Error struct {
	// Library is the name in words, Path the file that was loaded, "" for none.
	Library, Path string
	// Tried is what was tried and why it failed, if no file could be loaded.
	Tried []string
	// Missing is the symbols that the file should have and has not.
	Missing []string
	// Hint says what to do about it; may be empty.
	Hint string
}

// Error is one line.
func (e *Error) Error() string {
	if e.Path != "" {
		return fmt.Sprintf("%s (%s) has no %s", e.Library, e.Path, strings.Join(e.Missing, ", "))
	}
	return fmt.Sprintf("%s was not found: %s", e.Library, strings.Join(e.Tried, "; "))
}

// Library is a loaded library. It stays loaded until the process ends: threads and
// exit handlers of such libraries do not survive being unloaded.
type Library struct {
	search Search
	path   string
	handle uintptr
}

// Open loads the first file of s that can be loaded.
func Open(s Search) (*Library, error) {
	e := &Error{Library: s.Name, Hint: s.Hint}
	for _, path := range candidates(s) {
		handle, err := load(path)
		if err == nil {
			return &Library{search: s, path: path, handle: handle}, nil
		}
		e.Tried = append(e.Tried, oneLine(err.Error()))
	}
	return nil, e
}

// candidates is the files to try: those that exist in s.Dirs, then bare names.
func candidates(s Search) (paths []string) {
	for _, pattern := range s.Dirs {
		dirs, err := filepath.Glob(pattern)
		if err != nil { // no pattern but a name with a bracket
			dirs = []string{pattern}
		}
		for _, dir := range dirs {
			for _, file := range s.Files {
				path := filepath.Join(dir, file)
				if _, err := os.Stat(path); err == nil && !strings.Contains(file, "/") {
					paths = append(paths, path)
				}
			}
		}
	}
	return append(paths, s.Files...)
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// Path is the file that was loaded, or the bare name that the loader found.
func (l *Library) Path() string { return l.path }

// Has says whether the library has a symbol.
func (l *Library) Has(symbol string) bool {
	_, err := find(l.handle, symbol)
	return err == nil
}

// Bind fills the fields of a structure of functions. A field with the tag `c:"name"` gets the
// function of that name, and with `c:"name,optional"` stays nil if there is none; one
// without a tag is passed over. If a symbol is missing nothing is bound, and the error
// lists all that are missing.
//
// Signatures are not checked by anyone: parameters must be what the C declaration says,
// with pointers as unsafe.Pointer, uintptr or *T.
func (l *Library) Bind(functions any) error {
	v := reflect.ValueOf(functions)
	if v.Kind() != reflect.Pointer || v.IsNil() || v.Elem().Kind() != reflect.Struct {
		return fmt.Errorf("dl: Bind of a %T, not a pointer to a structure", functions)
	}
	v = v.Elem()
	address := make([]uintptr, v.NumField())
	var missing []string
	for i := range v.NumField() {
		name, option, _ := strings.Cut(v.Type().Field(i).Tag.Get("c"), ",")
		if name == "" {
			continue
		}
		if v.Field(i).Kind() != reflect.Func || !v.Field(i).CanSet() {
			return fmt.Errorf("dl: field %s of %T is no function that can be set", v.Type().Field(i).Name, functions)
		}
		symbol, err := find(l.handle, name)
		switch {
		case err == nil:
			address[i] = symbol
		case option != "optional":
			missing = append(missing, name)
		}
	}
	if missing != nil {
		return &Error{Library: l.search.Name, Path: l.path, Missing: missing, Hint: l.search.Hint}
	}
	for i, a := range address {
		if a != 0 {
			register(v.Field(i).Addr().Interface(), a)
		}
	}
	return nil
}
