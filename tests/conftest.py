"""What several test files share: the published results, read once."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the results that the published code gave (see tests/golden/README.md)."""
    return Path(__file__).parent / "golden" / "chatglm-tiny"


@pytest.fixture(scope="session")
def golden_tensors(golden):
    """Tensors of those results."""
    return load_file(golden / "tensors.safetensors")


@pytest.fixture(scope="session")
def golden_cases(golden):
    """Texts, ids and scores of those results."""
    return json.loads((golden / "cases.json").read_text(encoding="utf-8"))
