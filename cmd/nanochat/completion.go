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
		if len(n.Children) == 0 {
			fmt.Fprintf(&cases, "    %s) words=%q ;;\n", n.Name, flagWords(n))
			continue
		}
		// A verb of its own kind: nanochat tokenizer train.
		var second []string
		for _, c := range n.Children {
			second = append(second, c.Name)
			fmt.Fprintf(&cases, "    \"%s %s\") words=%q ;;\n", n.Name, c.Name, flagWords(c))
		}
		fmt.Fprintf(&cases, "    %s) only=%q ;;\n", n.Name, strings.Join(second, " "))
	}
	return fmt.Sprintf(`_nanochat() {
  local cur=${COMP_WORDS[COMP_CWORD]} words="" only="" verb=${COMP_WORDS[1]}
  if [ "$COMP_CWORD" = 1 ]; then
    COMPREPLY=($(compgen -W %q -- "$cur"))
    return
  fi
  case $verb in %s) [ "$COMP_CWORD" -gt 2 ] && verb="$verb ${COMP_WORDS[2]}" ;; esac
  case $verb in
%s  esac
  if [ -n "$only" ]; then
    COMPREPLY=($(compgen -W "$only" -- "$cur"))
    return
  fi
  case "$cur" in
    -*) COMPREPLY=($(compgen -W "$words" -- "$cur")) ;;
    *) COMPREPLY=($(compgen -f -- "$cur")) ;;
  esac
}
complete -o filenames -F _nanochat nanochat
`, strings.Join(verbs, " "), strings.Join(parents(root), "|"), cases.String())
}

func flagWords(n *kong.Node) string {
	var flags []string
	for _, group := range n.AllFlags(true) {
		for _, f := range group {
			flags = append(flags, "--"+f.Name)
		}
	}
	return strings.Join(flags, " ")
}

// parents are the verbs that need a second one.
func parents(root *kong.Node) (names []string) {
	for _, n := range root.Children {
		if len(n.Children) > 0 {
			names = append(names, n.Name)
		}
	}
	return names
}

func fishScript(root *kong.Node) string {
	var b strings.Builder
	quote := func(s string) string { return "'" + strings.ReplaceAll(s, "'", `\'`) + "'" }
	flags := func(n *kong.Node, seen string) {
		for _, group := range n.AllFlags(true) {
			for _, f := range group {
				fmt.Fprintf(&b, "complete -c nanochat -n '%s' -l %s -d %s\n", seen, f.Name, quote(f.Help))
			}
		}
	}
	for _, n := range root.Children {
		fmt.Fprintf(&b, "complete -c nanochat -n __fish_use_subcommand -a %s -d %s\n", n.Name, quote(n.Help))
		seen := "__fish_seen_subcommand_from " + n.Name
		if len(n.Children) == 0 {
			flags(n, seen)
			continue
		}
		var second []string
		for _, c := range n.Children {
			second = append(second, c.Name)
		}
		for _, c := range n.Children {
			fmt.Fprintf(&b, "complete -c nanochat -n '%s; and not __fish_seen_subcommand_from %s' -f -a %s -d %s\n", seen, strings.Join(second, " "), c.Name, quote(c.Help))
			flags(c, seen+"; and __fish_seen_subcommand_from "+c.Name)
		}
	}
	return b.String()
}
