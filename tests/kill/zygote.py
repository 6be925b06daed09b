"""Runs `nanovllm` commands in forked children, so that a kill costs no import; optionally with a fault inside.

Reads one JSON object a line: argv, stderr (a file), and a fault {"at": N, "do": kill, torn, term, int or full} that
acts at the N-th call of write, fsync, rename, unlink or truncate, before it or, with "after", behind it. Answers
with the child's pid, then with its exit status.
"""

import errno
import json
import os
import signal
import sys
import traceback
from pathlib import Path

import jobs.merging
import jobs.run
import nanovllm.llm
from jobs.cli import build_parser, main

assert jobs.run and jobs.merging and nanovllm.llm  # imported for the children

BOUNDARIES = ("write", "fsync", "replace", "unlink", "ftruncate")
SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}


def install(fault):
    """Count every boundary and act at one of them."""
    count = 0

    def wrap(name):
        original = getattr(os, name)

        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count != fault["at"]:
                return original(*args, **kwargs)
            if fault["do"] == "full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if fault["do"] == "torn":
                if name == "write":
                    original(args[0], bytes(args[1])[: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*args, **kwargs) if fault.get("after") else None
            os.kill(os.getpid(), SIGNALS[fault["do"]])
            return result if fault.get("after") else original(*args, **kwargs)

        setattr(os, name, call)

    for name in BOUNDARIES:
        wrap(name)
    return lambda: count


def child(command):
    null = os.open(os.devnull, os.O_RDWR)
    log = os.open(command["stderr"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for file, target in ((null, 0), (null, 1), (log, 2)):
        os.dup2(file, target)
    counted = install(command.get("fault") or {"at": -1})
    code = main(command["argv"])
    if "count_to" in command:
        Path(command["count_to"]).write_text(str(counted()))
    os._exit(code)


def serve():
    build_parser()  # imports the commands
    nanovllm.machine_info()  # looks up versions and CPU, once for all children
    for line in sys.stdin:
        command = json.loads(line)
        pid = os.fork()
        if pid == 0:
            try:
                child(command)
            except KeyboardInterrupt:
                os._exit(130)  # before the command began, as the interpreter itself would end
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(99)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


serve()
