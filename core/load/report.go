package load

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Report is what a run measured. Times are in milliseconds.
type Report struct {
	URL         string  `json:"url"`
	Model       string  `json:"model"`
	Endpoint    string  `json:"endpoint"`
	Rate        float64 `json:"rate,omitempty"`        // open loop
	Concurrency int     `json:"concurrency,omitempty"` // closed loop
	MaxTokens   int     `json:"max_tokens"`
	Seed        uint64  `json:"seed"`

	Seconds  float64        `json:"seconds"`
	Sent     int            `json:"sent"`
	Answered int            `json:"answered"`
	Faults   map[string]int `json:"faults"` // kind of failure → how many; 429 is a kind
	// Said is, for each kind of failure, what the server said to the first such request.
	Said map[string]string `json:"said,omitempty"`

	PromptTokens     int `json:"prompt_tokens"`
	CompletionTokens int `json:"completion_tokens"`
	// RequestsPerSecond and TokensPerSecond are over the whole run, of answered requests.
	RequestsPerSecond float64 `json:"requests_per_second"`
	TokensPerSecond   float64 `json:"tokens_per_second"`

	// FirstToken and EndToEnd count from when a request was due (open loop) or sent
	// (closed loop). InterToken are the gaps between pieces of text of one answer.
	FirstToken Distribution `json:"time_to_first_token_ms"`
	InterToken Distribution `json:"inter_token_ms"`
	EndToEnd   Distribution `json:"end_to_end_ms"`
	// StreamTokens is how many tokens a second one answer has after its first token. Answers
	// whose rest took less than 10 ms are left out: their pieces come together, and
	// what lies between them is the network's.
	StreamTokens Distribution `json:"stream_tokens_per_second"`
	// SenderLate is how much later than due requests were sent. Where it is much, the
	// machine that sends is the bottleneck; latencies include it all the same.
	SenderLate Distribution `json:"sender_late_ms"`
}

// shortest is the time that counts for StreamTokens.
const shortest = 10 * time.Millisecond

// Distribution sums up a number of measurements; all zero if there are none.
type Distribution struct {
	Count int     `json:"count"`
	Mean  float64 `json:"mean"`
	P50   float64 `json:"p50"`
	P90   float64 `json:"p90"`
	P95   float64 `json:"p95"`
	P99   float64 `json:"p99"`
	Max   float64 `json:"max"`
}

// summarise sorts v.
func summarise(v []float64) Distribution {
	if len(v) == 0 {
		return Distribution{}
	}
	slices.Sort(v)
	sum := 0.0
	for _, x := range v {
		sum += x
	}
	// The smallest value that at least this share of all do not exceed.
	at := func(share float64) float64 { return v[max(int(math.Ceil(share*float64(len(v))))-1, 0)] }
	return Distribution{len(v), sum / float64(len(v)), at(.5), at(.9), at(.95), at(.99), v[len(v)-1]}
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func (r *run) report(model string, took time.Duration) *Report {
	out := &Report{
		URL: r.o.URL, Model: model, Endpoint: "completions", Rate: r.o.Rate, Concurrency: r.o.Concurrency, MaxTokens: r.o.MaxTokens, Seed: r.o.Seed,
		Seconds: took.Seconds(), Sent: len(r.samples), Faults: map[string]int{}, Said: map[string]string{},
	}
	if r.o.Chat {
		out.Endpoint = "chat/completions"
	}
	var first, gaps, end, speed, late []float64
	for _, s := range r.samples {
		late = append(late, ms(s.sent-s.due))
		if s.fault != "" {
			if out.Faults[s.fault]++; s.said != "" && out.Said[s.fault] == "" {
				out.Said[s.fault] = s.said
			}
			continue
		}
		out.Answered++
		tokens := s.told
		if tokens == 0 {
			tokens = s.pieces
		}
		out.PromptTokens += s.prompt
		out.CompletionTokens += tokens
		end = append(end, ms(s.end))
		if s.pieces == 0 {
			continue
		}
		first = append(first, ms(s.first))
		for _, g := range s.gaps {
			gaps = append(gaps, ms(g))
		}
		if d := s.last - s.first; d >= shortest && tokens > 1 {
			speed = append(speed, float64(tokens-1)/d.Seconds())
		}
	}
	if out.Seconds > 0 {
		out.RequestsPerSecond, out.TokensPerSecond = float64(out.Answered)/out.Seconds, float64(out.CompletionTokens)/out.Seconds
	}
	out.FirstToken, out.InterToken, out.EndToEnd = summarise(first), summarise(gaps), summarise(end)
	out.StreamTokens, out.SenderLate = summarise(speed), summarise(late)
	return out
}

// Text writes the report as a table.
func (r *Report) Text(w io.Writer) error {
	var b strings.Builder
	how := fmt.Sprintf("%d clients in turn", r.Concurrency)
	if r.Rate > 0 {
		how = fmt.Sprintf("%g requests a second, at random times (seed %d)", r.Rate, r.Seed)
	}
	fmt.Fprintf(&b, "server      %s, model %s, %s\n", r.URL, r.Model, r.Endpoint)
	fmt.Fprintf(&b, "load        %s, at most %d tokens each\n", how, r.MaxTokens)
	fmt.Fprintf(&b, "requests    %d in %.2f s, %d answered\n", r.Sent, r.Seconds, r.Answered)
	var kinds []string
	for kind := range r.Faults {
		kinds = append(kinds, kind)
	}
	slices.Sort(kinds)
	for _, kind := range kinds {
		fmt.Fprintf(&b, "failed      %d: %s\n", r.Faults[kind], strings.TrimSuffix(kind+": "+r.Said[kind], ": "))
	}
	fmt.Fprintf(&b, "throughput  %.1f tokens/s, %.2f answers/s; %d tokens read, %d written\n\n", r.TokensPerSecond, r.RequestsPerSecond, r.PromptTokens, r.CompletionTokens)
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "\tp50\tp90\tp95\tp99\tmax\tmean\tn\t")
	for _, row := range []struct {
		name string
		d    Distribution
	}{
		{"time to first token, ms", r.FirstToken}, {"between tokens, ms", r.InterToken}, {"to the end, ms", r.EndToEnd},
		{"tokens/s of one answer", r.StreamTokens}, {"sent late by, ms", r.SenderLate},
	} {
		d := row.d
		fmt.Fprintf(t, "%s\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%d\t\n", row.name, d.P50, d.P90, d.P95, d.P99, d.Max, d.Mean, d.Count)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := io.WriteString(w, b.String())
	return err
}
