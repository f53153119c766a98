"""The arrays of a step, read back token by token."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcweld.compiler.paged import TABLE, check_table
from arcweld.runtime.llm.batch import Run, ragged_batch


@settings(deadline=None, max_examples=100)
@given(
    runs=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 30)), min_size=1, max_size=5),
    page_size=st.sampled_from([1, 4, 16]), tile=st.sampled_from([1, 3, 16]), seed=st.integers(0, 99),
)  # fmt: skip
def test_every_token_finds_its_row_its_slot_and_what_came_before(
    runs: list[tuple[int, int]], page_size: int, tile: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    needed = [-(-(start + count) // page_size) for start, count in runs]
    free = rng.permutation(sum(needed) + 3).tolist()
    pages = [[free.pop() for _ in range(n)] for n in needed]
    own = [rng.integers(0, 100, count).tolist() for _, count in runs]
    feeds = ragged_batch(
        [Run(t, start, p, (len(t) - 1,)) for t, (start, _), p in zip(own, runs, pages)], page_size=page_size, tile=tile
    )
    table = [feeds[n] for n in TABLE]
    check_table(*table, pages=sum(needed) + 3, page_size=page_size)
    indptr, indices, last = table
    token = 0
    for tokens, (start, _), p in zip(own, runs, pages):
        for k, expected in enumerate(tokens):
            position = start + k
            assert feeds["ids"][token] == expected
            assert feeds["positions"][token] == position
            assert feeds["slots"][token].tolist() == [p[position // page_size], position % page_size]
            t, place = feeds["token_places"][token]
            width = feeds["tile_rows"].shape[1]
            assert feeds["tile_rows"][t, place] == token
            assert place >= width - feeds["new"][t]
            # the tile's table ends with its last token, from which this one is so many places away
            length = (indptr[t + 1] - indptr[t] - 1) * page_size + last[t]
            assert length - (width - place) == position
            assert indices[indptr[t] : indptr[t + 1]].tolist() == p[: indptr[t + 1] - indptr[t]]
            token += 1
    assert token == len(feeds["ids"])
    ends = np.cumsum([len(t) for t in own]) - 1
    assert feeds["rows"].tolist() == ends.tolist()
    assert int(feeds["new"].sum()) == token


def test_single_tokens_have_tiles_of_one() -> None:
    feeds = ragged_batch([Run([5], 7, [0, 1], (0,)), Run([6], 3, [2], (0,))], page_size=4, tile=16)
    assert feeds["tile_rows"].tolist() == [[0], [1]]


def test_pages_that_end_before_the_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="do not hold position 4"):
        ragged_batch([Run([1, 2], 3, [9], (1,))], page_size=4, tile=4)
