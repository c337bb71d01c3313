"""What to say of a file that is not a config, and of a network where a part's name belongs."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from fedsight.core.extras import missing
from fedsight.data.suffixes import BY_MODALITY

NAME_FIRST = 'set model.name = "torchvision" or "timm" as well: only they have architectures'
_TOML = "put strings in quotes and write sections as [train]; see the reference for examples"
OWN_FILE = 'one of your own needs its file: plugins = ["FILE.py"] at the top'
_SYNONYMS = {  # what other programs call a setting
    **dict.fromkeys(("learning_rate", "lr0", "eta"), "train.lr"),
    **dict.fromkeys(("batch_size", "batchsize", "bs"), "train.batch"),
    **dict.fromkeys(("local_epochs", "num_epochs", "n_epochs"), "train.epochs"),
    **dict.fromkeys(("local_steps", "num_steps", "max_steps", "iterations"), "train.steps"),
    **dict.fromkeys(
        ("num_rounds", "n_rounds", "global_rounds", "communication_rounds"), "rounds.rounds"
    ),
    **dict.fromkeys(("clients", "num_clients", "n_clients", "num_sites"), "split.sites"),
    **dict.fromkeys(("fraction_fit", "clients_per_round", "sample_size"), "rounds.cohort"),
    **dict.fromkeys(("min_fit_clients", "min_clients"), "rounds.quorum"),
    **dict.fromkeys(("image_size", "img_size", "imgsz", "input_size", "resize"), "data.size"),
    **dict.fromkeys(("root", "data_dir", "dataset_path", "folder"), "data.path"),
    **dict.fromkeys(("class_names", "labels"), "data.classes"),
    **dict.fromkeys(
        ("group_column", "group_key", "group_by", "groups", "held_out_by"), "data.group"
    ),
    **dict.fromkeys(("patient", "patient_column", "patient_id", "subject_id"), "data.group"),
    **dict.fromkeys(("val_fraction", "val_split"), "rounds.validation"),
    **dict.fromkeys(("freeze", "frozen", "trainable", "freeze_backbone"), "train.only"),
    **dict.fromkeys(("lr_head", "lr_backbone", "layer_lr", "param_groups"), "train.groups"),
    **dict.fromkeys(("opt", "optim", "optimizer_name"), "train.optimiser"),
    **dict.fromkeys(("lr_scheduler", "scheduler", "lr_schedule"), "train.schedule"),
    **dict.fromkeys(("warmup_epochs", "warmup_rounds", "warmup_steps"), "train.warmup"),
    **dict.fromkeys(("sampler", "balanced_sampling", "oversample"), "train.sampling"),
    **dict.fromkeys(("smoothing",), "task.label_smoothing"),
    **dict.fromkeys(("class_weight", "loss_weights"), "task.class_weights"),
    **dict.fromkeys(("mixup", "mixup_alpha", "cutmix", "cutmix_alpha", "aa"), "train.augment"),
    **dict.fromkeys(("ema_decay", "model_ema", "use_ema"), "rounds.ema"),
    **dict.fromkeys(("augmentation", "augmentations", "transforms"), "train.augment"),
    **dict.fromkeys(("wd", "l2"), "train.weight_decay"),
    **dict.fromkeys(("amp", "fp16", "bf16", "mixed_precision"), "speed.precision"),
    **dict.fromkeys(("gpu", "gpus", "use_gpu"), "speed.device"),
    **dict.fromkeys(("num_workers", "n_jobs", "processes"), "speed.workers"),
    **dict.fromkeys(("pretrained", "checkpoint"), "model.weights"),
    **dict.fromkeys(("backbone", "arch"), "model.architecture"),
    **dict.fromkeys(("random_seed", "manual_seed"), "seed"),
}
_SHOWN = 80  # characters of a line
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
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return f"{path} is not a text in UTF-8", "save it as UTF-8"
    found = re.search(r"line (\d+)", str(error))
    number = len(lines) if "end of document" in str(error) else int(found[1]) if found else 0
    if not 0 < number <= len(lines):
        return f"{path} is not TOML: {error}", _TOML
    line = "".join(c if c.isprintable() else "\ufffd" for c in lines[number - 1].strip()[:_SHOWN])
    return _misspelt(f"{path}, line {number}", line, error)


def _misspelt(where: str, line: str, error: Exception) -> tuple[str, str]:
    """Cause and cure for a line that is not TOML."""
    shown = f"{where}: '{line}'"
    if re.fullmatch(r"[\w-]+:(?:\s.*)?", line):
        cure = "write sections as [data] and settings as size = 64"
        return f"{shown} is YAML, and a config is a TOML file", cure
    if line.startswith("{"):
        return f"{shown} is JSON, and a config is a TOML file", "write [data] and size = 64"
    if re.search(r"=\s*\d+,\d+\s*(?:#|$)", line):
        return f"{shown} has a number with a comma", "write it with a point: 0.1"
    if "overwrite a value" in str(error) or "twice" in str(error):
        return f"{shown} names something again that is named above", "name each once"
    if line.count('"') % 2 or line.count("'") % 2:
        return f"{shown} opens quotes and does not close them", "close the quotes"
    if re.fullmatch(r"[\w-]+\s*=\s*(?:True|False|None|yes|no|on|off)", line):
        return f"{shown} is not a value of TOML", "write true or false, or leave the setting out"
    if re.fullmatch(r"[\w-]+\s*=\s*[^\W\d][\w./\\-]*", line):
        return f"{shown} has a text without quotes", "put it in quotes"
    return f"{shown} is not TOML: {error}", _TOML


def renamed_cure(key: str) -> str | None:
    """How a setting is called here that other programs call `key`; None if that is not known."""
    meant = _SYNONYMS.get(key.casefold())
    return f"it is called {meant} here" if meant else None


def placed_cure(key: str, section: str, homes: Mapping[str, Collection[str]]) -> str | None:
    """Where the setting `key` belongs that was written in `section`, which has no such setting.

    `homes` are the settings of each section; those of the top level are under "". None if it is
    not known anywhere, or in several sections.
    """
    if key in homes:
        return f"{key} is a section of its own: write [{key}] and its settings below it"
    found = [name for name, keys in homes.items() if key in keys and name != section]
    if "" in found:
        return f"write {key} at the top of the file, before the first [section]"
    if len(found) != 1:
        return None
    return f"did you mean '{found[0]}.{key}'? It belongs under [{found[0]}]"


def value_for_section(key: str, value: Any, name_cure: str | None) -> tuple[str, str]:
    """Cause and cure for a value where the section `key` belongs.

    `name_cure` says how to write the value as the name of the part, if it can be one.
    """
    if isinstance(value, list):
        cause = f"{key} is a list of tables, but {key} is one section"
        return cause, f"write [{key}] with single brackets"
    cause = f"'{value}' is a value, but {key} is a section"
    if key == "data" and isinstance(value, str) and ("/" in value or Path(value).exists()):
        return cause, f'write [data] and below it name = "folder" and path = "{value}"'
    named = f" and below it {name_cure}" if name_cure else " and its settings below it"
    return cause, f"write [{key}]{named}"


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
