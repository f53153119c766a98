"""LoRA adapters: tokens as transformers gives them for weights with the adapter merged, several in one batch."""

from __future__ import annotations

import asyncio
import copy
import functools
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from language_models import greedy, model, prompts
from safetensors.numpy import save_file
from served import TEMPLATE, client, idle_soon, tokenizer

from arcweld.compiler.errors import ArcweldError, UsageError
from arcweld.driver.language_model import build_language_model
from arcweld.driver.llm import LLM as Opened
from arcweld.driver.llm_layers import layer_errors
from arcweld.runtime.llm.adapters import LoRARequest, read_adapter
from arcweld.runtime.llm.llm import LLM
from arcweld.runtime.llm.package import Package
from arcweld.runtime.llm.params import SamplingParams
from arcweld.serving.app import application
from arcweld.serving.settings import Limits, Settings

COUNT = 10
GREEDY = SamplingParams(temperature=0, max_tokens=COUNT, ignore_eos=True)
ROOM, RANK = 2, 8
ATTENTION = ("q_proj", "v_proj")
EVERYTHING = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
Matrices = dict[str, tuple[np.ndarray, np.ndarray]]


@functools.cache
def package(invariant: bool = False) -> Package:
    return build_language_model(
        model("llama"), length=128, page_size=8, tokens=64, device="sim", verify="off", max_loras=ROOM,
        max_lora_rank=RANK, tokenizer=tokenizer().to_str(), template=TEMPLATE, batch_invariant=invariant,
    )  # fmt: skip


def matrices(seed: int, rank: int, targets: Sequence[str]) -> Matrices:
    """Random A [rank, in] and B [out, rank] for the layers whose names end so."""
    rng, found = np.random.default_rng(seed), {}
    for name, layer in model("llama").named_modules():
        if name.split(".")[-1] in targets:
            out, inputs = layer.weight.shape
            a = rng.standard_normal((rank, inputs), np.float32) / inputs**0.5
            found[name] = a, rng.standard_normal((out, rank), np.float32)
    return found


def write(folder: Path, given: Matrices, **config: Any) -> str:
    """A folder as PEFT writes it."""
    folder.mkdir()
    rank = len(next(iter(given.values()))[0])
    kept = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": [], "bias": "none", **config}
    (folder / "adapter_config.json").write_text(json.dumps(kept))
    tensors = {}
    for name, (a, b) in given.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = a
        tensors[f"base_model.model.{name}.lora_B.weight"] = b
    save_file(tensors, folder / "adapter_model.safetensors")
    return str(folder)


def merged(given: Matrices, scale: float | Mapping[str, float]) -> Any:
    """The model with W + scale B A."""
    found = copy.deepcopy(model("llama"))
    for name, (a, b) in given.items():
        own = scale if isinstance(scale, float) else scale[name]
        found.get_submodule(name).weight.data += own * torch.tensor(b) @ torch.tensor(a)
    return found


def tokens(llm: LLM, given: list[list[int]], adapters: Sequence[LoRARequest | None]) -> list[list[int]]:
    found = [out.outputs[0].token_ids for out in llm.generate(given, GREEDY, lora_request=adapters)]
    llm.core.pool.check([])
    return found


def test_two_adapters_and_none_in_one_batch(tmp_path: Path) -> None:
    """Ranks 4 and 8, attention and all layers, alpha over the rank and over its root; prompts that begin alike."""
    first, second = matrices(1, 4, ATTENTION), matrices(2, 8, EVERYTHING)
    one = LoRARequest("one", 1, write(tmp_path / "one", first))
    two = LoRARequest("two", 2, write(tmp_path / "two", second, lora_alpha=4, use_rslora=True))
    modules = {None: model("llama"), one: merged(first, 2.0), two: merged(second, 4 / 8**0.5)}
    long, short = prompts([37, 9], seed=3)
    given = [long, long, short, long, short, short, long[:20]]
    adapters = [two, None, one, one, two, None, None]
    want = [greedy(modules[a], p, COUNT) for a, p in zip(adapters, given)]
    assert len({tuple(want[k]) for k in (0, 1, 3)}) == len({tuple(want[k]) for k in (2, 4, 5)}) == 3
    llm = LLM(package(), device="sim", max_prefill_chunk=16)
    assert tokens(llm, given, adapters) == want
    assert tokens(llm, given, adapters) == want  # from each adapter's own prefixes
    assert llm.stats().cached_tokens >= 3 * 32
    assert llm.core.adapters is not None
    assert llm.core.adapters.loads == 2
    few = LLM(package(), device="sim", num_pages=8, speculative={"num_speculative_tokens": 3, "adaptive": False})
    assert tokens(few, given, adapters) == want
    assert few.stats().preemptions > 0


