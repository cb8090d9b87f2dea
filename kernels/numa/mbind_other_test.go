//go:build !linux

package numa

func mbindError() error { return nil }
