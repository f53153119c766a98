"""Copies between the host and the device's memory."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest

from arcweld.runtime.devices import open_device
from arcweld.runtime.llm.transfers import Transfers


@pytest.mark.parametrize(
    ("places", "copies"),
    [((), 0), ((3,), 1), ((0, 1, 2, 3, 4), 1), ((1, 2, 4), 2), ((4, 3, 2), 3), ((0, 0, 1, 3, 4), 3)],
)
def test_elements_at_places_are_copied_and_neighbours_together(places: tuple[int, ...], copies: int) -> None:
    device = open_device("sim")
    transfers = Transfers(device)
    given = np.arange(5, dtype=np.int64) * 7
    source, target = transfers.upload(given), transfers.upload(np.full(5, -1))
    with mock.patch.object(device, "copy", wraps=device.copy) as copy:
        transfers.copy(target, source, places, 8)
    assert transfers.download(target, np.int64).tolist() == [*given[list(places)], *[-1] * (5 - len(places))]
    assert copy.call_count == copies
    assert transfers.bytes_read == 40
