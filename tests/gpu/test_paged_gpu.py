"""Attention and appends over pages on a GPU: the bits of contiguous caches, and what numpy gives."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import numpy as np
import pytest

from arcweld.compiler.dtypes import DType
from arcweld.driver import api
from arcweld.runtime import devices
from arcweld.runtime.engine import Engine

sys.path.insert(0, str(Path(__file__).parents[1] / "codegen"))
sys.path.insert(0, str(Path(__file__).parents[1] / "compiler"))
from paged_checks import check
from paged_graphs import FORMS, Problem, table_of

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(devices.gpu_count() == 0, reason="needs an NVIDIA GPU")]


@functools.cache
def engine_of(x: Problem, form: str) -> Engine:
    build, device, engine = api.build_data(FORMS[form](x), device="cuda", verify="off")
    return engine or Engine(build.data, device)


@pytest.mark.parametrize("dtype", [DType.F16, DType.F32])
@pytest.mark.parametrize("new", [1, 3])
@pytest.mark.parametrize("page_size", [1, 16, 24])
def test_pages_are_contiguous_caches_to_the_bit(dtype: DType, new: int, page_size: int) -> None:
    x, rng = Problem(dtype, new, 8, 2, 64, 4096), np.random.default_rng(page_size)
    for lengths in ([0, 1, 4000], [16, 17, 300], [2048, 5, 1, 63]):
        check(x, table_of(lengths, page_size, rng), rng, engine_of, np.nan)
