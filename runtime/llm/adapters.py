"""LoRA adapters: folders as PEFT writes them, and their places in a running model.

An adapter adds ``scale B A x`` to linear layers (Hu et al., 2021); its scale is alpha / rank, or alpha / sqrt(rank) if
the adapter says so (Kalajdzievski, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", 2023). An engine
has room for several (``compiler/torch/adapted.py``); they are loaded when a sequence needs them, in place of one that
no sequence uses. Where all places are in use, sequences wait (``scheduler.py``).
"""

from __future__ import annotations

import itertools
import os
import re
import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from arcweld.compiler.checkpoints.files import open_safetensors, read_json
from arcweld.compiler.errors import ModelError, UnsupportedError, UsageError
from arcweld.runtime.engine import Engine
from arcweld.runtime.llm.package import AdapterRoom

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_NAME = re.compile(r"(?:base_model\.model\.)?(?P<layer>.+)\.lora_(?P<part>[AB])(?:\.default)?\.weight")
_CHANGES_THE_MODEL = ("pissa", "olora", "corda", "loftq")  # ways to begin that alter the model's own weights


@dataclass(frozen=True, slots=True)
class LoRARequest:
    """The adapter that a request wants; the names are vLLM's.

    lora_name    by which it is known
    lora_int_id  a positive number of its own
    lora_path    the folder that PEFT wrote
    """

    lora_name: str
    lora_int_id: int
    lora_path: str | os.PathLike[str]

    @property
    def key(self) -> tuple[str, int, str]:
        """What tells it from other ones."""
        return self.lora_name, self.lora_int_id, os.fspath(self.lora_path)

    def __post_init__(self) -> None:
        if self.lora_int_id < 1:
            raise UsageError(f"lora_int_id of the adapter {self.lora_name!r} is {self.lora_int_id}, not at least 1")


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """For each layer that it changes, by name, ``A`` f32[rank, in] and ``B`` f32[out, rank], times the scale."""

    layers: Mapping[str, tuple[np.ndarray, np.ndarray]]

    @property
    def rank(self) -> int:
        """The greatest rank of a layer."""
        return max(len(a) for a, _ in self.layers.values())


def read_adapter(path: str | os.PathLike[str]) -> Adapter:
    """The adapter in a folder with adapter_config.json and adapter_model.safetensors.

    Raises ModelError for files that are missing, damaged or do not belong together, UnsupportedError for what is more
    than a product of two matrices beside a linear layer: DoRA, biases, whole layers, embeddings.
    """
    folder = Path(path)
    config = read_json(folder, CONFIG)
    if config is None:
        raise ModelError(f"the adapter has no {CONFIG}", node=str(folder), hint="name the folder that PEFT wrote")
    _check_kind(config, str(folder))
    arrays = open_safetensors(folder, TENSORS, f"the adapter's file {TENSORS!r}")
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        match = _NAME.fullmatch(name)
        if match is None or array.ndim != 2:
            raise UnsupportedError(
                f"the adapter's tensor {name[:200]!r} is no matrix A or B of a linear layer", node=str(folder)
            )
        parts.setdefault(match["layer"], {})[match["part"]] = array.astype(np.float32)
    if not parts:
        raise ModelError("the adapter has no tensors", node=str(folder))
    return Adapter({layer: _pair(layer, found, config, str(folder)) for layer, found in parts.items()})


