package zoo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/architehc/nanochat/core/internal/clock"
)

const (
	maxRedirects = 5
	userAgent    = "nanochat"
)

// errStalled is why a request ends whose server sends nothing.
var errStalled = errors.New("the server sends nothing")

// client makes the requests of one download.
type client struct {
	z    *Zoo
	ref  string
	http *http.Client
	own  *http.Transport // nil if the transport is the caller's
	// answered says that some server was reached: a host that is not there is then one
	// that went away, and else a mistake.
	answered bool
}

func (z *Zoo) client(ref string) *client {
	c := &client{z: z, ref: ref}
	inner := z.o.Transport
	if inner == nil {
		c.own = &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            (&net.Dialer{Timeout: z.o.Stall}).DialContext,
			ForceAttemptHTTP2:      true,
			TLSHandshakeTimeout:    z.o.Stall,
			DisableCompression:     true, // the digest is of the bytes as they are
			MaxResponseHeaderBytes: 64 << 10,
			MaxIdleConns:           4,
			IdleConnTimeout:        30 * time.Second,
		}
		inner = c.own
	}
	c.http = &http.Client{Transport: &bearer{inner, z.endpoint, z.o.Token}, CheckRedirect: checkRedirect}
	return c
}

func (c *client) close() {
	if c.own != nil {
		c.own.CloseIdleConnections()
	}
}

// bearer adds the token to requests for one origin. It stands below redirects, so
// that a redirect cannot carry the token anywhere else.
type bearer struct {
	inner  http.RoundTripper
	origin *url.URL
	token  string
}

// RoundTrip sends a request, with the token if it is for the origin. The token is
// not sent in the clear, except within this machine.
func (b *bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	if b.token != "" && r.URL.Scheme == b.origin.Scheme && r.URL.Host == b.origin.Host && (r.URL.Scheme == "https" || isLoopback(r.URL.Hostname())) {
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", "Bearer "+b.token)
	}
	return b.inner.RoundTrip(r)
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// redirectError is a redirect that is not followed.
type redirectError struct{ what string }

func (e *redirectError) Error() string { return e.what }

func checkRedirect(r *http.Request, via []*http.Request) error {
	switch {
	case len(via) > maxRedirects:
		return &redirectError{fmt.Sprintf("more than %d redirects", maxRedirects)}
	case r.URL.Scheme != "https" && r.URL.Scheme != "http":
		return &redirectError{"a redirect to " + r.URL.Scheme + "://"}
	case via[len(via)-1].URL.Scheme == "https" && r.URL.Scheme == "http":
		return &redirectError{"a redirect from https:// to http://"}
	}
	return nil
}

// A watch ends a request whose server sends nothing for a while.
type watch struct {
	clock clock.Clock
	stall time.Duration
	mu    sync.Mutex
	last  time.Time
}

// watch begins to watch a request; the context ends with errStalled.
func (c *client) watch(ctx context.Context) (*watch, context.Context, context.CancelCauseFunc) {
	w := &watch{clock: c.z.o.Clock, stall: c.z.o.Stall, last: c.z.o.Clock.Now()}
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		defer func() {
			if p := recover(); p != nil { // of a clock that is the caller's
				cancel(fmt.Errorf("zoo: %v", p))
			}
		}()
		for {
			w.mu.Lock()
			left := w.stall - w.clock.Now().Sub(w.last)
			w.mu.Unlock()
			if left <= 0 {
				cancel(errStalled)
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-w.clock.After(left):
			}
		}
	}()
	return w, ctx, cancel
}

// alive notes that something came.
func (w *watch) alive() {
	w.mu.Lock()
	w.last = w.clock.Now()
	w.mu.Unlock()
}

