"""Write the completion script of fish."""

from __future__ import annotations

from jobs.completion.tree import Argument, Command

_HEAD = """\
# fish completion of nanovllm, made by: nanovllm completion fish
# nanovllm completion fish > ~/.config/fish/completions/nanovllm.fish

function __nanovllm_command_is
    set -l words (commandline -opc)
    test (count $words) -ge 2; and test "$words[2]" = "$argv[1]"
end

function __nanovllm_needs_command
    test (count (commandline -opc)) -eq 1
end

complete -c nanovllm -f
"""


def script(program: Command, commands: list[Command]) -> str:
    """Write the script."""
    lines = [_option("__nanovllm_needs_command", option) for option in program.options]
    for command in commands:
        lines.append(_line("__nanovllm_needs_command", f"-a {command.name}", command.summary))
        condition = f"__nanovllm_command_is {command.name}"
        lines += [_option(condition, option) for option in command.options]
        # fish is not told which of them it is; the same kind twice would be offered twice
        kinds = dict.fromkeys(_value(argument) for argument in command.positionals)
        lines += [_line(condition, kind, "") for kind in kinds if kind]
    return _HEAD + "\n".join(lines) + "\n"


def _option(condition: str, option: Argument) -> str:
    flags = " ".join(f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags)
    if option.kind != "none":
        # -x: a value, and no files but those that are asked for
        flags += f" {_value(option) or '-x'}" if option.kind == "file" and not option.suffixes else " -x"
        flags += f" {_value(option)}" if option.kind in ("choice", "directory") or option.suffixes else ""
    return _line(condition, flags, option.summary)


def _value(argument: Argument) -> str:
    if argument.kind == "choice":
        return f"-a {_quote(' '.join(argument.values))}"
    if argument.kind == "directory":
        return "-a '(__fish_complete_directories)'"
    if argument.kind == "file" and argument.suffixes:
        calls = "; ".join(f"__fish_complete_suffix {suffix}" for suffix in argument.suffixes)
        return f"-k -a '({calls})'"
    return "-r -F" if argument.kind == "file" else ""


def _line(condition: str, rest: str, summary: str) -> str:
    line = f"complete -c nanovllm -n {_quote(condition)} {rest}"
    return f"{line} -d {_quote(summary)}" if summary else line


def _quote(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
