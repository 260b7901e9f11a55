"""What the process holds from which commands are forked: whatever a command imports, and the dictionary of words."""

import gc
import importlib

for _name in (
    "ptuning.edges.cli", "ptuning.edges.train", "ptuning.edges.tuning", "ptuning.edges.results", "jinja2",
    "matplotlib.backends.backend_agg", "matplotlib.figure", "sacrebleu.metrics", "fastapi", "prometheus_client", "uvicorn",
):  # fmt: skip
    importlib.import_module(_name)

from ptuning.evaluation.metrics.scoring import score_pair  # noqa: E402

score_pair("今天天气很好", "今天天气不错")
gc.collect()
gc.freeze()  # a process need not look through all of this again, nor copy it for that
