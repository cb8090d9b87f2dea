package capi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// readJob reads a job to its end, and returns its records and how it ended.
func readJob(t testing.TB, h uintptr) (records []map[string]any, finish int32, err error) {
	t.Helper()
	e, j, err := useJob(h)
	require.NoError(t, err)
	defer e.release()
	var b []byte
	for {
		n, finish, err := j.next(10_000, b)
		if err != nil && failureOf(err).status == statusBufferTooSmall {
			require.Greater(t, n, len(b))
			b = make([]byte, n)
			continue
		}
		if err != nil {
			return records, 0, err
		}
		if n > 0 {
			var r map[string]any
			require.NoError(t, json.Unmarshal(b[:n], &r), "%s", b[:n])
			require.NotContains(t, string(b[:n]), "\n")
			require.NotEmpty(t, r["type"])
			records = append(records, r)
		}
		if finish != 0 {
			n, again, err := j.next(0, nil)
			require.NoError(t, err)
			require.Zero(t, n)
			require.Equal(t, finish, again)
			return records, finish, nil
		}
	}
}

// closeJob closes a job, which must be open.
func closeJob(t testing.TB, h uintptr) {
	t.Helper()
	require.NoError(t, closeHandle(kindJob, h))
	requireStatus(t, statusClosed, "", closeHandle(kindJob, h))
}

// counting is a job that tells n records and ends with what is given.
func counting(n int, result any, err error) uintptr {
	return start("counting", false, func(_ context.Context, j *job) (any, int32, error) {
		for i := range n {
			j.tell(map[string]any{"type": "number", "n": i})
		}
		return result, finished, err
	})
}

func TestRecordsComeInOrderAndTheResultLast(t *testing.T) {
	h := counting(500, map[string]any{"type": "result", "n": "ö\n<>"}, nil)
	records, finish, err := readJob(t, h)
	require.NoError(t, err)
	require.Equal(t, finished, finish)
	require.Len(t, records, 501)
	for i, r := range records[:500] {
		require.EqualValues(t, i, r["n"])
	}
	require.Equal(t, "ö\n<>", records[500]["n"])
	closeJob(t, h)
}

func TestAJobThatFailsHasNoResult(t *testing.T) {
	h := counting(2, nil, &failure{status: statusDiverged, message: "it went wrong"})
	records, _, err := readJob(t, h)
	requireStatus(t, statusDiverged, "went wrong", err)
	require.Len(t, records, 2)
	_, _, err = readJob(t, h) // and again
	requireStatus(t, statusDiverged, "went wrong", err)
	closeJob(t, h)

	h = start("panic", false, func(context.Context, *job) (any, int32, error) { panic("boom") })
	_, _, err = readJob(t, h)
	requireStatus(t, statusInternal, "boom", err)
	closeJob(t, h)

	h = counting(0, func() {}, nil) // no JSON
	_, _, err = readJob(t, h)
	requireStatus(t, statusInternal, "record", err)
	closeJob(t, h)
}

func TestASlowReaderIsToldWhatWasDropped(t *testing.T) {
	const n = 3 * maxRecords
	h := counting(n, map[string]any{"type": "result"}, nil)
	e, j, err := useJob(h)
	require.NoError(t, err)
	<-j.done
	require.LessOrEqual(t, len(j.queue), maxRecords)
	e.release()
	records, _, err := readJob(t, h)
	require.NoError(t, err)
	require.Equal(t, "dropped", records[0]["type"])
	dropped := int(records[0]["records"].(float64))
	require.Equal(t, n+1, dropped+len(records)-1)
	require.EqualValues(t, dropped, records[1]["n"])
	closeJob(t, h)
}

func TestOnlyTheNewestProgressWaits(t *testing.T) {
	h := start("progress", false, func(_ context.Context, j *job) (any, int32, error) {
		for i := range 1000 {
			j.progress(progressRecord{"progress", "m", "downloading", int64(i), 1000})
		}
		return map[string]any{"type": "result"}, finished, nil
	})
	e, j, err := useJob(h)
	require.NoError(t, err)
	<-j.done
	e.release()
	records, _, err := readJob(t, h)
	require.NoError(t, err)
	require.Len(t, records, 2)
	require.EqualValues(t, 999, records[0]["done"])
	closeJob(t, h)
}

