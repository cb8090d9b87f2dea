package train

import (
	"encoding/json"
	"math"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/architehc/nanochat/core/config"
	"github.com/architehc/nanochat/core/internal/rng"
)

func limits(t testing.TB) config.Anomaly {
	c, err := config.Preset("tiny")
	require.NoError(t, err)
	return c.Anomaly
}

// healthy is step i of a run whose loss falls from 8 to 2 with noise.
func healthy(r *rng.Source, i int) *Metrics {
	return &Metrics{
		Step: i, Loss: Number(2 + 6*math.Exp(-float64(i)/300) + 0.1*r.Normal()), GradNorm: Number(0.5 * math.Exp(0.3*r.Normal())),
		Entropy:  Number(2 + 5*math.Exp(-float64(i)/300) + 0.1*r.Normal()),
		FlipRate: number(0.005 * math.Exp(0.3*r.Normal())), ZeroFraction: number(0.4), Cosine: number(0.5),
	}
}

func number(v float64) *Number { n := Number(v); return &n }

func TestDetectorsFire(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(m *Metrics)
		kind   Kind
		text   string
	}{
		{"non-finite gradient", func(m *Metrics) { m.Skipped, m.NonFinite = true, "the gradient of w" }, NonFinite, "the gradient of w is not finite; the step was skipped"},
		{"loss", func(m *Metrics) { m.Loss += 3 }, LossSpike, "standard deviations above the mean"},
		{"gradient norm", func(m *Metrics) { m.GradNorm = 50 }, GradSpike, "times the median"},
		{"flips", func(m *Metrics) { m.FlipRate = number(0.06) }, Flips, "6.00 % of the trits changed in one step, limit 5.00 %"},
		{"entropy falls", func(m *Metrics) { m.Entropy = 0.5 }, Entropy, "standard deviations from the mean"},
		{"entropy rises", func(m *Metrics) { m.Entropy = 6 }, Entropy, "is +"},
		{"flips drift", func(m *Metrics) { m.FlipRate = number(0.0499) }, Flips, "times the median"},
		{"few zeros", func(m *Metrics) { m.ZeroFraction = number(0.01) }, Zeros, "1.0 % of the trits are zero, less than 5.0 %"},
		{"many zeros", func(m *Metrics) { m.ZeroFraction = number(0.99) }, Zeros, "99.0 % of the trits are zero, more than 95.0 %"},
		{"collapse", func(m *Metrics) { m.Cosine = number(0.9999) }, Collapse, "the mean cosine between residual streams is 0.9999, limit 0.9990"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, r := newDetector(limits(t)), rng.New(1, 1)
			for i := 1; i < 400; i++ {
				require.Empty(t, d.look(healthy(r, i)), "step %d", i)
			}
			m := healthy(r, 400)
			c.change(m)
			events := d.look(m)
			require.Len(t, events, 1)
			require.Equal(t, c.kind, events[0].Kind)
			require.Equal(t, 400, events[0].Step)
			require.Contains(t, events[0].Text, c.text)
			// It is told once in a window, and counted always.
			for i := 401; i < 404; i++ {
				m := healthy(r, i)
				c.change(m)
				require.Empty(t, d.look(m))
			}
			if c.kind != Entropy { // whose new level counts
				require.Equal(t, map[Kind]int{c.kind: 4}, d.s.Counts)
			}
			require.False(t, d.diverged())
		})
	}
}

// A limit of 0 turns a detector off.
func TestDetectorsOff(t *testing.T) {
	d, r := newDetector(config.Anomaly{Window: 64}), rng.New(1, 1)
	for i := 1; i < 100; i++ {
		d.look(healthy(r, i))
	}
	m := healthy(r, 100)
	m.Entropy = 0.1
	m.Loss, m.GradNorm, m.FlipRate, m.ZeroFraction, m.Cosine = 99, 1e9, number(1), number(1), number(1)
	require.Empty(t, d.look(m))
	require.False(t, d.diverged())
}

func TestNoFalseAlarms(t *testing.T) {
	d, r := newDetector(limits(t)), rng.New(7, 1)
	for i := 1; i <= 10000; i++ {
		require.Empty(t, d.look(healthy(r, i)), "step %d", i)
	}
	require.Len(t, d.s.Losses, d.limits.Window)
}

func TestDivergence(t *testing.T) {
	d, r := newDetector(limits(t)), rng.New(1, 1)
	for i := 1; i < 200; i++ {
		d.look(healthy(r, i))
	}
	bad := func(i int) *Metrics {
		m := healthy(r, i)
		m.Loss = Number(8 + float64(i)/100)
		return m
	}
	for i := 200; i < 200+d.limits.Patience-1; i++ {
		d.look(bad(i))
		require.False(t, d.diverged())
	}
	good := *d
	good.look(healthy(r, 300))
	require.False(t, good.diverged(), "a good step ends the row")
	d.look(bad(300))
	require.True(t, d.diverged())
}

// The state that a checkpoint keeps is all there is.
func TestDetectorState(t *testing.T) {
	a, r := newDetector(limits(t)), rng.New(1, 1)
	for i := 1; i < 300; i++ {
		a.look(healthy(r, i))
	}
	text, err := json.Marshal(a.s)
	require.NoError(t, err)
	var s Detector
	require.NoError(t, json.Unmarshal(text, &s))
	b := newDetector(limits(t))
	b.restore(s)
	for i := 300; i < 500; i++ {
		m := healthy(r, i)
		if i%50 == 0 {
			m.Loss += 3
		}
		require.Equal(t, a.look(m), b.look(m))
		require.Equal(t, a.s, b.s)
	}
}

func TestKeepLines(t *testing.T) {
	text := `{"step":1,"loss":3}
{"step":2}
{"step":3}
`
	for _, c := range []struct {
		name, text string
		step, want int
	}{
		{"all", text, 3, 3}, {"later steps are left", text, 9, 3}, {"cut", text, 2, 2}, {"from the start", text, 0, 0},
		{"half a line", text + `{"step":4`, 9, 3}, {"no JSON", text + "\x00\x00\n" + `{"step":5}` + "\n", 9, 3}, {"no step", "{}\n", 9, 0}, {"empty", "", 9, 0},
	} {
		n := keepLines([]byte(c.text), c.step)
		require.Equal(t, c.want, strings.Count(c.text[:n], "\n"), c.name)
	}
}

func TestNumber(t *testing.T) {
	b, err := json.Marshal([]Number{1.0 / 3, 0, 123456789, Number(math.NaN()), Number(math.Inf(-1))})
	require.NoError(t, err)
	require.Equal(t, "[0.333333,0,1.23457e+08,null,null]", string(b))
}

func TestLeft(t *testing.T) {
	for s, want := range map[int]string{0: "0s", 59: "59s", 60: "1m00s", 250: "4m10s", 3900: "1h05m", 360000: "100h00m"} {
		require.Equal(t, want, Left(seconds(s)))
	}
}
