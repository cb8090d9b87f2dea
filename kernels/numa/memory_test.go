package numa

import (
	"os"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
)

func write(b []byte) {
	for i := range b {
		b[i] = byte(i)
	}
}

// Pages land on the node that was asked for, as the system itself reports in two
// ways.
func TestAllocPlacesPages(t *testing.T) {
	for _, n := range Read().Nodes {
		for _, huge := range []bool{false, true} {
			const size = 3*HugePage + 12345
			m, err := Alloc(size, n.ID, huge)
			require.NoError(t, err)
			require.Len(t, m.Bytes(), size)
			for i, b := range m.Bytes() {
				if b != 0 {
					t.Fatalf("byte %d is %d, want 0", i, b)
				}
			}
			write(m.Bytes())
			if runtime.GOOS == "linux" {
				require.Contains(t, []string{"mbind", "first touch"}, m.Policy, m.Note)
				where, err := Where(m.Bytes())
				if err != nil {
					t.Skip(err)
				}
				page := os.Getpagesize()
				require.GreaterOrEqual(t, where[n.ID], size/page, "pages by node: %v", where)
				require.LessOrEqual(t, len(where), 1)
				maps, err := Maps()
				require.NoError(t, err)
				line, ok := Find(maps, m.Bytes())
				require.True(t, ok)
				require.Positive(t, line.Pages[n.ID], "%+v", line)
				if m.Policy == "mbind" {
					require.Contains(t, line.Policy, "prefer")
				}
			}
			require.NoError(t, m.Free())
			require.NoError(t, m.Free())
			require.Empty(t, m.Bytes())
		}
	}
}

func TestInterleaveAndParts(t *testing.T) {
	nodes := Read().ids()
	m, err := Alloc(8*HugePage, Interleave, true)
	require.NoError(t, err)
	defer m.Free() //nolint:errcheck // checked in TestAllocPlacesPages
	write(m.Bytes())
	if where, err := Where(m.Bytes()); err == nil {
		require.Len(t, where, len(nodes), "every node has pages: %v", where)
	}

	parts, err := Alloc(8*HugePage, Any, false)
	require.NoError(t, err)
	defer parts.Free() //nolint:errcheck // checked in TestAllocPlacesPages
	step := len(parts.Bytes()) / len(nodes) / parts.PageSize() * parts.PageSize()
	for i, id := range nodes {
		require.NoError(t, parts.Place(i*step, (i+1)*step, id))
	}
	write(parts.Bytes())
	for i, id := range nodes {
		if where, err := Where(parts.Bytes()[i*step : (i+1)*step]); err == nil {
			require.Equal(t, step/os.Getpagesize(), where[id])
		}
	}
}

// The way out where mbind is forbidden.
func TestFirstTouch(t *testing.T) {
	topo := Read()
	for _, n := range topo.Nodes {
		if len(n.CPUs) == 0 || runtime.GOOS != "linux" {
			continue
		}
		m, err := Alloc(1<<20, Any, false)
		require.NoError(t, err)
		require.NoError(t, firstTouch(m.Bytes(), m.page, n))
		if where, err := Where(m.Bytes()); err == nil {
			require.Equal(t, map[int]int{n.ID: len(m.Bytes()) / m.page}, where)
		}
		require.NoError(t, m.Free())
	}
	require.ErrorIs(t, firstTouch(nil, 1, Node{CPUs: []int{1 << 20}}), errNoCPU)
}

func TestUntouchedPagesAreNowhere(t *testing.T) {
	m, err := Alloc(64<<10, Any, false)
	require.NoError(t, err)
	defer m.Free() //nolint:errcheck // checked in TestAllocPlacesPages
	if where, err := Where(m.Bytes()); err == nil {
		require.Equal(t, map[int]int{Any: 64 << 10 / os.Getpagesize()}, where)
	}
}

func TestAllocEdges(t *testing.T) {
	_, err := Alloc(-1, Any, false)
	require.ErrorContains(t, err, "-1 bytes")
	_, err = Alloc(1, -3, false)
	require.ErrorContains(t, err, "no node -3")
	_, err = Alloc(1, 4096, false)
	require.ErrorContains(t, err, "no node 4096")
	m, err := Alloc(0, Any, true)
	require.NoError(t, err)
	require.Empty(t, m.Bytes())
	require.NoError(t, m.Free())
	m, err = Alloc(100, Any, true)
	require.NoError(t, err)
	require.False(t, m.Huge, "smaller than a huge page")
	require.ErrorContains(t, m.Place(50, 101, 0), "50..101")
	require.NoError(t, m.Place(7, 7, Read().Nodes[0].ID))
	require.NoError(t, m.Free())
	if runtime.GOOS == "linux" {
		require.ErrorContains(t, mbindError(), "invalid")
	}
}
