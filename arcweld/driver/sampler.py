"""Builds the engine that chooses a language model's tokens on the device (``compiler/sampler.py``)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from arcweld.compiler.dtypes import DType
from arcweld.compiler.sampler import most_rows, sampler_graph
from arcweld.driver.api import CompileOptions, build_data
from arcweld.runtime.devices import open_device
from arcweld.runtime.engine_file import EngineData

_SHARED = ("verify", "verify_budget")  # options of the model's build that are its sampler's too


def build_sampler(model: EngineData, rows: int, options: CompileOptions) -> EngineData:
    """The sampler of a model that gives logits for at most ``rows`` tokens of a step.

    ``options`` are those of the model's build, of which device, architectures and verification are the sampler's too.
    Raises what ``arcweld.compile`` raises.
    """
    logits = model.program.outputs[0]
    arch = options.get("arch")
    archs = arch if arch is None or isinstance(arch, str) else tuple(arch)
    shared = tuple((k, options[k]) for k in _SHARED if k in options)  # type: ignore[literal-required]
    device: Any = open_device(options.get("device"))
    return _built(int(logits.shape[1]), DType(logits.dtype), rows, device, archs, shared)


@lru_cache(maxsize=16)
def _built(
    vocabulary: int, dtype: DType, rows: int, device: Any, archs: str | tuple[str, ...] | None,
    shared: tuple[tuple[str, Any], ...],
) -> EngineData:  # fmt: skip
    options: Any = dict(shared)
    if options.get("verify") != "off":
        options["feeds"] = _feeds(vocabulary, dtype, most_rows(vocabulary, rows))
    build, _, _ = build_data(sampler_graph(vocabulary, dtype, rows), device=device, arch=archs, **options)
    return build.data


def _feeds(vocabulary: int, dtype: DType, most: int) -> dict[str, np.ndarray]:
    """What verification computes of ``most`` rows at most: greedy and drawn tokens, truncations, changed logits."""
    rng = np.random.default_rng(0)
    settings = [[1, 1, 2, -1, 0], [0.8, 0, 0.9, -1, 0.3], [1.2, 20, 2, -1, 0.7], [1, 0, 2, 0.05, 0.5], [2, 0, 2, -1, 0]]
    places = np.full((len(settings), 4, 2), -1)
    changes = np.ones((len(settings), 4, 3))
    places[2] = [[2, t] for t in range(4)]
    changes[2] = rng.uniform(0.5, 2, (4, 3))
    found = {
        "logits": (rng.standard_normal((len(settings), vocabulary)) * 4).astype(dtype.numpy),
        "rows": np.arange(len(settings)), "places": places, "changes": changes, "settings": np.array(settings, float),
    }  # fmt: skip
    return {name: a[:most] for name, a in found.items()}
