"""Lowers a region to a kernel: every node of it becomes part of an expression over the template's axes.

What differs between templates is in ``heroes.py``: the hero's axes, operands and result. The rest is the same for all.
"""

from __future__ import annotations

from arcweld.codegen.kernel import BoundKernel, Buffer, Store, axis
from arcweld.codegen.lowering.chain import lower_chain
from arcweld.codegen.lowering.heroes import HEROES
from arcweld.codegen.lowering.reading import RegionReader, delinearize, epilogue_coords, finish
from arcweld.codegen.lowering.scatter import lower_scatter
from arcweld.compiler.dims import is_multiple
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import VerifyError
from arcweld.compiler.expr import binary, const, pattern, where
from arcweld.compiler.ir import Graph
from arcweld.compiler.ops.shapes import below
from arcweld.compiler.region import Region


def lower(region: Region, graph: Graph) -> BoundKernel:
    """The kernel of a region, and the tensors that its canonical buffers stand for.

    Raises VerifyError for a region that no single kernel can compute (a defect of fusion).
    """
    if region.chain is not None:
        return lower_chain(region, graph)
    reader = RegionReader(region, graph)
    if region.hero is None:
        return _lower_pointwise(region, reader)
    hero = HEROES[region.template](reader, region.hero)
    reader.hero = hero
    at = epilogue_coords(region, region.hero.output, hero.coords)
    stores = []
    for o in region.outputs:
        if o.name in at:
            coords, value = at[o.name], reader.read(o, at[o.name])
        elif o.name in hero.visited:
            coords, value = hero.visited[o.name]
        else:
            raise VerifyError(f"region {region.name} cannot store {o.name}", hint="disable the pass fusion")
        stores.append(Store(reader.buffer(o, written=True).name, coords, value))
    template = hero.template or region.template
    return finish(region, reader, template, hero.axes, hero.loads, stores, hero.attrs, hero.flops)


def lower_all(region: Region, graph: Graph) -> tuple[BoundKernel, ...]:
    """The kernels of a region, in launch order. Raises VerifyError as ``lower`` does.

    A region is one kernel, except a scatter that is not in place: the first kernel copies the data, the second one
    stores updates over it.
    """
    return lower_scatter(region, graph) if region.template == "scatter" else (lower(region, graph),)


def _lower_pointwise(region: Region, reader: RegionReader) -> BoundKernel:
    out = region.outputs[0]
    if out.dtype.is_packed:
        return _lower_packed(region, reader)
    axes = tuple(axis(f"i{k}", d) for k, d in enumerate(out.shape))
    coords = tuple(a.index for a in axes)
    stores = []
    for o in region.outputs:
        if o.shape != out.shape:
            raise VerifyError(f"region {region.name} stores {o.type} beside {out.type}", node=o.name)
        stores.append(Store(reader.buffer(o, written=True).name, coords, reader.read(o, coords)))
    return finish(region, reader, "pointwise", {"out": axes}, {}, stores, {}, 0)


def _lower_packed(region: Region, reader: RegionReader) -> BoundKernel:
    """A pointwise region whose one result has a packed type: each thread makes whole bytes of its elements."""
    out, *others = region.outputs
    if others:
        raise VerifyError(f"region {region.name} stores {others[0].type} beside {out.type}", node=others[0].name)
    per, bits = out.dtype.per_byte, out.dtype.bits
    byte = axis("byte", out.dtype.nbytes(out.type.numel))
    packed = const(0, DType.U8)
    for k in range(per):
        at = per * byte.index + k
        inside = None if is_multiple(out.type.numel, per) else below(at, out.type.numel)
        field = pattern(reader.read(out, delinearize(at, out.shape), inside), out.dtype)
        if inside is not None:
            field = where(inside, field, const(0, DType.U8))
        packed = binary("bitor", packed, binary("shl", field, const(k * bits, DType.U8))) if k else field
    reader.buffers[out.name] = Buffer("out0", DType.U8, (byte.extent,), written=True)
    store = Store("out0", (byte.index,), packed)
    return finish(region, reader, "pointwise", {"out": (byte,)}, {}, [store], {}, 0)
