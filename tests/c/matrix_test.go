package c

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// A parameter of a function of the header.
type parameter struct {
	kind string // its type, without const and spaces
	name string
}

// A function of the header.
type function struct {
	result, name string
	parameters   []parameter
}

var (
	comments  = regexp.MustCompile(`(?s)/\*.*?\*/`)
	prototype = regexp.MustCompile(`(?ms)^NANOCHAT_API (.*?)(nanochat_\w+)\(([^;]*)\);`)
	lastWord  = regexp.MustCompile(`\w+$`)
	blanks    = regexp.MustCompile(`\s+`)
)

// functions reads the header.
func functions(t *testing.T) (out []function) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(include, "nanochat.h"))
	require.NoError(t, err)
	for _, m := range prototype.FindAllStringSubmatch(comments.ReplaceAllString(string(b), ""), -1) {
		f := function{result: blanks.ReplaceAllString(m[1], ""), name: m[2]}
		for p := range strings.SplitSeq(m[3], ",") {
			if p = strings.TrimSpace(p); p == "void" {
				continue
			}
			name := lastWord.FindString(p)
			kind := strings.ReplaceAll(strings.TrimSuffix(p, name), "const", "")
			f.parameters = append(f.parameters, parameter{blanks.ReplaceAllString(kind, ""), name})
		}
		out = append(out, f)
	}
	require.Greater(t, len(out), 45)
	return out
}

// valid is an argument that a function takes, in the program below.
func (p parameter) valid(t *testing.T, f function) string {
	t.Helper()
	size := strings.TrimSuffix(f.name, "_init")
	switch p.kind {
	case "nanochat_model*", "nanochat_session*", "nanochat_stream*", "nanochat_job*":
		return "live_" + p.name
	case "nanochat_error*":
		return "live_error"
	case "nanochat_model**", "nanochat_session**", "nanochat_job**":
		return "&out_" + p.name
	case "nanochat_stream**":
		return "out_streams"
	case "nanochat_stream**const", "nanochat_stream*const*":
		return "&live_stream"
	case "nanochat_error**":
		return "&err"
	case "nanochat_model_options*", "nanochat_generate_options*", "nanochat_zoo_options*", "nanochat_piece*", "nanochat_stats*":
		return "&" + strings.TrimSuffix(strings.TrimPrefix(p.kind, "nanochat_"), "*")
	case "size_t":
		switch p.name {
		case "size":
			return "sizeof(" + size + ")"
		case "capacity":
			return "64"
		}
		return "1"
	case "size_t*":
		if p.name == "lengths" || p.name == "content_lengths" {
			return "one_length"
		}
		return "&count"
	case "uint32_t", "int32_t", "nanochat_status":
		return "0"
	case "int32_t*":
		if p.name == "finish" {
			return "&finish"
		}
		return "ids"
	case "uint64_t*":
		return "&freed"
	case "float*":
		return "floats"
	case "char**":
		if p.name == "roles" {
			return "roles"
		}
		return "texts"
	case "char*":
		switch p.name {
		case "buffer":
			return "buffer"
		case "key":
			return `"threads"`
		case "value":
			return `"1"`
		case "level":
			return `"error"`
		case "resume", "template_name":
			return "NULL"
		}
		return `"none"`
	}
	t.Fatalf("%s: no argument of type %s is known for %s", f.name, p.kind, p.name)
	return ""
}

// handle is the kind of a handle that p takes, or "".
func (p parameter) handle() string {
	for _, k := range handleKinds {
		if p.kind == "nanochat_"+k+"*" {
			return k
		}
	}
	return ""
}

var handleKinds = []string{"model", "session", "stream", "job", "error"}

