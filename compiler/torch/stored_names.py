"""What checkpoints call the parameters of a module of transformers, where that is not the module's own name.

Modules hold the experts of a layer as one parameter, and checkpoints have each expert's matrices by themselves; older
names are still read. transformers keeps a table of these for its own loading.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from arcweld.compiler.checkpoints.stacked import Sources
from arcweld.compiler.errors import ModelError, UnsupportedError


def stored_names(model: Any, names: Iterable[str]) -> dict[str, Sources]:
    """The tensors, of those called ``names``, that each parameter is made of, where it is not the one of its name.

    Raises ModelError for parts that have no counterpart, UnsupportedError for parameters that transformers makes by
    more than putting rows together.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, dot_natural_key, rename_source_key

    transforms = get_model_conversion_mapping(model)
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    renamings = [t for t in transforms if not isinstance(t, WeightConverter)]
    parameters = dict(model.named_parameters(remove_duplicate=False))
    collected: dict[str, dict[str | None, list[str]]] = {}
    for name in sorted(names, key=dot_natural_key):
        key, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, parameters)
        if key != name and key in parameters:
            collected.setdefault(key, {}).setdefault(pattern, []).append(name)
    by_pattern = {pattern: c for c in converters for pattern in c.source_patterns}
    found = {}
    for key, parts in collected.items():
        pattern = next(iter(parts))
        found[key] = Sources(tuple(parts[None][:1])) if pattern is None else _rows(key, by_pattern[pattern], parts)
    return found


def _rows(key: str, converter: Any, parts: dict[str | None, list[str]]) -> Sources:
    """The rows that a converter of transformers puts together."""
    steps = [(type(op).__name__, getattr(op, "dim", None)) for op in converter.operations]
    lists = [parts[p] for p in converter.source_patterns if p in parts]
    if len({len(names) for names in lists}) > 1 or len(lists) != len(converter.source_patterns):
        counts = ", ".join(f"{len(parts.get(p, ()))} of {p}" for p in converter.source_patterns)
        raise ModelError(f"the parts of {key!r} are not all there: {counts}", node=key,
                         hint="a part of the checkpoint is missing: fetch it again")  # fmt: skip
    if steps == [("MergeModulelist", 0)] or steps == [("MergeModulelist", 0), ("Concatenate", 1)]:
        return Sources(_in_turns(lists), len(lists[0]))
    if steps == [("Concatenate", 0)]:
        return Sources(tuple(n for names in lists for n in names))
    done = ", ".join(f"{name}({'' if dim is None else dim})" for name, dim in steps)
    raise UnsupportedError(f"transformers makes the parameter {key!r} of stored ones by {done}", node=key,
                           hint="please report it, with the model's name")  # fmt: skip


def _in_turns(lists: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """The first of each list, then the second of each."""
    return tuple(name for group in zip(*lists, strict=True) for name in group)
