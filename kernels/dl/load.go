//go:build cgo

package dl

import "github.com/ebitengine/purego"

func load(path string) (uintptr, error) {
	return purego.Dlopen(path, purego.RTLD_NOW|purego.RTLD_LOCAL)
}

func find(handle uintptr, symbol string) (uintptr, error) { return purego.Dlsym(handle, symbol) }

func register(function any, symbol uintptr) { purego.RegisterFunc(function, symbol) }