def test_layers_that_read_one_activation_share_the_first_product() -> None:
    """Of queries, keys and values one product, of the gate and the other one; of each layer a second one."""
    launches = [x.variants[0].kernel for x in package().data.program.launches]
    assert sum("groupedmatmul" in name for name in launches) == 2 * (4 + 7)


def test_an_adapter_takes_the_place_of_one_that_nobody_uses(tmp_path: Path) -> None:
    (prompt,) = prompts([9], seed=3)
    given = {k: matrices(k, 2, ("o_proj",)) for k in range(1, 4)}
    asked = {k: LoRARequest(f"a{k}", k, write(tmp_path / f"a{k}", m)) for k, m in given.items()}
    want = {k: greedy(merged(m, 2.0), prompt, COUNT) for k, m in given.items()}
    llm = LLM(package(), device="sim", num_pages=40)
    for k in (1, 2, 1, 3, 1, 2):
        assert tokens(llm, [prompt], [asked[k]]) == [want[k]]
    assert llm.core.adapters is not None
    assert llm.core.adapters.loads == 4  # the first one stays, as it was used last
    order = [3, 1, 2, 2, 1, 3]  # more than there is room for: the last ones in order wait
    assert tokens(llm, [prompt] * 6, [asked[k] for k in order]) == [want[k] for k in order]
    other = LoRARequest("a1", 9, asked[2].lora_path)
    with pytest.raises(UsageError, match="'a1' has the name or the number of 'a1', which is in use"):
        tokens(llm, [prompt] * 2, [asked[1], other])
    assert not llm.core
    assert tokens(llm, [prompt], [other]) == [want[2]]


def test_an_adapter_that_is_gone_when_its_turn_comes_ends_its_requests(tmp_path: Path) -> None:
    (prompt,) = prompts([9], seed=3)
    given = {k: matrices(k, 2, ("o_proj",)) for k in range(1, 4)}
    asked = {k: LoRARequest(f"a{k}", k, write(tmp_path / f"a{k}", m)) for k, m in given.items()}
    llm = LLM(package(), device="sim")
    for k, request in asked.items():
        params = SamplingParams(temperature=0, max_tokens=k, ignore_eos=True, n=2 if k == 3 else 1)
        llm.core.add(f"r{k}", list(prompt), params, adapter=request)
    with pytest.raises(ArcweldError, match="no adapter_config"):  # at once, though all places will be in use
        llm.core.add("r4", list(prompt), GREEDY, adapter=LoRARequest("a4", 4, tmp_path))
    llm.core.add("r5", list(prompt), GREEDY)
    assert llm.core.step() != []
    shutil.rmtree(tmp_path / "a3")
    ended = {out.request_id: out for out in llm.core.run()}
    assert not llm.core
    llm.core.pool.check([])
    assert [(o.finish_reason, o.token_ids) for o in ended["r3"].outputs] == [("error", [])] * 2
    assert "adapter_config" in ended["r3"].outputs[0].error
    assert ended["r2"].outputs[0].token_ids == greedy(merged(given[2], 2.0), prompt, 2)
    assert ended["r5"].outputs[0].token_ids == greedy(model("llama"), prompt, COUNT)


