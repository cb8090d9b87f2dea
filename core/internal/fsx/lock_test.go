package fsx

import (
	"errors"
	"path/filepath"
	"testing"
)

// TestTryLock takes one lock through two opens, plain and through a Fault.
func TestTryLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	var files [2]File
	for i, fsys := range []FS{OS(), NewFault(OS(), FaultOptions{})} {
		f, err := Create(fsys, path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[i] = f
	}
	ok, err := TryLock(files[0])
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	if !ok || err != nil {
		t.Fatalf("a free lock: %v, %v", ok, err)
	}
	if ok, err := TryLock(files[1]); ok || err != nil {
		t.Errorf("a lock that is held: %v, %v", ok, err)
	}
	if err := files[0].Close(); err != nil {
		t.Fatal(err)
	}
	if ok, err := TryLock(files[1]); !ok || err != nil {
		t.Errorf("a lock given back by Close: %v, %v", ok, err)
	}
	f, err := Create(NewCrash(1), "/lock")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := TryLock(f); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a file without locks: %v", err)
	}
}
