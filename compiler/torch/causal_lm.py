"""Imports a causal language model of transformers as one graph over a ragged batch, with its caches in pages.

The model's own code says the architecture. It runs once under ``torch.export`` with an attention interface that
becomes attention over paged caches here, so no model needs a line of its own. Everything but attention works on each
token alone: the batch is one row of ``T`` tokens of any sequences.

Attention sees a token through *tiles*: up to ``q`` following tokens of one sequence, which attend to its pages as a
sequence of its own would. A decode step has tiles of one token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim

from arcweld.compiler.checkpoints.caches import CacheScales
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import ArcweldError, UnsupportedError
from arcweld.compiler.ir import Graph
from arcweld.compiler.ragged import cache_names
from arcweld.compiler.torch.adapted import AdaptedLayer, Adapters, with_adapters
from arcweld.compiler.torch.importer import Weights, import_module
from arcweld.compiler.torch.types import from_torch, to_torch

INTERFACE = "arcweld_paged"
UNSCALED = CacheScales((1.0,), (1.0,))
_MOST_PAGES = 1 << 24
LEAST: Mapping[str, int] = {"tokens": 12, "rows": 3, "tile": 5}  # of the most: the example has these
_LIBRARY = torch.library.Library("arcweld", "FRAGMENT")
_LIBRARY.define(
    "paged_attention(Tensor query, Tensor key, Tensor value, Tensor[] pages, Tensor[] batch, float scale, int length,"
    " int? window, float softcap, Tensor? sink, float[] key_scale, float[] value_scale) -> Tensor[]"
)


def _shapes(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pages: list[torch.Tensor], *_: Any
) -> list[torch.Tensor]:
    batch, heads, tokens, _d = query.shape
    return [query.new_empty((batch, tokens, heads, value.shape[3])), *(p.new_empty(p.shape) for p in pages)]


torch.library.register_fake("arcweld::paged_attention", _shapes, lib=_LIBRARY)


@dataclass(frozen=True, slots=True)
class LayerCache:
    """What one attention layer keeps of a token: ``heads`` keys of ``key_size`` elements, values of ``value_size``.

    window  how many of the last tokens a token attends to; None: all
    module  the name of the attention layer in the model
    """

    heads: int
    key_size: int
    value_size: int
    window: int | None
    module: str


@dataclass(frozen=True, slots=True)
class CausalLM:
    """An imported model: its graph, what each attention layer keeps of a token, its number of logits, and the layers
    that adapters may change."""

    graph: Graph
    caches: tuple[LayerCache, ...]
    vocabulary: int
    adapted: tuple[AdaptedLayer, ...] = ()


@dataclass
class _Trace:
    """What the attention interface works on while the model runs, and what it finds out."""

    length: int
    batch: list[torch.Tensor]
    each: int  # pages of a layer
    pages: list[torch.Tensor]  # layer by layer; none while only the layers' sizes are asked for
    scales: Sequence[CacheScales]  # of each layer, if pages are of 8-bit floats
    modules: Mapping[int, str]  # names of the model's modules
    caches: list[LayerCache]
    written: list[torch.Tensor]
    hidden: list[torch.Tensor]  # of the rows whose logits are wanted


_TRACES: list[_Trace] = []


def _attend(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any,
    scaling: float | None = None, sliding_window: int | None = None, softcap: float | None = None,
    s_aux: torch.Tensor | None = None, **_: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """The attention interface: query [1, heads, T, size], key and value [1, groups, T, size] to [1, T, heads, size]."""
    trace = _TRACES[-1]
    k = len(trace.caches)
    name = trace.modules.get(id(module), "")
    trace.caches.append(LayerCache(int(key.shape[1]), int(key.shape[3]), int(value.shape[3]), sliding_window, name))
    if mask is not None:
        raise UnsupportedError(f"attention layer {k} has a mask of its own beside the causal one")
    if not trace.pages:
        return query.new_empty((1, query.shape[2], query.shape[1], value.shape[3])), None
    scales = trace.scales[k] if trace.scales else CacheScales((), ())
    y, *written = torch.ops.arcweld.paged_attention(
        query, key, value, trace.pages[k * trace.each : (k + 1) * trace.each], trace.batch,
        query.shape[3] ** -0.5 if scaling is None else float(scaling), trace.length, sliding_window,
        float(softcap or 0.0), s_aux, list(scales.keys), list(scales.values),
    )  # fmt: skip
    trace.written += written
    return y, None


class _Ragged(torch.nn.Module):  # type: ignore[misc]
    """The model as a function of a ragged batch (``compiler/ragged.py``)."""

    def __init__(self, model: torch.nn.Module, length: int, each: int, adapters: Adapters | None) -> None:
        super().__init__()
        self.model = model
        self.length = length
        self.adapters = adapters
        self.caches: list[LayerCache] = []
        self.each = each
        self.scales: Sequence[CacheScales] = ()
        self.names = {id(module): name for name, module in model.named_modules()}

    def forward(
        self, ids: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor,
        tile_rows: torch.Tensor, token_places: torch.Tensor, kv_indptr: torch.Tensor, kv_indices: torch.Tensor,
        kv_last_page_len: torch.Tensor, new: torch.Tensor, pages: list[torch.Tensor],
        adapter_ends: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:  # fmt: skip
        """Logits [R, vocabulary] of the tokens ``rows``, perhaps their hidden states, and the pages after the step."""
        batch = [slots, tile_rows, token_places, kv_indptr, kv_indices, kv_last_page_len, new]
        trace = _Trace(self.length, batch, self.each, pages, self.scales, self.names, [], [], [])
        _TRACES.append(trace)
        if self.adapters is not None:
            self.adapters.ends, self.adapters.tokens = adapter_ends, ids.shape[0]
        try:
            found = self.model(input_ids=ids[None], position_ids=positions[None], use_cache=False, logits_to_keep=rows)
        finally:
            _TRACES.pop()
        self.caches = trace.caches
        return (found.logits[0], *trace.hidden[-1:], *trace.written)


def import_causal_lm(
    model: Any, *, length: int, page_size: int, tokens: int, rows: int, tile: int = 16,
    weights: Weights | None = None, stored: DType | None = None, hidden: bool = False, adapters: Adapters | None = None,
    scales: Callable[[str, int], CacheScales] | None = None,
) -> CausalLM:  # fmt: skip
    """Imports a ``...ForCausalLM`` of transformers.

    length     the most positions of a sequence
    page_size  positions of a page
    tokens     the most tokens of a batch
    rows       the most rows of logits
    tile       the most tokens of a tile
    weights    gives the value of a parameter by its name, which it may emit nodes for; None: the module's own
    stored     the type of keys and values in pages, to which they are rounded; None: the module's own. Those in i8 have
               a scale for each token and head, in pages beside theirs
    hidden     the hidden states that the logits are made of are an output too
    adapters   room for LoRA adapters; None: there is none
    scales     gives the scales of an attention layer, by its name and its number of heads of keys, if ``stored`` is a
               float of 8 bits; None: they are 1

    The inputs are ``ragged.INPUTS``, then the pages of each layer, and ``ADAPTER_ENDS`` if there are adapters; outputs
    are ``logits`` [R, vocabulary], ``hidden`` [R, hidden size] if it is asked for, and the pages, which take over the
    inputs' memory. ``tokens``, ``rows`` and ``tile`` are at least ``LEAST``. Raises ModelError for what torch cannot
    export, UnsupportedError for a model without attention layers and for operators that Arcweld lacks.
    """
    stored = from_torch(model.dtype) if stored is None else stored
    scaled = stored is DType.I8
    ragged = _Ragged(model.eval(), length, len(cache_names(0, scaled)), adapters)
    room = nullcontext() if adapters is None else with_adapters(model, adapters, "model.")
    ends = () if adapters is None else (torch.zeros(adapters.count, dtype=torch.int32),)
    with _paged_interface(model), _noting_hidden(model, hidden), room:
        caches = _caches(ragged, (*_example(stored, (), page_size), *ends))
        if stored.is_storage:
            ragged.scales = [UNSCALED if scales is None else scales(c.module, c.heads) for c in caches]
        arrays = len(caches) * ragged.each
        shapes = (*_dynamic_shapes(tokens, rows, tile, length, page_size, arrays), *({} for _ in ends))
        example = (*_example(stored, caches, page_size), *ends)
        graph = import_module(ragged, example, None, shapes, weights=_inner(weights))
    aliases = {f"{n}_now": n for k in range(len(caches)) for n in cache_names(k, scaled)}
    labels = ("logits", *(["hidden"] if hidden else []), *aliases)
    graph = graph.replace(name=type(model).__name__, output_labels=labels, aliases=aliases)
    vocabulary = graph.outputs[0].shape[1]
    assert isinstance(vocabulary, int)
    return CausalLM(graph, caches, vocabulary, () if adapters is None else adapters.layers)


def _inner(weights: Weights | None) -> Weights | None:
    """``weights`` by the names that the parameters have inside of ``_Ragged``."""
    return None if weights is None else lambda e, name: weights(e, name.removeprefix("model."))


@contextmanager
def _paged_interface(model: Any) -> Iterator[None]:
    """Lets the model's attention layers call ``_attend``."""
    from transformers import AttentionInterface

    AttentionInterface.register(INTERFACE, _attend)
    before = model.config._attn_implementation
    model.config._attn_implementation = INTERFACE
    try:
        yield
    finally:
        model.config._attn_implementation = before


