"""A second family, made of the first one by small changes, goes all the way without a line changed elsewhere.

It differs in norm, activation, residual, mask, positions, heads (a key and a value for two of them), prompt and stop id.
"""

import json
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ptuning
from ptuning.checkpoint.checkpoint import read_config
from ptuning.core.choices import FAMILIES as NAMES
from ptuning.data.prompts import RoundsPrompt
from ptuning.data.truncation import fit_prompt, prompt_ids
from ptuning.engine.engine import Engine
from ptuning.engine.request import Request
from ptuning.engine.sampling_params import SamplingParams
from ptuning.model.answering import AnsweringModel
from ptuning.model.config import ChatGLMConfig, check_config
from ptuning.model.families import FAMILIES, family_of
from ptuning.model.families.chatglm import CHATGLM
from ptuning.model.prefix_encoder import PrefixEncoder, prefix_config_of

PLACE = 5  # of every token, in the first of the position ids


class OtherConfig(ChatGLMConfig):
    """Told by a key of its own."""

    family: ClassVar[str] = "other"

    def __init__(self, **values):  # transformers would write another one
        super().__init__(**values)


@dataclass(frozen=True)
class OtherHeads:
    """Three blocks of channels instead of one a head, and nothing is turned."""

    num_heads: int
    head_dim: int
    has_native_kernel: ClassVar[bool] = False

    @property
    def num_key_value_heads(self):
        return self.num_heads

    @property
    def width(self):
        return 3 * self.num_heads * self.head_dim

    def split(self, fused, rotary):
        batch, tokens, _ = fused.shape
        return fused.view(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)


class OtherPrompt(RoundsPrompt):
    """``Q: ...`` with a mark of its own at the end."""

    def encode(self, tokenizer, query, history, **settings):
        ids = super().encode(tokenizer, f"Q: {query}", history, **settings)
        return [*ids, tokenizer.mask_token_id]

    def ending(self, tokenizer, query, wrapped):
        return super().ending(tokenizer, query, wrapped) + 1


def one_line(config, input_ids, real):
    count = torch.arange(input_ids.shape[1]).expand(input_ids.shape)
    count = count if real is None else (real.long().cumsum(1) - 1).clamp_min(0)
    return torch.stack((count, torch.full_like(count, PLACE)), 1)


def norm(config):
    return nn.RMSNorm(config.hidden_size, eps=config.layernorm_epsilon)


def stop_at_both(tokenizer):
    return frozenset({tokenizer.eos_token_id, tokenizer.unk_token_id})


OTHER = replace(
    CHATGLM,
    name="other",
    config=OtherConfig,
    claims=lambda values: "multi_query_attention" in values,
    check_config=lambda values, where: dict(values),
    norm=norm,
    activation=F.silu,
    residual_post_layernorm=False,
    residual_scale=lambda config: 1.0,
    heads=lambda config: OtherHeads(config.num_attention_heads, config.head_dim),
    position_ids=one_line,
    position_step=(1, 0),
    context_lengths=lambda config, input_ids: torch.zeros(len(input_ids), dtype=torch.long),
    prompt_form=OtherPrompt(),
    check_prompt=lambda config, ids: None,
    stop_ids=stop_at_both,
)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(FAMILIES, OTHER.name, OTHER)


@pytest.fixture(scope="module")
def model(golden):
    config = OtherConfig.from_pretrained(golden / "model", num_layers=2)
    torch.manual_seed(0)
    FAMILIES[OTHER.name] = OTHER
    made = AnsweringModel(config).eval()
    del FAMILIES[OTHER.name]
    return made


@pytest.fixture(scope="module")
def tokenizer(golden):
    made = ptuning.load_tokenizer(golden / "model")
    made.prompt_form = OTHER.prompt_form
    return made


def by_hand(model, ids, prefix=None):
    """The whole sequence in plain formulas: [T] ids to the hidden state of each."""
    state, config = model.state_dict(), model.config
    x = state["transformer.word_embeddings.weight"][ids]
    tokens, heads = len(ids), config.num_attention_heads
    for index in range(config.num_layers):

        def linear(x, name, index=index):
            name = f"transformer.layers.{index}.{name}"
            return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

        def rms(x, name):
            return x * (x.square().mean(-1, keepdim=True) + config.layernorm_epsilon).rsqrt() * state[f"{name}.weight"]

        at = f"transformer.layers.{index}"
        fused = linear(rms(x, f"{at}.input_layernorm"), "attention.query_key_value")
        query, key, value = (part.view(tokens, heads, -1).transpose(0, 1) for part in fused.chunk(3, -1))
        hidden = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
        if prefix is not None:
            key, value = (torch.cat((old[0], new), 1) for old, new in zip(prefix[index], (key, value), strict=True))
            hidden = F.pad(hidden, (prefix[index][0].shape[2], 0))
        scores = (query @ key.transpose(1, 2) / config.head_dim**0.5).masked_fill(hidden, -torch.inf)
        x = x + linear((scores.softmax(-1) @ value).transpose(0, 1).flatten(1), "attention.dense")
        x = x + linear(F.silu(linear(rms(x, f"{at}.post_attention_layernorm"), "mlp.dense_h_to_4h")), "mlp.dense_4h_to_h")
    return rms(x, "transformer.final_layernorm")