// do sends a request. Errors that may pass are a *fault.
func (c *client) do(ctx context.Context, r *http.Request) (*http.Response, error) {
	r.Header.Set("User-Agent", userAgent)
	r.Header.Set("Accept-Encoding", "identity")
	where := plainURL(r.URL)
	resp, err := c.http.Do(r.WithContext(ctx))
	if err != nil {
		if resp != nil && resp.Body != nil {
			resp.Body.Close()
		}
		if no, ok := errors.AsType[*redirectError](err); ok {
			return nil, &Error{Kind: ErrNetwork, Model: c.ref, What: where, Err: no, Hint: "the server is set up wrongly; try another mirror"}
		}
		dns, _ := errors.AsType[*net.DNSError](err)
		if !c.answered && (dns != nil && dns.IsNotFound || errors.Is(err, syscall.ECONNREFUSED)) {
			return nil, c.failed(ctx, where, err)
		}
		return nil, &fault{err: c.failed(ctx, where, err)}
	}
	c.answered = true
	if resp.StatusCode/100 == 2 || resp.StatusCode/100 == 3 || resp.StatusCode == http.StatusRequestedRangeNotSatisfiable {
		return resp, nil
	}
	resp.Body.Close()
	return nil, c.status(resp, where)
}

// failed is a connection that broke, or was ended by a watch.
func (c *client) failed(ctx context.Context, where string, err error) error {
	if errors.Is(context.Cause(ctx), errStalled) {
		err = fmt.Errorf("%w for %v", errStalled, c.z.o.Stall)
	}
	return networkError(c.ref, where, err)
}

// status is an answer that is not the file.
func (c *client) status(resp *http.Response, where string) error {
	e := &Error{Kind: ErrNetwork, Model: c.ref, What: fmt.Sprintf("%s: the server answers %d %s", where, resp.StatusCode, http.StatusText(resp.StatusCode))}
	switch code := resp.StatusCode; {
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		e.Kind = ErrDenied
		e.Hint = "the file may need a token: set NANOCHAT_TOKEN, and accept the model's terms on its page; tokens go over https:// only"
	case code == http.StatusNotFound || code == http.StatusGone:
		e.Kind = ErrNotFound
		e.Hint = "check the name and the revision"
	case code == http.StatusTooManyRequests || code == http.StatusRequestTimeout || code >= 500:
		e.Hint = "the server is busy or broken; try again later"
		f := &fault{err: e}
		if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s > 0 {
			f.after = time.Duration(min(s, 3600)) * time.Second
		}
		return f
	default:
		e.Hint = "the server does not have the file in this form; try another mirror"
	}
	return e
}

// attempt downloads from where the part ends to the end of the file. nil says that
// the file is complete; a *fault that another attempt may get further.
func (c *client) attempt(ctx context.Context, p *part, address string, progress func()) error {
	u, err := c.address(address)
	if err != nil {
		return err
	}
	if p.w.size > 0 && p.have == p.w.size {
		return nil // an earlier run got all of it, and was killed
	}
	r, err := http.NewRequest(http.MethodGet, u.String(), nil)
	if err != nil {
		return &Error{Kind: ErrSetting, Model: c.ref, What: "is at an address that cannot be asked for", Err: errors.New(plainURL(u))}
	}
	if p.have > 0 {
		r.Header.Set("Range", fmt.Sprintf("bytes=%d-", p.have))
		if p.from.ETag != "" && p.from.URL == plainURL(u) {
			r.Header.Set("If-Range", p.from.ETag)
		}
	}
	w, ctx, cancel := c.watch(ctx)
	defer cancel(nil)
	resp, err := c.do(ctx, r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	w.alive()
	if err := c.accept(p, resp, origin{plainURL(u), strongETag(resp)}, plainURL(u)); err != nil {
		return err
	}
	progress()
	return c.receive(ctx, p, resp, w, plainURL(u), progress)
}

// address is where a URL of the index leads with the endpoint that is set.
func (c *client) address(address string) (*url.URL, error) {
	if strings.HasPrefix(address, hubPrefix) {
		h, err := parseHub(address)
		if err != nil {
			return nil, err
		}
		return h.url(c.z.endpoint, "resolve"), nil
	}
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		return nil, &Error{Kind: ErrSetting, Model: c.ref, What: "is at something that is not a https:// or http:// address"}
	}
	return u, nil
}

// strongETag is the version of the file, or "" if bytes of one version may differ.
func strongETag(resp *http.Response) string {
	if t := resp.Header.Get("ETag"); strings.HasPrefix(t, `"`) && len(t) < 1000 {
		return t
	}
	return ""
}

