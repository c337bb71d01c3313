"""A fork of the prefork process: made, turned into what it is to run, and ended for certain."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import runpy
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Never

from fedsight.deploy.processes.child import end_with_parent
from fedsight.deploy.processes.spawn import Start

_PR_SET_PDEATHSIG = 1  # `prctl(2)`
_ASKING = {signal.SIGTERM, signal.SIGINT}


def fork() -> int:
    """`os.fork`; the copy dies with this process, and is deaf to SIGTERM and Ctrl-C until `ended`.

    A copy that handled them as its keeper does would end what is its keeper's. Raises OSError
    when there can be no further process; this one then listens as before.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # what cannot be said is no reason not to start
            stream.flush()
    parent = os.getpid()
    signal.pthread_sigmask(signal.SIG_BLOCK, _ASKING)
    pid = -1
    try:
        pid = os.fork()
    finally:
        if pid != 0:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ASKING)
    if pid == 0:
        with contextlib.suppress(OSError, AttributeError):  # not everywhere
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
        if os.getppid() != parent:
            os._exit(1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        atexit._clear()  # nor is what the keeper does at its end
    return pid


def become(start: Start, output: int, passed: Sequence[int]) -> None:
    """Be the process that `start` describes; returns when it has ended."""
    os.setsid()
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    _close_all_but({0, 1, 2, *passed})
    os.chdir(start.folder)
    os.environ.clear()
    os.environ.update(start.environment)
    from setproctitle import setproctitle

    words = [*start.words, *map(str, passed)]
    setproctitle(" ".join(["fedsight:", start.module, *words]))
    end_with_parent()
    sys.argv = [start.module, *words]
    if not hasattr(sys.modules.get(start.module), "__path__"):
        sys.modules.pop(start.module, None)  # it runs anew, as the main one
    runpy.run_module(start.module, run_name="__main__", alter_sys=True)


def _close_all_but(kept: set[int]) -> None:
    """Close what the keeper had open: locks, its socket, the lines of others."""
    for path in list(Path("/dev/fd").iterdir()):
        if int(path.name) not in kept:
            with contextlib.suppress(OSError):  # the one for the listing itself
                os.close(int(path.name))


class ended(contextlib.AbstractContextManager[None]):  # noqa: N801 - read as a phrase
    """The process ends here, and never goes on in its keeper's frames."""

    def __enter__(self) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ASKING)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> Never:
        code = 0
        if isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
            if isinstance(error.code, str):
                print(error.code, file=sys.stderr)
        elif isinstance(error, KeyboardInterrupt):
            code = 130
        elif error is not None:
            traceback.print_exception(error)
            code = 1
        with contextlib.suppress(BaseException):
            threading._shutdown()  # type: ignore[attr-defined]  # as the interpreter does at its end
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
