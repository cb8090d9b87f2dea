//go:build !cgo

package dl

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestStaticProgramLoadsNothing(t *testing.T) {
	_, err := Open(Search{Name: "the C library", Files: []string{"libc.so.6"}})
	require.ErrorContains(t, err, "without cgo")
}
