package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxKeys is the most fields that one JSON object of a request may have; it
// leaves room for any logit_bias that is accepted.
const maxKeys = 4096

// Bodies beyond smallBody are large: at most largeBodies of them are held before they
// have become requests, and as many as there are processors are parsed at a time, each
// of which takes some 20 times its size. What waits for its turn is bounded by the queue.
const (
	smallBody   = 64 << 10
	largeBodies = 64
)

// bodies are the places of large bodies.
type bodies struct{ held, parsed chan struct{} }

func newBodies() *bodies {
	return &bodies{held: make(chan struct{}, largeBodies), parsed: make(chan struct{}, runtime.GOMAXPROCS(0))}
}

// hold takes a place for a large body, if there is one.
func (b *bodies) hold(v *visit) *apiError {
	select {
	case b.held <- struct{}{}:
		v.drop = func() { <-b.held }
		return nil
	default:
		return &apiError{status: http.StatusTooManyRequests, kind: typeRate, code: "large_bodies", retry: 1,
			message: fmt.Sprintf("%d bodies of more than %d bytes are being read: try again in 1 s", largeBodies, smallBody)}
	}
}

// parse waits until another large body may be parsed.
func (b *bodies) parse(ctx context.Context, v *visit) error {
	if v.drop == nil {
		return nil
	}
	select {
	case b.parsed <- struct{}{}:
		v.drop = func() { <-b.parsed; <-b.held }
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// dropBody gives up the places of the request's body.
func (v *visit) dropBody() {
	if v.drop != nil {
		v.drop()
		v.drop = nil
	}
}

// readBody returns the body of a request, of at most limit bytes.
func (s *Server) readBody(w http.ResponseWriter, r *http.Request) ([]byte, *apiError) {
	limit := s.limits.Body
	tooLarge := func(found string) *apiError {
		return &apiError{status: http.StatusRequestEntityTooLarge, kind: typeRequest, code: "body_too_large",
			message: fmt.Sprintf("the body has %s bytes: at most %d are accepted", found, limit)}
	}
	if enc := r.Header.Get("Content-Encoding"); enc != "" && enc != "identity" {
		return nil, &apiError{status: http.StatusUnsupportedMediaType, kind: typeRequest, code: "unsupported_encoding",
			message: fmt.Sprintf("Content-Encoding is %.40q: only plain bodies are accepted", enc)}
	}
	if r.ContentLength > int64(limit) {
		w.Header().Set("Connection", "close") // rather than read the rest
		return nil, tooLarge(strconv.FormatInt(r.ContentLength, 10))
	}
	body := http.MaxBytesReader(w, r.Body, int64(limit))
	b, err := io.ReadAll(io.LimitReader(body, smallBody))
	if err == nil && len(b) == smallBody {
		if full := s.bodies.hold(visitOf(r.Context())); full != nil {
			w.Header().Set("Connection", "close")
			return nil, full
		}
		var rest []byte
		rest, err = io.ReadAll(body)
		b = append(b, rest...)
	}
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return nil, tooLarge(fmt.Sprintf("more than %d", limit))
	case errors.Is(err, os.ErrDeadlineExceeded):
		w.Header().Set("Connection", "close")
		return nil, &apiError{status: http.StatusRequestTimeout, kind: typeRequest, code: "read_timeout", message: "the body did not come in time"}
	case err != nil:
		w.Header().Set("Connection", "close")
		return nil, bad("", "the body could not be read: it is cut off or badly framed")
	}
	return b, nil
}

// parse checks a body and splits it into the fields of its object.
//
// Stricter than encoding/json in what programs read differently: a key that
// comes twice, bytes that are not UTF-8 and halves of surrogate pairs are errors.
func parse(body []byte, depth int) (map[string]json.RawMessage, *apiError) {
	if err := wellFormed(body, depth); err != nil {
		return nil, err
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(body, &fields); err != nil || fields == nil {
		return nil, bad("", "the body is not a JSON object")
	}
	return fields, nil
}

func wellFormed(body []byte, depth int) *apiError {
	if len(bytes.TrimSpace(body)) == 0 {
		return bad("", "the body is empty: a JSON object is expected")
	}
	if !utf8.Valid(body) {
		at := 0
		for at < len(body) {
			r, n := utf8.DecodeRune(body[at:])
			if r == utf8.RuneError && n == 1 {
				break
			}
			at += n
		}
		return bad("", "the body is not UTF-8: byte 0x%02x at offset %d", body[at], at)
	}
	if at := loneSurrogate(body); at >= 0 {
		return bad("", "the escape at offset %d of the body is half of a surrogate pair, which is no character", at)
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	type level struct {
		keys  map[string]struct{} // nil for an array
		value bool                // the next string is a value, not a key
	}
	var open []level
	for first := true; first || len(open) > 0; first = false {
		t, err := d.Token()
		if err != nil {
			return syntax(err, len(body))
		}
		switch t {
		case json.Delim('{'), json.Delim('['):
			if len(open) > 0 {
				open[len(open)-1].value = false
			}
			if len(open) == depth {
				return bad("", "the JSON is nested deeper than %d levels at offset %d", depth, d.InputOffset())
			}
			l := level{}
			if t == json.Delim('{') {
				l.keys = map[string]struct{}{}
			}
			open = append(open, l)
			continue
		case json.Delim('}'), json.Delim(']'):
			open = open[:len(open)-1]
			continue
		}
		if len(open) == 0 {
			return bad("", "the body is not a JSON object")
		}
		l := &open[len(open)-1]
		if l.keys == nil {
			continue
		}
		if l.value {
			l.value = false
			continue
		}
		key, _ := t.(string)
		if _, twice := l.keys[key]; twice {
			return bad(short(key), "the key %q comes twice in one object: which one counts is not clear", short(key))
		}
		if len(l.keys) == maxKeys {
			return bad("", "an object has more than %d keys", maxKeys)
		}
		l.keys[key] = struct{}{}
		l.value = true
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return bad("", "something follows the JSON object at offset %d", d.InputOffset())
	}
	return nil
}

// syntax says where JSON is wrong.
func syntax(err error, size int) *apiError {
	var s *json.SyntaxError
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return bad("", "the JSON ends too early, after %d bytes", size)
	case errors.As(err, &s):
		return bad("", "the body is not JSON: %s at offset %d", s.Error(), s.Offset)
	}
	return bad("", "the body is not JSON: %s", err)
}

// loneSurrogate returns the offset of the first \u escape that is half of a
// surrogate pair, or -1.
func loneSurrogate(b []byte) int {
	half := func(at int) (high, low bool) {
		if at+6 > len(b) || b[at] != '\\' || b[at+1] != 'u' {
			return false, false
		}
		v, err := strconv.ParseUint(string(b[at+2:at+6]), 16, 16)
		return err == nil && v >= 0xd800 && v < 0xdc00, err == nil && v >= 0xdc00 && v < 0xe000
	}
	for i := 0; i < len(b); {
		next := bytes.IndexByte(b[i:], '\\')
		if next < 0 {
			break
		}
		i += next
		high, low := half(i)
		switch {
		case low:
			return i
		case high:
			if _, ok := half(i + 6); !ok {
				return i
			}
			i += 12
		default:
			i += 2
		}
	}
	return -1
}

// short is a piece of what a client sent, for a message.
func short(s string) string {
	const most = 60
	if len(s) <= most {
		return s
	}
	cut := most
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}

// fields reads the fields of one object. The first error stays and what is read
// after it is zero.
type fields struct {
	raw    map[string]json.RawMessage
	used   map[string]bool
	limits map[string]Limit
	err    *apiError
}

func newFields(raw map[string]json.RawMessage, table []Limit) *fields {
	f := &fields{raw: raw, used: map[string]bool{}, limits: make(map[string]Limit, len(table))}
	for _, l := range table {
		f.limits[l.Name] = l
	}
	return f
}

func (f *fields) fail(e *apiError) {
	if f.err == nil {
		f.err = e
	}
}

// get is the value of a field; nil if it is absent, null or not to be read any more.
func (f *fields) get(name string) json.RawMessage {
	f.used[name] = true
	v := f.raw[name]
	if f.err != nil || string(v) == "null" {
		return nil
	}
	return v
}

// has says whether a field is there and not null.
func (f *fields) has(name string) bool { return f.get(name) != nil }

// ignore marks fields that are accepted without effect.
func (f *fields) ignore(names ...string) {
	for _, n := range names {
		f.used[n] = true
	}
}

// kind names the type of a JSON value.
func kind(v json.RawMessage) string {
	if len(v) == 0 {
		return "nothing"
	}
	switch v[0] {
	case '{':
		return "an object"
	case '[':
		return "an array"
	case '"':
		return "a string"
	case 't', 'f':
		return "a boolean"
	case 'n':
		return "null"
	}
	return "a number"
}

func wrongType(name string, v json.RawMessage, want string) *apiError {
	return bad(name, "%s is %s, must be %s", name, kind(v), want)
}

func (f *fields) text(name string) string {
	v := f.get(name)
	if v == nil {
		return ""
	}
	var s string
	if json.Unmarshal(v, &s) != nil {
		f.fail(wrongType(name, v, "a string"))
	}
	return s
}

func (f *fields) boolean(name string) bool {
	v := f.get(name)
	if v == nil {
		return false
	}
	var b bool
	if json.Unmarshal(v, &b) != nil {
		f.fail(wrongType(name, v, "true or false"))
	}
	return b
}

// number reads a number within its limit of the table.
func (f *fields) number(name string, def float64) float64 {
	v := f.get(name)
	if v == nil {
		return def
	}
	x, err := limited(f.limits[name], name, v)
	if err != nil {
		f.fail(err)
		return def
	}
	return x
}

func limited(l Limit, name string, v json.RawMessage) (float64, *apiError) {
	want := "a number"
	if l.Whole {
		want = "an integer"
	}
	if kind(v) != "a number" {
		return 0, wrongType(name, v, want)
	}
	text := string(v)
	x, err := strconv.ParseFloat(text, 64) // beyond its range: an infinity, which no limit accepts
	if err != nil && !math.IsInf(x, 0) {
		return 0, bad(name, "%s is %s, must be %s", name, short(text), want)
	}
	l.Name = name
	if e := l.check(x, short(text)); e != nil {
		return 0, e
	}
	if l.Whole && x != math.Trunc(x) {
		return 0, bad(name, "%s is %s, must be %s", name, short(text), want)
	}
	return x, nil
}

func (f *fields) integer(name string, def int) int { return int(f.number(name, float64(def))) }

// seed reads an integer of 64 bits; ok is false if there is none.
func (f *fields) seed(name string) (seed uint64, ok bool) {
	v := f.get(name)
	if v == nil {
		return 0, false
	}
	i, err := strconv.ParseInt(string(v), 10, 64)
	if err != nil {
		l, known := f.limits[name]
		if !known {
			l = Limit{Min: -maxSeed, Max: maxSeed - 1, Whole: true}
		}
		if _, e := limited(l, name, v); e != nil {
			f.fail(e)
		} else {
			f.fail(bad(name, "%s is %s, must be an integer from -2^63 to 2^63-1", name, short(string(v))))
		}
		return 0, false
	}
	return uint64(i), true
}

// list reads the parts of an array of at most limit's elements.
func (f *fields) list(name string, v json.RawMessage, l Limit) []json.RawMessage {
	var parts []json.RawMessage
	if json.Unmarshal(v, &parts) != nil {
		f.fail(wrongType(name, v, "an array"))
		return nil
	}
	if n := float64(len(parts)); n > l.Max || n < l.Min {
		f.fail(bad(name, "%s has %d elements: %s to %s are accepted", name, len(parts), number(l.Min), number(l.Max)))
		return nil
	}
	return parts
}

// object reads an object, nil if there is none.
func (f *fields) object(name string) map[string]json.RawMessage {
	v := f.get(name)
	if v == nil {
		return nil
	}
	var o map[string]json.RawMessage
	if json.Unmarshal(v, &o) != nil {
		f.fail(wrongType(name, v, "an object"))
	}
	return o
}

// oneOf reads a string that is one of a few.
func (f *fields) oneOf(name string, choices ...string) string {
	s := f.text(name)
	if s == "" {
		return choices[0]
	}
	for _, c := range choices {
		if s == c {
			return s
		}
	}
	f.fail(bad(name, "%s is %q, must be %s", name, short(s), strings.Join(choices, " or ")))
	return ""
}
