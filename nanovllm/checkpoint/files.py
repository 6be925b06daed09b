"""Bounded reading of the small files of a checkpoint: JSON, and the recognition of Git-LFS pointers.

Everything here treats a file as hostile: sizes are checked before bytes are read, and whatever is wrong becomes one
sentence. It knows nothing of what the JSON means.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

from nanovllm.errors import CheckpointError, UsageError

_LFS_MAGIC = b"version https://git-lfs.github.com/spec/"


def read_json(
    path: str | os.PathLike, *, what: str, max_bytes: int = 64 << 20, error: type[UsageError] = CheckpointError
) -> dict:
    """Read a JSON file that holds one object.

    Args:
        path: the file.
        what: what the file is to the user, such as "model configuration"; it opens every message.
        max_bytes: larger files are refused before they are read.
        error: the class to raise.

    Returns:
        The object as a dict; of a key that is given twice the last value counts.

    Raises:
        UsageError: of class `error`; missing, unreadable, too large, a Git-LFS pointer, not UTF-8, not JSON, nested too
            deeply, or not an object.
    """
    path = Path(path)
    data = read_bounded(path, what=what, max_bytes=max_bytes, error=error)
    if is_lfs_pointer(data):
        raise error(f"{what} {lfs_pointer_message(path)}")
    return parse_json_object(data, where=f"{what} {path}", error=error)


def read_bounded(path: Path, *, what: str, max_bytes: int, error: type[UsageError] = CheckpointError) -> bytes:
    """Read a regular file whole, unless it is larger than `max_bytes`."""
    try:
        status = path.stat()
        # Opening a pipe would wait for its writer, and a device has no end.
        if not stat.S_ISREG(status.st_mode):
            raise error(f"{what} {path} is not a regular file; expected a file that can be read")
        if status.st_size > max_bytes:
            raise error(f"{what} {path} has {status.st_size:,} bytes, expected at most {max_bytes:,}")
        with path.open("rb") as file:
            return file.read(max_bytes)
    except FileNotFoundError:
        raise error(f"{what} {path} does not exist; check the path, or get the checkpoint again") from None
    except OSError as cause:
        raise error(f"{what} {path} cannot be read: {cause.strerror or cause}") from cause


def parse_json_object(data: bytes, *, where: str, error: type[UsageError] = CheckpointError, pairs_hook=None) -> dict:
    """Parse UTF-8 JSON that must be one object.

    Args:
        data: the bytes.
        where: names the file (and place in it); it opens every message.
        error: the class to raise.
        pairs_hook: `object_pairs_hook` of the json module.
    """
    try:
        # Some editors begin a UTF-8 file with a byte order mark, which JSON does not allow.
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=pairs_hook)
    except UnicodeDecodeError as cause:
        raise error(f"{where} is not UTF-8 text: byte {cause.start} cannot be decoded; the file is damaged") from None
    except json.JSONDecodeError as cause:
        raise error(f"{where} is not JSON: {cause.msg} at line {cause.lineno}, column {cause.colno}") from None
    except RecursionError:
        raise error(f"{where} is nested too deeply to be read; the file is damaged") from None
    except ValueError as cause:
        # Python limits the digits of an integer.
        raise error(f"{where} holds a number that cannot be read: {cause}") from None
    if not isinstance(value, dict):
        raise error(f"{where} holds {json_type(value)}, expected a JSON object")
    return value


def kind_of(path: Path) -> str | None:
    """Tell whether a path leads to a "directory", a "file" or "something else"; None if it leads nowhere.

    Unlike pathlib it takes any string, also one that no file system could hold.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return None
    return "directory" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "something else"


def json_type(value) -> str:
    """Name a parsed value in JSON's own words, with its article."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    names = {dict: "an object", list: "an array", str: "a string", int: "a number", float: "a number"}
    return names[type(value)]


def is_lfs_pointer(head: bytes) -> bool:
    """Tell whether a file that begins with `head` is a Git-LFS pointer instead of the content it stands for."""
    return head.startswith(_LFS_MAGIC)


def lfs_pointer_message(path: Path) -> str:
    """Say what a Git-LFS pointer is and how to get the content; begins with the path."""
    return f"{path} is a Git-LFS pointer, not the file itself; run `git lfs pull` in {path.parent} or download it again"


def quote(value, limit: int = 80) -> str:
    """Quote a value that came from a file, cut to `limit` characters, for use in a message."""
    try:
        text = repr(value)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= limit else text[: limit - 1] + "…"
