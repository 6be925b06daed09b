"""Turn the paths of a job file and of the command line into paths on disk.

Owns `${ENV_VAR}`, the placeholders of `output`, and where a relative path starts: for what is read, the job file's
folder and then the working directory; for what is written, the job file's folder, so that a job started by cron lands
where it always does. A path given on the command line starts at the working directory.
"""

from __future__ import annotations

import datetime
import glob
import os
import re
from pathlib import Path

from nanovllm import ConfigError

STDIN = "-"

_VARIABLE = re.compile(r"\$\{([^}]*)\}")
_PLACEHOLDER = re.compile(r"\{([^}]*)\}")


def expand_variables(text: str, place: str) -> str:
    """Replace each `${NAME}` by the environment variable; `place` names the setting in errors."""

    def value(match: re.Match) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise ConfigError(f"{place}: the environment variable {name!r} in {text!r} is not set")
        return os.environ[name]

    return _without_null(_VARIABLE.sub(value, text), place)


def expand_output(text: str, name: str, today: datetime.date, place: str) -> str:
    """Replace `{date}`, `{name}` and `${NAME}` in the path of a run."""
    values = {"date": today.isoformat(), "name": name}

    def value(match: re.Match) -> str:
        if match.group(1) not in values:
            raise ConfigError(f"{place}: {match.group()!r} in {text!r} is unknown: output knows {{date}} and {{name}}")
        return values[match.group(1)]

    pieces = _VARIABLE.split(text)  # text, variable, text, variable, …, text
    plain = [_PLACEHOLDER.sub(value, piece) for piece in pieces[0::2]]
    variables = [expand_variables(f"${{{variable}}}", place) for variable in pieces[1::2]]
    path = "".join(part for pair in zip(plain, [*variables, ""], strict=True) for part in pair)
    if path.startswith("~") and os.path.expanduser(path) == path:  # noqa: PTH111  (Path's own raises no error of ours)
        raise ConfigError(f"{place}: {path!r} begins with ~ and names no user of this machine: write the folder out")
    return _without_null(path, place)


def find_inputs(pattern: str, folders: list[Path], place: str) -> list[Path]:
    """Find the files that a path or glob names, looking in `folders` one after another.

    Raises:
        ConfigError: nothing is there, or it is a folder.
    """
    pattern = os.path.expanduser(expand_variables(pattern, place))  # noqa: PTH111  (a glob is not a path)
    for folder in folders:
        try:
            found = _find_in(folder, pattern, place)
        except OSError as error:  # a name that is too long, or a folder that may not be entered
            raise ConfigError(f"{place}: {_short(pattern)} cannot be looked up in {folder}: {error.strerror}") from None
        if found:
            return found
    looked = " and ".join(str(folder) for folder in folders)
    what = "no file matches" if glob.has_magic(pattern) else "there is no file"
    raise ConfigError(f"{place}: {what} {_short(pattern)} (looked in {looked})")


def _find_in(folder: Path, pattern: str, place: str) -> list[Path]:
    literal = folder / pattern
    if literal.is_dir():
        raise ConfigError(f"{place}: {literal} is a folder: name its files, for instance {pattern}/*.jsonl")
    if literal.exists():
        return [literal]
    if not glob.has_magic(pattern):
        return []
    # not Path.glob: it refuses an absolute pattern
    names = glob.glob(str(_plain(folder) / pattern), recursive=True)  # noqa: PTH207
    return [path for path in sorted(map(Path, names)) if not path.is_dir()]


def _without_null(path: str, place: str) -> str:
    if "\0" in path:
        raise ConfigError(f"{place}: {_short(path)} holds a null byte, which no path can")
    return path


def _short(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= 120 else shown[:117] + "..."


def _plain(folder: Path) -> Path:
    """Keep the signs of a glob that are part of the folder's own name from acting as one."""
    return Path(glob.escape(str(folder)))