const matrixHead = `
#include "%s/check.h"
static nanochat_model *live_model, *out_model;
static nanochat_session *live_session, *out_session;
static nanochat_stream *live_stream, *out_streams[2];
static nanochat_job *live_job, *out_job;
static nanochat_error *live_error, *err;
static nanochat_model_options model_options;
static nanochat_generate_options generate_options;
static nanochat_zoo_options zoo_options;
static nanochat_piece piece;
static nanochat_stats stats;
static size_t count, one_length[1] = {1};
static int32_t finish, ids[64];
static uint64_t freed;
static float floats[64];
static char buffer[64];
static const char *const roles[] = {"user"}, *const texts[] = {"a"};
static const char *path;
static long calls;
static uint64_t random_bits = 88172645463325252u;

static uintptr_t bits(void)
{
	random_bits ^= random_bits << 13;
	random_bits ^= random_bits >> 7;
	random_bits ^= random_bits << 17;
	return (uintptr_t)random_bits;
}

/* ready makes what the last call has closed or changed. */
static void ready(void)
{
	nanochat_model *none;

	nanochat_model_options_init(&model_options, sizeof model_options);
	nanochat_generate_options_init(&generate_options, sizeof generate_options);
	nanochat_zoo_options_init(&zoo_options, sizeof zoo_options);
	nanochat_piece_init(&piece, sizeof piece);
	nanochat_stats_init(&stats, sizeof stats);
	generate_options.max_tokens = 1;
	model_options.threads = 1;
	if (nanochat_model_info(live_model, NULL, 0, &count, NULL))
		live_model = open_model(path, 1);
	if (nanochat_session_tokens(live_session, NULL, 0, &count, NULL))
		IS(NANOCHAT_OK, nanochat_session_open(live_model, &live_session, NULL));
	if (nanochat_stream_stats(live_stream, &stats, NULL))
		live_stream = open_stream(live_model, 1);
	if (nanochat_job_next(live_job, 0, buffer, 1, &count, &finish, NULL) != NANOCHAT_E_TIMEOUT)
		IS(NANOCHAT_OK, nanochat_log_open("error", &live_job, NULL));
	if (!live_error || nanochat_error_status(live_error) != NANOCHAT_E_NOT_FOUND)
		IS(NANOCHAT_E_NOT_FOUND, nanochat_model_open("/none", NULL, &none, &live_error));
	err = NULL;
	calls++;
}

/* clean closes what a call has opened. refused says that a handle was wrong. */
static void clean(nanochat_status status, int refused, const char *what)
{
	if (refused && status != NANOCHAT_E_INVALID && status != NANOCHAT_E_CLOSED) {
		fprintf(stderr, "%%s: %%s\n", what, nanochat_status_name(status));
		_exit(1);
	}
	CHECK(status >= 0 && status != NANOCHAT_E_INTERNAL && status != NANOCHAT_E_FORKED);
	CHECK(!err || (nanochat_error_status(err) == status && *nanochat_error_message(err)));
	nanochat_error_free(err);
	nanochat_model_close(out_model);
	nanochat_session_close(out_session);
	nanochat_stream_close(out_streams[0]);
	nanochat_job_close(out_job);
	out_model = NULL;
	out_session = NULL;
	out_streams[0] = NULL;
	out_job = NULL;
}
`

const matrixForks = `
#include <sys/wait.h>

/* forked calls every function in children of fork(). */
static void forked(void)
{
	for (int i = 0; i < 5; i++) {
		int status;
		pid_t pid = fork();

		CHECK(pid >= 0);
		if (pid) {
			CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && !WEXITSTATUS(status));
			continue;
		}
		alarm(10);
%s		_exit(0);
	}
}
`

// write makes a call with the arguments given; refused is as in clean.
func (f function) write(b *strings.Builder, args []string, refused bool, what string) {
	call := f.name + "(" + strings.Join(args, ", ") + ")"
	fmt.Fprintf(b, "\tready();\n")
	switch f.result {
	case "nanochat_status":
		wrong := 0
		if refused {
			wrong = 1
		}
		fmt.Fprintf(b, "\tclean(%s, %d, %q);\n", call, wrong, f.name+": "+what)
	case "void":
		fmt.Fprintf(b, "\t%s;\n\tclean(0, 0, \"\");\n", call)
	default:
		fmt.Fprintf(b, "\t(void)%s;\n\tclean(0, 0, \"\");\n", call)
	}
}

