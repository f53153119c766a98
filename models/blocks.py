"""Modules of the modelled suite beside the builders' models: Whisper's encoder, and a block of a diffusion U-Net."""

from __future__ import annotations

import torch
from torch import nn
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from arcweld.models.builders import Built


class _States(nn.Module):  # type: ignore[misc]
    """The hidden states of an encoder that returns a structure."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.encoder(features).last_hidden_state
        return found


def whisper_encoder(
    batch: int = 1, frames: int = 3000, layers: int = 6, hidden: int = 512, heads: int = 8
) -> Built:
    """The encoder of Whisper (Radford et al., 2022), by default of the size ``base``, for ``frames`` of 80 mels."""
    config = WhisperConfig(
        d_model=hidden, encoder_layers=layers, encoder_attention_heads=heads, encoder_ffn_dim=4 * hidden,
        max_source_positions=frames // 2,
    )  # fmt: skip
    features = torch.randn(batch, config.num_mel_bins, frames, generator=torch.Generator().manual_seed(0))
    return Built("whisper_encoder", _States(WhisperEncoder(config)).eval(), (features,), {0: 0})


class UNetBlock(nn.Module):  # type: ignore[misc]
    """A block of a latent diffusion model's U-Net (Rombach et al., 2022): a residual block, then attention.

    The time embedding is added to each channel; attention is to the pixels, then to ``context``, then a gated layer.
    """

    def __init__(self, channels: int, heads: int, width: int, groups: int = 32) -> None:
        super().__init__()
        self.heads = heads
        self.before = nn.Sequential(nn.GroupNorm(groups, channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, 1, 1))
        self.time = nn.Sequential(nn.SiLU(), nn.Linear(4 * 320, channels))
        self.after = nn.Sequential(nn.GroupNorm(groups, channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, 1, 1))
        self.norm = nn.GroupNorm(groups, channels)
        self.inward, self.outward = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))
        self.queries = nn.ModuleList(nn.Linear(channels, channels, bias=False) for _ in range(2))
        self.keys = nn.ModuleList(nn.Linear(n, channels, bias=False) for n in (channels, width))
        self.values = nn.ModuleList(nn.Linear(n, channels, bias=False) for n in (channels, width))
        self.outs = nn.ModuleList(nn.Linear(channels, channels) for _ in range(2))
        self.gated, self.down = nn.Linear(channels, 8 * channels), nn.Linear(4 * channels, channels)

    def forward(self, x: torch.Tensor, time: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """``x``: [batch, channels, height, width]; ``time``: [batch, 1280]; ``context``: [batch, words, width]."""
        h = x + self.after(self.before(x) + self.time(time)[:, :, None, None])
        t = self.inward(self.norm(h).flatten(2).transpose(1, 2))
        for k, other in enumerate((None, context)):
            y = self.norms[k](t)
            t = t + self._attention(k, y, y if other is None else other)
        value, gate = self.gated(self.norms[2](t)).chunk(2, dim=-1)
        t = t + self.down(value * nn.functional.gelu(gate))
        found: torch.Tensor = h + self.outward(t).transpose(1, 2).reshape(h.shape)
        return found

    def _attention(self, k: int, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        q, keys, values = (
            m[k](y).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for m, y in ((self.queries, x), (self.keys, other), (self.values, other))
        )
        y = nn.functional.scaled_dot_product_attention(q, keys, values)
        found: torch.Tensor = self.outs[k](y.transpose(1, 2).flatten(2))
        return found


def unet_block(
    batch: int = 2, channels: int = 640, size: int = 32, heads: int = 10, words: int = 77, width: int = 1024
) -> Built:
    """A ``UNetBlock`` with its arguments, by default of the second resolution of a model for images of 512 x 512."""
    draw = torch.Generator().manual_seed(0)
    shapes = (batch, channels, size, size), (batch, 4 * 320), (batch, words, width)
    arguments = tuple(torch.randn(*shape, generator=draw) for shape in shapes)
    return Built("unet_block", UNetBlock(channels, heads, width).eval(), arguments, {0: 0, 1: 0, 2: 0})
