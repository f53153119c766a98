"""Converts models of ONNX operator sets before the oldest that handlers know, by ONNX's own version converter."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.checker
import onnx.shape_inference
import onnx.version_converter
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]

from arcweld.compiler.errors import UnsupportedError
from arcweld.compiler.onnx.proto import ModelSource, Source, load_model

OLDEST_OPSET = 7
_REFUSALS = (
    onnx.checker.ValidationError, onnx.shape_inference.InferenceError, onnx.version_converter.ConvertError,
)  # fmt: skip


def load(source: ModelSource) -> tuple[onnx.ModelProto, Source]:
    """What ``load_model`` returns, of a model older than ``OLDEST_OPSET`` converted to that.

    An old file is decoded once more, with its weights in it, because the checker looks at their sizes.

    Raises UnsupportedError for an old model that ONNX's checker refuses, because the converter expects a valid one, and
    for one that the converter does not know how to convert.
    """
    model, place = load_model(source)
    version = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), OLDEST_OPSET)
    if version >= OLDEST_OPSET:
        return model, place
    if place.folder is not None:
        model, place = load_model(Path(source).read_bytes())  # type: ignore[arg-type]
    if any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer):
        raise _refused(version, "its weights are external data")
    try:
        onnx.checker.check_model(model)
        return onnx.version_converter.convert_version(model, OLDEST_OPSET), place
    except (*_REFUSALS, RuntimeError, ValueError, IndexError, TypeError, EncodeError) as error:
        raise _refused(version, _reason(error)) from error


def _reason(error: Exception) -> str:
    """The first line of the message, without a place in C++ sources."""
    return str(error).strip().partition("\n")[0].rpartition("failed: ")[2][:200]


def _refused(version: int, why: str) -> UnsupportedError:
    return UnsupportedError(
        f"the model uses ONNX operator set {version}, and ONNX cannot convert it to {OLDEST_OPSET}: {why}",
        hint=f"export it again with operator set {OLDEST_OPSET} or newer",
    )
