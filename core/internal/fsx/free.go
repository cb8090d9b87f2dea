package fsx

// Free is the bytes that an ordinary user can still write to the disk that holds
// dir; ok is false where that is not known. A file system other than that of OS may
// have a method Free(dir) to tell.
func Free(fsys FS, dir string) (n int64, ok bool) {
	switch f := fsys.(type) {
	case osFS:
		return freeSpace(dir)
	case interface {
		Free(dir string) (int64, bool)
	}:
		return f.Free(dir)
	}
	return 0, false
}
