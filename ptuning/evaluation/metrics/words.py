"""Words of Chinese text, by jieba and the dictionary that ships with it."""

from __future__ import annotations

import logging
import warnings
from typing import Any


def word_tokenizer() -> Any:
    """A tokenizer of jieba's that knows the dictionary which ships with it, and nothing else.

    jieba's own way keeps the counted words in ``jieba.cache`` in the shared temporary folder and believes whatever lies
    there, so another user could decide the scores; and the tokenizer of ``jieba.cut`` is shared by the whole process, whose
    words any program may have changed. To count them again takes no longer than to read that file.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import jieba

    jieba.setLogLevel(logging.WARNING)  # it logs to a handler of its own
    tokenizer = jieba.Tokenizer()
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    return tokenizer
