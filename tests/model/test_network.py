"""The model against the published results, and against a second writing-down of the formulas on other sizes."""

import copy
import dataclasses
import logging

import pytest
import torch
from reference import forward as reference_forward
from transformers import DynamicCache

import ptuning
from ptuning import ChatGLMConfig, ChatGLMForConditionalGeneration, UserError
from ptuning.model.prefix_encoder import PrefixEncoder, prefix_config_of

PREFIXES = ["prefix", "prefix_projection"]


@pytest.fixture(scope="module")
def tensors(golden_tensors):
    return golden_tensors


@pytest.fixture(scope="module")
def base(golden):
    return ptuning.load_model(golden / "model", device="cpu")


@pytest.fixture(scope="module", params=PREFIXES)
def prefixed(request, golden):
    model = ptuning.load_model(golden / "model", device="cpu", ptuning_checkpoint=golden / f"checkpoint-{request.param}")
    return request.param, model


def real_mask(tensors):
    """The ordinary 2-D mask of the golden batch: 1 = real."""
    return (~tensors["fwd.attention_mask"][:, 0, -1]).long()


def close(ours, theirs, tolerance=1e-5):
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


def random_model(seed=0, spread=1.0, **sizes):
    """A random float32 model; wider weights than usual, so that every term of a layer matters."""
    config = ChatGLMConfig(
        **{
            "vocab_size": 120,
            "hidden_size": 24,
            "num_layers": 2,
            "num_attention_heads": 2,
            "inner_hidden_size": 40,
            "bos_token_id": 104,
            "pad_token_id": 3,
            **sizes,
        }
    )
    torch.manual_seed(seed)
    model = ChatGLMForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=spread / parameter.shape[-1] ** 0.5 if parameter.dim() > 1 else 0.3)
    return model


def prompt(config, length, answer=0, seed=0, mask="gmask_token_id"):
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(5, 90, (length + answer,), generator=generator).tolist()
    return [*text[:length], getattr(config, mask), config.bos_token_id, *text[length:]]


# ---- golden ---------------------------------------------------------------------------------------------------------


def test_logits_of_a_padded_batch_agree_in_both_forms_of_mask(base, tensors):
    with torch.no_grad():
        published = base(
            tensors["fwd.input_ids"], attention_mask=tensors["fwd.attention_mask"], position_ids=tensors["fwd.position_ids"]
        )
        ordinary = base(tensors["fwd.input_ids"], attention_mask=real_mask(tensors))
    close(published.logits, tensors["fwd.logits"])
    close(ordinary.logits, tensors["fwd.logits"])


@pytest.mark.parametrize("case", ["one", "mask"])
def test_logits_without_padding_agree(base, tensors, case):
    with torch.no_grad():
        close(base(tensors[f"{case}.input_ids"]).logits, tensors[f"{case}.logits"])


def test_loss_agrees(base, tensors):
    with torch.no_grad():
        close(base(tensors["train.input_ids"], labels=tensors["train.labels"]).loss, tensors["train.loss"][0])


def test_prefix_logits_loss_and_gradients_agree(prefixed, tensors):
    name, model = prefixed
    with torch.no_grad():
        logits = model(tensors["fwd.input_ids"], attention_mask=real_mask(tensors)).logits
        pairs = model.prefix_key_values()
    close(logits, tensors[f"{name}.logits"])
    ours = torch.stack([torch.stack((key[0], value[0])) for key, value in pairs]).transpose(2, 3)
    close(ours, tensors[f"{name}.past_key_values"])
    model.zero_grad()
    loss = model(tensors["train.input_ids"], labels=tensors["train.labels"]).loss
    loss.backward()
    close(loss.detach(), tensors[f"{name}.loss"][0])
    for key, parameter in model.prefix_encoder.named_parameters():
        close(parameter.grad, tensors[f"{name}.grad.{key}"], 1e-6)


def test_greedy_and_beam_ids_agree(prefixed, base, tensors):
    name, model = prefixed
    given = {"inputs": tensors["fwd.input_ids"], "attention_mask": real_mask(tensors), "do_sample": False, "max_length": 44}
    assert torch.equal(model.generate(**given), tensors[f"{name}.greedy"])
    assert torch.equal(model.generate(**given, num_beams=4), tensors[f"{name}.beam4"])
    assert torch.equal(base.generate(**given), tensors["plain.greedy"])


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_logits_agree(golden, tensors, bits):
    model = ptuning.load_model(golden / "model", device="cpu", quantization_bit=bits)
    with torch.no_grad():
        logits = model(tensors["fwd.input_ids"], attention_mask=real_mask(tensors)).logits
    close(logits, tensors[f"quant.int{bits}.logits"])