// waiting is a job that ends only when it is cancelled.
func waiting(patient bool) uintptr {
	return start("waiting", patient, func(ctx context.Context, _ *job) (any, int32, error) {
		<-ctx.Done()
		return map[string]any{"type": "result"}, cancelled, nil
	})
}

func TestCancelAndCloseReachAWaitingJobReader(t *testing.T) {
	for _, tt := range []struct {
		name    string
		patient bool
		end     func(uintptr) error
		want    status
	}{
		{"cancel", false, cancelJob, statusCancelled},
		{"close", false, func(h uintptr) error { return closeHandle(kindJob, h) }, statusClosed},
		{"close a patient one", true, func(h uintptr) error { return closeHandle(kindJob, h) }, statusClosed},
		{"cancel a patient one", true, cancelJob, statusOK},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, timeout := range []uint32{forever, 5000} {
				h := waiting(tt.patient)
				e, j, err := useJob(h)
				require.NoError(t, err)
				var wg sync.WaitGroup
				wg.Go(func() {
					if err := tt.end(h); err != nil {
						t.Error(err)
					}
				})
				_, finish, err := j.next(timeout, make([]byte, 99))
				wg.Wait()
				e.release()
				if tt.want == statusOK {
					require.NoError(t, err)
					require.Equal(t, cancelled, finish)
				} else {
					requireStatus(t, tt.want, "", err)
				}
				if tt.want != statusClosed {
					closeJob(t, h)
				}
			}
		})
	}
}

func TestJobTimeoutAndOneReader(t *testing.T) {
	h := waiting(false)
	e, j, err := useJob(h)
	require.NoError(t, err)
	for _, timeout := range []uint32{0, 1} {
		_, _, err = j.next(timeout, nil)
		requireStatus(t, statusTimeout, "", err)
	}
	j.reader.Lock()
	_, _, err = j.next(0, nil)
	requireStatus(t, statusBusy, "", err)
	j.reader.Unlock()
	e.release()
	closeJob(t, h)
}

func TestLog(t *testing.T) {
	_, err := openLog("loud", none)
	requireStatus(t, statusInvalid, "loud", err)
	env := func(name string) string { return map[string]string{"NANOCHAT_LOG": "error"}[name] }
	quiet, err := openLog("", env)
	require.NoError(t, err)
	h, err := openLog("INFO", env)
	require.NoError(t, err)
	logs.write(levelDebug, "not this one")
	logs.write(levelInfo, "a message", "n", 7)
	logs.write(levelError, "a failure")
	for job, want := range map[uintptr][]string{h: {"a message", "a failure"}, quiet: {"a failure"}} {
		e, j, err := useJob(job)
		require.NoError(t, err)
		for _, message := range want {
			b := make([]byte, 999)
			n, finish, err := j.next(0, b)
			require.NoError(t, err)
			require.Zero(t, finish)
			var r map[string]any
			require.NoError(t, json.Unmarshal(b[:n], &r))
			require.Equal(t, "log", r["type"])
			require.Equal(t, message, r["msg"])
			require.NotEmpty(t, r["time"])
		}
		_, _, err = j.next(0, nil)
		requireStatus(t, statusTimeout, "", err)
		require.NoError(t, cancelJob(job))
		_, _, err = j.next(forever, nil)
		requireStatus(t, statusCancelled, "", err)
		e.release()
		closeJob(t, job)
	}
	require.Empty(t, logs.jobs)
}

