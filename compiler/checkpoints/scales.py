"""What layouts share: scales and zero points in the shapes that the IR has, and groups of columns in another order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from arcweld.compiler.checkpoints.bits import row_chunks
from arcweld.compiler.checkpoints.tensors import StoredTensor
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import ModelError

# the IR's type for codes of so many bits: it has no integers of 3, 5, 6 and 7
CODES = {2: DType.U2, 3: DType.U4, 4: DType.U4, 5: DType.U8, 6: DType.U8, 7: DType.U8, 8: DType.U8}
FETCH_AGAIN = "the configuration belongs to another checkpoint, or a part was altered: fetch both again"


def contradiction(name: str, file: str, message: str) -> ModelError:
    """The error of a tensor whose parts, or whose configuration, do not fit each other."""
    return ModelError(f"weight {name[:200]!r}: {message}", node=file, hint=FETCH_AGAIN)


@dataclass(frozen=True, slots=True)
class Blocks:
    """How scales of a matrix ``[n, k]`` repeat: every ``rows`` rows and every ``columns`` columns; 0 for all."""

    rows: int
    columns: int


def blocks_of(scale: np.ndarray, shape: tuple[int, int], group: int, name: str, file: str, rows: int = 1) -> Blocks:
    """The blocks that ``scale`` has one number for each of.

    ``group``: columns that share a scale, as the configuration says; not above 0 for all of them. ``rows``: rows that
    do. Raises ModelError for scales of any other shape.
    """
    n, k = shape
    if scale.size == 1 and not (n == 1 and group > 0):
        return Blocks(0, 0)
    columns = group if group > 0 else k
    want = (-(-n // rows), -(-k // columns))
    if scale.shape != want and not (want[1] == 1 and scale.shape == want[:1]):
        raise contradiction(name, file, f"scales of shape {list(scale.shape)} for {list(shape)} in blocks of "
                            f"{rows} x {columns}, which are {list(want)}")  # fmt: skip
    return Blocks(rows, 0 if want[1] == 1 else columns)


def in_shape(operand: np.ndarray, blocks: Blocks, n: int) -> np.ndarray:
    """Scales or zero points as ``Packed`` has them: ``[]``, ``[n]`` or ``[n, groups]``."""
    if not blocks.rows:
        return operand.reshape(())
    wide = operand.reshape(operand.shape[0], -1)
    if blocks.rows > 1:
        wide = np.repeat(wide, blocks.rows, axis=0)[:n]
    return np.ascontiguousarray(wide if blocks.columns else wide[:, 0])


def zero_points(codes: np.ndarray, dtype: DType, blocks: Blocks) -> np.ndarray:
    """Zero points ``[n, groups]``, a byte each, in the elements' type: one number where all are equal."""
    if codes.size and (codes == codes.flat[0]).all():
        return np.asarray(codes.flat[0]).astype(dtype.numpy)
    return in_shape(codes, blocks, codes.shape[0]).astype(dtype.numpy)


@dataclass(frozen=True, slots=True)
class Order:
    """Which group each column belongs to, where columns were quantised in another order than they stand in.

    columns  their places, group by group; None where groups are neighbours already
    refusal  why groups are no blocks of one size; else empty
    """

    columns: np.ndarray | None = None
    refusal: str = ""


def order_of(groups: np.ndarray | None, k: int, count: int, block: int, tensor: StoredTensor) -> Order:
    """The order of ``k`` columns by the group of each.

    Raises ModelError for group numbers that are not below ``count``.
    """
    if groups is None or not k:
        return Order()
    if groups.shape != (k,) or groups.dtype.kind not in "iu" or groups.min() < 0 or groups.max() >= count:
        raise contradiction(tensor.name, tensor.file, f"its group index should have {k} integers below {count}")
    if (groups == np.arange(k) // block).all():
        return Order()
    counts = np.bincount(groups, minlength=count)
    if (counts != [min(block, k - g * block) for g in range(count)]).any():
        return Order(None, "groups of unequal size")
    return Order(np.argsort(groups, kind="stable").astype(np.int64))


def by_group(operand: np.ndarray, groups: Sequence[int] | np.ndarray) -> np.ndarray:
    """``operand[n, groups]`` as f32 for each column, given the column's group."""
    return operand.astype(np.float32)[:, groups]


def decode_by_group(
    tensor: StoredTensor, codes: Callable[[StoredTensor, int, int], np.ndarray], scale: np.ndarray, zero: np.ndarray,
    groups: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """``(codes - zero) * scale`` as ``f32[n, k]``, where column j has the scale and the zero point of ``groups[j]``.

    ``codes(tensor, a, b)`` are those of rows a to b - 1; ``scale`` and ``zero`` are ``[n, groups]``.
    """
    n, k = tensor.shape
    wide = np.empty((n, k), np.float32)
    for a, b in row_chunks(n, k):
        steps = codes(tensor, a, b).astype(np.float32) - by_group(zero[a:b], groups)
        wide[a:b] = steps * by_group(scale[a:b], groups)
    return wide