@contextmanager
def _noting_hidden(model: Any, wanted: bool) -> Iterator[None]:
    """Notes what the last layer, which makes logits, is given, if that is wanted."""
    if not wanted:
        yield
        return
    last = model.get_output_embeddings()
    if last is None:
        raise UnsupportedError(f"{type(model).__name__} does not say which layer makes its logits")
    hook = last.register_forward_pre_hook(lambda _, args: _TRACES[-1].hidden.append(args[0][0]))
    try:
        yield
    finally:
        hook.remove()


def _caches(ragged: _Ragged, args: tuple[Any, ...]) -> tuple[LayerCache, ...]:
    """What each attention layer keeps, found out by running the model without its numbers."""
    name = type(ragged.model).__name__
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), _as_if_exporting():
            ragged(*args)
    except ArcweldError:
        raise
    except Exception as error:  # the model's code raises what it likes
        raise UnsupportedError(
            f"{name} does not run with an attention interface of its own: {type(error).__name__}: {error}",
            hint="export its decoding step as any other module, with a static cache",
        ) from error
    if not ragged.caches:
        raise UnsupportedError(
            f"{name} has no attention layer that calls transformers' attention interface",
            hint="export its decoding step as any other module, with a static cache",
        )
    return tuple(ragged.caches)


@contextmanager
def _as_if_exporting() -> Iterator[None]:
    """Lets models take the ways that they take under ``torch.export``, such as products that have shapes alone."""
    before = torch.compiler._is_compiling_flag
    torch.compiler._is_compiling_flag = True
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = before


