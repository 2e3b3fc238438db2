"""Forks commands for ``launching.py``; reads requests, one JSON line each.

``start`` forks a process that runs a command and answers its number; ``poll`` answers
the status of one, null while it lives.
"""

import importlib
import json
import os
import sys
import traceback
from typing import Any

from metaensemble.cli import main

NEEDED = (
    *("metaensemble.cli.teach", "metaensemble.cli.fuse", "metaensemble.cli.predict"),
    "metaensemble.cli.learn_weightformer",
    *("torch._dynamo", "torch.distributed.nn", "matplotlib.backends.backend_svg"),
)
"""Imported once, for all that are forked; PyTorch's optimizers import the compiler."""


def start(request: dict[str, Any]) -> int:
    """Fork a process that runs a command, and return its number."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.chdir(request["folder"])
        os.environ.update(request["variables"])
        said = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (said, 1), (said, 2)):
            os.dup2(source, target)
        status = main(request["arguments"])
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def poll(pid: int) -> int | None:
    """Return the status of a forked process, None while it lives."""
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


if __name__ == "__main__":
    for name in NEEDED:
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        answer = start(request) if request["what"] == "start" else poll(request["pid"])
        print(json.dumps(answer), flush=True)
