"""Writes a config with a comment for each setting."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsight.core.errors import DataError
from fedsight.data.base import counted_parts
from fedsight.program.draft.base import Found
from fedsight.program.draft.fitting import Fit

_ABOUT = {
    "data.name": "the data source; fedsight data list shows all",
    "data.path": "relative to this file",
    "data.sites_in_path": "the first level of folders is the site",
    "data.classes": "in this order",
    "data.values": "the value of each class in the masks; rename the classes as you like",
    "data.colours": "the colour of each class in the masks; rename the classes as you like",
    "data.unpaired": "images without a mask, and masks without an image, are left out and counted",
    "data.size": "pixels a side of the network's input; larger is slower",
    "data.channels": "1: greyscale, 3: colour",
    "data.label_separator": "between several labels of an image",
    "data.missing": "classes without a training image are allowed",
    "data.corrupt": 'images that cannot be read are left out and counted; "error" stops instead',
    "model.architecture": "fedsight models lists the networks",
    "train.epochs": "passes over a site's images in a round",
    "train.batch": "images in a step",
    "train.lr": "the learning rate",
    "rounds.rounds": "raise it until the curve in the report is flat",
    "task.name": "fedsight tasks lists the tasks",
    "algorithm.name": "fedsight algorithms lists the algorithms",
    "split.sites": "simulated: the images do not say where they come from",
}
_SPLITS = {"natural": "the sites of the images", "iid": "deal the images out evenly"}


def drafted(found: Found, fit: Fit, name: str, folder: Path) -> str:
    """The config's text, for a file in `folder`. Raises DataError for a path that is not UTF-8."""
    data = {**found.guess.data, **fit.data}
    data["path"] = _relative(Path(data["path"]), folder)
    opened = found.opened
    head = [
        "# Written by fedsight init; every setting can be changed, and those left out have",
        "# defaults: docs/reference/reference.md. Check it with: fedsight check FILE",
        "#",
        f"# Found: {counted_parts(opened)}, {_classes(opened.classes)}",
        *(f"#   {line}" for reason in found.guess.reasons for line in reason.splitlines()),
    ]
    sections: dict[str, Mapping[str, Any]] = {
        "data": data,
        "split": fit.split,
        "task": fit.task,
        "model": fit.model,
        "algorithm": {"name": "fedavg"},
        "train": fit.train,
        "rounds": fit.rounds,
    }
    top = [f"name = {_value(name)}", "seed = 0  # of all randomness"]
    blocks = [_block(section, values) for section, values in sections.items()]
    text = "\n\n".join(["\n".join(head), "\n".join(top), *blocks]) + "\n"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        cause = f"the name of '{found.guess.data['path']}' is not UTF-8"
        raise DataError(cause, "rename the folder, or link to it by another name") from error
    return text


def _classes(names: tuple[str, ...]) -> str:
    shown = ", ".join(_one_line(name) for name in names[:8])
    return f"{len(names)} classes ({shown}{', ...' if len(names) > 8 else ''})"


def _one_line(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _block(section: str, values: Mapping[str, Any]) -> str:
    lines = [f"[{section}]"]
    for key, value in values.items():
        about = _ABOUT.get(f"{section}.{key}")
        if section == "split" and key == "name":
            about = _SPLITS[value]
        lines.append(f"{key} = {_value(value)}" + (f"  # {about}" if about else ""))
    return "\n".join(lines)


def _relative(path: Path, folder: Path) -> str:
    """The path from `folder`, or the whole one if that has to climb far."""
    whole = str(path.parent.resolve() / path.name) if path.name else str(path.resolve())
    near = os.path.relpath(whole, folder)
    return near if near.count("..") <= 2 else whole


def _value(value: Any) -> str:
    """A value as TOML has it, in one line."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | Path):
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value)


def _key(word: str) -> str:
    return word if re.fullmatch(r"[A-Za-z0-9_-]+", word) else _value(word)
