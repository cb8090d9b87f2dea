package clock

import (
	"fmt"
	"testing"
	"time"
)

func TestManual(t *testing.T) {
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	c := NewManual(start)
	late, soon, now := c.After(3*time.Second), c.After(time.Second), c.After(0)
	if got := <-now; !got.Equal(start) {
		t.Errorf("After(0) sent %v", got)
	}
	for _, step := range []struct {
		d       time.Duration
		waiting int
	}{{999 * time.Millisecond, 2}, {time.Millisecond, 1}, {time.Second, 1}, {time.Hour, 0}} {
		c.Advance(step.d)
		if got := c.Waiting(); got != step.waiting {
			t.Errorf("after %v: %d waiting, want %d", step.d, got, step.waiting)
		}
	}
	if got := (<-soon).Sub(start); got != time.Second {
		t.Errorf("first timer fired at %v", got)
	}
	if got := (<-late).Sub(start); got != 3*time.Second {
		t.Errorf("second timer fired at %v", got)
	}
	if got := c.Now().Sub(start); got != time.Hour+2*time.Second {
		t.Errorf("clock stands at %v", got)
	}
}

func TestSystemMoves(t *testing.T) {
	c := System()
	a := c.Now()
	<-c.After(time.Millisecond)
	if d := c.Now().Sub(a); d < time.Millisecond {
		t.Errorf("After(1ms) took %v", d)
	}
}

func ExampleManual() {
	c := NewManual(time.Unix(0, 0).UTC())
	timer := c.After(time.Minute)
	c.Advance(time.Minute)
	fmt.Println((<-timer).Format(time.TimeOnly))
	// Output: 00:01:00
}
