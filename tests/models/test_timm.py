"""The small architectures that timm keeps for its own tests, one or more of each family, against torch.

Their layers are those of the published models: weight standardisation, squeeze-and-excite, evolved norms, gated
convolutions, register tokens.
"""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch

from arcweld.driver import api

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def _settled(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    """The model with statistics that are not those of an untrained one, and an image."""
    torch.manual_seed(0)
    module = timm.create_model(name, pretrained=False).eval()
    for layer in module.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    for parameter in module.parameters():
        if not parameter.any():  # heads and gains that start at 0 would hide everything before them
            torch.nn.init.normal_(parameter, std=0.05)
    return module, torch.randn(2, *module.default_cfg["input_size"])


@pytest.mark.parametrize("name", timm.list_models("test_*"))
def test_it_agrees_with_torch(name: str) -> None:
    module, x = _settled(name)
    _, engine = api.build_engine(api.import_model(module, x), device="sim", verify="off")
    with torch.no_grad():
        want = module(x).numpy()
    got = np.asarray(engine(x.numpy()))
    assert np.linalg.norm(want) > 0
    assert np.linalg.norm(got - want) <= 1e-4 * np.linalg.norm(want)
