"""Whether NVIDIA FLARE is installed; checked before a command begins anything that needs it."""

from __future__ import annotations

from importlib.util import find_spec

from fedsight.core.errors import DeployError


def need_engine() -> None:
    """Raise DeployError unless NVIDIA FLARE is installed."""
    if find_spec("nvflare") is None:
        raise DeployError(
            "federations across machines need NVIDIA FLARE, which is not installed here",
            "install it with: pip install 'fedsight[deploy]'",
        )