def test_training_trajectory_agrees(golden, golden_cases, tensors):
    case = golden_cases["trajectory"]
    model = ptuning.load_model(golden / "model", device="cpu", ptuning_checkpoint=golden / "checkpoint-prefix")
    encoder = model.prefix_encoder
    optimiser = torch.optim.AdamW(
        encoder.parameters(),
        lr=case["learning_rate"],
        betas=case["betas"],
        eps=case["eps"],
        weight_decay=case["weight_decay"],
    )
    losses = []
    for _ in case["losses"]:
        loss = model(tensors["train.input_ids"], labels=tensors["train.labels"]).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(case["losses"]), atol=1e-4, rtol=0)
    torch.testing.assert_close(encoder.embedding.weight.detach(), tensors["trajectory.embedding"], atol=2e-3, rtol=0)


# ---- other sizes, against the second writing-down -----------------------------------------------------------------------

SIZES = [
    {"num_layers": 28},
    {"num_attention_heads": 6, "hidden_size": 48, "inner_hidden_size": 96},
    {"num_attention_heads": 1, "hidden_size": 8, "num_layers": 1},
    {"num_attention_heads": 3, "hidden_size": 36, "layernorm_epsilon": 1e-3},
]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("prefix_length", [0, 1, 5])
def test_logits_follow_the_formulas(sizes, prefix_length):
    model = random_model(seed=len(str(sizes)), **sizes)
    config = model.config
    prefix = None
    if prefix_length:
        encoder = PrefixEncoder(prefix_config_of(config, prefix_length, projection=False))
        encoder.fresh = False
        model.attach_prefix(encoder.eval())
        shape = (prefix_length, config.num_layers, 2, config.num_attention_heads, config.head_dim)
        prefix = encoder.embedding.weight.detach().view(shape).permute(1, 2, 0, 3, 4)
    rows = [prompt(config, 7, 4), prompt(config, 3, 2, seed=1, mask="mask_token_id"), prompt(config, 1, 0, seed=2)]
    longest = max(len(row) for row in rows)
    pads = [longest - len(row) for row in rows]
    ids = torch.tensor([[config.pad_token_id] * pad + row for pad, row in zip(pads, rows, strict=True)])
    mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in pads])
    state = model.state_dict()
    with torch.no_grad():
        ours = model(ids, attention_mask=mask).logits
        for row in range(len(rows)):
            theirs = reference_forward(state, config, ids[row].tolist(), pads[row], prefix)
            close(ours[row], theirs, 2e-4 if config.num_layers > 8 else 2e-5)
            alone = model(ids[row : row + 1, pads[row] :]).logits[0]
            close(ours[row, pads[row] :], alone, 2e-4 if config.num_layers > 8 else 2e-5)


@pytest.mark.parametrize("prefix_length", [0, 3])
def test_a_cache_step_equals_a_full_forward(prefix_length):
    model = random_model(num_layers=3)
    if prefix_length:
        model.attach_prefix(PrefixEncoder(prefix_config_of(model.config, prefix_length, False)).eval())
    rows = [prompt(model.config, 6, 5), prompt(model.config, 6, 5, seed=3)]
    rows[1] = [3, 3, *rows[1][2:]]
    ids, mask = torch.tensor(rows), torch.tensor([[1] * len(rows[0]), [0, 0] + [1] * (len(rows[0]) - 2)])
    with torch.no_grad():
        full = model(ids, attention_mask=mask).logits
        first = model(ids[:, :9], attention_mask=mask[:, :9], use_cache=True)
        real = mask[:, :9].bool()
        close(first.logits[real], full[:, :9][real])
        one = model(ids[:, 9:10], past_key_values=first.past_key_values, attention_mask=mask[:, :10], use_cache=True)
        close(one.logits, full[:, 9:10])
        rest = model(ids[:, 10:], past_key_values=one.past_key_values, use_cache=True)  # the cache knows the padding
        close(rest.logits, full[:, 10:])


@pytest.mark.parametrize("copied", [False, True])
def test_a_cache_of_the_users_own_remembers_where_it_stands(copied):
    """transformers' class, not ours; a copy goes on where the original stands."""
    model = random_model(num_layers=2)
    ids = torch.tensor([prompt(model.config, 6, 5)])
    with torch.no_grad():
        cache = DynamicCache()
        model(ids[:, :9], past_key_values=cache, use_cache=True)
        cache = copy.deepcopy(cache) if copied else cache
        rest = model(ids[:, 9:], past_key_values=cache, use_cache=True)
        close(rest.logits, model(ids).logits[:, 9:])
    assert rest.past_key_values is cache


