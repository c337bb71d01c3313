"""What an owner wants to be made of the models that runs end with."""

from __future__ import annotations

from fedsight.core.settings import Settings


class DeliverySettings(Settings):
    """What a site makes of the model that a run ended with: `[delivery]` of site.toml.

    None of it leaves the site.
    """

    choose: bool = True  # choose a recogniser on held-out images, and write it here
    # also train a model on this site's images alone, and compare: as long again as the run took
    alone: bool = False
