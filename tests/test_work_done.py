"""How much work a training step and a decode step do, counted in dispatched operations: nothing here is timed.

Legend: B batch, T tokens, P prefix slots, L layers, N heads, H head size, D hidden, V vocabulary.
"""

from collections import Counter
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from prefixes import random_encoder
from sampling import greedy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import ptuning
from ptuning.engine.engine import Engine
from ptuning.engine.request import Request
from ptuning.engine.sampling_params import GREEDY, SamplingParams

PREFIX, PROMPT, REPLY, BATCH = 5, 3, 20, 3
LABELS = BATCH * (1 + REPLY)  # <sop> is one
PRODUCTS = ("aten.addmm", "aten.mm", "aten.bmm", "aten.linear", "aten.matmul", "mkldnn._linear_pointwise")
WAITS = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.equal", "aten.unique")


class Made(NamedTuple):
    """A tensor that an operation gave."""

    operation: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    fresh: bool  # memory of its own, not a view of one of the operation's inputs


class Watch(TorchDispatchMode):
    """Notes every operation that is dispatched, and what it makes."""

    def __init__(self):
        super().__init__()
        self.operations = []
        self.made = []
        self.linear_flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {place_of(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        name = ".".join(str(func).split(".")[:2])
        self.operations.append(name)
        if name in ("aten.mm", "aten.addmm"):
            self.linear_flops += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=result)
        if name == "mkldnn._linear_pointwise":
            self.linear_flops += 2 * args[0].numel() * args[1].shape[0]
        self.made += [
            Made(name, tuple(tensor.shape), tensor.dtype, place_of(tensor) not in given)
            for tensor in tree_leaves(result)
            if isinstance(tensor, torch.Tensor)
        ]
        return result

    def count(self, *names):
        return sum(operation in names for operation in self.operations)

    def rows_of_logits(self, vocabulary):
        """Most rows of a tensor [..., V] that came out of a product or was made from one."""
        rows = [torch.Size(one.shape[:-1]).numel() for one in self.made if one.fresh and one.shape[-1:] == (vocabulary,)]
        return max(rows, default=0)


def place_of(tensor):
    return tensor.untyped_storage().data_ptr()


@pytest.fixture
def model(golden):
    loaded = ptuning.load_model(golden / "model", device="cpu")
    encoder = random_encoder(loaded.config, PREFIX, 0)
    loaded.attach_prefix(encoder)
    return loaded


def training_batch(config, padded=0):
    """Rows of PROMPT + 2 + REPLY ids, and ``padded`` columns more in which nothing stands."""
    prompt = [[20 + row + column for column in range(PROMPT)] for row in range(BATCH)]
    ids = [[*one, config.gmask_token_id, config.bos_token_id, *range(30, 30 + REPLY)] for one in prompt]
    labels = [[-100] * (PROMPT + 1) + row[PROMPT + 1 :] for row in ids]
    return {
        "input_ids": torch.tensor([row + [config.pad_token_id] * padded for row in ids]),
        "labels": torch.tensor([row + [-100] * padded for row in labels]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * padded for row in ids]),
    }


def watched_step(model, batch):
    """One training step, forward and backward."""
    model.train()
    with Watch() as watch:
        model(**batch).loss.backward()
    return watch


# ---- a training step ---------------------------------------------------------------------------------------------------


def test_logits_exist_for_labelled_positions_only(model):
    watch = watched_step(model, training_batch(model.config, padded=4))
    assert 0 < watch.rows_of_logits(model.config.vocab_size) <= LABELS


def test_the_watch_sees_logits_of_every_position(model):
    """The counter-check: the published way of computing a loss does not pass."""
    batch = training_batch(model.config)
    with Watch() as watch:
        model(batch["input_ids"], use_cache=False).logits.float()
    assert watch.rows_of_logits(model.config.vocab_size) == BATCH * (PROMPT + 2 + REPLY)


