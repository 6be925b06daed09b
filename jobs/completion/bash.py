"""Write the completion script of bash."""

from __future__ import annotations

import shlex

from jobs.completion.tree import Argument, Command

_SCRIPT = """\
# bash completion of nanovllm, made by: nanovllm completion bash
# In ~/.bashrc: eval "$(nanovllm completion bash)"

_nanovllm_add() { # words, one a line, become replies
  local word
  while IFS= read -r word; do COMPREPLY+=("$word"); done
}

_nanovllm_value() { # KIND [WORD...]: what fits the current word
  local kind=$1 suffix
  shift
  case $kind in
    choice) _nanovllm_add < <(compgen -W "$*" -- "$cur") ;;
    directory) _nanovllm_add < <(compgen -d -- "$cur") ;;
    file)
      if (($# == 0)); then
        _nanovllm_add < <(compgen -f -- "$cur")
      else
        _nanovllm_add < <(compgen -d -- "$cur")
        for suffix in "$@"; do _nanovllm_add < <(compgen -f -X "!*$suffix" -- "$cur"); done
      fi
      ;;
  esac
  [[ $kind == choice ]] || compopt -o filenames 2> /dev/null
}

_nanovllm() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} command= options= valued= num=0 i
  COMPREPLY=()
  # readline makes a word of the = in --option=value
  if [[ $cur == = ]]; then
    cur=
  elif [[ $prev == = ]]; then
    prev=${COMP_WORDS[COMP_CWORD - 2]}
  fi
  ((COMP_CWORD > 1)) && command=${COMP_WORDS[1]}
  case $command in
@OPTIONS@
  esac
  if [[ $cur == -* ]]; then
    _nanovllm_value choice "$options"
    return
  fi
  case $command/$prev in
@VALUES@
  esac
  for ((i = 2; i < COMP_CWORD; i++)); do # how many positionals there are before the current word
    if [[ " $valued " == *" ${COMP_WORDS[i]} "* ]]; then
      ((i++))
      [[ ${COMP_WORDS[i]} == = ]] && ((i++))
    elif [[ ${COMP_WORDS[i]} != -* ]]; then
      ((num++))
    fi
  done
  case $command/$num in
@POSITIONALS@
  esac
}

complete -F _nanovllm nanovllm
"""


def script(program: Command, commands: list[Command]) -> str:
    """Write the script."""
    options, values, positionals = [], [], []
    for command in (program, *commands):
        flags = " ".join(flag for option in command.options for flag in option.flags)
        valued = " ".join(flag for option in command.options if option.kind != "none" for flag in option.flags)
        label = command.name or "''"
        options.append(f"    {label}) options={shlex.quote(flags)} valued={shlex.quote(valued)} ;;")
        for option in command.options:
            if option.kind != "none":
                pattern = " | ".join(f"{command.name}/{flag}" for flag in option.flags)
                values.append(f"    {pattern}) {_value(option)}; return ;;")
        for number, positional in enumerate(command.positionals):
            pattern = f"{command.name}/*" if positional.repeats else f"{command.name}/{number}"
            positionals.append(f"    {pattern}) {_value(positional)} ;;")
    names = " ".join(command.name for command in commands)
    positionals.append(f"    /0) _nanovllm_value choice {names} ;;")
    text = _SCRIPT.replace("@OPTIONS@", "\n".join(options))
    return text.replace("@VALUES@", "\n".join(values)).replace("@POSITIONALS@", "\n".join(positionals))


def _value(argument: Argument) -> str:
    words = argument.values or argument.suffixes
    return " ".join(["_nanovllm_value", argument.kind, *map(shlex.quote, words)])
