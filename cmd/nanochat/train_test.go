package main

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/architehc/nanochat/core/train"
)

// The bar stays below the lines, and leaves nothing behind.
func TestTrainBar(t *testing.T) {
	var out bytes.Buffer
	b := &trainBar{w: &out, show: true}
	fmt.Fprintln(b, "first line")
	b.update(&train.Progress{Metrics: &train.Metrics{Loss: 2.5, TokensPerSecond: 4512.4}, Step: 6, Steps: 12, Left: 250 * time.Second})
	fmt.Fprintln(b, "second line")
	b.clear()
	b.clear()
	const bar = "[############............] 6/12  loss 2.500  4512 tok/s  left 4m10s "
	want := "first line\n\r\x1b[K" + bar + "\r\x1b[Ksecond line\n" + bar + "\r\x1b[K"
	if out.String() != want {
		t.Errorf("got  %q\nwant %q", out.String(), want)
	}
	out.Reset()
	quiet := &trainBar{w: &out}
	quiet.update(&train.Progress{Metrics: &train.Metrics{}, Step: 1, Steps: 2})
	fmt.Fprintln(quiet, "line")
	quiet.clear()
	if out.String() != "line\n" {
		t.Errorf("without a terminal: %q", out.String())
	}
}

func TestQuoteTOML(t *testing.T) {
	for in, want := range map[string]string{"runs/a": "'runs/a'", "12": "'12'", "true": "'true'", "it's": "it's"} {
		if got := quoteTOML(in); got != want {
			t.Errorf("%q gives %s, want %s", in, got, want)
		}
	}
}
