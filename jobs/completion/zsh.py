"""Write the completion script of zsh."""

from __future__ import annotations

from jobs.completion.tree import Argument, Command

_SCRIPT = """\
#compdef nanovllm
# zsh completion of nanovllm, made by: nanovllm completion zsh
# As _nanovllm in a folder of $fpath; or in ~/.zshrc, after compinit: eval "$(nanovllm completion zsh)"

_nanovllm() {
  local curcontext=$curcontext state line ret=1
  typeset -A opt_args
  local -a commands=(
@COMMANDS@
  )
  _arguments -C @OPTIONS@ '1:command:->command' '*::argument:->argument' && ret=0
  case $state in
    command) _describe -t commands command commands && ret=0 ;;
    argument)
      curcontext=${curcontext%:*:*}:nanovllm-$line[1]:
      case $line[1] in
@ARGUMENTS@
      esac
      ;;
  esac
  return ret
}

if [[ $funcstack[1] == _nanovllm ]]; then
  _nanovllm "$@"
else
  compdef _nanovllm nanovllm
fi
"""


def script(program: Command, commands: list[Command]) -> str:
    """Write the script."""
    described = "\n".join(f"    {_quote(f'{each.name}:{each.summary}')}" for each in commands)
    arguments = []
    for command in commands:
        specs = [spec for option in command.options for spec in _option(option)]
        specs += [_positional(number, each) for number, each in enumerate(command.positionals, start=1)]
        lines = " \\\n".join(f"            {_quote(spec)}" for spec in specs)
        arguments.append(f"        {command.name})\n          _arguments \\\n{lines} && ret=0\n          ;;")
    options = " ".join(_quote(spec) for option in program.options for spec in _option(option))
    text = _SCRIPT.replace("@COMMANDS@", described).replace("@OPTIONS@", options)
    return text.replace("@ARGUMENTS@", "\n".join(arguments))


def _option(option: Argument) -> list[str]:
    """Describe each spelling; giving one rules out the others, unless the option repeats."""
    others = "*" if option.repeats else f"({' '.join(option.flags)})"
    specs = []
    for flag in option.flags:
        if option.kind == "none":
            specs.append(f"{others}{flag}[{_escape(option.summary)}]")
        else:
            sign = "=" if flag.startswith("--") else "+"  # --flag=value, -fvalue, or the value as a word of its own
            specs.append(f"{others}{flag}{sign}[{_escape(option.summary)}]:{_escape(option.metavar)}:{_value(option)}")
    return specs


def _positional(number: int, argument: Argument) -> str:
    place = "*" if argument.repeats else str(number)
    return f"{place}:{_escape(argument.metavar)}:{_value(argument)}"


def _value(argument: Argument) -> str:
    if argument.kind == "choice":
        return f"({' '.join(argument.values)})"
    if argument.kind == "directory":
        return "_path_files -/"
    if argument.kind == "file":
        names = "|".join(suffix.removeprefix(".") for suffix in argument.suffixes)
        return f'_files -g "*.({names})(-.)"' if names else "_files"
    return " "


def _escape(text: str) -> str:
    for sign in "\\[]:":
        text = text.replace(sign, f"\\{sign}")
    return text


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
