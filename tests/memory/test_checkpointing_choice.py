"""Gradient checkpointing is chosen by what is free: a decision on figures alone."""

import itertools

import pytest

from ptuning.memory.checkpointing_choice import USED_SHARE, choose_checkpointing
from ptuning.memory.estimates import Storage, tuning_memory
from ptuning.methods.prefix import prefix_cost
from ptuning.model.sizes import GIB, ModelSizes, PrefixSizes, size_text

SIX_BILLION = ModelSizes.from_config({})
INT4 = Storage(4, False, 2, device="accelerator")
PREFIX = prefix_cost(SIX_BILLION, PrefixSizes(128))
RUN = {"batch": 16, "source": 64, "target": 64, "accumulation": 1}


def choose(free, storage=INT4, prefix=PREFIX, **changes):
    return choose_checkpointing(SIX_BILLION, storage, prefix, **(RUN | changes), free=free)


def to_come(checkpointing, storage=INT4, prefix=PREFIX, **changes):
    """Predicted bytes beside what is in memory already: the backbone and the prefix."""
    found = tuning_memory(SIX_BILLION, storage, prefix, **(RUN | changes), checkpointing=checkpointing)
    return found.total - found.parts["weights"] - found.parts["prefix"]


def test_it_is_off_up_to_the_share_that_may_be_used_and_on_beyond():
    edge = int(to_come(False) / USED_SHARE)
    assert not choose(edge + 2).on
    assert choose(edge - 2).on
    assert choose(edge + 2).message is None


def test_the_weights_count_as_there_already():
    """INT8 weights take more than INT4's; what a step needs beside them is the same but for the unpacked linear."""
    for storage in (INT4, Storage(8, False, 2, device="accelerator")):
        assert not choose(int(to_come(False, storage) / USED_SHARE) + 2, storage).on
    projected = prefix_cost(SIX_BILLION, PrefixSizes(128, True))
    assert tuning_memory(SIX_BILLION, INT4, projected, **RUN).parts["prefix"] > 3 * GIB
    assert not choose(int(to_come(False, prefix=projected) / USED_SHARE) + 2, prefix=projected).on


def test_the_message_has_both_figures_what_is_free_and_the_way_out():
    free = to_come(False)  # all of it: above the share
    said = choose(free).message
    assert f"about {size_text(to_come(False))} beside the model, with it {size_text(to_come(True))}" in said
    assert f"{size_text(free)} are free" in said
    assert "--gradient_checkpointing false" in said
    assert "\n" not in said
    assert "even so" not in said


def test_where_it_does_not_suffice_it_is_on_and_says_so():
    said = choose(to_come(True))
    assert said.on
    assert "may not do even so: a smaller --per_device_train_batch_size" in said.message


def test_it_stays_off_where_it_saves_nothing():
    """The worst moment of one short row is when the prefix gets its gradient, which checkpointing does not touch."""
    small = {"batch": 1, "source": 4, "target": 4}
    assert to_come(True, **small) == to_come(False, **small)
    assert not choose(1, **small).on


def test_it_stays_off_where_nothing_is_known():
    assert not choose(None).on


@pytest.mark.parametrize("what", ["batch", "source", "target"])
def test_more_to_compute_turns_it_on_sooner(what):
    free = int(to_come(False) / USED_SHARE) + 2
    assert not choose(free).on
    assert choose(free, **{what: RUN[what] * 2}).on


def test_it_never_goes_off_with_less_memory():
    answers = [choose(free * GIB // 4).on for free in range(1, 80)]
    assert answers[0]
    assert not answers[-1]
    assert [key for key, _ in itertools.groupby(answers)] == [True, False]