// TestMisuseMatrix calls every function of the header with every set of its pointers
// NULL, and with every wrong handle in every place of one.
func TestMisuseMatrix(t *testing.T) {
	suiteDir, err := filepath.Abs("suite")
	require.NoError(t, err)
	var b strings.Builder
	fmt.Fprintf(&b, matrixHead, suiteDir)
	var names []string
	var child strings.Builder
	for _, f := range functions(t) {
		names = append(names, f.name)
		fmt.Fprintf(&b, "\nstatic void check_%s(void)\n{\n\tint here;\n\n\t(void)here;\n", f.name)
		args := make([]string, len(f.parameters))
		var pointers []int
		for i, p := range f.parameters {
			args[i] = p.valid(t, f)
			if strings.HasSuffix(p.kind, "*") || strings.HasSuffix(p.kind, "*const") {
				pointers = append(pointers, i)
			}
		}
		if call := f.name + "(" + strings.Join(args, ", ") + ")"; f.result == "nanochat_status" && f.name != "nanochat_error_status" {
			fmt.Fprintf(&child, "\tIS(NANOCHAT_E_FORKED, %s);\n", call)
		} else {
			fmt.Fprintf(&child, "\t(void)%s;\n", call)
		}
		for set := range 1 << len(pointers) {
			with := slices.Clone(args)
			for i, at := range pointers {
				if set>>i&1 == 1 {
					with[at] = "NULL"
				}
			}
			f.write(&b, with, false, "NULL")
		}
		for i, p := range f.parameters {
			k := p.handle()
			if k == "" {
				continue
			}
			with := slices.Clone(args)
			bad := func(expression, what string) {
				with[i] = "(" + strings.TrimSuffix(p.kind, "*") + " *)(uintptr_t)(" + expression + ")"
				f.write(&b, with, true, p.name+" is "+what)
			}
			for _, other := range handleKinds {
				if other != k {
					bad("live_"+other, "of another kind, "+other)
				}
			}
			bad("old_"+k, "closed")
			bad("&here", "an address")
			bad("(uintptr_t)live_"+k+" + 1", "misaligned")
			bad("(uintptr_t)live_"+k+" ^ ((uintptr_t)1 << 63)", "with another bit")
			for range 10 {
				bad("bits()", "random")
			}
		}
		b.WriteString("}\n")
	}
	fmt.Fprintf(&b, matrixForks, child.String())
	b.WriteString("\nint main(int argc, char **argv)\n{\n\tCHECK(argc == 2);\n\tpath = argv[1];\n\tIS(NANOCHAT_OK, nanochat_set(\"offline\", \"1\", NULL));\n\tready();\n")
	for _, k := range handleKinds {
		fmt.Fprintf(&b, "\told_%s = live_%s;\n", k, k)
	}
	b.WriteString("\tnanochat_stream_close(old_stream);\n\tnanochat_session_close(old_session);\n\tnanochat_model_close(old_model);\n\tnanochat_job_close(old_job);\n\tnanochat_error_free(old_error);\n\tcalls = 0;\n")
	for _, name := range names {
		fmt.Fprintf(&b, "\tcheck_%s();\n", name)
	}
	b.WriteString("\tready();\n\tforked();\n\tCHECK(read_all(live_stream) == 1);\n\tprintf(\"%ld\\n\", calls);\n\treturn 0;\n}\n")
	source := strings.Replace(b.String(), "static long calls;", "static long calls;\nstatic nanochat_model *old_model;\nstatic nanochat_session *old_session;\nstatic nanochat_stream *old_stream;\nstatic nanochat_job *old_job;\nstatic nanochat_error *old_error;", 1)
	file := filepath.Join(dir, "matrix.c")
	require.NoError(t, os.WriteFile(file, []byte(source), 0o600))

	helpers := filepath.Join(suiteDir, "helpers.c")
	for name, flags := range map[string][]string{"plain": nil, "sanitizers": {"-fsanitize=address,undefined", "-fno-sanitize-recover=all"}} {
		t.Run(name, func(t *testing.T) {
			if name == "sanitizers" {
				needSanitizers(t)
			}
			program := build(t, "matrix-"+name, "gcc", append([]string{"-std=c99", "-O0", "-Wno-nonnull"}, flags...), file, helpers)
			calls := strings.TrimSpace(run(t, []string{"ASAN_OPTIONS=detect_leaks=0"}, program, small))
			require.NotEqual(t, "0", calls)
			t.Logf("RELIABILITY | calls of the %d functions of the header, %s, with every set of their pointers NULL and every wrong handle (closed, of another kind, misaligned, random): a status each | %s of %s | `tests/c TestMisuseMatrix` |", len(names), name, calls, calls)
		})
	}
}
