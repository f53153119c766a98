"""The constants of the model of time, fitted by ``arcweld.models.calibrate``; not written by hand."""

from __future__ import annotations

from arcweld.codegen.cost.model import Constants

PRODUCT = Constants(
    gap=0.491,
    plain_gap=1.865,
    fill=0.5631,
    cold=0.6006,
    tensor=0.7345,
    hot=0.7165,
    heat=400.0,
    shared=64.98,
    feed=43.61,
    latency=0.2289,
    memory=0.9001,
    store=1.356,
    stage=0.1002,
    special=1.135,
    other=0.4923,
    overlap=0.1093,
    exchange=1.023,
    moved=1.471,
    stream=0.138,
)
CONVOLUTION = Constants(
    gap=1.249,
    plain_gap=2.993,
    fill=0.5917,
    cold=0.06923,
    tensor=0.8752,
    hot=0.9938,
    heat=20.07,
    shared=87.3,
    feed=52.25,
    latency=0.111,
    memory=0.7933,
    store=1.515,
    stage=1.481,
    special=0.2174,
    other=0.6296,
    overlap=0.6605,
    exchange=1.263,
    moved=0.1044,
    stream=0.9194,
)
FITTED = {"product": PRODUCT, "stream": PRODUCT, "convolution": CONVOLUTION}
