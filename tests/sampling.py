"""Settings of answers that tests ask for."""

from ptuning.engine.sampling_params import SamplingParams


def greedy(max_new_tokens=None, **settings):
    """The likeliest token each time, so many of them."""
    return SamplingParams(temperature=0, max_new_tokens=max_new_tokens, **settings)
