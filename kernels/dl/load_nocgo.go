//go:build !cgo

package dl

import "errors"

var errStatic = errors.New("this program was built without cgo and cannot load libraries")

func load(string) (uintptr, error) { return 0, errStatic }

func find(uintptr, string) (uintptr, error) { return 0, errStatic }

func register(any, uintptr) {}
