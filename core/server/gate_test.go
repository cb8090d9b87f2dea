package server

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// order serves all that waits, one place at a time, and returns whose it was.
func order(g *gate, all map[*ticket]string) (list []string) {
	for {
		var next *ticket
		for t := range all {
			select {
			case <-t.open:
				next = t
			default:
			}
		}
		if next == nil {
			return list
		}
		list = append(list, all[next])
		delete(all, next)
		next.release(0.1)
	}
}

// TestTurns: a client with many requests delays others by one of them each time.
func TestTurns(t *testing.T) {
	g := newGate(1, 0)
	g.queue = 100
	first, err := g.reserve("x", 1)
	require.Nil(t, err)
	all := map[*ticket]string{}
	for _, c := range []struct {
		client string
		n      int
	}{{"greedy", 6}, {"a", 1}, {"b", 2}} {
		tickets, err := g.reserve(c.client, c.n)
		require.Nil(t, err)
		for i, q := range tickets {
			all[q] = fmt.Sprint(c.client, i)
		}
	}
	first[0].release(0)
	require.Equal(t, []string{"greedy0", "a0", "b0", "greedy1", "b1", "greedy2", "greedy3", "greedy4", "greedy5"}, order(g, all))
}

// TestGateKeepsItsBounds draws what may happen and checks the counts after each step.
func TestGateKeepsItsBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := newGate(rapid.IntRange(1, 4).Draw(t, "parallel"), rapid.IntRange(0, 6).Draw(t, "queue"))
		var live []*ticket
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			if len(live) == 0 || rapid.Bool().Draw(t, "reserve") {
				n := rapid.IntRange(1, 4).Draw(t, "n")
				free := max(0, g.inside-g.entered) + g.queue - g.waiting
				tickets, err := g.reserve(rapid.StringMatching("[abc]").Draw(t, "client"), n)
				if (err == nil) != (n <= free) {
					t.Fatalf("%d places are free, %d were asked for: %v", free, n, err)
				}
				live = append(live, tickets...)
			} else {
				i := rapid.IntRange(0, len(live)-1).Draw(t, "which")
				q := live[i]
				switch rapid.IntRange(0, 2).Draw(t, "what") {
				case 0:
					q.release(0.5)
					q.release(0.5)
					live = append(live[:i:i], live[i+1:]...)
				case 1:
					q.park()
				default:
					q.resume()
				}
			}
			inside, waiting, parked := 0, 0, 0
			for _, q := range live {
				switch {
				case q.parked:
					parked++
				case q.state == ticketInside:
					inside++
				default:
					waiting++
				}
			}
			if inside != g.entered || waiting != g.waiting || parked != g.parked || waiting > g.queue || parked > g.inside+g.queue {
				t.Fatalf("%d %d %d in %+v", inside, waiting, parked, g)
			}
			if waiting > 0 && g.entered < g.inside {
				t.Fatalf("somebody waits although a place is free: %+v", g)
			}
		}
		for _, q := range live {
			q.release(0)
		}
		if g.entered+g.waiting+g.parked != 0 || len(g.ring) != 0 || len(g.lines) != 0 {
			t.Fatalf("something is left: %+v", g)
		}
	})
}

func TestWaitEnds(t *testing.T) {
	g := newGate(1, 1)
	two, err := g.reserve("a", 2)
	require.Nil(t, err)
	three, refused := g.reserve("a", 1)
	require.Nil(t, three)
	require.Equal(t, 429, refused.status)
	require.Positive(t, refused.retry)
	_, refused = g.reserve("a", 3)
	require.Equal(t, 400, refused.status, "it will never fit")
	require.NoError(t, two[0].wait(context.Background()))
	g.inside = 1
	g.entered, two[1].state = 1, ticketWaits
	two[1].open = make(chan struct{})
	ctx, cancel := context.WithCancelCause(context.Background())
	why := errors.New("why")
	cancel(why)
	require.ErrorIs(t, two[1].wait(ctx), why)
}
