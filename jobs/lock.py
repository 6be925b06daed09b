"""One live process for each run directory.

The lock is a file that names its holder: process id, the time that process started, and the machine's boot. A holder
that is alive is never robbed; one that is dead is, also when its process id belongs to another process by now. An
flock on the file closes the gap between looking and taking, and speaks for processes on other machines: who gets it
is alone, wherever the file is mounted.

Some network file systems have no flock. There the names alone decide: a holder on this machine is looked at, and one on
another machine, or in another container, counts as alive, because nobody here can tell.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import time
from pathlib import Path
from typing import Any

from nanovllm import NanovllmError

# What a file system without flock says: NFS without its lock daemon, Lustre without -o flock, some FUSE mounts.
_NO_FLOCK = {getattr(errno, name) for name in ("ENOLCK", "EOPNOTSUPP", "ENOTSUP", "ENOSYS", "EINVAL")}

# Two processes that start together may both find no holder; who is still named after this time holds the lock.
_SETTLE_SECONDS = 0.3

logger = logging.getLogger("jobs")


class Locked(NanovllmError):
    """Another live process works in the directory."""


class RunLock:
    """Holds a run directory while it is entered.

    Raises:
        Locked: another live process holds it; on entering.
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path):
        self._path = path
        self._file: int | None = None

    def __enter__(self) -> RunLock:
        while self._file is None:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                self._take(file)
                # whoever held it may have removed the name in between; then this is the lock of nothing
                if _is_same_file(file, self._path):
                    self._file = file
            finally:
                if self._file is None:
                    os.close(file)
        return self

    def __exit__(self, *exception) -> None:
        if _is_same_file(self._file, self._path):
            self._path.unlink(missing_ok=True)
        os.close(self._file)
        self._file = None

    def _take(self, file: int) -> None:
        has_flock = self._flock(file)
        holder = read_holder(self._path)
        if holder is not None and holder != own_identity():
            if not has_flock and holder.get("host") != socket.gethostname():
                raise self._unknown(holder)
            if is_alive(holder):
                raise self._refusal(holder)
            logger.warning("taking over the lock of process %s, which is dead", holder.get("pid"))
        data = json.dumps(own_identity()).encode("ascii") + b"\n"
        os.pwrite(file, data, 0)
        os.ftruncate(file, len(data))
        if not has_flock:
            os.fsync(file)  # other machines see only what the server has
            time.sleep(_SETTLE_SECONDS)
            if read_holder(self._path) != own_identity():
                raise self._refusal(read_holder(self._path))

    def _flock(self, file: int) -> bool:
        """Take the flock; false where the file system has none."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # NFS emulates it by record locks, which may refuse in either word
            raise self._refusal(read_holder(self._path)) from None
        except OSError as error:
            if error.errno not in _NO_FLOCK:
                raise
            logger.warning(
                "%s: the file system has no flock (%s): two processes on different machines are kept apart by the "
                "content of this file alone", self._path, error.strerror,
            )  # fmt: skip
            return False
        return True

    def _unknown(self, holder: dict[str, Any]) -> Locked:
        return Locked(
            f"process {holder.get('pid')} on {holder.get('host')} may be at work in {self._path.parent}, and its file "
            f"system has no flock that could tell: wait for it, or remove {self._path} if it has ended"
        )

    def _refusal(self, holder: dict[str, Any] | None) -> Locked:
        who = "another live process" if holder is None else f"the live process {holder.get('pid')}"
        return Locked(f"{who} is at work in {self._path.parent}: wait for it, stop it, or choose another output")


def own_identity() -> dict[str, Any]:
    """Name this process so that no other one, earlier or later, has the same name."""
    return {"pid": os.getpid(), "started": _started(os.getpid()), "boot": _boot(), "host": socket.gethostname()}


def is_alive(holder: dict[str, Any]) -> bool:
    """Whether a process that `own_identity` named is still at work."""
    pid = holder.get("pid")
    if holder.get("boot") != _boot() or not isinstance(pid, int) or pid < 1:
        return False
    started = _started(pid)
    return started is not None and started == holder.get("started")


def read_holder(path: Path) -> dict[str, Any] | None:
    """Read who holds a lock; None when nobody does or the file is cut short."""
    try:
        holder = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return holder if isinstance(holder, dict) else None


def _started(pid: int) -> int | None:
    """Give the start of a process in clock ticks since boot; None when there is none, or only its zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("ascii", "replace")
    except OSError:
        return None
    fields = stat[stat.rindex(")") + 2 :].split()  # the name before may hold blanks and brackets
    return None if fields[0] in "ZX" else int(fields[19])


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


def _is_same_file(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except OSError:
        return False
