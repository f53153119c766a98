"""The complete table of ATen handlers: importing this module registers them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from arcweld.compiler.torch.context import COMPLEX, HANDLERS
from arcweld.compiler.torch.handlers import (  # noqa: F401
    adapted,
    backward,
    complex_arithmetic,
    complex_functions,
    complex_parts,
    complex_reduce,
    division,
    embedding,
    encoder,
    fourier,
    index,
    movement,
    nn,
    norms,
    order,
    paged,
    pointwise,
    pool,
    recurrent,
    reduce,
    scans,
    scatter,
    special,
    special_functions,
    vision,
)

# assertions that torch writes into graphs: the types and ranges of the graph imply them
ASSERTIONS = frozenset(
    {
        "aten._assert_async.default",
        "aten._assert_async.msg",
        "aten._assert_scalar.default",
        "aten._assert_tensor_metadata.default",
        "aten.sym_constrain_range.default",
        "aten.sym_constrain_range_for_size.default",
    }
)

# operators that run a sub-graph as it is, so that it is imported in place: name -> index of the sub-graph's argument
WRAPPERS = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4, "invoke_subgraph": 0}
# the arguments of other operators that take a sub-graph, which have no schema
HIGHER_ORDER = {"associative_scan": ("combine_fn", "xs", "additional_inputs")}


# operators that torch decomposes into ones with a handler only if it is asked to
DECOMPOSED = frozenset(
    f"aten.{name}"
    for name in (
        "_addmm_activation.default", "_batch_norm_with_update_functional.default", "_native_batch_norm_legit.default",
        "_native_batch_norm_legit.no_stats", "_native_batch_norm_legit_functional.default",
        "batch_norm_backward.default", "diagonal.default",
        "tril_indices.default", "triu_indices.default",
    )
)  # fmt: skip


def registered() -> int:
    """How many operators torch knows. Its table of decompositions takes long to make, and changes only if some come."""
    import torch

    return len(torch._C._dispatch_get_all_op_names())


def more_decompositions() -> dict[Any, Callable[..., Any]]:
    """Torch's decompositions of ``DECOMPOSED``, and one of dropout."""
    import torch
    from torch._decomp import decomposition_table

    own = {torch.ops.aten.native_dropout.default: _dropout}
    return {op: fn for op, fn in decomposition_table.items() if str(op) in DECOMPOSED} | own


def _dropout(x: Any, p: float, train: bool | None) -> tuple[Any, Any]:
    """Dropout with a mask that PyTorch draws, as eager draws it on a CPU; all else is arithmetic."""
    import torch

    if not train or p == 0:
        return x.clone(), torch.ones_like(x, dtype=torch.bool)
    if p == 1:
        return torch.zeros_like(x), torch.zeros_like(x, dtype=torch.bool)
    mask = torch.ops.aten.bernoulli.p(x, 1 - p)
    return x * mask * (1 / (1 - p)), mask.to(torch.bool)


def handled() -> frozenset[str]:
    """The overloads that have a handler, as ``aten.add.Tensor``."""
    return frozenset(HANDLERS) | frozenset(COMPLEX)
