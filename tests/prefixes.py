"""Prefixes that were never trained, for tests that need many of them."""

import torch

from ptuning.checkpoint.prefix_checkpoint import save_prefix
from ptuning.model.prefix_encoder import PrefixEncoder, prefix_config_of


def random_encoder(model_config, length, seed):
    """A prefix that counts as loaded."""
    encoder = PrefixEncoder(prefix_config_of(model_config, length, False))
    torch.nn.init.normal_(encoder.embedding.weight, std=0.5, generator=torch.Generator().manual_seed(seed))
    encoder.fresh = False
    return encoder.eval()


def save_random_prefix(folder, model_config, length, seed, **settings):
    """Write one as a checkpoint; returns the folder."""
    save_prefix(folder, random_encoder(model_config, length, seed), settings)
    return folder
