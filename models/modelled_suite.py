"""The suite of workloads, modelled on a card: kernels, bytes, time and floor. Nothing is compiled, run or measured.

    python -m arcweld.models.modelled_suite            # writes docs/benchmarks/modelled.json
    python -m arcweld.models.modelled_suite --compare  # says what the working tree would change there

The models are those of the benchmark (``bench.py``) and larger batches of them, a prompt of a decoder, and one layer of
its decode step for each type that weights are stored in.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from arcweld.compiler.cards import card
from arcweld.compiler.ir import Graph
from arcweld.compiler.options import Options
from arcweld.driver.api import import_model
from arcweld.driver.build import build_graph
from arcweld.driver.estimate import estimate_engine
from arcweld.models.bench import CASES
from arcweld.models.builders import build
from arcweld.models.decode_table import AS_PACKED, DECODERS, STORAGES, layer

CARD = "h100"
FILE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "modelled.json"
CONTEXT = 512
MORE: Mapping[str, tuple[str, Mapping[str, Any], str]] = {
    **CASES,
    "bert_b8_s512": ("bert", {"batch": 8, "length": 512}, "fp16"),
    "vit_b16_b32": ("vit_b16", {"batch": 32}, "fp16"),
    "llama_1b_prefill_s512_2_layers": ("llama", {"length": 512, "layers": 2}, "bf16"),
}


def workloads() -> dict[str, Callable[[], tuple[Graph, Options]]]:
    """Each workload's graph, and the options that it is planned with."""
    arch = (card(CARD).arch,)

    def built(name: str, options: Mapping[str, Any], precision: str) -> tuple[Graph, Options]:
        made = build(name, **options)
        return import_model(made.module, *made.args), Options(precision=precision, arch=arch)

    found: dict[str, Callable[[], tuple[Graph, Options]]] = {
        name: lambda case=case: built(*case)  # type: ignore[misc]
        for name, case in MORE.items()
    }
    for storage in STORAGES:
        for rows in (1, 16):
            found[f"llama_1b_decode_layer_{storage.replace(' ', '_')}_b{rows}"] = lambda s=storage, r=rows: (  # type: ignore[misc]
                layer(DECODERS["Llama-1B"], r, CONTEXT, STORAGES[s]), Options(arch=arch, disable=AS_PACKED)
            )  # fmt: skip
    return found


def modelled(graph: Graph, options: Options) -> dict[str, Any]:
    """The row of a workload."""
    data = build_graph(graph, options, compile_kernels=False).data
    e = estimate_engine(data, card(CARD), {})
    return {
        "kernels": len(e.launches), "distinct": len({x.kernel for x in e.launches}), "weight_bytes": e.weights,
        "workspace_bytes": e.workspace, "moved_bytes": int(sum(x.nbytes for x in e.launches)),
        "modelled_ms": float(f"{e.seconds * 1e3:.4g}"), "floor_ms": float(f"{e.floor_seconds * 1e3:.4g}"),
    }  # fmt: skip


def suite(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The rows of some workloads."""
    known = workloads()
    return {name: modelled(*known[name]()) for name in names}


def differences(before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What differs in the rows of ``after``, a line for each number."""
    lines = []
    for name, row in after.items():
        for key, value in row.items():
            old = before.get(name, {}).get(key)
            if old != value:
                change = f" ({value / old - 1:+.1%})" if isinstance(old, int | float) and old else ""
                lines.append(f"{name}: {key} {old} -> {value}{change}")
    return lines


def stored() -> dict[str, dict[str, Any]]:
    """The rows of the committed file."""
    found: dict[str, dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))["workloads"]
    return found


def main() -> None:
    """Writes the file, or prints what would change in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="workloads; all without")
    parser.add_argument("--compare", action="store_true")
    options = parser.parse_args()
    rows = suite(options.names or list(workloads()))
    if options.compare:
        print("\n".join(differences(stored(), rows)) or "nothing changes")
        return
    whole = {**(stored() if options.names else {}), **rows}
    text = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in whole.items())
    about = "modelled, not measured; written by python -m arcweld.models.modelled_suite"
    head = f'"about": "{about}",\n "card": "{CARD}"'
    FILE.write_text(f'{{\n {head},\n "workloads": {{\n{text}\n }}\n}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
