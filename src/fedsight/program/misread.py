"""What to say of a file that is not a config, and of a network where a part's name belongs."""

from __future__ import annotations

from pathlib import Path

from fedsight.core.extras import missing
from fedsight.data.suffixes import BY_MODALITY

NAME_FIRST = 'set model.name = "torchvision" or "timm" as well: only they have architectures'
_TOML = "put strings in quotes and write sections as [train]; see the reference for examples"
_OTHERS = {".yaml": "YAML", ".yml": "YAML", ".json": "JSON", ".ini": "INI", ".py": "Python"}


def not_read(path: Path, error: OSError) -> tuple[str, str]:
    """Cause and cure for a config that cannot be read."""
    if path.is_dir():
        inside = sorted(one.name for one in path.glob("*.toml"))
        if inside:
            return f"{path} is a folder, not a config file", f"give {path / inside[0]}"
        cure = f'write a TOML file with [data], name = "folder" and path = "{path}", and give that'
        return f"{path} is a folder, not a config file", cure
    if not path.exists():
        return f"there is no config file {path}", "give the path of a TOML file"
    return f"cannot read {path}: {error.strerror}", "give the path of a TOML file"


def not_toml(path: Path, error: Exception) -> tuple[str, str]:
    """Cause and cure for a config that is not TOML."""
    suffix = path.suffix.lower()
    if title := _OTHERS.get(suffix):
        example = '[data] on a line of its own, and below it name = "folder"'
        return f"{path} is {title}, and a config is a TOML file", f"write it as TOML: {example}"
    if suffix in BY_MODALITY["image"]:
        cure = "give a TOML file; its data.path names the images"
        return f"{path} is an image, not a config file", cure
    return f"{path} is not TOML: {error}", _TOML


def architecture_cure(name: str) -> str | None:
    """How to write `name` if it is a network of torchvision or of an installed timm, else None."""
    import torchvision

    plain = name.rpartition(":")[2].rpartition("/")[2]
    for part, module in (
        ("torchvision", torchvision.models),
        ("torchvision_detector", torchvision.models.detection),
    ):
        if plain.lower() in torchvision.models.list_models(module=module):
            return f'name = "{part}" and architecture = "{plain.lower()}"'
    if missing("timm"):
        return None
    import timm

    return f'name = "timm" and architecture = "{plain}"' if timm.is_model(plain) else None
