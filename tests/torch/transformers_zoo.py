"""Small models of transformers with random weights: class, configuration and inputs of each, by name.

Nothing is downloaded. Sizes are as small as the architectures allow; experts get 64 rows at most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree

from arcweld.torch.report import GraphReport, clear_report, torch_report

Inputs = dict[str, torch.Tensor]
WORDS = 96
TEXT: dict[str, Any] = {
    "vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED: dict[str, Any] = {**TEXT, "num_key_value_heads": 2, "use_cache": False}
SEQ2SEQ: dict[str, Any] = {
    "vocab_size": WORDS, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "forced_eos_token_id": 2,
    "use_cache": False,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
WAVES: dict[str, Any] = {
    "conv_dim": (16, 16, 16), "conv_stride": (5, 2, 2), "conv_kernel": (10, 3, 3), "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "apply_spec_augment": False,
}  # fmt: skip
SPEECH: dict[str, Any] = {
    **WAVES, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "vocab_size": 32,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One model.

    model    class of transformers
    config   its configuration's class
    options  arguments of the configuration; dicts are configurations of parts
    inputs   makes the arguments of a call
    left     (operator, reason) -> nodes that PyTorch runs, and only those
    """

    model: str
    config: str
    options: Mapping[str, Any]
    inputs: Callable[[], Inputs]
    left: Mapping[tuple[str, str], int] = field(default_factory=dict)

    def make(self) -> torch.nn.Module:
        """The model in evaluation mode, activations of about 1: no initial weight is 0 or as small as 1e-6."""
        import transformers

        config = getattr(transformers, self.config)(**self.options)
        module: torch.nn.Module = getattr(transformers, self.model)(config).eval()
        for p in module.parameters():
            if p.dim() > 1:
                p.data = torch.randn(p.shape) / p[0].numel() ** 0.5
            elif p.dim():
                p.data += torch.randn(p.shape) * 0.1
        return module


@dataclass(frozen=True)
class Outcome:
    """What a model gave: the tensors of eager's result and of the compiled one's, and a report of each graph."""

    want: list[torch.Tensor]
    got: list[torch.Tensor]
    reports: tuple[GraphReport, ...]

    @property
    def left(self) -> dict[tuple[str, str], int]:
        """(operator, reason) -> nodes that PyTorch runs."""
        found = Counter[tuple[str, str]]()
        for report in self.reports:
            found.update(report.left)
        return dict(found)


def run(entry: Entry) -> Outcome:
    """Calls the model eagerly and by ``torch.compile`` on the simulator."""
    torch._dynamo.reset()
    clear_report()
    torch.manual_seed(0)
    model, inputs = entry.make(), entry.inputs()
    with torch.no_grad():
        want = model(**inputs)
        got = torch.compile(model, backend="arcweld", options={"device": "sim"})(**inputs)
    return Outcome(_tensors(want), _tensors(got), torch_report())


def _tensors(result: Any) -> list[torch.Tensor]:
    return [t for t in pytree.tree_leaves(dict(result)) if isinstance(t, torch.Tensor)]


def tokens(length: int = 12, batch: int = 2, mask: bool = True) -> Callable[[], Inputs]:
    """Token numbers, and a mask that hides the end of the last sequence."""

    def make() -> Inputs:
        found = {"input_ids": torch.randint(3, WORDS, (batch, length))}
        if mask:
            found["attention_mask"] = torch.ones(batch, length, dtype=torch.long)
            found["attention_mask"][-1, length - 3 :] = 0
        return found

    return make


def pairs() -> Inputs:
    """What an encoder reads, and what its decoder has written."""
    return {**tokens()(), "decoder_input_ids": torch.randint(3, WORDS, (2, 7))}


def image(size: int = 32, batch: int = 2) -> Callable[[], Inputs]:
    """Pixels with values round 0."""
    return lambda: {"pixel_values": torch.randn(batch, 3, size, size)}


