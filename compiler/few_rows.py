"""Products of few rows, whose time is that of reading their right operand."""

from __future__ import annotations

from arcweld.compiler.dims import Dim, bounds, is_multiple, product
from arcweld.compiler.ir import Value

FEW_ROWS = 8  # of a product whose time is that of reading its weights; then the rows themselves cost little
FEW_NARROW_ROWS = 16  # of such a product on tensor cores: of 16-bit numbers, in pieces of 16 bytes


def is_few_rows(operand: Value) -> bool:
    """True for the left operand of a product whose rows are never more than few, and not always none."""
    _, most = bounds(product(operand.shape[:-1]))
    return most is not None and 0 < most <= most_few_rows(operand.dtype.is_half, operand.shape[-1])


def most_few_rows(is_half: bool, depth: Dim) -> int:
    """How many rows of ``depth`` elements are few: more of 16-bit types in whole pieces of 16 bytes than of others."""
    return FEW_NARROW_ROWS if is_half and is_multiple(depth, 8) else FEW_ROWS
