package main

import (
	"fmt"
	"strings"

	"github.com/alecthomas/kong"
)

type completionCmd struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"One of bash, zsh, fish."`
}

// Help is the longer help text.
func (*completionCmd) Help() string {
	return "bash: source <(nanochat completion bash). zsh: source <(nanochat completion zsh). " +
		"fish: nanochat completion fish | source."
}

// Run prints a script made from the grammar.
func (c *completionCmd) Run(a *app) error {
	script := bashScript
	switch c.Shell {
	case "zsh":
		script = func(n *kong.Node) string { return "autoload -U +X bashcompinit && bashcompinit\n" + bashScript(n) }
	case "fish":
		script = fishScript
	}
	_, err := fmt.Fprint(a.stdout, script(a.model.Node))
	return err
}

func bashScript(root *kong.Node) string {
	var verbs []string
	var cases strings.Builder
	for _, n := range root.Children {
		verbs = append(verbs, n.Name)
		var flags []string
		for _, group := range n.AllFlags(true) {
			for _, f := range group {
				flags = append(flags, "--"+f.Name)
			}
		}
		fmt.Fprintf(&cases, "    %s) words=%q ;;\n", n.Name, strings.Join(flags, " "))
	}
	return fmt.Sprintf(`_nanochat() {
  local cur=${COMP_WORDS[COMP_CWORD]} words=""
  if [ "$COMP_CWORD" = 1 ]; then
    COMPREPLY=($(compgen -W %q -- "$cur"))
    return
  fi
  case "${COMP_WORDS[1]}" in
%s  esac
  case "$cur" in
    -*) COMPREPLY=($(compgen -W "$words" -- "$cur")) ;;
    *) COMPREPLY=($(compgen -f -- "$cur")) ;;
  esac
}
complete -o filenames -F _nanochat nanochat
`, strings.Join(verbs, " "), cases.String())
}

func fishScript(root *kong.Node) string {
	var b strings.Builder
	quote := func(s string) string { return "'" + strings.ReplaceAll(s, "'", `\'`) + "'" }
	for _, n := range root.Children {
		fmt.Fprintf(&b, "complete -c nanochat -n __fish_use_subcommand -a %s -d %s\n", n.Name, quote(n.Help))
		for _, group := range n.AllFlags(true) {
			for _, f := range group {
				fmt.Fprintf(&b, "complete -c nanochat -n '__fish_seen_subcommand_from %s' -l %s -d %s\n", n.Name, f.Name, quote(f.Help))
			}
		}
	}
	return b.String()
}