def greedy(model, ids, count, stop, prefix=None):
    """Greedy ids, the whole sequence anew for each."""
    made = []
    for _ in range(count):
        token = int(model.lm_head(by_hand(model, torch.tensor([*ids, *made]), prefix)[-1]).argmax())
        if token in stop:
            break
        made.append(token)
    return made


def test_names_of_families_are_written_once():
    assert {*NAMES, OTHER.name} == set(FAMILIES)
    assert all(name == family.name == family.config.family for name, family in FAMILIES.items())


def test_a_family_is_told_by_its_configuration(model, golden, tmp_path):
    assert family_of(ChatGLMConfig()) is family_of({"model_type": "chatglm"}) is CHATGLM
    assert family_of(model.config) is OTHER
    values = json.loads((golden / "model" / "config.json").read_text(encoding="utf-8"))
    assert family_of(values) is CHATGLM
    (tmp_path / "config.json").write_text(json.dumps(values | {"multi_query_attention": False}), encoding="utf-8")
    config = read_config(tmp_path)
    assert type(config) is OtherConfig
    assert family_of(config) is OTHER


@pytest.mark.parametrize("values", [{}, {"model_type": "llama"}, {"model_type": "chatglm", "ffn_hidden_size": 9}])
def test_what_no_family_claims_is_refused_by_the_first_one(values):
    family = family_of(values)
    assert family.check_config is check_config
    if values:
        with pytest.raises(ptuning.UserError, match=r"config\.json .*(model_type 'llama'|ChatGLM2, ChatGLM3 or GLM-4)"):
            family.check_config(values, "config.json")


def test_forward_follows_the_family(model):
    rows = torch.tensor([[30, 31, 32, 33, 34], [3, 3, 40, 41, 42]])
    real = torch.tensor([[1] * 5, [0, 0, 1, 1, 1]])
    encoder = PrefixEncoder(prefix_config_of(model.config, 3, False)).eval()
    with torch.no_grad():
        prefix = encoder(torch.float32)
        for given in (None, prefix):
            states = model.transformer(rows, real, prefix_key_values=given).last_hidden_state
            torch.testing.assert_close(states[0], by_hand(model, rows[0], given), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(states[1, 2:], by_hand(model, rows[1, 2:], given), atol=1e-5, rtol=1e-5)
            kept = model.transformer(rows, real, prefix_key_values=given, keep=rows == 33).last_hidden_state
            torch.testing.assert_close(kept, states[0, 3:4], atol=1e-5, rtol=1e-5)


def test_the_engine_follows_the_family(model, tokenizer):
    """Prompts of both lengths, with and without a prefix, token by token."""
    engine = Engine(model, tokenizer, max_rows=3)
    scheduler = engine.scheduler
    assert scheduler.end_ids == {tokenizer.eos_token_id, tokenizer.unk_token_id}
    scheduler.end_ids = frozenset({*scheduler.end_ids, *range(100, 200)})  # of random weights: some answer is to end
    with torch.no_grad():
        prefix = PrefixEncoder(prefix_config_of(model.config, 3, False)).eval()(torch.float32)
        shared = engine.add_prefix("one", prefix)
        prompts = [([30, 31, 32, 33], None), ([50, 51], shared), ([60, 61, 62], shared)]
        done = engine.submit([Request(ids, one, SamplingParams(temperature=0, max_new_tokens=8)) for ids, one in prompts])
        while engine.step():
            pass
        expected = [greedy(model, ids, 8, scheduler.end_ids, prefix if one else None) for ids, one in prompts]
    assert [one.ids for one in done] == expected
    assert {one.finish_reason for one in done} == {"length", "stop"}


def test_positions_of_the_engine_follow_the_family(model, tokenizer):
    engine = Engine(model, tokenizer, max_rows=2)
    engine.scheduler.end_ids = frozenset()
    sampling = SamplingParams(temperature=0, max_new_tokens=9)
    engine.submit([Request([30, 31, 32], sampling=sampling), Request([40], sampling=sampling)])
    for count in range(3):
        engine.step()
        expected = [[3 + count + 1, PLACE], [1 + count + 1, PLACE]]  # a first step reads and decodes
        assert engine.runner.positions[: len(engine.running)].tolist() == expected


def test_prompts_follow_the_family(tokenizer):
    ids = prompt_ids(tokenizer, "hello")
    frame = [tokenizer.gmask_token_id, tokenizer.bos_token_id]
    assert ids == [*tokenizer.encode_text("Q: hello"), tokenizer.mask_token_id, *frame]
    cut = fit_prompt(tokenizer, "a b c d e f g h", max_source_length=6)
    assert cut.cut > 0
    assert cut.ids[-3:] == [tokenizer.mask_token_id, *frame]
