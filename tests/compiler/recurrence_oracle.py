"""What Recurrence gives, by ONNX Runtime and torch: the oracle of the operator sweep."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper

Attrs = dict[str, Any]


def recurrence(attrs: Attrs, *arrays: np.ndarray | None) -> list[np.ndarray]:
    """ONNX Runtime's operator for each direction alone, in f32, of products with a unit matrix as its weights."""
    dtype = arrays[0].dtype if arrays[0] is not None else None
    wide = [a if a is None or a.dtype == np.int32 else a.astype(np.float32) for a in arrays]
    x, r, lengths, bias, peephole, h, c = [*wide, *[None] * 7][:7]
    assert x is not None
    assert r is not None
    if attrs["rounded"]:
        return _rounded_lstm(attrs, x, r)
    cell, hidden, rows = attrs["cell"].upper(), r.shape[2], r.shape[1]
    runs = {"forward": ["forward"], "reverse": ["reverse"]}.get(attrs["direction"], ["forward", "reverse"])
    names = np.array(attrs["activations"]).reshape(len(runs), -1)
    found = []
    for d, run in enumerate(runs):
        b = np.zeros((1, 2 * rows), x.dtype)
        if bias is not None:
            b[0, -hidden:] = bias[d]
        unit = np.eye(rows, dtype=x.dtype)[None]
        given = {"x": x[:, :, d * rows : (d + 1) * rows], "w": unit, "r": r[d : d + 1], "b": b}
        given["n"] = np.full(x.shape[1], len(x), np.int32) if lengths is None else lengths
        given["h"] = np.zeros((1, x.shape[1], hidden), x.dtype) if h is None else h[d : d + 1]
        if cell == "LSTM":
            given["c"] = np.zeros((1, x.shape[1], hidden), x.dtype) if c is None else c[d : d + 1]
            given["p"] = np.zeros((1, 3 * hidden), x.dtype) if peephole is None else peephole[d : d + 1]
        own: Attrs = {"hidden_size": hidden, "direction": run, "activations": list(names[d])}
        own |= {"clip": attrs["clip"]} if attrs["clip"] else {}
        own |= {"LSTM": {"input_forget": attrs["input_forget"]}, "RNN": {}}.get(
            cell, {"linear_before_reset": attrs["linear_before_reset"]}
        )
        results = ["y", "yh", "yc"][: 3 if cell == "LSTM" else 2]
        elements = {k: helper.np_dtype_to_tensor_dtype(v.dtype) for k, v in given.items()}
        inputs = [helper.make_tensor_value_info(k, elements[k], list(v.shape)) for k, v in given.items()]
        outputs = [helper.make_tensor_value_info(k, elements["x"], None) for k in results]
        body = helper.make_graph([helper.make_node(cell, list(given), results, **own)], "cell", inputs, outputs)
        model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 14)], ir_version=10)
        found.append(_run(model, given))
    y, *states = (np.concatenate(parts, axis) for parts, axis in zip(zip(*found), (1, 0, 0)))
    return [a.astype(dtype) for a in (y, *states)]


def _rounded_lstm(attrs: Attrs, x: np.ndarray, r: np.ndarray) -> list[np.ndarray]:
    """Step by step: torch's LSTM cell on hidden states that torch has quantised."""
    ys, hs, cs = [], [], []
    for d, backwards in enumerate((False, True)[: len(r)]):
        n = r.shape[2]
        order = np.concatenate([np.arange(n) + k * n for k in (0, 2, 3, 1)])  # i, f, g, o
        own = torch.from_numpy(x[:, :, d * 4 * n : (d + 1) * 4 * n][..., order])
        weights = torch.from_numpy(r[d][order])
        h, c = torch.zeros(x.shape[1], n), torch.zeros(x.shape[1], n)
        y = torch.zeros(len(x), x.shape[1], n)
        for t in reversed(range(len(x))) if backwards else range(len(x)):
            low, high = min(float(h.min()), 0.0), max(float(h.max()), 0.0)
            scale = float(np.float32(high - low) / np.float32(255)) or 1.0
            zero = int(np.clip(np.rint(np.float32(-low) / np.float32(scale)), 0, 255))
            seen = torch.fake_quantize_per_tensor_affine(h, scale, zero, 0, 255)
            h, c = torch.lstm_cell(own[t], (seen, c), torch.eye(4 * n), weights)
            y[t] = h
        ys.append(y.numpy())
        hs.append(h.numpy())
        cs.append(c.numpy())
    return [np.stack(ys, 1), np.stack(hs), np.stack(cs)]


def _run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(y) for y in session.run(None, feeds)]
