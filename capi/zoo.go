package capi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/architehc/nanochat/core/gguf"
	"github.com/architehc/nanochat/core/zoo"
)

const (
	flagForce   = 1
	flagOffline = 2
	zooFlags    = flagForce | flagOffline
)

// zooOptions is nanochat_zoo_options; texts are empty where they are NULL.
type zooOptions struct {
	flags                               uint32
	cache, endpoint, token, url, sha256 string
}

// env is the environment with the options in front of it.
func (o *zooOptions) env(getenv environment) environment {
	return func(name string) string {
		for _, f := range []struct{ name, value string }{
			{"NANOCHAT_CACHE", o.cache}, {"NANOCHAT_ENDPOINT", o.endpoint}, {"NANOCHAT_TOKEN", o.token},
		} {
			if f.name == name && f.value != "" {
				return f.value
			}
		}
		if name == "NANOCHAT_OFFLINE" && o.flags&flagOffline != 0 {
			return "1"
		}
		return getenv(name)
	}
}

// open is the zoo of the options. library is the path of the file that this code
// was loaded from, which bundled models lie beside.
func (o *zooOptions) open(getenv environment, library string) (*zoo.Zoo, error) {
	if err := checkFlags(o.flags, zooFlags); err != nil {
		return nil, err
	}
	z, err := zoo.FromEnvironment(o.env(getenv), library)
	if err != nil {
		return nil, err
	}
	if library != "" {
		z.Bundled = append(z.Bundled, filepath.Join(filepath.Dir(library), "..", "models")) // of a Python package
	}
	return zoo.New(z)
}

// noFetch refuses what only a download can use.
func (o *zooOptions) noFetch() error {
	if o.url != "" || o.sha256 != "" {
		return invalid("url and sha256 are for nanochat_download_open", "leave them NULL")
	}
	return nil
}

// listZoo is nanochat_zoo_list.
func listZoo(o zooOptions, getenv environment, library string) ([]byte, error) {
	if err := o.noFetch(); err != nil {
		return nil, err
	}
	z, err := o.open(getenv, library)
	if err != nil {
		return nil, err
	}
	return json.Marshal(struct {
		Index  string      `json:"index"`
		Cache  string      `json:"cache"`
		Models []zoo.Entry `json:"models"`
	}{z.Index().Updated, z.Cache(), z.List()})
}

// resolve finds a model's file without the network.
func resolve(name string, o zooOptions, getenv environment, library string) (zoo.Found, error) {
	if err := o.noFetch(); err != nil {
		return zoo.Found{}, err
	}
	if name == "" {
		return zoo.Found{}, invalid("the name is empty", "name a model of nanochat_zoo_list, or a .gguf file")
	}
	o.flags |= flagOffline
	z, err := o.open(getenv, library)
	if err != nil {
		return zoo.Found{}, err
	}
	found, err := z.Resolve(context.Background(), name, zoo.Fetch{})
	if e, ok := errors.AsType[*zoo.Error](err); ok && e.Kind == zoo.ErrOffline {
		return found, &failure{statusNotFound, fmt.Sprintf("%s is not on this machine", name), "download it first: nanochat download " + name + ", or nanochat_download_open"}
	}
	return found, err
}

// removeModel is nanochat_zoo_remove.
func removeModel(name string, o zooOptions, getenv environment, library string) (int64, error) {
	if err := o.noFetch(); err != nil {
		return 0, err
	}
	z, err := o.open(getenv, library)
	if err != nil {
		return 0, err
	}
	n, err := z.Remove(name)
	if err == nil {
		logs.write(levelInfo, "model removed", "model", name, "bytes", n)
	}
	return n, err
}

// findModel is the file that nanochat_model_open opens.
func findModel(ref string, getenv environment, library string) (zoo.Found, error) {
	if ref == "" {
		return zoo.Found{}, invalid("the path is empty", "name a .gguf file, or a model of nanochat_zoo_list")
	}
	// Opening what is no file may wait for ever, and cannot be mapped.
	st, err := os.Stat(ref)
	isDir := err == nil && st.IsDir()
	switch {
	case err == nil && !isDir && !st.Mode().IsRegular():
		return zoo.Found{}, invalid(ref+" is not a regular file", "models are mapped into memory; save it to a file first")
	case err == nil && !isDir:
		return zoo.Found{Path: ref, Source: zoo.FromPath, Size: st.Size()}, nil
	case isDir && zoo.IsPath(ref):
		return zoo.Found{}, directory(ref)
	case err != nil && zoo.IsPath(ref) && !strings.HasPrefix(ref, "file:"):
		return zoo.Found{}, err
	}
	found, err := resolve(ref, zooOptions{}, getenv, library)
	if err != nil && isDir {
		return found, directory(ref)
	}
	return found, err
}

func directory(path string) error {
	return invalid(path+" is a directory", "name the .gguf file in it")
}

// progressRecord is how far a download or a check is.
type progressRecord struct {
	Type  string `json:"type"`
	Model string `json:"model"`
	State string `json:"state"`
	Done  int64  `json:"done"`
	Total int64  `json:"total"`
}

// foundRecord is the result of a download or a check.
type foundRecord struct {
	Type string `json:"type"`
	zoo.Found
	Verified string `json:"verified,omitempty"`
}

// openDownload starts a download.
func openDownload(name string, o zooOptions, getenv environment, library string) (uintptr, error) {
	z, err := o.open(getenv, library)
	if err != nil {
		return 0, err
	}
	if (o.url == "") != (o.sha256 == "") {
		return 0, invalid("url and sha256 go together", "what is downloaded from an address is checked against its SHA-256")
	}
	return start("download "+name, false, func(ctx context.Context, j *job) (any, int32, error) {
		f := zoo.Fetch{Force: o.flags&flagForce != 0, Progress: func(p zoo.Progress) {
			j.progress(progressRecord{"progress", p.Model, p.State, p.Done, p.Total})
		}}
		var found zoo.Found
		var err error
		if o.url != "" {
			found, err = z.From(ctx, name, o.url, o.sha256, f)
		} else {
			found, err = z.Download(ctx, name, f)
		}
		return foundRecord{Type: "result", Found: found}, finished, err
	}), nil
}

// The ways in which a file was checked.
const (
	verifiedFile    = "file"
	verifiedTensors = "tensors"
)

// openVerify starts the check of a file against its SHA-256: that of its name, or the
// sums that it holds itself.
func openVerify(name string, o zooOptions, getenv environment, library string) (uintptr, error) {
	found, err := resolve(name, o, getenv, library)
	if err != nil {
		return 0, err
	}
	z, err := o.open(getenv, library)
	if err != nil {
		return 0, err
	}
	return start("verify "+name, false, func(ctx context.Context, j *job) (any, int32, error) {
		tell := func(done, total int64) {
			j.progress(progressRecord{"progress", name, zoo.Checking, done, total})
		}
		result := foundRecord{"result", found, verifiedFile}
		if found.SHA256 != "" {
			return result, finished, z.Verify(ctx, found, tell)
		}
		f, err := gguf.Open(found.Path)
		if err != nil {
			return nil, 0, err
		}
		defer f.Close()
		result.Verified = verifiedTensors
		err = f.VerifyChecksum(ctx, tell)
		var format *gguf.FormatError
		switch {
		case errors.Is(err, gguf.ErrNoChecksum):
			err = &failure{statusUnsupported, err.Error(), "files that nanochat writes have checksums; compare this one with what its publisher says"}
		case errors.As(err, &format):
			err = &failure{statusChecksum, err.Error(), "fetch or make the file again"}
		}
		return result, finished, err
	}), nil
}
