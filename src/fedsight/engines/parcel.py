"""Pickles what a worker process gets at its start, by value where necessary.

Another process cannot import classes and functions defined in a script or a notebook cell, so
these are sent as code. Everything else is sent by reference, and tensors in shared memory as file
descriptors.
"""

from __future__ import annotations

import contextlib
import copyreg
import io
import pickle
import sys
import threading
from collections import ChainMap
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from types import ModuleType
from typing import Any, ClassVar

import cloudpickle

from fedsight.core.errors import EngineError
from fedsight.program import plugins

_MAIN = threading.Lock()


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """cloudpickle with support for what multiprocessing sends: pipes, locks, descriptors."""

    dispatch_table: ClassVar[Any] = ChainMap(
        cloudpickle.Pickler.dispatch_table,
        ForkingPickler._extra_reducers,  # type: ignore[attr-defined]
        copyreg.dispatch_table,
    )


class Parcel:
    """A value to send to a worker, with the plug-ins that its parts come from.

    It is pickled while the process starts, because shared memory can be passed only then, and
    unpickled when the worker is ready to report errors.
    """

    def __init__(self, content: Any) -> None:
        self._content = content
        self._bytes = b""
        self._plugins: tuple[plugins.Code, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        buffer = io.BytesIO()
        try:
            _Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(self._content)
        except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as error:
            raise EngineError(
                f"the program cannot be sent to a worker process: {error}",
                "one of your objects holds something that cannot be pickled, such as an open "
                "file, a lock or a generator; create it inside the function or method that uses it",
            ) from error
        return _received, (buffer.getvalue(), plugins.loaded())

    def open(self) -> Any:
        """The value; imports the plug-ins first. Raises EngineError if that fails."""
        try:
            for code in self._plugins:
                plugins.install(code)
            return pickle.loads(self._bytes)
        except Exception as error:  # third-party code is imported: anything may be raised
            raise EngineError(
                f"a worker process cannot load the program: {type(error).__name__}: {error}",
                "if a module is missing, install it so that it can be imported from any folder; "
                "if memory is short, lower speed.workers",
            ) from error


def _received(content: bytes, codes: tuple[plugins.Code, ...]) -> Parcel:
    parcel = Parcel(None)
    parcel._bytes, parcel._plugins = content, codes
    return parcel


@contextlib.contextmanager
def main_hidden() -> Iterator[None]:
    """Keep processes that start within this context from importing the user's script.

    multiprocessing runs the main script again in each child, so a script without an
    `if __name__ == "__main__"` guard would start its run again in each worker. That import is not
    needed here: what the script defines is sent by value.
    """
    with _MAIN:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main
