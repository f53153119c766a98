"""What an engine file says of a language model beside its program: ``llm.json``, the tokenizer, the chat template.

They are members ``files/...`` of the engine file, so that one file is the whole model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import msgspec

from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import EngineFileError, UsageError
from arcweld.compiler.ragged import ADAPTER_ENDS, FORMS, cache_names
from arcweld.compiler.sampler import INPUTS, OUTPUTS
from arcweld.runtime.engine_file import EngineData, engine_bytes, parse_engine
from arcweld.runtime.llm.chat import ChatTemplate
from arcweld.runtime.llm.tokenizer import Tokenizer
from arcweld.runtime.program import Program

DESCRIPTION, TOKENIZER, LICENSE = "llm.json", "tokenizer.json", "LICENSE"
TEMPLATE, TOOL_TEMPLATE = "chat_template.jinja", "chat_template.tool_use.jinja"
SAMPLER = "sampler.engine"
VERSION = 2
# of keys and values, by the names that users give; ``auto`` is what the checkpoint says, or what the build computes in
CACHE_DTYPES: Mapping[str, DType | None] = {
    "auto": None, "float16": DType.F16, "bfloat16": DType.BF16, "fp8": DType.F8E4M3FN, "fp8_e4m3": DType.F8E4M3FN,
    "int8": DType.I8,
}  # fmt: skip


class Cache(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an attention layer keeps of a token: ``heads`` keys and values of so many elements each, as ``dtype``.

    ``scales``: the type of the scale that each key and each value has of its own; None: they have none.
    """

    heads: int
    key_size: int
    value_size: int
    dtype: str
    scales: str | None = None


class AdaptedLayer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A linear layer that adapters may change: its name and sizes, and the names of its weights ``A`` and ``B``."""

    name: str
    inputs: int
    outputs: int
    a: str
    b: str


class AdapterRoom(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Room for ``count`` LoRA adapters of at most ``rank``, which may change these layers.

    Weights are ``A`` [count, inputs, rank] and ``B`` [count, rank, outputs].
    """

    count: int
    rank: int
    layers: tuple[AdaptedLayer, ...]