def masked_image(size: int) -> Callable[[], Inputs]:
    """Two images, the second of which is padded on the right."""

    def make() -> Inputs:
        mask = torch.ones(2, size, size, dtype=torch.long)
        mask[1, :, size - size // 4 :] = 0
        return {"pixel_values": torch.randn(2, 3, size, size), "pixel_mask": mask}

    return make


def video(frames: int, size: int = 32) -> Callable[[], Inputs]:
    """Frames of one clip."""
    return lambda: {"pixel_values": torch.randn(1, frames, 3, size, size)}


def waveform(samples: int = 800) -> Inputs:
    """Sound, as samples."""
    return {"input_values": torch.randn(2, samples)}


def points() -> Inputs:
    """A place in the image that belongs to the wanted thing, and one that doesn't."""
    return {"input_points": torch.rand(1, 1, 2, 2) * 64, "input_labels": torch.tensor([[[1, 0]]])}


def both(one: Callable[[], Inputs], other: Callable[[], Inputs]) -> Callable[[], Inputs]:
    """The inputs of two kinds."""
    return lambda: {**one(), **other()}


RESNET: dict[str, Any] = {
    "model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}  # fmt: skip
DETR: dict[str, Any] = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_queries": 10, "num_labels": 4, "use_timm_backbone": False,
    "use_pretrained_backbone": False, "backbone": None,
}  # fmt: skip
SWIN: dict[str, Any] = {
    "image_size": 64, "patch_size": 2, "embed_dim": 8, "depths": [2, 2, 1, 1], "num_heads": [1, 2, 2, 4],
    "window_size": 4, "drop_path_rate": 0.0,
}  # fmt: skip
SEAMLESS: dict[str, Any] = {
    "vocab_size": WORDS, "hidden_size": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "speech_encoder_layers": 1,
    "speech_encoder_attention_heads": 4, "speech_encoder_intermediate_size": 64, "feature_projection_input_dim": 32,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "adaptor_kernel_size": 4, "adaptor_stride": 4,
    "num_adapter_layers": 1, "max_position_embeddings": 64, "use_cache": False,
}  # fmt: skip
SMALL = "part of a block smaller than min_block_size"
LONGFORMER = {(f"aten.{op}", SMALL): 1 for op in ("select.int", "t.default", "addmm.default", "tanh.default")}

ZOO: dict[str, Entry] = {
    # decoders of text
    "olmoe": Entry(
        "OlmoeForCausalLM", "OlmoeConfig", {**GROUPED, "num_experts": 8, "num_experts_per_tok": 2}, tokens(),
    ),
    "qwen3_moe": Entry(
        "Qwen3MoeForCausalLM", "Qwen3MoeConfig",
        {**GROUPED, "head_dim": 8, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}, tokens(),
    ),
    "mamba2": Entry(
        "Mamba2ForCausalLM", "Mamba2Config",
        {
            "vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 8,
            "state_size": 16, "n_groups": 2, "chunk_size": 8, "use_cache": False,
        }, tokens(mask=False),
    ),
    "rwkv": Entry(
        "RwkvForCausalLM", "RwkvConfig",
        {"vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32,
         "intermediate_size": 64, "use_cache": False}, tokens(8, mask=False),
    ),
    "phi": Entry("PhiForCausalLM", "PhiConfig", GROUPED, tokens()),
    "stablelm": Entry("StableLmForCausalLM", "StableLmConfig", GROUPED, tokens()),
    "bloom": Entry(
        "BloomForCausalLM", "BloomConfig",
        {"vocab_size": WORDS, "hidden_size": 32, "n_layer": 2, "n_head": 4, "use_cache": False}, tokens(),
    ),
    "opt": Entry(
        "OPTForCausalLM", "OPTConfig", {**TEXT, "ffn_dim": 64, "word_embed_proj_dim": 32, "use_cache": False}, tokens(),
    ),
    "mpt": Entry(
        "MptForCausalLM", "MptConfig",
        {"vocab_size": WORDS, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64, "use_cache": False},
        tokens(),
    ),
    "codegen": Entry(
        "CodeGenForCausalLM", "CodeGenConfig",
        {"vocab_size": WORDS, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4,
         "use_cache": False}, tokens(),
    ),
    "gptj": Entry(
        "GPTJForCausalLM", "GPTJConfig",
        {"vocab_size": WORDS, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4,
         "use_cache": False}, tokens(),
    ),
    "olmo2": Entry("Olmo2ForCausalLM", "Olmo2Config", GROUPED, tokens()),
    # encoders of text
    "deberta_v2": Entry(
        "DebertaV2Model", "DebertaV2Config",
        {**TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}, tokens(),
    ),
    "longformer": Entry(
        "LongformerModel", "LongformerConfig",
        {**TEXT, "attention_window": [4, 4], "max_position_embeddings": 80, "type_vocab_size": 1, "pad_token_id": 1},
        tokens(16), LONGFORMER,
    ),
    "modernbert": Entry(
        "ModernBertModel", "ModernBertConfig",
        {**TEXT, "cls_token_id": 1, "sep_token_id": 2, "local_attention": 8, "global_attn_every_n_layers": 2},
        tokens(),
    ),
    # encoders with decoders
    "bart": Entry("BartModel", "BartConfig", SEQ2SEQ, pairs),
    "pegasus": Entry("PegasusModel", "PegasusConfig", SEQ2SEQ, pairs),
    "marian": Entry("MarianModel", "MarianConfig", SEQ2SEQ, pairs),
    "seamless_m4t": Entry("SeamlessM4TForTextToText", "SeamlessM4TConfig", SEAMLESS, pairs),
    "whisper": Entry(
        "WhisperModel", "WhisperConfig",
        {**SEQ2SEQ, "num_mel_bins": 16, "max_source_positions": 30, "max_target_positions": 64},
        lambda: {"input_features": torch.randn(2, 16, 60), "decoder_input_ids": torch.randint(3, WORDS, (2, 7))},
    ),
    # sound
    "seamless_m4t_speech": Entry(
        "SeamlessM4TForSpeechToText", "SeamlessM4TConfig", SEAMLESS,
        lambda: {"input_features": torch.randn(2, 20, 32), "decoder_input_ids": torch.randint(3, WORDS, (2, 7))},
    ),
    "wav2vec2": Entry("Wav2Vec2ForCTC", "Wav2Vec2Config", SPEECH, waveform),
    "hubert": Entry("HubertForCTC", "HubertConfig", SPEECH, waveform),
    "speecht5": Entry(
        "SpeechT5ForSpeechToText", "SpeechT5Config",
        {
            **WAVES, "hidden_size": 32, "vocab_size": 32, "encoder_layers": 2, "decoder_layers": 2,
            "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
            "max_text_positions": 64, "max_speech_positions": 100, "use_cache": False,
        },
        both(waveform, lambda: {"decoder_input_ids": torch.randint(3, 32, (2, 7))}),
    ),
    # images
    "dinov2": Entry("Dinov2Model", "Dinov2Config", VISION, image()),
    "swin": Entry("SwinModel", "SwinConfig", SWIN, image(64)),
    "convnext": Entry(
        "ConvNextModel", "ConvNextConfig", {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}, image(),
    ),
    "segformer": Entry(
        "SegformerForSemanticSegmentation", "SegformerConfig",
        {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2],
         "decoder_hidden_size": 16, "num_labels": 5}, image(),
    ),
    "mask2former": Entry(
        "Mask2FormerModel", "Mask2FormerConfig",
        {
            "backbone_config": {"model_type": "swin", **SWIN, "out_features": ["stage1", "stage2", "stage3", "stage4"]},
            "feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 32,
            "encoder_layers": 2, "decoder_layers": 2, "num_attention_heads": 2, "dim_feedforward": 32,
            "num_queries": 6, "num_labels": 3,
        }, image(64),
    ),
    "detr": Entry(
        "DetrForObjectDetection", "DetrConfig",
        {**DETR, "backbone_config": {**RESNET, "out_features": ["stage4"]}}, masked_image(64),
    ),
    "deformable_detr": Entry(
        "DeformableDetrForObjectDetection", "DeformableDetrConfig",
        {**DETR, "backbone_config": {**RESNET, "out_features": ["stage2", "stage3", "stage4"]}},
        masked_image(64),
    ),
    "sam": Entry(
        "SamModel", "SamConfig",
        {
            "vision_config": {
                "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64, "patch_size": 8,
                "output_channels": 16, "window_size": 4, "global_attn_indexes": [1], "mlp_dim": 64, "num_pos_feats": 8,
            },
            "prompt_encoder_config": {
                "hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 4,
            },
            "mask_decoder_config": {
                "hidden_size": 16, "mlp_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
                "iou_head_hidden_dim": 16,
            },
        },
        both(image(64, 1), points),
    ),
    # images and text
    "clip": Entry(
        "CLIPModel", "CLIPConfig", {"text_config": TEXT, "vision_config": VISION, "projection_dim": 16},
        both(tokens(), image()),
    ),
    "siglip": Entry(
        "SiglipModel", "SiglipConfig", {"text_config": TEXT, "vision_config": VISION}, both(tokens(), image()),
    ),
    "owlvit": Entry(
        "OwlViTForObjectDetection", "OwlViTConfig",
        {"text_config": {**TEXT, "max_position_embeddings": 16}, "vision_config": VISION, "projection_dim": 32},
        both(tokens(12, 2), image()),
    ),
    "blip": Entry(
        "BlipForConditionalGeneration", "BlipConfig",
        {"text_config": {**TEXT, "use_cache": False, "encoder_hidden_size": 32}, "vision_config": VISION},
        both(tokens(), image()),
    ),
    "layoutlmv3": Entry(
        "LayoutLMv3Model", "LayoutLMv3Config",
        {
            **TEXT, "input_size": 32, "patch_size": 8, "coordinate_size": 6, "shape_size": 4,
            "max_2d_position_embeddings": 64,
        },
        both(tokens(), lambda: {**image()(), "bbox": torch.randint(0, 32, (2, 12, 2)).repeat(1, 1, 2)}),
    ),
    # clips
    "timesformer": Entry("TimesformerModel", "TimesformerConfig", {**VISION, "num_frames": 4}, video(4)),
    "videomae": Entry(
        "VideoMAEForVideoClassification", "VideoMAEConfig", {**VISION, "num_frames": 4, "num_labels": 5}, video(4),
    ),
}  # fmt: skip
