"""The constants of the model of time, fitted by ``arcweld.models.calibrate``; not written by hand."""

from __future__ import annotations

from arcweld.codegen.cost.model import Constants

PRODUCT = Constants(
    gap=0.3721,
    plain_gap=1.734,
    fill=0.682,
    cold=0.5541,
    tensor=0.7424,
    hot=0.7185,
    heat=213.9,
    shared=65.34,
    feed=43.64,
    latency=0.4096,
    memory=0.9002,
    store=1.354,
    stage=0.1493,
    special=1.158,
    other=0.6586,
    overlap=0.1588,
    exchange=1.004,
    moved=1.525,
    stream=0.2661,
)
CONVOLUTION = Constants(
    gap=1.249,
    plain_gap=2.158,
    fill=0.5952,
    cold=0.09107,
    tensor=0.9113,
    hot=0.967,
    heat=234.9,
    shared=87.46,
    feed=52.45,
    latency=0.1001,
    memory=0.7933,
    store=1.517,
    stage=1.493,
    special=0.5392,
    other=0.63,
    overlap=0.6563,
    exchange=1.263,
    moved=0.1041,
    stream=0.6,
)
FITTED = {"product": PRODUCT, "stream": PRODUCT, "convolution": CONVOLUTION}
