package fsx

// Free is the bytes that an ordinary user can still write to the disk that holds
// dir; ok is false where that is not known.
func Free(fsys FS, dir string) (n int64, ok bool) {
	if _, real := fsys.(osFS); !real {
		return 0, false
	}
	return freeSpace(dir)
}
