"""Which outputs of an ONNX model take over the memory of which inputs: past and present keys and values, by name."""

from __future__ import annotations

from collections.abc import Mapping

from arcweld.compiler.errors import ModelError, UsageError
from arcweld.compiler.ir import Graph

# how exporters call what goes in and what comes out; the first that fits counts
NAMES = (
    ("past_key_values", "present_key_values"), ("past_key_values", "present"), ("past_key", "present_key"),
    ("past_value", "present_value"), ("past", "present"), ("cache_in", "cache_out"), ("state_in", "state_out"),
    ("_in", "_out"), ("_cache", "_cache_out"), ("state", "stateN"),
)  # fmt: skip


def with_state(graph: Graph, inputs: Mapping[str, str | bool]) -> Graph:
    """The graph whose ``inputs`` are taken over: by the output that is named, or by the one that True finds by name.

    Raises UsageError for a name of no input or output, ModelError for an output of another type than its input.
    """
    if inputs and (graph.takes or graph.gives):
        raise UsageError("a model of sequences has no inputs that outputs take over", hint="leave out inout")
    known, outputs = {v.name: v for v in graph.inputs}, dict(zip(graph.labels(), graph.outputs))
    aliases: dict[str, str] = {}
    for name, wanted in inputs.items():
        if name not in known:
            raise UsageError(f"the model has no input {name!r}", hint=f"its inputs are {', '.join(known)}")
        label = wanted if isinstance(wanted, str) else partner(name, list(outputs))
        if label not in outputs:
            found = "no output's name goes with it" if label is None else f"the model has no output {label!r}"
            hint = f"name the output: its outputs are {', '.join(outputs)}"
            raise UsageError(f"input {name} cannot be taken over: {found}", hint=hint)
        if outputs[label].type != known[name].type:
            raise ModelError(
                f"output {label} is {outputs[label].type}, and cannot take over input {name}, which is "
                f"{known[name].type}",
                node=label,
                hint="a cache in place has its full length from the beginning",
            )
        if label in aliases:
            raise UsageError(f"output {label} would take over two inputs, {aliases[label]} and {name}")
        aliases[label] = name
    return graph.replace(aliases={**graph.aliases, **aliases})


def partner(name: str, outputs: list[str]) -> str | None:
    """The output whose name goes with an input's (``present.0.key`` with ``past_key_values.0.key``), or None."""
    return next((found for a, b in NAMES if a in name and (found := name.replace(a, b, 1)) in outputs), None)
