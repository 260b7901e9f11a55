"""The garbage collector rests while a command loads, and is back afterwards, whatever happens."""

import gc

import pytest

from ptuning.edges.garbage_collection import collection_paused


@pytest.fixture(autouse=True)
def _as_before():
    assert gc.isenabled()
    yield
    gc.unfreeze()
    gc.enable()


def test_nothing_is_collected_within_and_what_is_there_is_left_alone_afterwards():
    before = gc.get_freeze_count()
    with collection_paused():
        assert not gc.isenabled()
        kept = [[number] for number in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= before + len(kept)
    assert not any(one is kept for one in gc.get_objects())


def test_an_error_ends_it_too():
    with pytest.raises(ValueError, match="a mistake"), collection_paused():
        raise ValueError("a mistake")
    assert gc.isenabled()