def _pair(
    layer: str, found: Mapping[str, np.ndarray], config: Mapping[str, Any], place: str
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """A and B of a layer, B with the scale."""
    if set(found) != {"A", "B"}:
        raise ModelError(f"the adapter's layer {layer[:200]!r} has no lora_{'AB'['A' in found]}", node=place)
    a, b = found["A"], found["B"]
    rank = _number(config, "r", layer, "rank_pattern", place)
    alpha = _number(config, "lora_alpha", layer, "alpha_pattern", place)
    if a.shape[0] != b.shape[1] or a.shape[0] != rank:
        raise ModelError(
            f"the adapter's layer {layer[:200]!r} has matrices {list(a.shape)} and {list(b.shape)}, and the rank "
            f"{rank:g} by {CONFIG}", node=place, hint="the files are of different adapters",
        )  # fmt: skip
    return a, b * np.float32(alpha / (rank**0.5 if config.get("use_rslora") else rank))


def _number(config: Mapping[str, Any], key: str, layer: str, pattern: str, place: str) -> float:
    """A number of the configuration, or the one that it gives for this layer by the end of its name."""
    given: Any = config.get(key)
    for ending, value in (config.get(pattern) or {}).items():
        if re.search(r"[^\w.-]", ending):
            raise UnsupportedError(f"{pattern} has the regular expression {ending[:80]!r}", node=place,
                                   hint="name the layers")  # fmt: skip
        if layer == ending or layer.endswith(f".{ending}"):
            given = value
            break
    if not isinstance(given, int | float) or not given > 0:
        raise ModelError(f"{key} in {CONFIG} is {given!r}, not a positive number", node=place)
    return float(given)


def _check_kind(config: Mapping[str, Any], place: str) -> None:
    if config.get("peft_type", "LORA") != "LORA":
        raise UnsupportedError(f"the adapter is of the type {config['peft_type']!r}, not LORA", node=place)
    start = config.get("init_lora_weights")
    reasons = {
        "DoRA, whose layers are normalised anew": config.get("use_dora"),
        "biases of its own": config.get("bias", "none") != "none" or config.get("lora_bias"),
        "whole layers beside the low-rank ones (modules_to_save)": config.get("modules_to_save"),
        "parameters that are no linear layers (target_parameters)": config.get("target_parameters"),
        "tokens of its own (trainable_token_indices)": config.get("trainable_token_indices"),
        "layers in several copies (layer_replication)": config.get("layer_replication"),
        "a beginning after which it works (alora_invocation_tokens)": config.get("alora_invocation_tokens"),
        f"other weights of the model (init_lora_weights={start!r})":
            isinstance(start, str) and start.lower().startswith(_CHANGES_THE_MODEL),
    }  # fmt: skip
    for what, found in reasons.items():
        if found:
            raise UnsupportedError(f"the adapter has {what}, which are not served", node=place,
                                   hint="merge it into the model's weights, or train it without")  # fmt: skip


@dataclass(slots=True, eq=False)
class _Loaded:
    """An adapter in its place. ``users``: sequences that have it; ``salt``: keeps its prefixes apart from others'."""

    request: LoRARequest
    salt: bytes
    users: int = 0


@dataclass(slots=True)
class AdapterPlaces:
    """The adapters in an engine's room, by place from 1 on. Place 0 is that of sequences without one.

    Sequences enter with the adapter that they need, and leave when they end. Between, they acquire its place to run,
    and release it, as often as they like.
    """

    engine: Engine
    room: AdapterRoom
    loads: int = 0
    _places: dict[int, _Loaded] = field(default_factory=dict)  # the one that was used the longest time ago first
    _entered: Counter[tuple[str, int, str]] = field(default_factory=Counter)  # sequences by their adapter's key
    _arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def enter(self, request: LoRARequest) -> None:
        """One more sequence needs an adapter. It is loaded now if there is a place that no sequence needs.

        Raises what ``read_adapter`` raises, ModelError for one that does not fit the model, UsageError if its name or
        its number is that of another one that sequences need.
        """
        for other in self._entered:
            name, number, _ = other
            if request.key != other and (request.lora_name == name or request.lora_int_id == number):
                raise UsageError(
                    f"the adapter {request.lora_name!r} has the name or the number of {name!r}, which is in use",
                    hint="each adapter has a name and a number of its own",
                )
        if not self._place_of(request) and request.key not in self._entered:
            if self._spare():
                self.add(request)
            else:
                self._read(request)
        self._entered[request.key] += 1

    def leave(self, request: LoRARequest) -> None:
        """A sequence needs its adapter no more."""
        self._entered[request.key] -= 1
        self._entered += Counter()  # keeps those that are left

    def has_place(self, request: LoRARequest) -> bool:
        """Whether an adapter is here, or there is a place that nobody uses."""
        return self._place_of(request) > 0 or self._free() > 0

    def salt(self, request: LoRARequest) -> bytes | None:
        """What keeps the prefixes of an adapter apart from others'; None for one that is not here."""
        place = self._place_of(request)
        return self._places[place].salt if place else None

    def acquire(self, request: LoRARequest) -> int:
        """The place of an adapter, which one more sequence uses from now on.

        It is loaded if need be. Raises as ``enter`` does, and UsageError if all places are in use.
        """
        place = self._place_of(request)
        if place:
            self._places[place] = self._places.pop(place)
        else:
            place = self._free()
            if not place:
                raise UsageError(
                    f"requests use {self.room.count} adapters already, and the engine has room for no more",
                    hint="wait until one has ended, or build with a greater max_loras",
                )
            adapter = self._read(request)
            self._places.pop(place, None)
            self._load(place, adapter)
            self._places[place] = _Loaded(request, secrets.token_bytes(16))
        self._places[place].users += 1
        return place

    def add(self, request: LoRARequest) -> None:
        """Loads an adapter that is not here yet. Raises as ``acquire`` does."""
        self.release(self.acquire(request))

    def release(self, place: int) -> None:
        """A sequence uses the adapter in a place no more; 0 is no place."""
        if place:
            self._places[place].users -= 1

    def _place_of(self, request: LoRARequest) -> int:
        return next((k for k, found in self._places.items() if found.request.key == request.key), 0)

    def _spare(self) -> int:
        """A place that is empty, or whose adapter no sequence needs; 0 if there is none."""
        empty = (k for k in range(1, self.room.count + 1) if k not in self._places)
        left = (k for k, found in self._places.items() if found.request.key not in self._entered)
        return next(itertools.chain(empty, left), 0)

    def _free(self) -> int:
        """A place that nobody uses, a spare one first; 0 if there is none."""
        return self._spare() or next((k for k, found in self._places.items() if not found.users), 0)

    def _read(self, request: LoRARequest) -> Adapter:
        """An adapter that fits the model. Raises as ``enter`` does."""
        adapter = read_adapter(request.lora_path)
        known = {layer.name: layer for layer in self.room.layers}
        where = str(request.lora_path)
        if adapter.rank > self.room.rank:
            raise UsageError(f"the adapter {request.lora_name!r} has the rank {adapter.rank}; the engine has room for "
                             f"{self.room.rank}", hint="build with a greater max_lora_rank")  # fmt: skip
        for name, (a, b) in adapter.layers.items():
            layer = known.get(name)
            if layer is None:
                raise ModelError(f"the adapter changes {name[:200]!r}, which is no linear layer that it may change",
                                 node=where, hint="it belongs to another model")  # fmt: skip
            if (a.shape[1], b.shape[0]) != (layer.inputs, layer.outputs):
                raise ModelError(
                    f"the adapter's layer {name!r} is of {a.shape[1]} inputs and {b.shape[0]} outputs, the model's of "
                    f"{layer.inputs} and {layer.outputs}", node=where, hint="it belongs to another model",
                )  # fmt: skip
        return adapter

    def _load(self, place: int, adapter: Adapter) -> None:
        if not self._arrays:
            self._arrays = {n: np.zeros(s, np.float32) for x in self.room.layers for n, s in self._shapes(x)}
        for layer in self.room.layers:
            for name, _ in self._shapes(layer):
                self._arrays[name][place - 1] = 0
            if layer.name in adapter.layers:
                a, b = adapter.layers[layer.name]
                self._arrays[layer.a][place - 1, :, : len(a)] = a.T
                self._arrays[layer.b][place - 1, : len(a)] = b.T
        self.engine.update_weights(self._arrays)
        self.loads += 1

    def _shapes(self, layer: Any) -> tuple[tuple[str, tuple[int, ...]], ...]:
        count, rank = self.room.count, self.room.rank
        return (layer.a, (count, layer.inputs, rank)), (layer.b, (count, rank, layer.outputs))