func TestSettings(t *testing.T) {
	var s settings
	env := map[string]string{"NANOCHAT_CACHE": "/from/env", "NANOCHAT_TOKEN": "secret"}
	getenv := func(name string) string { return env[name] }
	get := func(key string) string {
		v, err := s.get(key, getenv)
		require.NoError(t, err)
		return v
	}
	text := func(v string) *string { return &v }
	require.Equal(t, "/from/env", get("cache"))
	require.NoError(t, s.set("cache", text("/set")))
	require.Equal(t, "/set", get("cache"))
	require.Equal(t, "/set", s.over(getenv)("NANOCHAT_CACHE"))
	require.NoError(t, s.set("cache", text("")))
	require.Empty(t, get("cache"))
	require.NoError(t, s.set("cache", nil))
	require.Equal(t, "/from/env", get("cache"))
	require.Equal(t, "set", get("token"))
	require.Empty(t, get("threads"))

	for key, value := range map[string]string{
		"threads": "many", "kernel": "abacus", "tune": "a lot", "offline": "perhaps", "endpoint": "ftp://x", "log": "loud", "device": "abacus",
		"memory_limit": "12", "gc_percent": "0", "colour": "red",
	} {
		requireStatus(t, statusInvalid, key, s.set(key, &value))
	}
	_, err := s.get("colour", getenv)
	requireStatus(t, statusInvalid, "colour", err)
	for key, value := range map[string]string{"threads": "2", "kernel": "go", "tune": "auto", "offline": "1", "endpoint": "https://mirror.example/hub", "log": "debug"} {
		require.NoError(t, s.set(key, &value))
		require.Equal(t, value, get(key))
	}

	limit, percent := get("memory_limit"), get("gc_percent")
	require.NoError(t, s.set("memory_limit", text("1073741824")))
	require.Equal(t, "1073741824", get("memory_limit"))
	require.NoError(t, s.set("gc_percent", text("off")))
	require.Equal(t, "off", get("gc_percent"))
	require.NoError(t, s.set("gc_percent", text("50")))
	require.Equal(t, "50", get("gc_percent"))
	require.NoError(t, s.set("memory_limit", nil))
	require.NoError(t, s.set("gc_percent", nil))
	require.Equal(t, limit, get("memory_limit"))
	require.Equal(t, percent, get("gc_percent"))
}

// shelf is an index with one model on a server, and the environment for it.
func shelf(t *testing.T, body string) environment {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "m.gguf", time.Time{}, strings.NewReader(body))
	}))
	t.Cleanup(server.Close)
	dir := t.TempDir()
	index := filepath.Join(dir, "index.json")
	require.NoError(t, os.WriteFile(index, fmt.Appendf(nil, `{"updated":"2026-11","models":[
		{"name":"one","revision":"1","status":"published","file":"m.gguf","size":5,"sha256":"2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824","licence":"MIT","description":"","urls":[%q]},
		{"name":"later","revision":"1","status":"planned","file":"m.gguf","licence":"MIT","description":"","instead":"one"}]}`, server.URL+"/m.gguf"), 0o600))
	env := map[string]string{"NANOCHAT_CACHE": filepath.Join(dir, "cache"), "NANOCHAT_INDEX": index}
	return func(name string) string { return env[name] }
}

