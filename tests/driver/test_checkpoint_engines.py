"""Engines of checkpoints in every form: transformers' tokens with the weights that files mean, at the files' size."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from checkpoints import CONFIG, METADATA, SIZES
from language_models import greedy, model, prompts

from arcweld.cli.app import main
from arcweld.compiler.checkpoints.names import bind
from arcweld.compiler.checkpoints.opening import open_checkpoint
from arcweld.compiler.errors import ArcweldError, ModelError, UnsupportedError
from arcweld.compiler.torch.stored_names import stored_names
from arcweld.driver.checkpoint_models import build_checkpoint, read_language_model
from arcweld.models import reencode
from arcweld.runtime.llm.llm import LLM
from arcweld.runtime.llm.package import Package
from arcweld.runtime.llm.params import SamplingParams

COUNT = 6
FORMS = (*reencode.FOLDERS, *reencode.FILES)
# one of each kind; all of them take some minutes (``ARCWELD_EVERY=1``)
CHOSEN = FORMS if os.environ.get("ARCWELD_EVERY") else ("gptq-act-order", "float-quantized", "bf16", "Q4_K")


def llama() -> Any:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, initializer_range=0.1)).eval()


def write(folder: Path, form: str) -> Path:
    state = {n: p.detach().numpy() for n, p in llama().named_parameters()}
    if form in reencode.FILES:
        return reencode.llama_gguf(folder / "model.gguf", form, CONFIG, state, METADATA)
    return reencode.write_folder(folder / "model", CONFIG, *reencode.FOLDERS[form](state))


def meant(path: Path) -> tuple[Any, int]:
    """transformers' module with the weights that a checkpoint means, and their bytes in the IR, each tensor once."""
    module = llama()
    parameters = dict(module.named_parameters())
    bound = bind(open_checkpoint(path), {n: tuple(p.shape) for n, p in parameters.items()})
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(torch.from_numpy(bound.tensors[name].decode()))
    return module, sum(t.to_stored().nbytes for t in bound.tensors.values())


def built(path: Path, **options: Any) -> Package:
    options = {"skip_tokenizer_init": True, **options}
    return build_checkpoint(path, length=64, tokens=32, rows=8, device="sim", verify="off", **options)


def tokens(package: Package, prompt: list[int]) -> list[int]:
    params = SamplingParams(max_tokens=COUNT, temperature=0, ignore_eos=True)
    (out,) = LLM(package, device="sim").generate([prompt], params)
    return list(out.outputs[0].token_ids)


@pytest.mark.slow
@pytest.mark.parametrize("form", CHOSEN)
def test_engines_of_every_form(form: str, tmp_path: Path) -> None:
    path = write(tmp_path, form)
    module, stored = meant(path)
    package = built(path)
    (prompt,) = prompts([11])
    assert tokens(package, prompt) == greedy(module, prompt, COUNT)
    assert sum(w.nbytes for w in package.data.weights.values()) <= 1.05 * stored


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_experts_that_are_stored_one_by_one(name: str, tmp_path: Path) -> None:
    model(name).save_pretrained(tmp_path)
    assert any(".experts.3." in n for n in open_checkpoint(tmp_path).tensors)
    (prompt,) = prompts([11])
    assert tokens(built(tmp_path), prompt) == greedy(model(name), prompt, COUNT)


@pytest.mark.slow
def test_experts_that_are_packed_one_by_one(tmp_path: Path) -> None:
    """They stay packed; the other matrices are so small here that they are widened."""
    model("qwen3_moe").save_pretrained(tmp_path / "dense")
    dense = open_checkpoint(tmp_path / "dense")
    tensors, settings = reencode.compressed({n: t.decode() for n, t in dense.tensors.items()})
    path = reencode.write_folder(tmp_path / "packed", dense.config, tensors, settings)
    module = copy.deepcopy(model("qwen3_moe"))
    parameters = dict(module.named_parameters())
    shapes = {n: tuple(p.shape) for n, p in parameters.items()}
    checkpoint = open_checkpoint(path)
    bound = bind(checkpoint, shapes, sources=stored_names(module, checkpoint.tensors))
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(torch.from_numpy(bound.tensors[name].decode()))
    package = built(path)
    (prompt,) = prompts([11])
    assert tokens(package, prompt) == greedy(module, prompt, COUNT)
    packed = sum(w.size for w in package.data.weights.values() if w.dtype == np.uint8)
    assert packed >= sum(p.numel() for n, p in parameters.items() if ".experts." in n) // 2


