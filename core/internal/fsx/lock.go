package fsx

// TryLock takes the exclusive lock of an open file, which Close or the end of the
// process gives back, and reports whether it got it; it never waits. Two opens of
// one file exclude each other, in one process too. errors.ErrUnsupported says that
// the system or the file has no such locks.
//
// The lock is advice to programs that ask for it. Some network file systems grant
// it to everyone: nothing may become wrong where it lies.
func TryLock(f File) (bool, error) {
	if w, ok := f.(*faultFile); ok {
		f = w.File
	}
	return tryLock(f)
}
