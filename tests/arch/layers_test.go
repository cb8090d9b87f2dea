package arch

import "regexp"

// A layer row is one package: its layer and the modules outside the standard
// library that it may import. A package imports only packages of lower layers.
type row struct {
	layer   int
	modules []string
}

// layers is the table of the architecture; docs/adr/0002-layers.md says why it
// is as it is. A package that is missing here fails the tests.
var layers = map[string]row{
	"core/internal/fsx":     {0, []string{"golang.org/x/sys"}},
	"core/internal/rng":     {0, nil},
	"core/internal/clock":   {0, nil},
	"kernels":               {0, []string{"golang.org/x/sys"}},
	"core/safetensors":      {1, nil},
	"core/config":           {1, []string{"github.com/pelletier/go-toml/v2"}},
	"core/tokenizer":        {1, nil},
	"core/zoo":              {1, nil},
	"core/telemetry/sink":   {1, nil},
	"core/telemetry/events": {2, nil},
	"core/telemetry": {2, []string{"github.com/prometheus/client_golang", "go.opentelemetry.io/otel", "go.opentelemetry.io/proto/slim/otlp",
		"google.golang.org/protobuf"}},
	"kernels/numa":             {1, []string{"golang.org/x/sys"}},
	"kernels/team":             {2, []string{"golang.org/x/sys"}},
	"core/sample":              {2, nil},
	"kernels/dl":               {1, []string{"github.com/ebitengine/purego"}},
	"kernels/cuda/cudatest":    {3, []string{"golang.org/x/sys"}},
	"kernels/cuda":             {2, nil},
	"kernels/tune":             {3, []string{"golang.org/x/sys"}},
	"core/ternary":             {1, nil},
	"core/gguf":                {1, nil},
	"core/mhc":                 {1, nil},
	"core/data":                {2, []string{"github.com/klauspost/compress", "github.com/parquet-go/parquet-go"}},
	"core/collective":          {3, nil},
	"core/optim":               {3, nil},
	"core/model":               {4, nil},
	"core/infer":               {5, nil},
	"core/eval":                {5, nil},
	"core/checkpoint":          {5, nil},
	"core/chat":                {6, nil},
	"core/train":               {6, nil},
	"core/watch":               {7, nil},
	"core/bench":               {7, []string{"golang.org/x/sys"}},
	"core/server":              {7, nil},
	"core/load":                {1, nil},
	"capi":                     {8, nil},
	"capi/libnanochat":         {9, nil},
	"bindings/gopy/introspect": {9, nil},
	"bindings/gopurego":        {0, []string{"github.com/ebitengine/purego"}},
	"cmd/nanochat":             {8, []string{"github.com/alecthomas/kong", "golang.org/x/term", "golang.org/x/sys"}},
	"tests/abi":                {9, nil},
	"tests/arch":               {9, nil},
	"tests/browser":            {9, nil},
	"tests/c":                  {9, nil},
	"tests/crash":              {9, nil},
	"tests/e2e":                {9, []string{"golang.org/x/sys"}},
	"tests/golden":             {9, nil},
	"tests/interop":            {9, nil},
	"tests/readme":             {9, nil},
	"tests/server":             {9, nil},
	"tests/soak":               {9, nil},
}

// testModules may be imported by test files only.
var testModules = []string{
	"github.com/stretchr/testify", "github.com/google/go-cmp", "pgregory.net/rapid", "github.com/dlclark/regexp2/v2",
	"go.opentelemetry.io/proto/slim/otlp", "google.golang.org/protobuf",
}

// A ban forbids a use of the standard library outside the files that match.
// Test files are free of all bans.
type ban struct {
	// name is the import path and, after a dot, the identifier; empty for all of it.
	pkg, name string
	except    *regexp.Regexp
	why       string
}

var (
	cgoFiles    = regexp.MustCompile(`^(kernels/[^/]+\.go|capi/.*)$`)
	unsafeFiles = regexp.MustCompile(`^(kernels/[^/]+\.go|kernels/(team|numa|cuda)/[^/]+\.go|core/gguf/view\.go|capi/.*|bindings/gopurego/[^/]+\.go)$`)
	mains       = regexp.MustCompile(`^(cmd|capi)/`)
	disk        = regexp.MustCompile(`^(core/internal/fsx|kernels/(tune|numa|team|dl|cuda)|cmd|capi)/|^kernels/features`)
	timekeepers = regexp.MustCompile(`^(core/internal/clock|core/bench|kernels/tune|kernels/team|cmd)/`)
	testInputs  = regexp.MustCompile(`^kernels/cuda/cudatest/`)
	nobody      = regexp.MustCompile(`^$`)
)

var bans = []ban{
	{"C", "", cgoFiles, "C stands only in kernels and capi"},
	{"unsafe", "", unsafeFiles, "unsafe stands only in kernels, core/gguf/view.go, capi and bindings/gopurego"},
	{"os", "Exit", mains, "a library returns errors"},
	{"log", "", mains, "a library returns errors and does not log"},
	{"syscall", "Exit", mains, "a library returns errors"},
	{"os", "Open", disk, "core reaches the disk through fsx"},
	{"os", "OpenFile", disk, "core reaches the disk through fsx"},
	{"os", "Create", disk, "core reaches the disk through fsx"},
	{"os", "CreateTemp", disk, "core reaches the disk through fsx"},
	{"os", "ReadFile", disk, "core reaches the disk through fsx"},
	{"os", "WriteFile", disk, "core reaches the disk through fsx"},
	{"os", "ReadDir", disk, "core reaches the disk through fsx"},
	{"os", "Rename", disk, "core reaches the disk through fsx"},
	{"os", "Remove", disk, "core reaches the disk through fsx"},
	{"os", "RemoveAll", disk, "core reaches the disk through fsx"},
	{"os", "Mkdir", disk, "core reaches the disk through fsx"},
	{"os", "MkdirAll", disk, "core reaches the disk through fsx"},
	{"os", "Getenv", mains, "the environment is read in cmd and capi, and passed down as options"},
	{"os", "LookupEnv", mains, "the environment is read in cmd and capi, and passed down as options"},
	{"os", "Setenv", nobody, "the environment belongs to the caller"},
	{"time", "Now", timekeepers, "time comes from core/internal/clock"},
	{"time", "Since", timekeepers, "time comes from core/internal/clock"},
	{"time", "Sleep", mains, "waiting goes through core/internal/clock or a channel"},
	{"math/rand", "", nobody, "random numbers come from core/internal/rng"},
	{"math/rand/v2", "", testInputs, "random numbers come from core/internal/rng"},
	{"net/http/pprof", "", nobody, "it registers handlers by being imported"},
}

// Limits of a source file.
const maxLines = 600

// longFiles may have more lines than that; at most 3 names.
var longFiles = map[string]bool{
	"include/nanochat.h": true, // one header is one contract
}