def test_adapters_that_do_not_fit_the_engine(tmp_path: Path) -> None:
    llm = LLM(package(), device="sim", num_pages=40)
    (prompt,) = prompts([5])
    wide = {"model.layers.0.self_attn.q_proj": (np.zeros((2, 32), np.float32), np.zeros((64, 2), np.float32))}
    elsewhere = {"model.layers.7.self_attn.q_proj": matrices(1, 2, ("q_proj",))["model.layers.0.self_attn.q_proj"]}
    head = {"lm_head": (np.zeros((2, 64), np.float32), np.zeros((128, 2), np.float32))}
    for k, (found, text) in enumerate([
        (matrices(1, 9, ("q_proj",)), "rank 9; the engine has room for 8"), (wide, "32 inputs and 64 outputs"),
        (elsewhere, "layers.7.self_attn.q_proj', which is no linear layer"), (head, "'lm_head', which is no linear"),
    ]):  # fmt: skip
        request = LoRARequest(f"x{k}", k + 1, write(tmp_path / f"x{k}", found))
        with pytest.raises(ArcweldError, match=text):
            tokens(llm, [prompt], [request])
    assert not llm.core
    assert tokens(llm, [prompt], [None]) == [greedy(model("llama"), prompt, COUNT)]


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"use_dora": True}, "DoRA"), ({"bias": "all"}, "biases"), ({"modules_to_save": ["h"]}, "modules_to_save"),
        ({"peft_type": "IA3"}, "type 'IA3', not LORA"), ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights"),
        ({"r": 3}, "and the rank 3 by"), ({"lora_alpha": 0}, "lora_alpha in adapter_config.json is 0"),
        ({"rank_pattern": {"layers.[01].q": 2}}, "regular expression"), ({"lora_alpha": None}, "None, not a positive"),
    ],
)  # fmt: skip
def test_adapters_that_are_not_served(config: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(ArcweldError, match=text):
        read_adapter(write(tmp_path / "a", matrices(1, 2, ("q_proj",)), **config))


def test_damaged_adapters(tmp_path: Path) -> None:
    with pytest.raises(ArcweldError, match=r"has no adapter_config\.json"):
        read_adapter(tmp_path)
    folder = Path(write(tmp_path / "a", matrices(1, 2, ("q_proj",))))
    for name, text in [("x.lora_embedding_A", "no matrix A or B"), ("x.lora_A.weight", "'x' has no lora_B")]:
        save_file({name: np.zeros((2, 3), np.float32)}, folder / "adapter_model.safetensors")
        with pytest.raises(ArcweldError, match=text):
            read_adapter(folder)
    (folder / "adapter_model.safetensors").write_bytes(b"{}")
    with pytest.raises(ArcweldError):
        read_adapter(folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ArcweldError, match=r"adapter_model\.safetensors"):
        read_adapter(folder)
    with pytest.raises(UsageError, match="lora_int_id"):
        LoRARequest("a", 0, folder)


def test_patterns_give_layers_ranks_and_scales_of_their_own(tmp_path: Path) -> None:
    given = {**matrices(1, 2, ("q_proj",)), **matrices(2, 4, ("v_proj",))}
    patterns = {"rank_pattern": {"v_proj": 4}, "alpha_pattern": {"self_attn.v_proj": 6}}
    found = read_adapter(write(tmp_path / "a", given, **patterns))
    for name, (a, b) in given.items():
        np.testing.assert_array_equal(found.layers[name][0], a)
        np.testing.assert_array_equal(found.layers[name][1], b * np.float32(6 / 4 if "v_proj" in name else 4 / 2))


def test_engines_without_room_say_so() -> None:
    bare = LLM(package(), device="sim", num_pages=8)
    bare.core.scheduler.adapters = None
    with pytest.raises(UsageError, match="no room for the adapter 'a'"):
        bare.generate([[5, 6]], GREEDY, lora_request=LoRARequest("a", 1, "nowhere"))


def test_what_others_adapters_add_to_a_sequence_without_one_is_nothing(tmp_path: Path) -> None:
    """Bit for bit, in batches of the same sizes; and it is the model's within rounding."""
    given = prompts([9, 21, 5], seed=4)
    two = LoRARequest("two", 2, write(tmp_path / "two", matrices(2, 8, EVERYTHING)))
    params = SamplingParams(temperature=0, max_tokens=COUNT, ignore_eos=True, logprobs=3)
    alone = LLM(package(), device="sim").generate([given[0], *given], params)
    mixed = LLM(package(), device="sim").generate([given[0], *given], params, lora_request=[two, None, None, None])
    assert alone[0].outputs[0].logprobs != mixed[0].outputs[0].logprobs
    for a, b, prompt in zip(alone[1:], mixed[1:], given):
        assert a.outputs[0].logprobs == b.outputs[0].logprobs
        with torch.no_grad():
            want = model("llama")(torch.tensor([prompt])).logits[0, -1].double().log_softmax(-1)
        assert a.outputs[0].logprobs is not None
        for token, entry in a.outputs[0].logprobs[0].items():
            np.testing.assert_allclose(entry.logprob, want[token], atol=1e-5)


@pytest.mark.skipif(not os.environ.get("ARCWELD_EVERY"), reason="builds another engine; ARCWELD_EVERY=1")
def test_batch_invariant_engines_give_the_same_bits_with_adapters(tmp_path: Path) -> None:
    given = prompts([9, 21, 5, 37], seed=4)
    one = LoRARequest("one", 1, write(tmp_path / "one", matrices(1, 4, ATTENTION)))
    two = LoRARequest("two", 2, write(tmp_path / "two", matrices(2, 8, EVERYTHING)))
    adapters, params = [None, two, one, None], SamplingParams(temperature=0, max_tokens=COUNT, logprobs=3)

    def bits(chosen: list[int], **settings: Any) -> list[Any]:
        llm = LLM(package(invariant=True), device="sim", **settings)
        found = llm.generate([given[k] for k in chosen], params, lora_request=[adapters[k] for k in chosen])
        return [out.outputs[0].logprobs for out in found]

    alone = [bits([k])[0] for k in range(4)]
    assert bits([0, 1, 2, 3]) == alone
    assert bits([3, 2, 1, 0], max_prefill_chunk=7) == alone[::-1]


def test_the_server_takes_adapters_for_models(tmp_path: Path) -> None:
    """Four requests at once: the model itself and three adapters, of which an engine with room for two lets one wait.
    """  # fmt: skip
    given = {k: matrices(k, 4, ATTENTION) for k in (1, 2, 3)}
    asked = {f"a{k}": LoRARequest(f"a{k}", k, write(tmp_path / f"a{k}", m)) for k, m in given.items()}
    modules = {"tiny": model("llama"), **{f"a{k}": merged(m, 2.0) for k, m in given.items()}}
    app = application(LLM(package(), device="sim"), Settings("tiny", (), Limits(), asked))
    prompt = tokenizer().encode("The sky is").ids

    async def test() -> None:
        async with client(app) as http:
            cards = (await http.get("/v1/models")).json()["data"]
            parents = [(c["id"], c.get("parent")) for c in cards]
            assert parents == [("tiny", None), ("a1", "tiny"), ("a2", "tiny"), ("a3", "tiny")]
            assert (await http.get("/v1/models/a2")).json()["id"] == "a2"
            body = {"prompt": "The sky is", "max_tokens": COUNT, "temperature": 0, "ignore_eos": True}
            calls = [http.post("/v1/completions", json={**body, "model": name}) for name in modules]
            for (name, module), response in zip(modules.items(), await asyncio.gather(*calls)):
                found = response.json()
                assert found["model"] == name
                assert found["choices"][0]["text"] == tokenizer().decode(greedy(module, prompt, COUNT))
            refused = await http.post("/v1/completions", json={**body, "model": "a4"})
            assert refused.status_code == 404
            assert "'tiny' and 'a1' and 'a2' and 'a3'" in refused.json()["error"]["message"]
            chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "model": "a1"}
            assert (await http.post("/v1/chat/completions", json=chat)).json()["model"] == "a1"
            await idle_soon(app)

    asyncio.run(test())
    wrong = {**asked, "a4": LoRARequest("a4", 4, tmp_path)}
    with pytest.raises(ArcweldError, match="no adapter_config"):
        application(LLM(package(), device="sim"), Settings("tiny", (), Limits(), wrong))


def test_room_that_is_asked_for_is_there() -> None:
    assert Opened(package(), device="sim", enable_lora=True, max_loras=2, max_lora_rank=8).core.adapters is not None
    with pytest.raises(UsageError, match="2 LoRA adapters of rank 9 are asked for, and the engine has room for 2 of"):
        Opened(package(), device="sim", enable_lora=True, max_loras=2, max_lora_rank=9)
    with pytest.raises(UsageError, match="are for enable_lora"):
        Opened(package(), device="sim", max_loras=2)


def test_layers_are_compared_with_those_of_an_engine_without_room() -> None:
    plain = build_language_model(model("llama"), length=128, page_size=8, tokens=64, device="sim", verify="off")
    errors = layer_errors(LLM(plain, device="sim").core, LLM(package(), device="sim").core, prompts([20])[0])
    assert {e.module for e in errors} >= {"model.layers.0.mlp.down_proj", "model.layers.1.self_attn.o_proj"}
    assert [e for e in errors if e.stands_out] == []