def test_the_cache_has_its_older_and_its_newer_name():
    model = random_model(num_layers=2)
    ids = torch.tensor([prompt(model.config, 6, 5)])
    with torch.no_grad():
        first = model(ids[:, :9], use_cache=True)
        assert first.cache is first.past_key_values is not None
        older, newer = copy.deepcopy(first.cache), first.cache
        steps = [model(ids[:, 9:], past_key_values=older), model(ids[:, 9:], cache=newer)]
        assert model(ids, use_cache=False).cache is None
    assert torch.equal(steps[0].logits, steps[1].logits)
    assert steps[0].cache is older
    assert steps[1].past_key_values is newer
    with pytest.raises(AttributeError, match="'CausalLMOutput' object has no attribute 'caches'"):
        _ = first.caches


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_generate_may_hand_the_cache_on_under_either_name(monkeypatch, name):
    """Newer releases of transformers call it ``cache``; simulated here, where the installed one does not."""
    model = random_model(num_layers=2)
    ids, names = torch.tensor([prompt(model.config, 6, 1)]), []
    settings = [{"do_sample": False}, {"do_sample": False, "num_beams": 3}]
    before = [model.generate(ids, max_new_tokens=6, **one) for one in settings]
    original = type(model).prepare_inputs_for_generation

    def renamed(self, input_ids, **kwargs):
        cache = next(kwargs.pop(one) for one in ("cache", "past_key_values") if kwargs.get(one) is not None)
        inputs = original(self, input_ids, **kwargs, **{name: cache})
        names.extend(set(inputs) & {"cache", "past_key_values"})
        return inputs

    monkeypatch.setattr(type(model), "prepare_inputs_for_generation", renamed)
    for one, expected in zip(settings, before, strict=True):
        assert torch.equal(model.generate(ids, max_new_tokens=6, **one), expected)
    assert set(names) == {name}


def test_generate_and_a_given_cache_warn_of_nothing(caplog, recwarn, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    model = random_model(num_layers=2)
    ids = torch.tensor([prompt(model.config, 6, 1)])
    model.generation_config.pad_token_id = model.config.pad_token_id
    model.generate(ids, max_new_tokens=2, do_sample=False)
    model.generate(ids, max_new_tokens=2, do_sample=False, num_beams=2)
    with torch.no_grad():
        step = model(ids, use_cache=True)
        model(ids[:, -1:], past_key_values=step.past_key_values)
    messages = [*caplog.messages, *(str(one.message) for one in recwarn)]
    assert not [message for message in messages if "cache" in message or "past_key_values" in message]


def test_a_cache_that_another_model_filled_needs_positions():
    model = random_model(num_layers=1)
    cache, config = DynamicCache(), model.config
    states = torch.zeros(1, config.num_attention_heads, 4, config.head_dim)
    cache.update(states, states, 0)
    with pytest.raises(UserError, match="not filled by ChatGLM"):
        model(torch.tensor([[20]]), past_key_values=cache)


def test_a_cache_step_takes_published_positions(base, tensors):
    ids, token = tensors["one.input_ids"], torch.tensor([[100]])
    mask_place = ids[0].tolist().index(base.config.gmask_token_id)
    with torch.no_grad():
        whole = base(ids, use_cache=True)
        place = torch.tensor([[[mask_place], [2]]])  # <sop> was block position 1
        given = base(token, past_key_values=whole.past_key_values, position_ids=place)
        full = base(torch.cat((ids, token), 1))
    close(given.logits[:, -1], full.logits[:, -1])


def test_without_a_prefix_the_model_is_the_base_model_bit_for_bit(prefixed, base, tensors):
    _, model = prefixed
    ids, mask = tensors["fwd.input_ids"], real_mask(tensors)
    with torch.no_grad():
        with model.prefix_disabled():
            assert torch.equal(model(ids, attention_mask=mask).logits, base(ids, attention_mask=mask).logits)
        assert not torch.equal(model(ids, attention_mask=mask).logits, base(ids, attention_mask=mask).logits)


def test_rows_of_a_batch_may_carry_different_prefixes():
    model = random_model(num_layers=3)
    encoders = [PrefixEncoder(prefix_config_of(model.config, 4, False)).eval() for _ in range(2)]
    ids = torch.tensor([prompt(model.config, 5, 3)] * 2)
    with torch.no_grad():
        pairs = [encoder(torch.float32) for encoder in encoders]
        both = tuple((torch.cat((a[0], b[0])), torch.cat((a[1], b[1]))) for a, b in zip(pairs[0], pairs[1], strict=True))
        together = model(ids, prefix_key_values=both).logits
        for row, pair in enumerate(pairs):
            close(together[row : row + 1], model(ids[:1], prefix_key_values=pair).logits)
    assert not torch.allclose(together[0], together[1])


@pytest.mark.parametrize("projection", [False, True])
def test_gradient_checkpointing_gives_equal_gradients(projection):
    model = random_model(num_layers=4)
    config = dataclasses.replace(prefix_config_of(model.config, 3, projection), dropout=0.0)
    model.attach_prefix(PrefixEncoder(config))
    ids = torch.tensor([prompt(model.config, 5, 6), prompt(model.config, 5, 6, seed=2)])
    labels = ids.clone()
    labels[:, :6] = -100
    gradients = []
    for reentrant in (None, False, True):
        if reentrant is not None:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        model.train()
        model.zero_grad()
        model(ids, labels=labels).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.prefix_encoder.parameters()])
    for again in gradients[1:]:
        for plain, checkpointed in zip(gradients[0], again, strict=True):
            torch.testing.assert_close(plain, checkpointed, atol=0, rtol=0)


