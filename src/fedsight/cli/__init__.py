"""The command line."""

from __future__ import annotations

import contextlib
import sys


def main() -> None:
    """Entry point: runs a command; an error is one clear message and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # None, or another object in its place
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        from fedsight.cli.app import app
        from fedsight.core.errors import FedSightError, Interrupted

        try:
            app()
        except FedSightError as error:
            from fedsight.cli.screen import show_error

            show_error(error)
            sys.exit(error.exit_code)
        except SystemExit as end:  # Typer makes Ctrl-C an exit code, without a word
            if end.code != Interrupted.exit_code:
                raise
            raise KeyboardInterrupt from None
    except KeyboardInterrupt:
        from fedsight.language.message import message

        print(message("Stopped by Ctrl-C"), file=sys.stderr)
        sys.exit(130)