func TestZoo(t *testing.T) {
	getenv := shelf(t, "hello")
	list := func() string {
		b, err := listZoo(zooOptions{}, getenv, "")
		require.NoError(t, err)
		require.True(t, json.Valid(b))
		return string(b)
	}
	require.Contains(t, list(), `"state":"available"`)
	_, err := resolve("one", zooOptions{}, getenv, "")
	requireStatus(t, statusNotFound, "one", err)
	require.Contains(t, failureOf(err).hint, "download")
	_, err = openModel("one", modelOptions{}, getenv)
	requireStatus(t, statusNotFound, "one", err)
	_, err = openModel("later", modelOptions{}, getenv)
	requireStatus(t, statusPlanned, "use one", err)
	_, err = resolve("two", zooOptions{}, getenv, "")
	requireStatus(t, statusNotFound, "two", err)

	h, err := openDownload("one", zooOptions{flags: flagOffline}, getenv, "")
	require.NoError(t, err)
	_, _, err = readJob(t, h)
	requireStatus(t, statusOffline, "one", err)
	closeJob(t, h)

	h, err = openDownload("one", zooOptions{}, getenv, "")
	require.NoError(t, err)
	records, _, err := readJob(t, h)
	require.NoError(t, err)
	last := records[len(records)-1]
	require.Equal(t, "result", last["type"])
	require.Equal(t, "network", last["source"])
	require.EqualValues(t, 5, last["size"])
	closeJob(t, h)
	found, err := resolve("one@1", zooOptions{}, getenv, "")
	require.NoError(t, err)
	require.Equal(t, last["path"], found.Path)
	require.Contains(t, list(), `"state":"cached"`)
	_, err = openModel("one", modelOptions{}, getenv) // found, and no model
	requireStatus(t, statusFormat, "", err)

	verify := func() ([]map[string]any, error) {
		h, err := openVerify("one", zooOptions{}, getenv, "")
		require.NoError(t, err)
		defer closeJob(t, h)
		records, _, err := readJob(t, h)
		return records, err
	}
	records, err = verify()
	require.NoError(t, err)
	require.Equal(t, verifiedFile, records[len(records)-1]["verified"])
	require.NoError(t, os.Chmod(found.Path, 0o600))
	require.NoError(t, os.WriteFile(found.Path, []byte("jello"), 0o600))
	_, err = verify()
	requireStatus(t, statusChecksum, "SHA-256", err)

	n, err := removeModel("one", zooOptions{}, getenv, "")
	require.NoError(t, err)
	require.EqualValues(t, 5, n)
	_, err = removeModel("one", zooOptions{}, getenv, "")
	requireStatus(t, statusNotFound, "one", err)
}

// A download that hangs is cancelled at once, and one from nowhere fails.
func TestDownloadsEnd(t *testing.T) {
	begun := make(chan struct{}, 8)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1000000")
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		begun <- struct{}{}
		<-r.Context().Done()
	}))
	t.Cleanup(server.Close)
	cache := t.TempDir()
	getenv := func(name string) string { return map[string]string{"NANOCHAT_CACHE": cache}[name] }
	o := zooOptions{url: server.URL + "/m.gguf", sha256: strings.Repeat("a", 64)}
	for _, tt := range []struct {
		end  func(uintptr) error
		want status
	}{{cancelJob, statusCancelled}, {func(h uintptr) error { return closeHandle(kindJob, h) }, statusClosed}} {
		h, err := openDownload("own", o, getenv, "")
		require.NoError(t, err)
		e, j, err := useJob(h)
		require.NoError(t, err)
		<-begun
		start := time.Now()
		require.NoError(t, tt.end(h))
		for err == nil {
			_, _, err = j.next(forever, make([]byte, 999))
		}
		requireStatus(t, tt.want, "", err)
		require.Less(t, time.Since(start), 5*time.Second)
		e.release()
		if tt.want == statusCancelled {
			closeJob(t, h)
		}
	}
}

func TestZooOptions(t *testing.T) {
	getenv := shelf(t, "hellO")
	h, err := openDownload("one", zooOptions{}, getenv, "")
	require.NoError(t, err)
	_, _, err = readJob(t, h)
	requireStatus(t, statusChecksum, "SHA-256", err)
	closeJob(t, h)
	other := t.TempDir()
	b, err := listZoo(zooOptions{cache: other}, getenv, "")
	require.NoError(t, err)
	require.Contains(t, string(b), other)
	for _, o := range []zooOptions{{flags: 4}, {url: "https://x.example/y"}, {endpoint: "nowhere"}} {
		_, err = openDownload("own", o, getenv, "")
		requireStatus(t, statusInvalid, "", err)
		_, err = resolve("own", o, getenv, "")
		requireStatus(t, statusInvalid, "", err)
		_, err = listZoo(o, getenv, "")
		requireStatus(t, statusInvalid, "", err)
	}
	_, err = resolve("no name!", zooOptions{}, getenv, "")
	requireStatus(t, statusInvalid, "name", err)
}

