"""Prefixes that were never trained, for tests that need many of them, and their files in every form."""

import torch

from ptuning.checkpoint.adapter import write_files
from ptuning.methods.peft_prefix import peft_files
from ptuning.methods.prefix_forms import prefix_files
from ptuning.model.prefix_encoder import PrefixEncoder, prefix_config_of


def random_encoder(model_config, length, seed):
    """A prefix that counts as loaded."""
    encoder = PrefixEncoder(prefix_config_of(model_config, length, False))
    torch.nn.init.normal_(encoder.embedding.weight, std=0.5, generator=torch.Generator().manual_seed(seed))
    encoder.fresh = False
    return encoder.eval()


def save_prefix(folder, encoder, settings=None):
    """Write a prefix in our form."""
    write_files(folder, prefix_files(encoder, settings))


def save_published_prefix(folder, encoder):
    """Write a prefix as the published trainer does."""
    write_files(folder, prefix_files(encoder, form="published"))


def save_peft_prefix(folder, encoder, base_model=None):
    """Write a prefix as PEFT does."""
    write_files(folder, peft_files(encoder, base_model))


def save_random_prefix(folder, model_config, length, seed, **settings):
    """Write one that was never trained as a checkpoint; returns the folder."""
    save_prefix(folder, random_encoder(model_config, length, seed), settings)
    return folder