def products_of_a_step(config, tokens, last):
    """Floating point operations of all linears and the head, forward and back to the inputs, no weight gradient.

    Args:
        tokens: that go through the linears.
        last: that go through the last layer behind its attention.
    """
    hidden, inner, layers = config.hidden_size, config.inner_hidden_size, config.num_layers
    first, rest = 3 * hidden * hidden, hidden * hidden + 2 * hidden * inner
    forward = layers * tokens * first + (layers - 1) * tokens * rest + last * rest
    # Below the lowest prefix position, which is the attention of layer 0, lies its fused linear: no gradient goes there.
    backward = forward - tokens * first
    head = 2 * LABELS * config.vocab_size * hidden
    return 2 * (forward + backward + head)


def test_products_are_those_of_forward_and_of_the_way_to_the_prefix_exactly(model):
    watch = watched_step(model, training_batch(model.config))
    length = PROMPT + 2 + REPLY
    whole = products_of_a_step(model.config, BATCH * length, BATCH * length)
    # The last token of a row predicts nothing: a step may leave it out, and the prompt behind the last attention.
    least = products_of_a_step(model.config, BATCH * (length - 1), LABELS)
    assert watch.linear_flops in (whole, least)


def test_no_frozen_weight_gets_a_gradient(model):
    watched_step(model, training_batch(model.config))
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == {"transformer.prefix_encoder.embedding.weight"}


def test_nothing_is_computed_below_the_lowest_prefix_position(model):
    """Layer 0's first norm and the embedding lie below its attention: no gradient is made for them."""
    watch = watched_step(model, training_batch(model.config))
    norms = 2 * model.config.num_layers + 1
    assert watch.count("aten.native_layer_norm") == norms
    assert watch.count("aten.native_layer_norm_backward") == norms - 1
    assert watch.count("aten.embedding_dense_backward") == 0


def test_the_prefix_is_not_copied_for_every_row(model):
    """Only the concatenation that attention itself reads holds a row's prefix: one of keys and one of values per layer."""
    watch = watched_step(model, training_batch(model.config))
    heads, size = model.config.num_attention_heads, model.config.head_dim
    alone = [one for one in watch.made if one.fresh and one.shape == (BATCH, heads, PREFIX, size)]
    joined = [
        one for one in watch.made
        if one.operation == "aten.cat" and one.shape == (BATCH, heads, PREFIX + PROMPT + 2 + REPLY, size)
    ]
    assert alone == []
    assert len(joined) <= 2 * model.config.num_layers


def test_the_watch_sees_a_prefix_of_every_row(model):
    """The counter-check: the published copy per row does not pass."""
    with Watch() as watch:
        for key, _ in model.prefix_key_values():
            key.expand(BATCH, -1, -1, -1).contiguous()
    heads, size = model.config.num_attention_heads, model.config.head_dim
    assert (BATCH, heads, PREFIX, size) in {one.shape for one in watch.made if one.fresh}


# ---- a decode step -----------------------------------------------------------------------------------------------------


class Decoding:
    """An engine whose rows all run, and what each further step does."""

    def __init__(self, model, tokenizer, rows, sampling=GREEDY, prefixes=1, lengths=(6,)):
        self.engine = Engine(model, tokenizer, max_rows=max(rows, 1))
        self.engine.end_ids = frozenset()
        config = model.config
        with torch.no_grad():
            shared = [
                self.engine.add_prefix(str(number), random_encoder(config, PREFIX, number)(model.dtype))
                for number in range(prefixes)
            ]
        ends = [config.gmask_token_id, config.bos_token_id]
        prompts = [[30 + row] * lengths[row % len(lengths)] + ends for row in range(rows)]
        self.engine.submit(
            [
                Request(ids, shared[row % prefixes] if shared else None, replace(sampling, max_new_tokens=100))
                for row, ids in enumerate(prompts)
            ]
        )
        self.engine.step()
        assert len(self.engine.running) == rows

    def step(self):
        with Watch() as watch:
            assert self.engine.step()
        return watch


