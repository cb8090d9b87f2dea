// Command nanochat trains and runs ternary language models: it makes, inspects,
// converts and measures model files and generates text from them.
//
// It translates between the command line and the engine; what the engine does is
// decided in core. Data goes to standard output, everything else to standard
// error. See exit.go for the exit codes.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"golang.org/x/term"

	"github.com/architehc/nanochat/core/chat"
)

// grammar is the whole command line; the tags are its parser and its help.
type grammar struct {
	Verbose bool `help:"Show the chain of causes of an error."`

	Generate   generateCmd   `cmd:"" help:"Continue a text."`
	Chat       chatCmd       `cmd:"" help:"Talk to a model on the terminal."`
	Complete   completeCmd   `cmd:"" help:"Complete a text at a place in it, for editors."`
	Serve      serveCmd      `cmd:"" help:"Serve models over HTTP, as OpenAI's programs expect it."`
	Download   downloadCmd   `cmd:"" help:"Download a model, or go on with it."`
	List       listCmd       `cmd:"" help:"List the models that have names."`
	Rm         rmCmd         `cmd:"" help:"Remove downloaded models."`
	Info       infoCmd       `cmd:"" help:"Describe a model file."`
	Inspect    inspectCmd    `cmd:"" help:"Show what became of a model's weights, and how it mixes its streams."`
	Verify     verifyCmd     `cmd:"" help:"Check model files completely, checksums included."`
	Publish    publishCmd    `cmd:"" help:"Make a folder of a model that is ready to upload."`
	Init       initCmd       `cmd:"" help:"Create a model with random weights."`
	Convert    convertCmd    `cmd:"" help:"Convert a model file from or to other programs' forms."`
	Tokenizer  tokenizerCmd  `cmd:"" help:"Make a vocabulary, and turn text into tokens and back."`
	Data       dataCmd       `cmd:"" help:"Prepare text for training."`
	Train      trainCmd      `cmd:"" help:"Train a model."`
	Checkpoint checkpointCmd `cmd:"" help:"Take a training's checkpoint elsewhere as small files."`
	Export     exportCmd     `cmd:"" help:"Make a model file of a training's checkpoint."`
	Eval       evalCmd       `cmd:"" help:"Measure how good a model is."`
	Benchmark  benchmarkCmd  `cmd:"" help:"Measure a model, or the kernels against this machine's limits."`
	Doctor     doctorCmd     `cmd:"" help:"Show what nanochat finds on this machine."`
	Version    versionCmd    `cmd:"" help:"Show the version."`
	Completion completionCmd `cmd:"" help:"Print a completion script for a shell."`
}

// app is what every command gets besides its flags.
type app struct {
	// ctx ends at the first interrupt.
	ctx    context.Context
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
	// Terminals, as opposed to files and pipes.
	stdinTTY, stdoutTTY, stderrTTY bool
	// colour allows escape sequences on stderr.
	colour bool
	model  *kong.Application
	// patient says that the command has something to save when it is interrupted; a
	// second interrupt ends it all the same.
	patient atomic.Bool
	// orderly says that an interrupt is how the command is meant to end: its own exit
	// code counts.
	orderly atomic.Bool
	// abandon removes what a command that is cut off leaves behind.
	abandon atomic.Pointer[func()]
}

func main() { os.Exit(realMain()) }

// grace is how long a command may take to clean up after an interrupt.
const grace = 80 * time.Millisecond

func realMain() int {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	a := &app{
		ctx: ctx, stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
		stdinTTY:  term.IsTerminal(int(os.Stdin.Fd())),
		stdoutTTY: term.IsTerminal(int(os.Stdout.Fd())),
		stderrTTY: term.IsTerminal(int(os.Stderr.Fd())),
	}
	a.colour = a.stderrTTY && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"

	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	var code atomic.Int32
	done := make(chan int, 1)
	go func() { done <- a.run(os.Args[1:]) }()
	select {
	case c := <-done:
		return c
	case s := <-signals:
		code.Store(exitInterrupted)
		if s == syscall.SIGTERM {
			code.Store(128 + int32(syscall.SIGTERM))
		}
		cancel()
	}
	wait := time.After(grace)
	if a.patient.Load() {
		wait = nil
	}
	select {
	case c := <-done:
		if a.orderly.Load() {
			return c
		}
	case <-signals:
	case <-wait:
	}
	if f := a.abandon.Load(); f != nil {
		(*f)()
	}
	return int(code.Load())
}

// run executes one command line and returns the exit code.
func (a *app) run(args []string) (code int) {
	var g grammar
	left := errors.New("help was shown")
	defer func() {
		if r := recover(); r != nil {
			if r == left {
				code = exitOK
				return
			}
			panic(r)
		}
	}()
	parser, err := kong.New(&g,
		kong.Name("nanochat"),
		kong.Description("Ternary language models on this machine's processors."),
		kong.Writers(a.stdout, a.stderr),
		kong.Exit(func(int) { panic(left) }), // after --help
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, FlagsLast: true}),
		kong.Vars(vars()),
		kong.UsageOnError(),
	)
	if err != nil {
		return a.fail(fmt.Errorf("the command line is defined wrongly: %w", err), false)
	}
	a.model = parser.Model
	if len(args) == 0 {
		args = []string{"--help"}
	}
	k, err := parser.Parse(args)
	if p, ok := errors.AsType[*fs.PathError](err); ok { // the help could not be written
		return a.fail(p, false)
	}
	if err != nil {
		return a.fail(usageOf(err, args), false)
	}
	return a.fail(k.Run(a), g.Verbose)
}

// usageOf turns kong's error into ours: the suggestion becomes the hint.
func usageOf(err error, args []string) error {
	var p *kong.ParseError
	help := "nanochat --help"
	if errors.As(err, &p) && p.Context != nil && p.Context.Command() != "" {
		verbs, _, _ := strings.Cut(p.Context.Command(), " <") // tokenizer decode <ids>
		help = "nanochat " + verbs + " --help"
	}
	what, near, ok := strings.Cut(err.Error(), ", did you mean ")
	hint := "see " + help
	if ok {
		hint = "did you mean " + strings.ReplaceAll(near, `"`, "")
	}
	// A value that begins with a dash.
	if bare, try, ok := strings.Cut(what, "; perhaps try "); ok {
		what = strings.NewReplacer("expected value value", "expected a value", " (short flag)", "").Replace(bare)
		hint = "a value that begins with - needs =, as in " + strings.ReplaceAll(strings.TrimSuffix(try, "?"), `"`, "")
	}
	return &usageError{what: what, hint: hint}
}

// vars are the texts that the tags of the grammar refer to.
func vars() kong.Vars { return kong.Vars{"templates": strings.Join(chat.Templates(), ", ")} }
