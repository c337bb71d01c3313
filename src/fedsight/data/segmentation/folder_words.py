"""What the names of folders and files say in a data set of masks: an image, a mask, or neither."""

from __future__ import annotations

import re
from typing import Literal

from fedsight.data.layouts import Folders
from fedsight.data.parts import part_named

Role = Literal["image", "mask", "other"]  # other: a further drawing of what a mask says

_MASKS = frozenset(
    {
        *("mask", "masks", "label", "labels", "labelids", "gt", "groundtruth", "trimap", "trimaps"),
        *("annotation", "annotations", "annot", "annots", "ann", "anns", "gtfine", "gtcoarse"),
        *("seg", "segs", "segmentation", "segmentations"),
        *("segmentationclass", "segmentationclassaug", "segmentationclasspng"),
    }
)
_IMAGES = frozenset(
    {
        *("image", "images", "img", "imgs", "photo", "photos", "picture", "pictures"),
        *("jpegimages", "leftimg8bit"),
    }
)
_OTHERS = frozenset(
    {
        *("segmentationobject", "segmentationclassvisualization", "instances"),
        *("visualization", "visualisation", "overlay", "overlays"),
    }
)
_JOINED = re.compile(r"(train|val|valid|test)(annot|masks?|labels?|gt)")  # SegNet's trainannot
_BETWEEN = r"[\s_.-]+"
# What masks and images have at the end of their names: x_mask, x_gtFine_labelIds, x_leftImg8bit.
_MASK_END = re.compile(
    r"[\s_.-]*(?:gt(?:fine|coarse)[_-])?"
    r"(?:masks?|seg|segmentations?|labels?|label(?:train)?ids|gt|ground[_-]?truth|annot(?:ation)?"
    r"|gtfine|gtcoarse|trimap|colou?r|instance(?:train)?ids|overlay|vis)(?:[_-]?\d{1,4})?$",
    re.IGNORECASE,
)
_LETTER = re.compile(r"_[LPM]$")  # CamVid's x_L, only in a folder of masks
_IMAGE_END = re.compile(r"[\s_.-]*(?:leftImg8bit|image|img|rgb|orig(?:inal)?)$", re.IGNORECASE)
_OTHER_END = re.compile(
    r"[_-](?:colou?r|instance(?:train)?ids|instances?|overlay|vis(?:uali[sz]ation)?)$",
    re.IGNORECASE,
)


def role_of(folders: Folders) -> tuple[Role | None, Folders]:
    """What the folders above a file say that it is, and what they say beside that."""
    roles: set[Role] = set()
    rest: list[str] = []
    for name in folders:
        role, left = _folder(name)
        if role is not None:
            roles.add(role)
        if left:
            rest.append(left)
    order: tuple[Role, ...] = ("other", "mask", "image")
    return next((role for role in order if role in roles), None), tuple(rest)


def _folder(name: str) -> tuple[Role | None, str]:
    """The role that a folder's name says, and the rest of the name."""
    plain = re.sub(r"ground[\s_-]truth", "groundtruth", name.casefold())
    if joined := _JOINED.fullmatch(plain):
        return "mask", joined[1]
    words = [word for word in re.split(_BETWEEN, plain) if word]
    kinds: tuple[tuple[Role, frozenset[str]], ...] = (
        ("other", _OTHERS),
        ("mask", _MASKS),
        ("image", _IMAGES),
    )
    found: list[Role] = [role for role, known in kinds if known & set(words)]
    if len(found) != 1:  # images_and_masks says neither
        return None, name
    said = dict(kinds)[found[0]]
    rest = [word for word in words if word not in said and word not in ("dir", "folder")]
    return found[0], " ".join(rest)


def mask_stems(stem: str, alone: bool) -> list[str]:
    """What an image may be called whose mask is called `stem`, the likeliest first.

    `alone`: the mask lies in a folder of masks.
    """
    found = [stem] if alone else []
    found.append(_MASK_END.sub("", stem))
    if alone:
        found.append(_LETTER.sub("", stem))
    return [one for one in dict.fromkeys(found) if one and (alone or one != stem)]


def without_mask_end(stem: str) -> str:
    """A mask's name without what says that it is one."""
    return _MASK_END.sub("", stem) or stem


def image_stems(stem: str) -> list[str]:
    """What the mask of an image `stem` may be called, without a mask's own ending."""
    return [one for one in dict.fromkeys((stem, _IMAGE_END.sub("", stem))) if one]


def is_other(stem: str) -> bool:
    """Whether a mask's name says that it is for the eye, or numbers objects."""
    return _OTHER_END.search(stem) is not None


def without_parts(folders: Folders) -> Folders:
    """The folders that name no part."""
    return tuple(one for one in folders if part_named(one) is None)
