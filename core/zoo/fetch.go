package zoo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"time"

	"github.com/architehc/nanochat/core/internal/fsx"
)

// What a download is doing.
const (
	Waiting     = "waiting"     // for another process that downloads the same
	Checking    = "checking"    // what an earlier run has downloaded
	Downloading = "downloading" // from the network
)

// Progress is how far a download is. Done never falls while State is Downloading,
// and is Total at the end.
type Progress struct {
	Model string // as it was asked for
	State string
	Done  int64 // bytes
	Total int64 // bytes; 0 where it is not known yet
}

// wanted is a file to get.
type wanted struct {
	ref, name, revision string
	licence             string
	size                int64 // bytes; 0: not known
	total               int64 // what the server says of a size that is not known
	digest              string
	urls                []string
}

// limit is the most bytes the file may have.
func (w *wanted) limit(z *Zoo) int64 {
	if w.size > 0 {
		return w.size
	}
	return z.o.MaxSize
}

// A fault is an attempt that failed and may be tried again.
type fault struct {
	err   error
	after time.Duration // what the server asks to wait
}

func (f *fault) Error() string { return f.err.Error() }
func (f *fault) Unwrap() error { return f.err }

// step is how many bytes an attempt must get beyond all earlier ones to count as
// getting somewhere.
const step = 32 << 10

// fetch downloads what is wanted, or waits for another process that does.
func (z *Zoo) fetch(ctx context.Context, w wanted, f Fetch) (Found, error) {
	found := Found{w.name, w.revision, z.blob(w.digest), FromNetwork, w.size, w.digest}
	switch {
	case ctx.Err() != nil:
		return Found{}, stopped(ctx, w.ref)
	case z.o.Offline:
		return Found{}, &Error{Kind: ErrOffline, Model: w.ref, What: "is not on this machine, and the network is switched off", Hint: "unset NANOCHAT_OFFLINE, or download it elsewhere and name the file"}
	case z.o.Cache == "":
		return Found{}, noCache(w.ref)
	case w.digest == "":
		return Found{}, &Error{Kind: ErrNoHash, Model: w.ref, What: "nobody gives the SHA-256 of its file", Hint: "nanochat downloads only what it can check"}
	}
	best := int64(0)
	report := func(state string, done int64) {
		if state == Downloading {
			best = max(best, done)
			done = best
		}
		if f.Progress != nil {
			f.Progress(Progress{w.ref, state, done, max(w.size, w.total)})
		}
	}
	if size, ok := z.hasBlob(w.digest, w.size); ok && !f.Force { // known by another name
		found.Source, found.Size = FromCache, size
		_ = z.remember(w, size) // a cache that cannot be written to is asked again the next time
		return found, nil
	}
	p, err := z.openPart(ctx, &w, f.Force, report)
	if err != nil {
		return Found{}, err
	}
	if p == nil {
		found.Source = FromCache
		found.Size, _ = z.hasBlob(w.digest, w.size)
		return found, z.remember(w, found.Size)
	}
	drop := false
	defer func() { p.close(drop) }()
	if err := z.room(p); err != nil {
		return Found{}, err
	}
	c := z.client(w.ref)
	defer c.close()
	if err := z.fill(ctx, c, p, report); err != nil {
		drop = errors.Is(err, ErrChecksum)
		return Found{}, err
	}
	found.Size = p.have
	if err := p.publish(); err != nil {
		return Found{}, err
	}
	return found, z.remember(w, found.Size)
}

// room says early that a file will not fit.
func (z *Zoo) room(p *part) error {
	free, ok := fsx.Free(z.o.FS, z.blobs())
	if need := p.w.size - p.have; ok && need > free {
		return &Error{Kind: ErrCache, Model: p.w.ref, What: fmt.Sprintf("%d bytes are missing and %s has %d free", need, z.blobs(), free),
			Hint: "free some space, or set NANOCHAT_CACHE to a directory on another disk"}
	}
	return nil
}

// remember writes the manifest. The file is there and right whether or not it can
// be written; a name that the index does not have needs it.
func (z *Zoo) remember(w wanted, size int64) error {
	m := manifest{w.ref, w.name, w.revision, w.digest, size, "", w.licence}
	if len(w.urls) > 0 {
		m.URL = w.urls[0]
		if u, err := url.Parse(m.URL); err == nil && u.Host != "" { // a query may be a signature
			m.URL = plainURL(u)
		}
	}
	if ValidName(w.name) {
		m.Ref = w.name + "@" + w.revision
	}
	path := z.manifest(w.key())
	err := fsx.WriteAtomic(z.o.FS, path, func(out io.Writer) error {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(&m)
	})
	if err != nil && z.index.find(w.name, w.revision) == nil {
		return cacheError(w.ref, "write", path, err)
	}
	return nil
}

// fill downloads until the part is complete and its digest right. Every address is
// tried as long as it gets somewhere, then the next one.
func (z *Zoo) fill(ctx context.Context, c *client, p *part, report func(string, int64)) error {
	var last error
	for i := 0; i < len(p.w.urls); i++ {
		again := p.have > 0 // bytes from elsewhere may be what is wrong
		err := z.fillFrom(ctx, c, p, p.w.urls[i], report)
		switch {
		case err == nil && p.sum() == p.w.digest:
			return nil
		case err == nil:
			last = &Error{Kind: ErrChecksum, Model: p.w.ref, What: fmt.Sprintf("the download has SHA-256 %s, not %s", p.sum(), p.w.digest),
				Hint: "the server or something on the way changes the file; try another network or mirror"}
			if err := p.restart(); err != nil {
				return err
			}
			if again {
				i--
			}
		case ctx.Err() != nil:
			return stopped(ctx, p.w.ref)
		case errors.Is(err, ErrCache):
			return err
		default:
			last = err
		}
	}
	return last
}

// fillFrom downloads from one address, again and again while that may help.
func (z *Zoo) fillFrom(ctx context.Context, c *client, p *part, address string, report func(string, int64)) error {
	best := p.have
	for failed := 0; ; {
		err := c.attempt(ctx, p, address, func() { report(Downloading, p.have) })
		f, ok := errors.AsType[*fault](err)
		if !ok {
			return err
		}
		if ctx.Err() != nil {
			return stopped(ctx, p.w.ref)
		}
		if p.have >= best+step {
			best, failed = p.have, 0
		}
		if failed++; failed > z.o.Retries {
			return f.err
		}
		if err := z.sleep(ctx, backoff(failed, f.after)); err != nil {
			return stopped(ctx, p.w.ref)
		}
	}
}

// backoff is the pause before the next attempt: half a second, doubled with each
// failure, or what the server asks for, at most half a minute.
func backoff(failed int, asked time.Duration) time.Duration {
	return min(max(asked, 250*time.Millisecond<<min(failed, 5)), 30*time.Second)
}