@pytest.fixture(scope="module")
def tokenizer(golden):
    return ptuning.load_tokenizer(golden / "model")


@pytest.mark.parametrize("rows", [1, 4, 7])
def test_one_pass_through_the_backbone_for_all_rows(model, tokenizer, rows):
    """Four linears a layer and the head, once, whatever the number of rows."""
    decoding = Decoding(model, tokenizer, rows)
    before = decoding.engine.counters.steps
    watch = decoding.step()
    assert decoding.engine.counters.steps == before + 1
    assert watch.count(*PRODUCTS) == 4 * model.config.num_layers + 1
    assert watch.rows_of_logits(model.config.vocab_size) == rows


def test_a_prompt_gets_logits_of_its_last_position_only(model, tokenizer):
    engine = Engine(model, tokenizer, max_rows=2)
    ends = [model.config.gmask_token_id, model.config.bos_token_id]
    engine.submit([Request([31] * 9 + ends, None, greedy(1)), Request([32] * 4 + ends, None, greedy(1))])
    with Watch() as watch:
        engine.step()
    assert engine.counters.prefills == 1
    assert watch.rows_of_logits(model.config.vocab_size) == 2


@pytest.mark.parametrize("prefixes", [0, 1, 3])
@pytest.mark.parametrize("sampling", [GREEDY, SamplingParams(seed=1)], ids=["greedy", "sampled"])
def test_a_step_waits_for_the_device_once(model, tokenizer, monkeypatch, sampling, prefixes):
    """The chosen tokens come to the host in one piece; nothing else does."""
    decoding = Decoding(model, tokenizer, 4, sampling, prefixes, lengths=(6, 9))
    decoding.step()  # what is made anew when rows come is made
    lists = Counter()
    for name in ("tolist", "numpy", "cpu", "item"):
        original = getattr(torch.Tensor, name)

        def counted(self, *args, name=name, original=original, **kwargs):
            lists[name] += 1
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counted)
    watch = decoding.step()
    assert lists == {"tolist": 1}
    assert watch.count(*WAITS) == 0


@pytest.mark.parametrize("lengths", [(6,), (6, 9, 4)], ids=["equal lengths", "ragged"])
def test_a_step_does_as_much_after_many_tokens_as_after_few(model, tokenizer, lengths):
    """As many operations, no larger a cache, and nothing made that holds every column of every row but the mask."""
    decoding = Decoding(model, tokenizer, 3, lengths=lengths)
    cache = decoding.engine.runner.cache
    decoding.step()
    early = decoding.step()
    growths, places = cache.growths, [place_of(tensor) for tensor in (*cache.keys, *cache.values)]
    for _ in range(60):
        late = decoding.step()
    assert Counter(late.operations) == Counter(early.operations)
    assert (cache.growths, [place_of(tensor) for tensor in (*cache.keys, *cache.values)]) == (growths, places)
    columns = decoding.engine.running[0].columns
    heads, size = model.config.num_attention_heads, model.config.head_dim
    copies = [one for one in late.made if one.fresh and one.shape[-1:] == (size,) and one.shape[-2:-1] >= (columns,)]
    assert copies == []
    assert all(torch.Size(one.shape).numel() < 3 * heads * columns * size for one in late.made if one.fresh)


def test_rows_share_the_prefix_where_it_stands(model, tokenizer):
    """No decode step makes a prefix for every row, with one prefix or with several."""
    heads, size = model.config.num_attention_heads, model.config.head_dim
    for prefixes in (1, 3):
        watch = Decoding(model, tokenizer, 6, prefixes=prefixes).step()
        assert not [one for one in watch.made if one.fresh and one.shape[-2:] == (PREFIX, size) and one.shape[-3] == heads]
