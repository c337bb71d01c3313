"""The site of each remote image, from counts alone."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedsight.deploy.remote_images import ImageSites, remote_test_part


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 6), min_size=1, max_size=5))
def test_image_sites_equal_the_list_that_they_stand_for(counts: dict[str, int]) -> None:
    sites = ImageSites(counts)
    plain = [name for name, count in counts.items() for _ in range(count)]
    assert list(sites) == plain
    assert len(sites) == len(plain)
    assert [sites[index] for index in range(-len(plain), len(plain))] == 2 * plain
    assert sites[1:-1:2] == plain[1:-1:2]
    assert all((name in sites) == (count > 0) for name, count in counts.items())
    names = list(counts)
    for view in sites.views():
        assert view.site is not None
        own = np.flatnonzero([name == names[view.site] for name in plain])
        assert len(own)
        np.testing.assert_array_equal(view.indices, own)
    assert len(sites.views()) == len(set(plain))
    assert len(remote_test_part(counts)) == len(remote_test_part(counts).images) == len(plain)
