"""The complete table of ATen handlers: importing this module registers them all."""

from __future__ import annotations

from arcweld.compiler.torch import (  # noqa: F401
    handlers_index,
    handlers_movement,
    handlers_nn,
    handlers_pointwise,
    handlers_reduce,
)
from arcweld.compiler.torch.context import HANDLERS

# checks that torch writes into graphs; what they check is fixed by the types and ranges of the graph
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

# operators that wrap a sub-graph which runs as if written in place: name -> position of the sub-graph's argument
WRAPPERS = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4, "invoke_subgraph": 0}


def handled() -> frozenset[str]:
    """The overloads that have a handler, as ``aten.add.Tensor``."""
    return frozenset(HANDLERS)