// accept checks the head of an answer against the part and what is wanted.
func (c *client) accept(p *part, resp *http.Response, from origin, where string) error {
	if enc := resp.Header.Get("Content-Encoding"); enc != "" && enc != "identity" {
		return &Error{Kind: ErrNetwork, Model: c.ref, What: fmt.Sprintf("%s: the server sends the file encoded as %.40q", where, enc), Hint: "try another mirror"}
	}
	total := int64(-1)
	switch resp.StatusCode {
	case http.StatusOK:
		if p.have > 0 { // another version, or a server without ranges: all of it comes
			if err := p.restart(); err != nil {
				return err
			}
		}
		total = resp.ContentLength
	case http.StatusPartialContent:
		start, size, ok := contentRange(resp.Header.Get("Content-Range"))
		changed := p.from.URL == from.URL && p.from.ETag != "" && from.ETag != "" && p.from.ETag != from.ETag
		if !ok || start != p.have || changed {
			if err := p.restart(); err != nil {
				return err
			}
			return &fault{err: networkError(c.ref, where, errors.New("the server sends another part of the file, or of another version"))}
		}
		total = size
	case http.StatusRequestedRangeNotSatisfiable:
		have := p.have
		_, size, ok := contentRange(resp.Header.Get("Content-Range"))
		if ok && size == have && p.w.size == 0 {
			return nil // of unknown size, and complete
		}
		if err := p.restart(); err != nil {
			return err
		}
		if ok && p.w.size > 0 && size != p.w.size {
			return c.wrongLength(p, where, size)
		}
		return &fault{err: networkError(c.ref, where, fmt.Errorf("the server has no bytes from %d on", have))}
	default:
		return &Error{Kind: ErrNetwork, Model: c.ref, What: fmt.Sprintf("%s: the server answers %d %s", where, resp.StatusCode, http.StatusText(resp.StatusCode)), Hint: "try another mirror"}
	}
	if total >= 0 && (p.w.size > 0 && total != p.w.size || total > p.w.limit(c.z)) {
		return c.wrongLength(p, where, total)
	}
	p.w.total = total
	p.comes(from)
	return nil
}

// contentRange reads "bytes 5-9/10" and "bytes */10".
func contentRange(s string) (start, size int64, ok bool) {
	s, ok = strings.CutPrefix(s, "bytes ")
	span, total, with := strings.Cut(s, "/")
	size, err := strconv.ParseInt(total, 10, 64)
	if !ok || !with || err != nil || size < 0 {
		return 0, 0, false
	}
	if span == "*" {
		return -1, size, true
	}
	first, _, with := strings.Cut(span, "-")
	start, err = strconv.ParseInt(first, 10, 64)
	return start, size, with && err == nil && start >= 0
}

func (c *client) wrongLength(p *part, where string, got int64) error {
	e := &Error{Kind: ErrChecksum, Model: c.ref, What: fmt.Sprintf("%s has %d bytes, not %d: it is not the file with SHA-256 %s", where, got, p.w.size, p.w.digest),
		Hint: "the server has another file under this name; try another mirror"}
	if p.w.size == 0 {
		e.What = fmt.Sprintf("%s has %d bytes, more than the limit of %d", where, got, p.w.limit(c.z))
	}
	return e
}

// receive appends the body to the part.
func (c *client) receive(ctx context.Context, p *part, resp *http.Response, w *watch, where string, progress func()) error {
	if resp.StatusCode == http.StatusRequestedRangeNotSatisfiable {
		return nil
	}
	buf := make([]byte, 256<<10)
	for {
		n, err := resp.Body.Read(buf)
		if n > 0 {
			w.alive()
			if over := p.have + int64(n) - p.w.limit(c.z); over > 0 {
				return c.wrongLength(p, where, p.have+int64(n))
			}
			if err := p.write(buf[:n]); err != nil {
				return err
			}
			progress()
		}
		switch {
		case err == io.EOF && (p.w.size == 0 || p.have == p.w.size):
			return nil
		case err == io.EOF:
			return &fault{err: networkError(c.ref, where, fmt.Errorf("the connection ends at byte %d of %d", p.have, p.w.size))}
		case err != nil:
			return &fault{err: c.failed(ctx, where, err)}
		}
	}
}
