package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// terminal is a program on a pseudo-terminal: what it is given is typed, what it
// writes is collected.
type terminal struct {
	t    *testing.T
	cmd  *exec.Cmd
	ptmx *os.File
	tty  string // the path of the program's side

	mu     sync.Mutex
	shown  []byte // all that was ever shown
	seen   int    // how much of it wait has passed
	news   chan struct{}
	ended  chan struct{}
	status error
}

// start runs cmd on a terminal of its own, 80 wide.
func start(t *testing.T, cmd *exec.Cmd) *terminal {
	t.Helper()
	ptmx, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fd := int(ptmx.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80})
	}
	if err != nil {
		t.Fatal(err)
	}
	s := &terminal{t: t, cmd: cmd, ptmx: ptmx, tty: fmt.Sprintf("/dev/pts/%d", n), news: make(chan struct{}, 1), ended: make(chan struct{})}
	tty, err := os.OpenFile(s.tty, os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if cmd.Stdin == nil {
		cmd.Stdin = tty
	}
	if cmd.Stdout == nil {
		cmd.Stdout = tty
	}
	cmd.Stderr = tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	tty.Close()
	go s.collect()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-s.ended
		ptmx.Close()
		if t.Failed() {
			t.Logf("the terminal showed %q", s.all())
		}
	})
	return s
}

func (s *terminal) collect() {
	b := make([]byte, 4096)
	for {
		n, err := s.ptmx.Read(b)
		s.mu.Lock()
		s.shown = append(s.shown, b[:n]...)
		s.mu.Unlock()
		select {
		case s.news <- struct{}{}:
		default:
		}
		if err != nil { // the program has closed its side
			s.status = s.cmd.Wait()
			close(s.ended)
			return
		}
	}
}

func (s *terminal) all() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return string(s.shown)
}

// keys types.
func (s *terminal) keys(text string) {
	s.t.Helper()
	if _, err := s.ptmx.WriteString(text); err != nil {
		s.t.Fatal(err)
	}
}

// wait waits until text is shown after what earlier waits have passed, and returns
// what was shown up to it.
func (s *terminal) wait(text string) string {
	s.t.Helper()
	late := time.After(30 * time.Second)
	for {
		s.mu.Lock()
		rest := s.shown[s.seen:]
		if i := bytes.Index(rest, []byte(text)); i >= 0 {
			s.seen += i + len(text)
			s.mu.Unlock()
			return string(rest[:i])
		}
		s.mu.Unlock()
		select {
		case <-s.news:
		case <-s.ended:
			s.mu.Lock()
			over := !bytes.Contains(s.shown[s.seen:], []byte(text))
			s.mu.Unlock()
			if over {
				s.t.Fatalf("the program ended without showing %q", text)
			}
		case <-late:
			s.t.Fatalf("%q was not shown within 30 s", text)
		}
	}
}

// exit waits for the end and returns the exit code.
func (s *terminal) exit() int {
	s.t.Helper()
	select {
	case <-s.ended:
		return s.cmd.ProcessState.ExitCode()
	case <-time.After(30 * time.Second):
		s.t.Fatal("the program did not end within 30 s")
		return -1
	}
}

// cooked says whether the terminal is as it was at first: it echoes and makes lines.
func (s *terminal) cooked() bool {
	s.t.Helper()
	mode, err := unix.IoctlGetTermios(int(s.ptmx.Fd()), unix.TCGETS)
	if err != nil {
		s.t.Fatal(err)
	}
	want := uint32(unix.ECHO | unix.ICANON | unix.ISIG)
	return mode.Lflag&want == want && mode.Oflag&unix.OPOST != 0
}

// plain is text without escape sequences and carriage returns.
func plain(text string) string {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		switch {
		case text[i] == '\r':
		case text[i] == 0x1b && i+1 < len(text) && text[i+1] == '[':
			for i += 2; i < len(text) && (text[i] < '@' || text[i] > '~'); i++ {
			}
		default:
			b.WriteByte(text[i])
		}
	}
	return b.String()
}
