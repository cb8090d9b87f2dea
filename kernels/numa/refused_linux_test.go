package numa

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// A node that the system refuses, as in a container: the node's CPU writes first.
func TestPlaceFallsBackToFirstTouch(t *testing.T) {
	const absent = 900
	cpus := Read().Order()
	fake := Topology{Nodes: []Node{{ID: 0, CPUs: cpus[:1]}, {ID: absent, CPUs: cpus[len(cpus)-1:]}}}
	m, err := Alloc(1<<20, Any, false)
	require.NoError(t, err)
	defer m.Free() //nolint:errcheck // checked in TestAllocPlacesPages
	require.NoError(t, m.place(fake, 0, len(m.Bytes()), absent))
	require.Equal(t, "first touch", m.Policy)
	require.Contains(t, m.Note, "mbind refused")
	if where, err := Where(m.Bytes()); err == nil {
		require.Zero(t, where[Any], "all pages were written")
	}

	spread, err := Alloc(1<<20, Any, false)
	require.NoError(t, err)
	defer spread.Free() //nolint:errcheck // checked in TestAllocPlacesPages
	require.NoError(t, spread.place(Topology{Nodes: []Node{{ID: maxCPU, CPUs: cpus}}}, 0, len(spread.Bytes()), Interleave))
	require.Equal(t, "first touch", spread.Policy)

	nowhere, err := Alloc(1<<20, Any, false)
	require.NoError(t, err)
	defer nowhere.Free() //nolint:errcheck // checked in TestAllocPlacesPages
	require.NoError(t, nowhere.place(Topology{Nodes: []Node{{ID: absent}}}, 0, len(nowhere.Bytes()), absent))
	require.Equal(t, "any", nowhere.Policy)
	require.Contains(t, nowhere.Note, "no CPU")
}