@pytest.mark.parametrize(("checkpointing", "runs"), [(False, 1), (True, 2)])
def test_gradient_checkpointing_computes_every_block_twice(checkpointing, runs):
    model = random_model(num_layers=3)
    model.attach_prefix(PrefixEncoder(prefix_config_of(model.config, 3, False)))
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    counts = [0] * 3
    for index, layer in enumerate(model.transformer.layers):
        layer.input_layernorm.register_forward_hook(lambda *_, index=index: counts.__setitem__(index, counts[index] + 1))
    ids = torch.tensor([prompt(model.config, 5, 6)])
    model.train()
    model(ids, labels=ids).loss.backward()
    assert counts == [runs] * 3


def test_only_the_prefix_gets_gradients():
    model = random_model()
    model.attach_prefix(PrefixEncoder(prefix_config_of(model.config, 3, False)))
    ids = torch.tensor([prompt(model.config, 5, 6)])
    model.train()
    model(ids, labels=ids).loss.backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == {"transformer.prefix_encoder.embedding.weight"}


def test_the_loss_makes_no_logits_where_there_is_no_label(base, tensors):
    """The head sees the positions before a label, and nothing as wide as the vocabulary exists for the others."""
    rows_seen = []
    hook = base.lm_head.register_forward_pre_hook(lambda module, inputs: rows_seen.append(inputs[0].shape))
    try:
        output = base(tensors["train.input_ids"], labels=tensors["train.labels"])
        labelled = int((tensors["train.labels"][:, 1:] != -100).sum())
        assert rows_seen == [(labelled, base.config.hidden_size)]
        whole = output.logits  # made on demand
        assert whole.shape == (*tensors["train.input_ids"].shape, base.config.vocab_size)
    finally:
        hook.remove()


def test_padding_more_changes_no_loss(base, tensors):
    ids, labels = tensors["train.input_ids"], tensors["train.labels"]
    wider = torch.nn.functional.pad(ids, (0, 9), value=3), torch.nn.functional.pad(labels, (0, 9), value=-100)
    mask = torch.nn.functional.pad(torch.ones_like(ids), (0, 9), value=0)
    with torch.no_grad():
        expected = base(ids, labels=labels).loss
        close(base(wider[0], labels=wider[1]).loss, expected, 1e-6)
        close(base(wider[0], labels=wider[1], attention_mask=mask).loss, expected, 1e-6)


