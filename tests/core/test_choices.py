"""Choices are written once: nobody lists their values again, and what acts on them knows each of them."""

import ast
from pathlib import Path
from typing import Literal, get_origin

import pytest

from ptuning.core import choices
from ptuning.core.choices import (
    FORMATS_WITH_COLUMNS_OF_THEIR_OWN,
    DtypeChoice,
    DtypeName,
    GenerationName,
    KernelName,
    PackedBits,
    PrefixForm,
    QuantizationBits,
    RoundingMethod,
    RowFormat,
    WeightForm,
    allowed,
    values_of,
)
from ptuning.core.errors import UserError

PACKAGE = Path(choices.__file__).parents[1]
EVERY_CHOICE = {name: values_of(choice) for name, choice in vars(choices).items() if get_origin(choice) is Literal}


def written_again(tree):
    """Places that list what a choice lists: a Literal, or three texts and more in a row."""
    for node in ast.walk(tree):
        items = None
        if isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("Literal"):
            items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        elif isinstance(node, ast.Tuple | ast.List | ast.Set) and len(node.elts) > 2:
            items = node.elts
        if items and all(isinstance(item, ast.Constant) for item in items):
            values = tuple(item.value for item in items)
            yield from (f"line {node.lineno}: {name}" for name, known in EVERY_CHOICE.items() if values == known)


def test_no_choice_is_written_twice():
    assert len(EVERY_CHOICE) > 8
    again = {
        str(path.relative_to(PACKAGE)): found
        for path in PACKAGE.rglob("*.py")
        if path.name != "choices.py" and (found := list(written_again(ast.parse(path.read_text(encoding="utf-8")))))
    }
    assert not again
    for text in ('kind: Literal["safetensors", "bin"]', 'f(("auto", "float32", "float16", "bfloat16"))'):
        assert list(written_again(ast.parse(text)))


def test_choices_that_belong_together_agree():
    assert values_of(DtypeChoice) == ("auto", *values_of(DtypeName))
    assert values_of(QuantizationBits) == (0, *values_of(PackedBits))
    assert set(FORMATS_WITH_COLUMNS_OF_THEIR_OWN) | {"auto", "columns"} == set(values_of(RowFormat))


def test_whatever_acts_on_a_choice_knows_it():
    from ptuning.checkpoint.placement import parse_dtype
    from ptuning.engine.generation import PRESETS
    from ptuning.kernels import dispatch

    assert {"auto", "reference", "cpu", *dispatch._MODULES} == set(values_of(KernelName))
    assert set(dispatch.KERNEL_ALIASES.values()) <= set(values_of(KernelName))
    assert tuple(PRESETS) == values_of(GenerationName)
    assert [str(parse_dtype(name)) for name in values_of(DtypeName)] == [f"torch.{name}" for name in values_of(DtypeName)]
    assert parse_dtype("auto") is None


@pytest.mark.parametrize(
    ("choice", "words"),
    [(PackedBits, "4 and 8"), (WeightForm, "safetensors and bin"), (PrefixForm, "ptuning, published and both"),
     (RoundingMethod, "rtn and gptq"), (Literal["one"], "one")],
)
def test_values_as_the_end_of_a_message(choice, words):
    assert allowed(choice) == words


def test_a_value_that_python_code_gives_is_held_against_the_type():
    from ptuning.settings.arguments import DataArguments, ModelArguments
    from ptuning.settings.training_arguments import TuningArguments

    with pytest.raises(UserError, match=r"--loss_on some: allowed are last, all$"):
        DataArguments(loss_on="some")
    with pytest.raises(UserError, match=r"--cut_replies no: allowed are \(not given\), open, drop, closed$"):
        DataArguments(cut_replies="no")
    with pytest.raises(UserError, match=r"--quantization_bit 5: allowed are \(not given\), 0, 4, 8$"):
        ModelArguments(quantization_bit=5)
    with pytest.raises(UserError, match=r"--prefix_format peft: allowed are ptuning, published, both$"):
        TuningArguments("out", prefix_format="peft", use_cpu=True)
