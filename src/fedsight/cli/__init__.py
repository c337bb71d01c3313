"""The command line."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point: runs a command; an error is one clear message and an exit code."""
    from fedsight.cli.app import app
    from fedsight.core.errors import FedSightError

    try:
        app()
    except FedSightError as error:
        from fedsight.cli.screen import show_error

        show_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