def test_num_items_weighs_micro_batches_by_their_labels(base, tensors):
    ids, labels = tensors["train.input_ids"], tensors["train.labels"]
    items = int((labels[:, 1:] != -100).sum())
    with torch.no_grad():
        whole = base(ids, labels=labels).loss
        parts = [base(ids[i : i + 1], labels=labels[i : i + 1], num_items_in_batch=items).loss for i in range(len(ids))]
    close(torch.stack(parts).sum(), whole, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow(dtype):
    """Scores far beyond float16's range before the scale: q and k of several hundred."""
    model = random_model(num_layers=4, hidden_size=64, num_attention_heads=1, inner_hidden_size=64, spread=40.0).to(dtype)
    ids = torch.tensor([prompt(model.config, 20, 4)])
    with torch.no_grad():
        logits = model(ids).logits
    assert torch.isfinite(logits).all()


# ---- generation ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix_length", [0, 4])
def test_a_batch_of_eight_equals_eight_of_one(prefix_length):
    model = random_model(seed=5, num_layers=3, hidden_size=48, num_attention_heads=4)
    if prefix_length:
        encoder = PrefixEncoder(prefix_config_of(model.config, prefix_length, False)).eval()
        encoder.fresh = False
        model.attach_prefix(encoder)
    rows = [prompt(model.config, length, seed=length) for length in (1, 2, 3, 5, 8, 13, 21, 34)]
    longest = max(map(len, rows))
    ids = torch.tensor([[3] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    settings = {"do_sample": False, "max_new_tokens": 24, "eos_token_id": 105, "pad_token_id": 3}
    together = model.generate(ids, attention_mask=mask, **settings)[:, longest:]
    for row, expected in zip(rows, together.tolist(), strict=True):
        alone = model.generate(torch.tensor([row]), **settings)[0, len(row) :].tolist()
        assert alone == expected[: len(alone)]
        assert set(expected[len(alone) :]) <= {3}


def test_sampling_and_beams_without_a_cache_agree_with_the_cache():
    model = random_model(seed=6)
    ids = torch.tensor([prompt(model.config, 5)])
    for settings in ({"do_sample": True, "top_p": 0.8}, {"do_sample": False, "num_beams": 3}, {"do_sample": False}):
        answers = []
        for use_cache in (True, False):
            torch.manual_seed(1)
            answers.append(model.generate(ids, max_new_tokens=12, use_cache=use_cache, **settings).tolist())
        assert answers[0] == answers[1], settings


def test_the_prefix_is_computed_once_per_generation(golden, monkeypatch):
    model = ptuning.load_model(golden / "model", device="cpu", ptuning_checkpoint=golden / "checkpoint-prefix_projection")
    calls = []
    original = PrefixEncoder.forward
    monkeypatch.setattr(PrefixEncoder, "forward", lambda self, dtype: (calls.append(1), original(self, dtype))[1])
    model.generate(torch.tensor([[353, 86, 89]]), max_new_tokens=5, do_sample=False)
    assert len(calls) == 1


def test_scores_that_are_not_finite_stop_the_generation(golden):
    model = ptuning.load_model(golden / "model", device="cpu")
    model.lm_head.weight.data[7] = float("nan")
    with pytest.raises(ptuning.GenerationError, match="NaN or infinite"):
        model.generate(torch.tensor([[353, 86, 89]]), max_new_tokens=5, do_sample=False)


# ---- what is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "words"), [([[353, 86, 353]], "<sop>"), ([[353, 353, 89]], r"\[gMASK\]"), ([[353, 86, 89], [1, 2, 3]], "row 1")]
)
def test_ids_without_their_marks_are_refused(base, ids, words):
    with pytest.raises(UserError, match=words):
        base(torch.tensor(ids))


def test_masks_and_positions_of_other_shapes_are_refused(base):
    ids = torch.tensor([[353, 86, 89, 100]])
    with pytest.raises(UserError, match="attention_mask has shape"):
        base(ids, attention_mask=torch.ones(1, 3))
    with pytest.raises(UserError, match="must be bool"):
        base(ids, attention_mask=torch.zeros(1, 1, 4, 4))
    with pytest.raises(UserError, match="position_ids have shape"):
        base(ids, position_ids=torch.zeros(1, 4, dtype=torch.long))
    with pytest.raises(UserError, match="unknown arguments: labls"):
        base(ids, labls=ids)
    with pytest.raises(UserError, match="output_attentions"):
        base(ids, output_attentions=True)


def test_a_prefix_of_another_model_is_refused(base):
    encoder = PrefixEncoder(prefix_config_of(ChatGLMConfig(hidden_size=64, num_layers=5, num_attention_heads=4), 2, False))
    with pytest.raises(UserError, match=r"5 layers of hidden size 64; the model has 3 layers of hidden size 32"):
        base.attach_prefix(encoder)


def test_tuple_output_and_hidden_states(base):
    ids = torch.tensor([[353, 86, 89, 100]])
    with torch.no_grad():
        logits, _cache = base(ids, return_dict=False)
        output = base(ids, output_hidden_states=True, logits_to_keep=1)
    assert logits.shape == (1, 4, base.config.vocab_size)
    assert output.logits.shape[1] == 1
    assert len(output.hidden_states) == base.config.num_layers + 1
    close(output.logits[:, -1], logits[:, -1])
