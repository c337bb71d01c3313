"""Whose images are whose, told from counts alone."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedsight.deploy.remote_images import Owners, part


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 6), min_size=1, max_size=5))
def test_owners_are_the_list_that_they_stand_for(counts: dict[str, int]) -> None:
    owners = Owners(counts)
    plain = [name for name, count in counts.items() for _ in range(count)]
    assert list(owners) == plain
    assert len(owners) == len(plain)
    assert [owners[index] for index in range(-len(plain), len(plain))] == 2 * plain
    assert owners[1:-1:2] == plain[1:-1:2]
    assert all((name in owners) == (count > 0) for name, count in counts.items())
    names = list(counts)
    for view in owners.views():
        assert view.site is not None
        own = np.flatnonzero([name == names[view.site] for name in plain])
        assert len(own)
        np.testing.assert_array_equal(view.indices, own)
    assert len(owners.views()) == len(set(plain))
    assert len(part(counts)) == len(part(counts).images) == len(plain)
