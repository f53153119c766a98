"""Renders a template file to a kernel's source, in one strict Jinja environment.

Its blocks are ``<% %>``, because inline PTX contains ``{%``.
"""

from __future__ import annotations

import hashlib
import sys
from functools import cache
from importlib import resources
from typing import Any

import jinja2

from arcweld.codegen.kernel import Kernel, KernelSource
from arcweld.codegen.nvrtc.cache import DiskCache, content_key
from arcweld.codegen.printing.params import Params
from arcweld.compiler.dims import Dim
from arcweld.compiler.paths import cache_dir
from arcweld.compiler.tiling import Tiling

_ENTRY = "ENTRY_POINT"


def _read(name: str) -> str:
    for package in ("arcweld.codegen.templates", "arcweld.codegen.include"):
        path = resources.files(package).joinpath(name)
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise jinja2.TemplateNotFound(name)


def _nested(text: str) -> str:
    """``text`` in a block of C: indented by two, but for directives and empty lines."""
    return "\n".join(line if line.startswith("#") or not line else f"  {line}" for line in text.split("\n"))


@cache
def environment() -> jinja2.Environment:
    """The one Jinja environment: ``<% %>`` blocks, ``{{ }}`` values, ``<# #>`` comments, undefined names raise.

    The filter ``nested`` indents what stands in a block.
    """
    made = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read),
        block_start_string="<%",
        block_end_string="%>",
        comment_start_string="<#",
        comment_end_string="#>",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        bytecode_cache=_TemplateCode(),
    )
    made.filters["nested"] = _nested
    return made


class _TemplateCode(jinja2.BytecodeCache):
    """Keeps templates as Python code on disk: translating them takes 0.2 s in every process."""

    def __init__(self) -> None:
        self._disk = DiskCache(cache_dir() / "templates")

    def load_bytecode(self, bucket: jinja2.bccache.Bucket) -> None:
        found = self._disk.get(self._key(bucket))
        if found is not None:
            bucket.bytecode_from_string(found)

    def dump_bytecode(self, bucket: jinja2.bccache.Bucket) -> None:
        self._disk.put(self._key(bucket), bucket.bytecode_to_string())

    @staticmethod
    def _key(bucket: jinja2.bccache.Bucket) -> str:
        return content_key((jinja2.__version__, sys.version, bucket.key, bucket.checksum))


def overlapping(extent: Dim, tile: int, parts: int = 0) -> tuple[tuple[Dim, int], ...]:
    """The ``tiled`` entries of what blocks divide among themselves, ``tile`` elements each.

    Beyond one tile a second block shows. Beyond as many tiles as a tile has ``parts`` (0: elements), tiles that overlap
    by one part leave the end out.
    """
    return (extent, tile), (extent, tile * (parts or tile))


def render(
    template: str, kernel: Kernel, params: Params, *, arch: str, grid: tuple[Dim, Dim, Dim],
    block: tuple[int, int, int], shared_bytes: int = 0, cluster: int = 1, pdl: bool = True,
    zero: tuple[str, ...] = (), tiled: tuple[tuple[Dim, int], ...] = (), cooperative: bool = False,
    tiling: Tiling[Dim] | None = None, **context: Any,
) -> KernelSource:  # fmt: skip
    """Renders ``template`` (a file of ``codegen/templates``) to a KernelSource.

    Hooks must be printed before the call, so that ``params`` is complete. The template sees ``entry``, ``params`` (the
    struct's text), ``kernel``, ``grid``, ``block`` and everything in ``context``; an undefined name raises. The entry
    point is named after the kernel and a hash of the text, so that equal kernels have equal bytes. For the other
    arguments see ``KernelSource``.
    """
    page = environment().get_template(template)
    text = page.render(entry=_ENTRY, params=params.struct(), kernel=kernel, grid=grid, block=block, **context)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    entry = f"{kernel.stem}_{digest}"
    return KernelSource(
        entry, text.replace(_ENTRY, entry), arch, grid, block, shared_bytes, params.members(), cluster, pdl, zero,
        tuple((extent, round_) for extent, round_ in tiled if round_ and not isinstance(extent, int)), *params.own(),
        cooperative, tiling,
    )  # fmt: skip
