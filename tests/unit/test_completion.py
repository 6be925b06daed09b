"""Completion as a person meets it: keys go to a real shell, and what it makes of the line is read back."""

import argparse
import os
import pty
import select
import shlex
import shutil
import subprocess
import sys
import time

import pytest

from jobs.cli import COMMANDS, build_parser, main
from jobs.commands.completion import SHELLS

# What is typed before the Tab key, and the line behind it; the same line when there is nothing to complete.
LINES = [
    ("nanovllm stat", "nanovllm status"),
    ("nanovllm run --prog", "nanovllm run --progress"),
    ("nanovllm run --progress j", "nanovllm run --progress json"),
    ("nanovllm run --progress=j", "nanovllm run --progress=json"),
    ("nanovllm run jo", "nanovllm run job.yaml"),
    ("nanovllm run --limit 4 jo", "nanovllm run --limit 4 job.yaml"),
    ("nanovllm run job.yaml --limit jo", "nanovllm run job.yaml --limit jo"),
    ("nanovllm run job.yaml --model mo", "nanovllm run job.yaml --model model-dir/"),
    ("nanovllm run job.yaml --input ro", "nanovllm run job.yaml --input rows\\ one.jsonl"),
    ("nanovllm run-batch -i ro", "nanovllm run-batch -i rows\\ one.jsonl"),
    ("nanovllm merge out shard-0 sha", "nanovllm merge out shard-0 shard-1/"),
    ("nanovllm convert we", "nanovllm convert weights.gguf"),
    ("nanovllm convert weights.gguf mo", "nanovllm convert weights.gguf model-dir/"),
    ("nanovllm status jolly", "nanovllm status jolly"),
    ("nanovllm info model-dir --js", "nanovllm info model-dir --json"),
    ("nanovllm completion z", "nanovllm completion zsh"),
]

# Tab completes; the key behind it writes the line into a file and empties it.
BASH = """
PS1= PS2=
source ./script
shown() { printf '%s' "$READLINE_LINE" > shown.tmp; mv shown.tmp shown; READLINE_LINE=; READLINE_POINT=0; }
bind -x '"\\C-g": shown'
"""
ZSH = """
PS1= PS2=
unsetopt zle_bracketed_paste prompt_sp
autoload -Uz compinit && compinit -u -D
source ./script
shown() { print -rn -- "$BUFFER" > shown.tmp; mv shown.tmp shown; BUFFER=; }
zle -N shown && bindkey '^G' shown && bindkey '^I' complete-word
"""


@pytest.fixture
def folder(tmp_path, capsys):
    """Gives a folder with files to complete, and the shell's script in `script`."""
    for name in ("job.yaml", "jolly.txt", "weights.gguf", "rows one.jsonl"):
        (tmp_path / name).write_text("")
    for name in ("model-dir", "shard-1"):
        (tmp_path / name).mkdir()

    def make(shell):
        if shutil.which(shell) is None:
            pytest.skip(f"{shell} is not installed")
        assert main(["completion", shell]) == 0
        (tmp_path / "script").write_text(capsys.readouterr().out)
        return tmp_path

    return make


class Terminal:
    """A shell at a terminal of its own."""

    def __init__(self, command, folder, setup):
        self._folder = folder
        (folder / "setup").write_text(setup)
        master, slave = pty.openpty()
        environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "TERM": "dumb", "LC_ALL": "C.UTF-8"}
        self._process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, cwd=folder, env=environment, start_new_session=True
        )
        os.close(slave)
        self._master = master
        self._send("source ./setup; : > ready\n")
        self._wait_for("ready")

    def complete(self, typed):
        """Type, press Tab, and give the line."""
        self._send(typed + "\t\a")
        return self._wait_for("shown")

    def close(self):
        self._process.kill()
        self._process.wait()
        os.close(self._master)

    def _send(self, text):
        os.write(self._master, text.encode())

    def _wait_for(self, name):
        path = self._folder / name
        screen, give_up = b"", time.monotonic() + 60
        while not path.exists():
            assert time.monotonic() < give_up, screen
            if select.select([self._master], [], [], 0.02)[0]:  # an unread terminal holds the shell up
                screen += os.read(self._master, 65536)
        text = path.read_text()
        path.unlink()
        return text


@pytest.mark.parametrize(
    ("shell", "command", "setup"),
    [("bash", ["bash", "--norc", "--noprofile", "-i"], BASH), ("zsh", ["zsh", "-f", "-i"], ZSH)],
    ids=["bash", "zsh"],
)
def test_the_tab_key_completes_the_line(shell, command, setup, folder):
    terminal = Terminal(command, folder(shell), setup)
    try:
        # a shell adds a blank, or zsh an =, for what comes next
        completed = {typed: terminal.complete(typed).rstrip(" =") for typed, _ in LINES}
    finally:
        terminal.close()
    assert completed == dict(LINES)


def test_fish_offers_what_completes_the_line(folder):
    script = "source ./script\n" + "".join(f"complete -C {shlex.quote(typed)}; echo --\n" for typed, _ in LINES)
    done = subprocess.run(
        ["fish", "--no-config"], cwd=folder("fish"), input=script, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    offers = done.stdout.split("--\n")
    for (typed, line), offered in zip(LINES, offers, strict=False):
        first = offered.split("\n")[0].split("\t")[0]
        word = shlex.split(line)[-1]
        assert first == ("" if line == typed else word), typed


def options_of(command):
    parser = build_parser()
    (subparsers,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return sorted(flag for action in subparsers.choices[command]._actions for flag in action.option_strings)


def test_every_command_and_every_option_is_offered(folder):
    words = [("nanovllm", ""), *(("nanovllm", command, "-") for command in COMMANDS)]
    script = "source ./script\n"
    for line in words:
        quoted = " ".join(map(shlex.quote, line))
        script += f'COMP_WORDS=({quoted}); COMP_CWORD={len(line) - 1}; _nanovllm; echo "${{COMPREPLY[*]}}"\n'
    done = subprocess.run(["bash"], cwd=folder("bash"), input=script, capture_output=True, text=True, check=True)
    offered = [line.split() for line in done.stdout.splitlines()]
    assert offered[0] == list(COMMANDS)
    assert {command: sorted(words) for command, words in zip(COMMANDS, offered[1:], strict=True)} == {
        command: options_of(command) for command in COMMANDS
    }


@pytest.mark.parametrize("shell", SHELLS)
def test_every_command_is_described(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"nanovllm completion {shell}" in "".join(script.splitlines(keepends=True)[:3])
    for name, (_, summary) in COMMANDS.items():
        assert name in script
        assert shell == "bash" or summary.replace("'", "'\\''") in script or summary.replace("'", "\\'") in script


def test_an_unknown_shell_is_refused(capsys):
    assert main(["completion", "tcsh"]) == 2
    assert "tcsh" in capsys.readouterr().err


def test_no_engine_is_imported():
    code = (
        "import sys, jobs.cli; jobs.cli.main(['completion', 'fish']);"
        "sys.exit(any('kernels' in name or name.split('.')[0] in ('numpy', 'jinja2', 'yaml') for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
