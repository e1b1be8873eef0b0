package main

import (
	"context"
	"fmt"

	"github.com/urfave/cli/v3"
)

// bashCompletion asks sqllock itself, which answers in lines of word:description. In
// place of the library's it needs no package bash-completion, which hosts that run cron
// jobs have not, and asks without eval. What follows a -- is bash's own affair.
const bashCompletion = `# bash completion for sqllock: source <(sqllock completion bash)
_sqllock() {
	local current="${COMP_WORDS[COMP_CWORD]}" word line candidates=""
	local -a before=("${COMP_WORDS[@]:1:COMP_CWORD-1}")
	for word in "${before[@]}"; do
		[[ $word == -- ]] && return
	done
	[[ $current == -* ]] && before+=("$current")
	while IFS= read -r line; do
		candidates+="${line%%:*} "
	done < <("${COMP_WORDS[0]}" "${before[@]}" --generate-shell-completion 2>/dev/null)
	COMPREPLY=($(compgen -W "$candidates" -- "$current"))
}
complete -o bashdefault -o default -F _sqllock sqllock
`

// configureCompletion shows the command completion, and has it write the script above.
func configureCompletion(c *cli.Command) {
	c.Hidden, c.Category = false, setup
	c.Usage = "print a script for the completion of bash, zsh, fish or pwsh"
	c.Description = "The script goes to standard output, for the start of a shell:\n\n" +
		" bash  source <(sqllock completion bash)\n" +
		" zsh   source <(sqllock completion zsh)\n" +
		" fish  sqllock completion fish >~/.config/fish/completions/sqllock.fish\n" +
		" pwsh  sqllock completion pwsh >sqllock.ps1, which the profile then runs"
	c.OnUsageError = onUsageError
	for _, shell := range c.Commands {
		shell.OnUsageError = onUsageError
		if shell.Name == "bash" {
			shell.Action = func(_ context.Context, cmd *cli.Command) error {
				_, err := fmt.Fprint(cmd.Root().Writer, bashCompletion)
				return err
			}
		}
	}
}
