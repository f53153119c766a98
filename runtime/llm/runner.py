"""Runs steps of a language model: its engine, and the pages of all layers in the device's memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import UsageError
from arcweld.runtime.arrays import Taken
from arcweld.runtime.device import Memory
from arcweld.runtime.engine import Engine
from arcweld.runtime.llm.batch import Run, ragged_batch
from arcweld.runtime.llm.package import Description
from arcweld.runtime.llm.transfers import Transfers


class Behind(Protocol):
    """A sequence, of which a token is computed behind those that it has."""

    pages: list[int]
    adapter: int

    def __len__(self) -> int: ...


@dataclass(frozen=True, slots=True, eq=False)
class Computed:
    """What a step has computed, in the device's memory: ``results`` are logits, and hidden states if there are any.

    Rows follow each other as the step's runs do.
    """

    results: Sequence[Taken]
    types: Sequence[np.dtype]
    transfers: Transfers

    def rows(self, first: int = 0, count: int | None = None) -> np.ndarray:
        """Rows of logits, on the host: f32 [count, vocabulary]; without ``count`` all that follow."""
        return self._rows(0, first, count)

    def hidden(self, first: int, count: int) -> np.ndarray:
        """Rows of hidden states, on the host: f32 [count, hidden size]."""
        return self._rows(1, first, count)

    def _rows(self, result: int, first: int, count: int | None) -> np.ndarray:
        found = self.transfers.download(self.results[result], self.types[result], first, count)
        return found if found.dtype == np.float32 else found.astype(np.float32)


class Runner:
    """An engine with ``pages`` pages. What they hold changes in place. One step runs at a time."""

    def __init__(self, engine: Engine, description: Description, pages: int) -> None:
        """Allocates the pages.

        Raises UsageError for none, DeviceError where the device has no memory left.
        """
        if pages < 1:
            raise UsageError("there is no room for a single page", hint="give more kv_cache_memory")
        self.engine, self.description, self.pages = engine, description, pages
        self.steps = 0
        self.transfers = Transfers(engine.device)
        self._types = [DType(t.dtype).numpy for t in engine.outputs[:2]]
        self._memory: dict[str, Memory] = {}
        self._state: dict[str, Taken] = {}
        device = engine.device
        for name, (shape, dtype) in description.state(pages).items():
            nbytes = math.prod(shape) * dtype.size
            with self.transfers.current():
                memory = self._memory[name] = device.allocate(nbytes)
                device.fill(memory.address, nbytes, 0, 0)  # a masked key must not be NaN: it is multiplied by 0
            self._state[name] = Taken("numpy", memory.address, shape, nbytes, memory)

    def feeds(self, runs: Sequence[Run]) -> dict[str, np.ndarray]:
        """The inputs of a step that computes ``runs``, pages aside."""
        d = self.description
        return ragged_batch(
            runs, page_size=d.page_size, tile=d.tile, adapters=0 if d.adapters is None else d.adapters.count
        )

    def compute(self, runs: Sequence[Run]) -> Computed:
        """Lets the device compute ``runs``. Where no row is wanted, there is one all the same, of the first token."""
        if not any(r.rows for r in runs):
            first = runs[0]
            runs = [replace(first, rows=(0,)), *runs[1:]]
        return self._compute(self._uploaded(runs))

    def compute_behind(self, sequences: Sequence[Behind], tokens: Taken, places: Sequence[int]) -> Computed:
        """Lets the device compute a token of each sequence, behind those it has: that at its place in ``tokens``.

        ``tokens`` i64[n] are in the device's memory, and need not be computed yet.
        """
        runs = [Run((0,), len(s), s.pages, (0,), s.adapter) for s in sequences]
        feeds = self._uploaded(runs)
        self.transfers.copy(feeds["ids"], tokens, places, DType.I64.size)
        return self._compute(feeds)

    def _uploaded(self, runs: Sequence[Run]) -> dict[str, Taken]:
        """The inputs of a step in the device's memory, so that nothing waits for it."""
        return {name: self.transfers.upload(a) for name, a in self.feeds(runs).items()}

    def _compute(self, feeds: Mapping[str, Taken]) -> Computed:
        results = self.engine.run_on_device(feeds, self._state)
        self.steps += 1
        return Computed(results[: 1 + self.description.embeddings], self._types, self.transfers)

    def logits(self, runs: Sequence[Run]) -> np.ndarray:
        """Computes ``runs``; returns the logits of their rows, one after another: f32 [rows, vocabulary]."""
        return self.compute(runs).rows()
