// Package zoo turns the name of a model into a verified file on this machine.
//
// A name is looked up as a path, among the models that came with the program, in
// the cache, and only then on the network. What it downloads becomes visible when
// its SHA-256 is the promised one, and not before; what is cached never touches the
// network again. Any number of processes may share one cache, and each may be
// killed at any moment.
package zoo

import (
	"context"
	"net/http"
	"net/url"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/architehc/nanochat/core/internal/clock"
	"github.com/architehc/nanochat/core/internal/fsx"
)

// hubHost is the hub's host; its own token is sent to no other.
const hubHost = "huggingface.co"

// Options says where things are. The zero value of a field is its default.
type Options struct {
	// Cache is the directory of downloaded models. Without it only paths and bundled
	// models are found.
	Cache string
	// Bundled are the directories in which models that came with the program are
	// looked for, as NAME/FILE or FILE.
	Bundled []string
	// IndexFile is a path or file:// URL of an index that replaces Index.
	IndexFile string
	// Index is the models that have names. The default is BuiltIn.
	Index *Index
	// Endpoint is the hub, or a mirror with the same layout.
	Endpoint string
	// Token is sent to Endpoint, and to nobody else.
	Token string
	// Offline forbids the network.
	Offline bool
	// Stall is how long a server may send nothing. The default is 30 s.
	Stall time.Duration
	// Retries is how many times in a row a download may fail without getting
	// anywhere before it is given up. The default is 4.
	Retries int
	// MaxSize is the most bytes that a file of unknown size may have. The default is 1 TiB.
	MaxSize int64

	// FS is the disk, Clock the time and Transport the network, for tests.
	FS        fsx.FS
	Clock     clock.Clock
	Transport http.RoundTripper
}

// Zoo finds models. It is safe for concurrent use.
type Zoo struct {
	o        Options
	index    *Index
	endpoint *url.URL
}

// FromEnvironment is the options that the environment asks for: NANOCHAT_HOME,
// NANOCHAT_CACHE, NANOCHAT_MODELS, NANOCHAT_INDEX, NANOCHAT_ENDPOINT,
// NANOCHAT_TOKEN (else HF_TOKEN, which goes to the hub itself only),
// NANOCHAT_OFFLINE, XDG_CACHE_HOME. executable is the path of the program or
// library that bundled models lie beside; it may be empty.
func FromEnvironment(getenv func(string) string, executable string) (Options, error) {
	o := Options{
		Cache: cacheDir(getenv), IndexFile: getenv("NANOCHAT_INDEX"), Endpoint: getenv("NANOCHAT_ENDPOINT"), Token: getenv("NANOCHAT_TOKEN"),
	}
	if o.Token == "" {
		if u, err := url.Parse(o.Endpoint); o.Endpoint == "" || err == nil && u.Host == hubHost {
			o.Token = getenv("HF_TOKEN")
		}
	}
	switch v := getenv("NANOCHAT_OFFLINE"); strings.ToLower(v) {
	case "", "0", "false", "no", "off":
	case "1", "true", "yes", "on":
		o.Offline = true
	default:
		return o, &Error{Kind: ErrSetting, What: "NANOCHAT_OFFLINE is " + v, Hint: "set it to 1 or 0"}
	}
	for _, dir := range filepath.SplitList(getenv("NANOCHAT_MODELS")) {
		if dir != "" {
			o.Bundled = append(o.Bundled, dir)
		}
	}
	if executable != "" {
		beside := filepath.Dir(executable)
		o.Bundled = append(o.Bundled,
			filepath.Join(beside, "..", "share", "nanochat", "models"),
			filepath.Join(beside, "models"),
			filepath.Join(beside, "..", "..", "models")) // build/bin of a source tree
	}
	return o, nil
}

// cacheDir is the directory of downloaded models, or "" where none is known.
func cacheDir(getenv func(string) string) string {
	abs := func(name string) string {
		if dir := getenv(name); filepath.IsAbs(dir) { // relative ones are to be ignored, says the XDG specification
			return dir
		}
		return ""
	}
	join := func(dir string, more ...string) string {
		if dir == "" {
			return ""
		}
		return filepath.Join(append([]string{dir}, more...)...)
	}
	if dir := getenv("NANOCHAT_CACHE"); dir != "" {
		return dir
	}
	if dir := getenv("NANOCHAT_HOME"); dir != "" {
		return filepath.Join(dir, "models")
	}
	if dir := abs("XDG_CACHE_HOME"); dir != "" {
		return filepath.Join(dir, "nanochat", "models")
	}
	switch runtime.GOOS {
	case "windows":
		return join(abs("LocalAppData"), "nanochat", "models")
	case "darwin":
		return join(abs("HOME"), "Library", "Caches", "nanochat", "models")
	}
	return join(abs("HOME"), ".cache", "nanochat", "models")
}

// New checks the options and reads the index.
func New(o Options) (*Zoo, error) {
	if o.FS == nil {
		o.FS = fsx.OS()
	}
	if o.Clock == nil {
		o.Clock = clock.System()
	}
	if o.Stall <= 0 {
		o.Stall = 30 * time.Second
	}
	if o.Retries <= 0 {
		o.Retries = 4
	}
	if o.MaxSize <= 0 {
		o.MaxSize = 1 << 40
	}
	if o.Endpoint == "" {
		o.Endpoint = "https://" + hubHost
	}
	z := &Zoo{o: o, index: o.Index}
	var err error
	z.endpoint, err = url.Parse(strings.TrimRight(o.Endpoint, "/"))
	if err != nil || z.endpoint.Scheme != "https" && z.endpoint.Scheme != "http" || z.endpoint.Host == "" || z.endpoint.RawQuery != "" {
		// The address may hold a password: it is not repeated.
		return nil, &Error{Kind: ErrSetting, What: "the endpoint is not a https:// or http:// address", Hint: "set NANOCHAT_ENDPOINT to https://HOST, or unset it"}
	}
	if o.IndexFile != "" {
		path := o.IndexFile
		if p, ok := filePath(path); ok {
			path = p
		}
		b, err := fsx.ReadFile(o.FS, path, 1<<20)
		if err != nil {
			return nil, &Error{Kind: ErrSetting, What: "index " + path, Err: err, Hint: "set NANOCHAT_INDEX to a file, or unset it"}
		}
		if z.index, err = ParseIndex(b); err != nil {
			return nil, err
		}
	}
	if z.index == nil {
		z.index = BuiltIn()
	}
	return z, nil
}

// Index is the models that have names; it is not to be changed.
func (z *Zoo) Index() *Index { return z.index }

// Cache is the directory of downloaded models; it may not exist, and is "" where
// none is known.
func (z *Zoo) Cache() string { return z.o.Cache }

// sleep waits, and reports the end of ctx.
func (z *Zoo) sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-z.o.Clock.After(d):
		return nil
	}
}