class Description(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The sizes that the engine was built for, and what the model's authors say of its use.

    length       the most tokens of a sequence
    page_size    positions of a page
    tokens       the most tokens of a step
    rows         the most tokens of a step whose logits are wanted
    tile         the most tokens of a tile
    vocabulary   logits of a token
    caches       what each attention layer keeps
    end_tokens   tokens at which a result ends
    special      names of special tokens, for the chat template
    sampling     defaults of sampling parameters
    adapters     room for LoRA adapters; None: there is none
    version      of this description
    batch_invariant  the bits of a token's logits do not depend on what is computed with it
    embeddings   the engine's second result is the hidden states of the wanted rows
    calibrated   keys and values in 8-bit floats have the scales that the checkpoint stores
    """

    architecture: str
    length: int
    page_size: int
    tokens: int
    rows: int
    tile: int
    vocabulary: int
    caches: tuple[Cache, ...]
    end_tokens: tuple[int, ...] = ()
    special: dict[str, str] = {}
    sampling: dict[str, float] = {}
    adapters: AdapterRoom | None = None
    version: int = VERSION
    batch_invariant: bool = False
    embeddings: bool = False
    calibrated: bool = False

    def limited(self, length: int) -> Description:
        """The same for sequences of at most ``length`` tokens."""
        return msgspec.structs.replace(self, length=length)

    def state(self, pages: int) -> dict[str, tuple[tuple[int, ...], DType]]:
        """The shape and the type of each input that holds ``pages`` pages, by name."""
        found: dict[str, tuple[tuple[int, ...], DType]] = {}
        for k, c in enumerate(self.caches):
            parts = [(c.key_size, DType(c.dtype)), (c.value_size, DType(c.dtype))]
            if c.scales is not None:
                parts += [(1, DType(c.scales))] * 2
            for name, (size, dtype) in zip(cache_names(k, c.scales is not None), parts):
                found[name] = ((pages, self.page_size, c.heads, size), dtype)
        return found

    @property
    def page_bytes(self) -> int:
        """Bytes of one page in all layers, with its scales."""
        return sum(math.prod(shape) * dtype.size for shape, dtype in self.state(1).values())

    def require(self, kv_cache_dtype: str, batch_invariant: bool, embeddings: bool) -> None:
        """Raises UsageError if the engine was not built with these; ``auto`` and False are true of every engine."""
        wanted, found = cache_dtype(kv_cache_dtype), sorted({c.dtype for c in self.caches})
        if wanted is not None and found != [wanted.value]:
            raise UsageError(
                f"kv_cache_dtype is {kv_cache_dtype}, and the engine was built with caches of {', '.join(found)}",
                hint=f"build it with --kv-cache-dtype {kv_cache_dtype}",
            )
        if embeddings and not self.embeddings:
            raise UsageError("the engine gives no hidden states", hint="build it with --embeddings")
        if batch_invariant and not self.batch_invariant:
            raise UsageError(
                "the engine is not batch-invariant: its kernels for few and for many tokens sum in different orders",
                hint="build it with --batch-invariant",
            )


def cache_dtype(name: str) -> DType | None:
    """The type of keys and values that a user names; None for ``auto``. Raises UsageError for an unknown name."""
    if name not in CACHE_DTYPES:
        raise UsageError(f"kv_cache_dtype is {name!r}", hint=f"one of {', '.join(CACHE_DTYPES)}")
    return CACHE_DTYPES[name]


@dataclass(frozen=True, slots=True)
class Package:
    """A language model's engine, its description, and its tokenizer and chat template if it has them.

    sampler  the engine that chooses tokens on the device (``compiler/sampler.py``)
    """

    data: EngineData
    description: Description
    tokenizer: Tokenizer | None
    template: ChatTemplate | None
    sampler: EngineData


def packed(
    data: EngineData, description: Description, *, sampler: EngineData, tokenizer: str | None = None,
    template: str | None = None, tool_template: str | None = None, license_text: str | None = None,
) -> EngineData:  # fmt: skip
    """The engine with these files, and ``sampler`` as one of them."""
    files = {DESCRIPTION: msgspec.json.format(msgspec.json.encode(description), indent=1)}
    files[SAMPLER] = engine_bytes(sampler)
    texts = {TOKENIZER: tokenizer, TEMPLATE: template, TOOL_TEMPLATE: tool_template, LICENSE: license_text}
    files |= {name: text.encode() for name, text in texts.items() if text is not None}
    return data.with_files(files)


def unpacked(data: EngineData) -> Package:
    """The language model that an engine is. Raises EngineFileError for an engine that is none, or a damaged one."""
    text = data.files.get(DESCRIPTION)
    if text is None:
        raise EngineFileError(
            "the engine is no language model: it has no llm.json", hint="arcweld build-llm makes one from a checkpoint"
        )
    try:
        description = msgspec.json.decode(text, type=Description)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EngineFileError(f"llm.json is damaged: {error}") from None
    if description.version != VERSION or SAMPLER not in data.files:
        what = f"it has version {description.version}; this Arcweld reads {VERSION}"
        raise EngineFileError(f"llm.json is of another version: {what}", hint="build the engine again")
    sizes = ("length", "page_size", "tokens", "rows", "tile", "vocabulary")
    if any(getattr(description, n) < 1 for n in sizes) or not description.caches:
        raise EngineFileError("llm.json is damaged: a size is not positive")
    types = {t for c in description.caches for t in (c.dtype, c.scales) if t is not None}
    if not types <= {d.value for d in DType} or len({c.scales for c in description.caches}) > 1:
        raise EngineFileError("llm.json is damaged: caches are of no type, or layers differ in having scales")
    _check_program(data.program, description)
    tokenizer = Tokenizer(_text(data, TOKENIZER)) if TOKENIZER in data.files else None
    if tokenizer is not None and tokenizer.size > description.vocabulary:
        raise EngineFileError(
            f"the tokenizer has {tokenizer.size} tokens, the model {description.vocabulary}: they do not fit"
        )
    return Package(data, description, tokenizer, _template(data, description), _sampler(data, description))


def _check_program(program: Program, d: Description) -> None:
    """Raises EngineFileError where the description is not that of the program: its sizes decide what memory is read."""
    inputs = {name: (dtype.value, shape) for name, (dtype, shape) in FORMS.items()}
    if d.adapters is not None:
        inputs[ADAPTER_ENDS] = (DType.I32.value, (str(d.adapters.count),))
    pages = {n: (dtype.value, ("pages", *map(str, shape[1:]))) for n, (shape, dtype) in d.state(1).items()}
    given = {t.name: (t.dtype, t.shape) for t in program.inputs}
    results = {"logits": ("rows", str(d.vocabulary))} | ({"hidden": ("rows",)} if d.embeddings else {})
    found = {t.name: t.shape[: len(results.get(t.name, ()))] for t in program.outputs}
    most = {"tokens": d.tokens, "tiles": d.tokens, "rows": d.rows, "tile": d.tile}
    most["entries"] = d.tokens * -(-d.length // d.page_size)
    ends = {s.name: s.hi for s in program.symbols}
    for what, own, stated in (
        ("input", given, inputs | pages), ("result", found, results | {f"{n}_now": () for n in pages}),
        ("size", {n: ends.get(n) for n in most}, most),
    ):  # fmt: skip
        wrong = [n for n in sorted({*own, *stated}) if own.get(n) != stated.get(n)]
        if wrong:
            raise EngineFileError(
                f"llm.json is damaged: by it, the {what} {wrong[0][:80]!r} is {stated.get(wrong[0])}, and the engine's "
                f"is {own.get(wrong[0])}", hint="build the engine again",
            )  # fmt: skip


def _template(data: EngineData, description: Description) -> ChatTemplate | None:
    if TEMPLATE not in data.files:
        return None
    tool_text = _text(data, TOOL_TEMPLATE) if TOOL_TEMPLATE in data.files else None
    return ChatTemplate(_text(data, TEMPLATE), description.special, tool_text)


def _sampler(data: EngineData, description: Description) -> EngineData:
    try:
        found = parse_engine(memoryview(data.files[SAMPLER]))
    except EngineFileError as error:
        raise EngineFileError(f"{SAMPLER} is damaged: {error.message}", hint=error.hint) from None
    takes, gives = ([t.name for t in tensors] for tensors in (found.program.inputs, found.program.outputs))
    shape = found.program.inputs[0].shape if found.program.inputs else ()
    if (tuple(takes), tuple(gives)) != (INPUTS, OUTPUTS) or shape[1:] != (str(description.vocabulary),):
        raise EngineFileError(f"{SAMPLER} is damaged: it does not take logits of {description.vocabulary} tokens")
    return found if data.unchecked else replace(found, unchecked="")


def _text(data: EngineData, name: str) -> str:
    try:
        return data.files[name].decode()
    except UnicodeDecodeError as error:
        raise EngineFileError(f"{name} is not UTF-8: {error}") from None