func TestVerifyOfAPath(t *testing.T) {
	path := file(t)
	run := func(path string) ([]map[string]any, error) {
		h, err := openVerify(path, zooOptions{}, none, "")
		require.NoError(t, err)
		defer closeJob(t, h)
		records, _, err := readJob(t, h)
		return records, err
	}
	records, err := run(path)
	require.NoError(t, err)
	require.Equal(t, verifiedTensors, records[len(records)-1]["verified"])
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	b[len(b)-1] ^= 1
	bad := filepath.Join(t.TempDir(), "bad.gguf")
	require.NoError(t, os.WriteFile(bad, b, 0o600))
	_, err = run(bad)
	requireStatus(t, statusChecksum, "bad.gguf", err)
	_, err = openVerify(filepath.Join(t.TempDir(), "none.gguf"), zooOptions{}, none, "")
	requireStatus(t, statusNotFound, "none.gguf", err)
}

func TestBundledModelsLieBesideTheLibrary(t *testing.T) {
	path := file(t)
	dir := t.TempDir()
	place := filepath.Join(dir, "models", "m")
	require.NoError(t, os.MkdirAll(place, 0o755))
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(place, "m.gguf"), b, 0o600))
	index := filepath.Join(dir, "index.json")
	require.NoError(t, os.WriteFile(index, []byte(`{"updated":"2026-11","models":[{"name":"m","revision":"1","status":"bundled","file":"m.gguf","licence":"MIT","description":""}]}`), 0o600))
	getenv := func(name string) string { return map[string]string{"NANOCHAT_INDEX": index}[name] }
	found, err := resolve("m", zooOptions{}, getenv, filepath.Join(dir, "lib", "libnanochat.so"))
	require.NoError(t, err)
	require.Equal(t, "bundled", found.Source)
	_, err = resolve("m", zooOptions{}, getenv, "")
	require.Error(t, err)
}

func TestConfigurationsThatCannotBeTrained(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "good.toml")
	require.NoError(t, os.WriteFile(good, []byte("preset = \"tiny\"\n[train]\nsteps = 200\n"), 0o600))
	for _, tt := range []struct {
		path string
		sets []string
		env  map[string]string
		want status
		part string
	}{
		{"", nil, nil, statusInvalid, "empty"},
		{filepath.Join(dir, "none.toml"), nil, nil, statusNotFound, "none.toml"},
		{dir, nil, nil, statusInvalid, "not a file"},
		{good, []string{"train.stepz=1"}, nil, statusInvalid, "stepz"},
		{good, nil, map[string]string{"NANOCHAT_THREADS": "many"}, statusInvalid, "many"},
		{good, nil, map[string]string{"NANOCHAT_KERNEL": "abacus"}, statusInvalid, "abacus"},
	} {
		_, err := openTraining(tt.path, tt.sets, "", func(name string) string { return tt.env[name] }, "0")
		requireStatus(t, tt.want, tt.part, err)
	}
	h, err := openTraining(good, nil, "", none, "0")
	require.NoError(t, err)
	_, _, err = readJob(t, h)
	requireStatus(t, statusInvalid, "data.path", err)
	require.NotEmpty(t, failureOf(err).hint)
	closeJob(t, h)
}

func TestLinesBecomeRecords(t *testing.T) {
	j := newJob()
	w := &lineWriter{j: j}
	for _, part := range []string{"one\ntw", "o\n", "three"} {
		n, err := w.Write([]byte(part))
		require.NoError(t, err)
		require.Equal(t, len(part), n)
	}
	w.flush()
	var got []string
	for {
		r, err := j.take()
		require.NoError(t, err)
		if r == nil {
			break
		}
		got = append(got, string(r.text))
	}
	require.Equal(t, []string{`{"type":"log","text":"one"}`, `{"type":"log","text":"two"}`, `{"type":"log","text":"three"}`}, got)
	require.True(t, errors.Is(j.err, nil))
}
