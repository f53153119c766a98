"""The suite of workloads, modelled on a card: kernels, bytes, time and floor. Nothing is compiled, run or measured.

    python -m arcweld.models.modelled_suite            # writes docs/benchmarks/modelled.json
    python -m arcweld.models.modelled_suite --compare  # says what the working tree would change there
    python -m arcweld.models.modelled_suite --since main  # says what the file has changed since a revision

The models are those of the benchmark (``bench.py``) and larger batches of them, a block of a diffusion model's U-Net,
Whisper's encoder, a prompt of a decoder, and one layer of its prompt and decode step for each type that weights are
stored in.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from arcweld.compiler.cards import card
from arcweld.compiler.errors import UsageError
from arcweld.compiler.ir import Graph
from arcweld.compiler.options import Options
from arcweld.driver.api import import_model
from arcweld.driver.build import build_graph
from arcweld.driver.estimate import estimate_engine
from arcweld.models.bench import CASES
from arcweld.models.builders import SEED, Built, build
from arcweld.models.decode_table import AS_PACKED, DECODERS, STORAGES, layer, prefill_layer

CARD = "h100"
FILE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "modelled.json"
CONTEXT = 512
PROMPT = 512
MORE: Mapping[str, tuple[str, Mapping[str, Any], str]] = {
    **CASES,
    "bert_b8_s512": ("bert", {"batch": 8, "length": 512}, "fp16"),
    "vit_b16_b32": ("vit_b16", {"batch": 32}, "fp16"),
    "llama_1b_prefill_s512_2_layers": ("llama", {"length": 512, "layers": 2}, "bf16"),
}


def workloads() -> dict[str, Callable[[], tuple[Graph, Options]]]:
    """Each workload's graph, and the options that it is planned with."""
    arch = (card(CARD).arch,)

    def imported(made: Built, precision: str) -> tuple[Graph, Options]:
        return import_model(made.module, *made.args), Options(precision=precision, arch=arch)

    def block(name: str) -> tuple[Graph, Options]:
        from arcweld.models import blocks

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            return imported(getattr(blocks, name)(), "fp16")

    found: dict[str, Callable[[], tuple[Graph, Options]]] = {
        name: lambda case=case: imported(build(case[0], **case[1]), case[2])  # type: ignore[misc]
        for name, case in MORE.items()
    }
    found["unet_block_b2_c640_32x32"] = lambda: block("unet_block")
    found["whisper_base_encoder_b1"] = lambda: block("whisper_encoder")
    for storage in STORAGES:
        found[f"llama_1b_prefill_layer_{storage.replace(' ', '_')}_s512"] = lambda s=storage: (  # type: ignore[misc]
            prefill_layer(DECODERS["Llama-1B"], PROMPT, STORAGES[s]), Options(arch=arch, disable=AS_PACKED)
        )  # fmt: skip
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


def stored(revision: str = "") -> dict[str, dict[str, Any]]:
    """The rows of the file, in the working tree or in a revision of its repository. Raises UsageError for no revision.
    """
    text = FILE.read_text(encoding="utf-8") if not revision else _at(revision)
    found: dict[str, dict[str, Any]] = json.loads(text)["workloads"]
    return found


def _at(revision: str) -> str:
    command = ["git", "-C", str(FILE.parent), "show", "--end-of-options", f"{revision}:./{FILE.name}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UsageError(f"{revision!r} has no {FILE.name}: {done.stderr.strip()}")
    return done.stdout


def main() -> None:
    """Writes the file, or prints what would change in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="workloads; all without")
    parser.add_argument("--compare", action="store_true", help="write nothing, print what differs from the file")
    parser.add_argument("--since", metavar="REVISION", help="print what the file has changed since it")
    options = parser.parse_args()
    if options.since is not None:
        print("\n".join(differences(stored(options.since), stored())) or "nothing changed")
        return
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
