"""The published forward pass written down a second time, as plainly as possible, for the tests.

Loops over rows and heads, explicit masks, scores filled with -10000 as the published code does: slow and easy to check
against the description of the model. Nothing here uses the package.
"""

import math

import torch


def positions(ids, config):
    """[2, T] position ids and block position ids of one row without padding."""
    ids = list(ids)
    start = ids.index(config.bos_token_id)
    mask_token = config.gmask_token_id if config.gmask_token_id in ids else config.mask_token_id
    mask_place = ids.index(mask_token)
    row = [i if i < start else mask_place for i in range(len(ids))]
    block = [0 if i < start else i - start + 1 for i in range(len(ids))]
    return torch.tensor([row, block])


def rotate(x, place, space):
    """Turn one rotary space of one head: x [T, space], place [T]."""
    inv_freq = (1.0 / 10000 ** (torch.arange(0, space, 2).float() / space)).half().float()
    angle = place.float()[:, None] * inv_freq[None]
    cos, sin = torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)
    half = space // 2
    return x * cos + torch.cat([-x[:, half:], x[:, :half]], -1) * sin


def forward(state, config, ids, pads=0, prefix=None):
    """Logits [T, V] of one row; the first ``pads`` ids are padding; prefix [L, 2, P, N, H] or None."""
    tokens, heads = len(ids), config.num_attention_heads
    size, hidden = config.hidden_size // heads, config.hidden_size
    place = torch.zeros(2, tokens, dtype=torch.long)
    place[:, pads:] = positions(ids[pads:], config)
    start = list(ids).index(config.bos_token_id)
    hidden_mask = torch.ones(tokens, tokens, dtype=torch.bool)
    for i in range(pads, tokens):
        for j in range(pads, tokens):
            hidden_mask[i, j] = not (j < start or j <= i)
    alpha = math.sqrt(2 * config.num_layers)
    x = state["transformer.word_embeddings.weight"][list(ids)]

    def norm(x, name):
        return torch.nn.functional.layer_norm(
            x, (hidden,), state[f"{name}.weight"], state[f"{name}.bias"], config.layernorm_epsilon
        )

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    for layer in range(config.num_layers):
        at = f"transformer.layers.{layer}"
        a = norm(x, f"{at}.input_layernorm")
        fused = linear(a, f"{at}.attention.query_key_value").view(tokens, heads, 3, size)
        mixed = torch.empty(tokens, heads, size)
        for head in range(heads):
            q, k, v = fused[:, head].unbind(1)
            half = size // 2
            q, k = (
                torch.cat([rotate(t[:, :half], place[0], half), rotate(t[:, half:], place[1], half)], -1) for t in (q, k)
            )
            blocked = hidden_mask
            if prefix is not None:
                k, v = torch.cat([prefix[layer, 0, :, head], k]), torch.cat([prefix[layer, 1, :, head], v])
                blocked = torch.cat([torch.zeros(tokens, prefix.shape[2], dtype=torch.bool), hidden_mask], 1)
            scores = (q @ k.T / math.sqrt(size)).masked_fill(blocked, -10000.0)
            mixed[:, head] = scores.softmax(-1) @ v
        h = alpha * a + linear(mixed.reshape(tokens, hidden), f"{at}.attention.dense")
        m = norm(h, f"{at}.post_attention_layernorm")
        inner = linear(m, f"{at}.mlp.dense_h_to_4h")
        inner = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
        x = alpha * m + linear(inner, f"{at}.mlp.dense_4h_to_h")
    return norm(x, "transformer.final_layernorm") @ state["lm_head.weight"].T
