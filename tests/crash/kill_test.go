//go:build unix

package crash

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// trials is the number of trainings to kill: 4, or NANOCHAT_LONG (1 stands for 20).
func trials(t *testing.T) int {
	v := os.Getenv("NANOCHAT_LONG")
	if v == "" {
		return 4
	}
	n, err := strconv.Atoi(v)
	require.NoError(t, err, "NANOCHAT_LONG")
	if n == 1 {
		return 20
	}
	return n
}

// TestKill kills trainings, half of them at any moment and half while a checkpoint
// is being written, lets them go on with another number of threads, and compares
// the end with a training that was never killed.
func TestKill(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	n, inside, fresh := trials(t), 0, 0
	for trial := range n {
		out := newRun(t)
		kill(t, r, out, trial%2 == 1)
		half, begun := halfSaved(t, out), len(saved(t, out)) > 0
		if half {
			inside++
		}
		if !begun {
			fresh++
		}
		text, code := train(t, out, 1+trial/2%2)
		require.Zero(t, code, "trial %d: %s", trial, text)
		require.NotContains(t, text, "warning", "trial %d: no damage may be found", trial)
		sameEnd(t, out)
		t.Logf("trial %d: %s, inside a save: %v", trial, resumed(text), half)
	}
	require.Positive(t, inside, "no training was killed inside a save")
	t.Logf("RELIABILITY | kill -9 of a training at a random moment, resumed: weights, optimizer, cursors and metrics after %d steps are those of a run never killed, bit for bit | %d of %d, %d of them inside a save | `tests/crash TestKill` |",
		steps, n, n, inside)
}

// resumed is the line that says where a run went on.
func resumed(text string) string {
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "resumed ") {
			return strings.TrimSpace(line)
		}
	}
	return "started anew"
}

// kill starts a training and kills it, at any moment of its life or once it began
// to write a checkpoint.
func kill(t *testing.T, r *rand.Rand, out string, insideSave bool) {
	wait := time.Duration(r.Float64() * float64(wholeTime))
	for {
		cmd := command(trainArgs(out, 1)...)
		require.NoError(t, cmd.Start())
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		exited := false
		if insideSave {
			step := 3 * (1 + r.IntN(steps/3-1))
			exited = waitForSave(t, out, step, done)
			time.Sleep(time.Duration(r.IntN(2000)) * time.Microsecond)
		} else {
			select {
			case <-done:
				exited = true
			case <-time.After(wait):
			}
		}
		if !exited {
			require.NoError(t, cmd.Process.Kill())
			<-done
		}
		if cmd.ProcessState.Sys().(syscall.WaitStatus).Signaled() {
			return
		}
		// It was faster than the undisturbed one.
		require.NoError(t, os.RemoveAll(filepath.Join(dir, out)))
		wait /= 2
	}
}

// waitForSave returns when the checkpoint of a step, or a later one, is being
// written. It reports whether the process ended before.
func waitForSave(t *testing.T, out string, step int, done chan error) (exited bool) {
	for {
		select {
		case <-done:
			return true
		default:
		}
		for _, name := range saved(t, out) {
			digits, temporary := strings.CutSuffix(strings.TrimPrefix(name, "step-"), ".tmp")
			if s, err := strconv.Atoi(digits); temporary && err == nil && s >= step {
				return false
			}
		}
		time.Sleep(50 * time.Microsecond)
	}
}

// TestInterrupt ends trainings in the ways that a program may answer to: the state
// after the last whole step is saved, and the same command goes on.
func TestInterrupt(t *testing.T) {
	for sig, code := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGTERM: 143} {
		out := newRun(t)
		cmd := command(trainArgs(out, 1)...)
		var text strings.Builder
		cmd.Stderr = &text
		require.NoError(t, cmd.Start())
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		require.False(t, waitForSave(t, out, 6, done))
		require.NoError(t, cmd.Process.Signal(sig))
		<-done
		require.Equal(t, code, cmd.ProcessState.ExitCode(), text.String())
		require.Contains(t, text.String(), "interrupted after step")
		require.False(t, halfSaved(t, out))
		again, code := train(t, out, 1)
		require.Zero(t, code, again)
		require.Contains(t, again, "resumed")
		sameEnd(t, out)
	}
}

// TestFullDisk lets every file that is larger than a limit fail, as a full disk
// does. Training goes on, says so, and ends with a failure; nothing that is half
// written is taken for a checkpoint.
func TestFullDisk(t *testing.T) {
	out := newRun(t)
	// A checkpoint from before the disk was full.
	cmd := command(trainArgs(out, 1)...)
	require.NoError(t, cmd.Start())
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	require.False(t, waitForSave(t, out, 12, done))
	require.NoError(t, cmd.Process.Signal(os.Interrupt))
	<-done
	before := saved(t, out)

	limited := command()
	limited.Path, _ = exec.LookPath("bash")
	limited.Args = append([]string{"bash", "-c", `ulimit -f 40 && exec "$0" "$@"`, bin}, trainArgs(out, 1)...) // 40 KiB
	text, code := runCommand(t, limited)
	require.Equal(t, 1, code, text)
	require.Contains(t, text, "checkpoint not saved: checkpoint: "+filepath.Join(out, "checkpoints", "step-"))
	require.Contains(t, text, "file too large")
	require.Contains(t, text, "it needs")
	require.Contains(t, text, "earlier checkpoints are as they were")
	require.Contains(t, text, "step 60/60", "training goes on")
	require.Equal(t, before, saved(t, out))

	text, code = train(t, out, 1)
	require.Zero(t, code, text)
	require.Contains(t, text, "resumed "+filepath.Join(out, "checkpoints", before[len(before)-1]))
	sameEnd(t, out)
}