# ----------------------------------------------------------------------------------------------------------- bad input


def refused(path: Path, error: type[ArcweldError], text: str, **options: Any) -> None:
    with pytest.raises(error, match=text) as found:
        built(path, **options)
    assert found.value.code
    assert found.value.hint


def changed(path: Path, **changes: Any) -> None:
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"hidden_size": 128}, "config.json says"), ({"num_hidden_layers": 2}, "config.json says 2 layers"),
        ({"intermediate_size": 512}, "and the module's"), ({"num_key_value_heads": 4}, "and the module's"),
        ({"vocab_size": 130}, "config.json says"),
    ],
)  # fmt: skip
def test_configurations_that_contradict_the_tensors(changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    path = write(tmp_path, "f16")
    changed(path, **changes)
    refused(path, ModelError, text)


def test_an_architecture_that_nobody_knows(tmp_path: Path) -> None:
    path = write(tmp_path, "f16")
    changed(path, model_type="nonesuch")
    refused(path, UnsupportedError, "transformers has no model of the type 'nonesuch'")


def test_an_architecture_without_the_attention_interface(tmp_path: Path) -> None:
    config = transformers.FalconConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=4, vocab_size=128)
    transformers.FalconForCausalLM(config).save_pretrained(tmp_path)
    refused(tmp_path, UnsupportedError, "attention interface")


def test_a_tokenizer_of_another_vocabulary(tmp_path: Path) -> None:
    path = write(tmp_path, "f16")
    words = {f"w{i}": i for i in range(130)}
    own = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=own, eos_token="w2").save_pretrained(path)
    text = "the token 'w129' the number 129, and the model's vocabulary has 128"
    refused(path, ModelError, text, skip_tokenizer_init=False)


def test_an_end_token_that_the_model_does_not_have(tmp_path: Path) -> None:
    path = write(tmp_path, "f16")
    own = tokenizers.Tokenizer(tokenizers.models.WordLevel({"w0": 0, "w1": 1}, unk_token="w0"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=own, eos_token="w1").save_pretrained(path)
    (path / "generation_config.json").write_text('{"eos_token_id": [1, 128]}', encoding="utf-8")
    refused(path, ModelError, "the number 128, and the model's vocabulary has 128")


@pytest.mark.parametrize("ends", ['"</s>"', "[2, {}]", "[-1]", "true", "2.5"])
def test_end_tokens_that_are_none(ends: str, tmp_path: Path) -> None:
    path = write(tmp_path, "f16")
    (path / "generation_config.json").write_text(f'{{"eos_token_id": {ends}}}', encoding="utf-8")
    refused(path, ModelError, "which is no token")


def with_tokenizer(path: Path, template: Any = None) -> Path:
    words = {f"w{i}": i for i in range(128)}
    own = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=own, eos_token="w2")
    fast.chat_template = template
    fast.save_pretrained(path)
    return path


TEMPLATES = {"default": "{{ messages[0].content }}", "tool_use": "{{ tools | length }} of {{ messages | length }}"}
MESSAGES = [{"role": "user", "content": "w1"}]


def test_a_model_with_a_template_for_tools(tmp_path: Path) -> None:
    """As transformers chooses between them."""
    path = with_tokenizer(write(tmp_path, "f16"), TEMPLATES)
    texts = read_language_model(path).texts
    assert (texts.template, texts.tool_template) == (TEMPLATES["default"], TEMPLATES["tool_use"])
    template = built(path, skip_tokenizer_init=False).template
    assert template is not None
    fast = transformers.AutoTokenizer.from_pretrained(path)
    tools: list[dict[str, Any]]
    for tools in ([], [{"type": "function", "function": {"name": "f"}}]):
        want = fast.apply_chat_template(MESSAGES, tools=tools or None, tokenize=False)
        assert template.render(MESSAGES, tools=tools or None) == want


