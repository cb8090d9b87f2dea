package model

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestParallelContainsPanics: one in a goroutine would end the program.
func TestParallelContainsPanics(t *testing.T) {
	err := parallel(8, func(i int) error {
		if i == 5 {
			panic("boom")
		}
		return nil
	})
	require.ErrorContains(t, err, "boom")
	require.ErrorContains(t, err, "parallel_test.go")
}