def _example(stored: DType, caches: tuple[LayerCache, ...], page_size: int) -> tuple[Any, ...]:
    """Arguments of any values; sizes differ, so that none is taken for another one."""
    tokens, rows, tiles, tile, entries, pages = LEAST["tokens"], LEAST["rows"], 4, LEAST["tile"], 7, 9
    i32 = torch.int32
    batch = (
        torch.zeros(tokens, dtype=torch.int64), torch.zeros(tokens, dtype=torch.int64),
        torch.zeros(rows, dtype=torch.int64), torch.zeros((tokens, 2), dtype=i32),
        torch.zeros((tiles, tile), dtype=i32), torch.zeros((tokens, 2), dtype=i32),
        torch.zeros(tiles + 1, dtype=i32), torch.zeros(entries, dtype=i32), torch.zeros(tiles, dtype=i32),
        torch.zeros(tiles, dtype=i32),
    )  # fmt: skip
    scales = [(1, torch.float32)] * 2 if stored is DType.I8 else []
    return *batch, [
        torch.zeros((pages, page_size, c.heads, n), dtype=dtype)
        for c in caches
        for n, dtype in ((c.key_size, to_torch(stored)), (c.value_size, to_torch(stored)), *scales)
    ]


def _dynamic_shapes(tokens: int, rows: int, tile: int, length: int, page_size: int, arrays: int) -> Any:
    """The open sizes of the graph; their names are the symbols'."""
    t, n, q = Dim("tokens", min=1, max=tokens), Dim("tiles", min=1, max=tokens), Dim("tile", min=1, max=tile)
    r, pages = Dim("rows", min=1, max=rows), Dim("pages", min=1, max=_MOST_PAGES)
    entries = Dim("entries", min=1, max=tokens * -(-length // page_size))
    shapes = ({0: t}, {0: t}, {0: r}, {0: t}, {0: n, 1: q}, {0: t}, {0: n + 1}, {0: entries}, {0: n}, {0: n})
    return *shapes, [{0: pages}] * arrays