@pytest.mark.parametrize("folder", ["additional_chat_templates", ""])
def test_templates_of_which_none_is_the_default(
    folder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    path = with_tokenizer(write(tmp_path, "f16"), {"rag": "x", "tool_use": "y"} if not folder else TEMPLATES)
    if folder:
        (path / "chat_template.jinja").unlink()
    texts = read_language_model(path).texts
    assert (texts.template, texts.tool_template) == (None, None)
    assert "none called default" in caplog.text


def test_a_checkpoints_own_code_is_never_run_and_nobody_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = with_tokenizer(write(tmp_path, "f16"))
    (path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n", encoding="utf-8")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asks"))
    for name in ("tokenizer_config.json", "config.json"):
        found = json.loads((path / name).read_text(encoding="utf-8"))
        found |= {"auto_map": {"AutoTokenizer": ["own.Own", "own.Own"], "AutoConfig": "own.Own"}}
        (path / name).write_text(json.dumps(found | {"tokenizer_class": "Own"}), encoding="utf-8")
        refused(path, ModelError, "custom code", skip_tokenizer_init=False)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name", ["LICENSE", "generation_config.json", "config.json", "tokenizer.json", "additional_chat_templates"]
)
def test_files_that_lead_out_of_the_folder(name: str, tmp_path: Path) -> None:
    """What was good as a file is refused as a link."""
    path = with_tokenizer(write(tmp_path, "f16"), TEMPLATES)
    (path / "LICENSE").write_text("MIT", encoding="utf-8")
    (path / "generation_config.json").write_text('{"eos_token_id": 2}', encoding="utf-8")
    assert read_language_model(path).texts.license_text == "MIT"
    (path / name).rename(tmp_path / "secret")
    (path / name).symlink_to(tmp_path / "secret")
    refused(path, ModelError, "is a symbolic link", skip_tokenizer_init=False)


def test_a_snapshot_of_the_hubs_cache(tmp_path: Path) -> None:
    """All its files are links, to blobs of the same repository."""
    path = with_tokenizer(write(tmp_path, "f16"), TEMPLATES)
    blobs, snapshot = tmp_path / "repository" / "blobs", tmp_path / "repository" / "snapshots" / "1"
    blobs.mkdir(parents=True)
    for k, file in enumerate(sorted(p for p in path.rglob("*") if p.is_file())):
        link = snapshot / file.relative_to(path)
        link.parent.mkdir(parents=True, exist_ok=True)
        file.rename(blobs / str(k))
        link.symlink_to(os.path.relpath(blobs / str(k), link.parent))
    assert read_language_model(snapshot).texts.tool_template == TEMPLATES["tool_use"]


def test_a_tokenizer_that_cannot_be_read_is_an_error_with_a_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, "f16")
    (path / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "none"}}', encoding="utf-8")
    refused(path, ModelError, "tokenizer cannot be read", skip_tokenizer_init=False)
    assert main(["build-llm", str(path), "-o", str(tmp_path / "x.engine"), "--device", "sim", "--quiet"]) != 0
    shown = capsys.readouterr().err
    assert "tokenizer cannot be read" in shown
    assert "--skip-tokenizer-init" in shown


def test_a_gguf_file_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import modeling_gguf_pytorch_utils as module

    parse, parsed = module.load_gguf_checkpoint, []

    def counted(path: Any, *more: Any, **named: Any) -> Any:
        parsed.append(path)
        return parse(path, *more, **named)

    monkeypatch.setattr(module, "load_gguf_checkpoint", counted)
    refused(write(tmp_path, "Q8_0"), ModelError, "tokenizer cannot be read", skip_tokenizer_init=False)
    assert len(parsed) == 1
    assert module.load_gguf_checkpoint is counted  # ours is there only while it reads


def test_a_missing_expert(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    model("qwen3_moe").save_pretrained(tmp_path)
    arrays = load_file(tmp_path / "model.safetensors")
    del arrays["model.layers.1.mlp.experts.2.up_proj.weight"]
    save_file(arrays, tmp_path / "model.safetensors")
    refused(tmp_path, ModelError, r"the parts of 'model.layers.1.mlp.experts.gate_up_proj' are not all there: 4 of")
