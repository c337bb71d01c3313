"""What is measured of how far a model's answers can be trusted, `[trust]`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedsight.core.settings import Settings


class Trust(Settings):
    """Calibration, prediction sets, unlike images and over-fitting, measured when a run ends:
    `[trust]`.

    They are made from images that nobody trained on and that did not choose the model. Tasks that
    do not give each image one class have masks, labels, grades, boxes or thresholds in place of
    sets, and no calibration. Where something is not possible, summary and report say why.
    """

    measured: bool = True  # whether they are
    # what makes probabilities of scores: one temperature; a factor and an offset for each class, or
    # for each class any function that rises (of which each needs more held-out images)
    scaling: Literal["temperature", "vector", "isotonic"] = "temperature"
    # the score by which a set takes classes: lac: the smallest sets on average; aps: larger where
    # an image is difficult; raps: likewise, and classes far down the ranking seldom
    sets: Literal["lac", "aps", "raps"] = "lac"
    # least share of sets that hold the true class, or of the truth that other answers hold
    coverage: float = Field(0.9, gt=0, lt=1)
    # for whom this share holds: for the images of all sites together, of each site, of each class
    guarantee: Literal["mixture", "site", "class"] = "mixture"
    # what tells that an image is unlike those of the training: the distance of its features from
    # the nearest class, or the energy of its scores
    unlike: Literal["distance", "energy"] = "distance"
    # largest share of images like those of the training that are called unlike them
    false_alarm: float = Field(0.05, gt=0, lt=1)
    # whether models are measured on corrupted test images too (noise, blur, JPEG, ...), which takes
    # thirty passes over up to 500 of them for each model; faces on small, dark, turned and partly
    # covered ones, each time that they are measured: four passes more over all of them
    robustness: bool = False
    # whether sites are compared in which spots of an image decide, so that a mark which only one
    # site's images have is found and named. It takes 37 passes of up to 1,500 images; None: where
    # that is at most a fiftieth of the passes that training takes
    shortcuts: bool | None = None
