"""The extras of the package: the modules that each brings, and how to install one that is missing.

What nearly every run needs is a dependency. An extra is for a package that is large, that brings
many others along, or that only some tasks need (docs/how-to/install.md weighs them).
"""

from __future__ import annotations

from importlib.util import find_spec

EXTRAS = {
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "tensorboard": ("tensorboard",),
    "mlflow": ("mlflow",),
    "huggingface": ("datasets",),
    "deploy": ("nvflare", "setproctitle", "prometheus_client"),
    "medical": ("pydicom",),
    "heif": ("pillow_heif",),
    "privacy": ("dp_accounting",),
    "timm": ("timm",),
    "plots": ("matplotlib",),
    "console": ("starlette", "uvicorn"),
    "explain": ("captum",),
}


def missing(extra: str) -> list[str]:
    """The modules of an extra that are not installed here, without importing any."""
    return [name for name in EXTRAS[extra] if not _is_here(name)]


def install(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install 'fedsight[{extra}]'"


def _is_here(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False
