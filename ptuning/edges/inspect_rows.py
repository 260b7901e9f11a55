"""``ptuning inspect``: looks at a file of rows before anything is trained on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ptuning.core.errors import UserError
from ptuning.edges.output import Green, print_json, print_line, print_text
from ptuning.edges.table import table
from ptuning.settings.arguments import BUILT_IN_MODEL, DataArguments, ModelArguments
from ptuning.settings.parsing import SettingsParser
from ptuning.settings.setting_limits import check_path


@dataclass
class ShowArguments:
    """What is shown."""

    examples: int = field(default=3, metadata={"help": "How many examples are shown.", "min": 0})
    json: bool = field(default=False, metadata={"help": "One line of JSON in place of the table."})

def main(argv: Sequence[str]) -> int:
    """Run the verb and return its exit code.

    Raises:
        UserError: settings or rows that do not fit.
    """
    argv = list(argv)
    file = check_path("FILE", argv.pop(0)) if argv and not argv[0].startswith("-") and "=" not in argv[0] else None
    groups = {
        "rows and lengths": DataArguments,
        "model (only its tokenizer is loaded)": ModelArguments,
        "output": ShowArguments,
    }
    parser = SettingsParser(
        groups,
        prog="ptuning inspect",
        description="Look at a file of rows: form, columns, lengths in tokens, what the limits truncate, duplicates, and "
        "examples as the model will see them. Example: ptuning inspect train.json --test_file test.json --model "
        "THUDM/chatglm-6b",
        positional="FILE",
    )
    given = parser.parse(argv)
    data, model, show = (given.build(kind) for kind in (DataArguments, ModelArguments, ShowArguments))
    if file is not None and data.train_file not in (None, file):
        raise UserError(f"{file} and --train_file {data.train_file}: name one file (--test_file is compared with it)")
    data.train_file = file or data.train_file
    if data.train_file is None:
        raise UserError("FILE is missing: the rows to look at, for example: ptuning inspect train.json")
    built_in = model.model_name_or_path is None and model.ptuning_checkpoint is None
    if built_in:
        model.model_name_or_path = BUILT_IN_MODEL
    from ptuning.checkpoint.checkpoint import hub_settings
    from ptuning.checkpoint.load import load_tokenizer
    from ptuning.data.inspection import inspect_file

    name = model.tokenizer_name or _base_model_name(model)
    inspection = inspect_file(load_tokenizer(name, **hub_settings(model)), data, show.examples)
    if show.json:
        print_json(_values(inspection, data, name))
        return 0
    for line in _table(inspection, data, name, built_in):
        print_line(line)
    _show_samples(inspection)
    return 0


def _base_model_name(model: ModelArguments) -> str:
    """Whose tokenizer it is: the model's that is named, or that of the base model of a prefix."""
    from ptuning.checkpoint.adapter import read_adapter
    from ptuning.checkpoint.checkpoint import base_model_of

    if model.model_name_or_path is not None:
        return model.model_name_or_path
    return base_model_of(read_adapter(str(model.ptuning_checkpoint)), model.ptuning_checkpoint)


def _values(inspection: Any, data: DataArguments, tokenizer: str) -> dict[str, Any]:
    rows = inspection.rows
    return {
        "file": data.train_file,
        "form": rows.form,
        "columns": list(rows.columns),
        "rows_read": rows.total,
        "rows": len(rows),
        "dropped": rows.dropped,
        "changed": rows.changed,
        "tokenizer": tokenizer,
        "limits": {"max_source_length": data.max_source_length, "max_target_length": data.max_target_length},
        **{name: getattr(inspection, name) for name in ("prompt_lengths", "reply_lengths", "cut", "suggested")},
        "duplicates": dataclasses.asdict(inspection.duplicates),
        "test": None if inspection.overlap is None else dataclasses.asdict(inspection.overlap),
        "samples": [dataclasses.asdict(sample) for sample in inspection.samples],
    }


def _table(inspection: Any, data: DataArguments, tokenizer: str, built_in: bool) -> list[str]:
    rows, cut, count = inspection.rows, inspection.cut, len(inspection.rows)
    lines = [
        f"{data.train_file}: {count} rows of the form {rows.form}; columns {', '.join(rows.columns)}",
        *(f"  left out  {number} {reason}" for reason, number in rows.dropped.items()),
        *(f"  changed   {number} {what}" for what, number in rows.changed.items()),
        "",
        f"tokens, counted with {tokenizer} as the limits count them",
    ]
    if built_in:
        lines.append(
            "  (the small vocabulary of the built-in model: ChatGLM-6B's counts differ, name it with --model for them)"
        )
    names = list(inspection.prompt_lengths)
    lengths = [
        ["", *names, "limit"],
        ["prompt", *(inspection.prompt_lengths[name] for name in names), data.max_source_length],
        ["reply", *(inspection.reply_lengths[name] for name in names), data.max_target_length],
    ]
    lines += table(lengths, first=8, indent="  ")
    lines += [
        f"  truncated at these limits: earlier rounds of {_share(cut['earlier rounds'], count)}, the prompt of "
        f"{_share(cut['prompt'], count)}, the reply of {_share(cut['reply'], count)} rows",
        "  suggested: " + " ".join(f"--{name} {value}" for name, value in inspection.suggested.items()),
        "",
        f"duplicates: {inspection.duplicates.rows} rows repeat an earlier one"
        + (f" (first: {inspection.duplicates.first})" if inspection.duplicates.first else "")
        + f", {inspection.duplicates.prompts} prompts have several replies",
    ]
    if inspection.overlap is not None:
        shared = inspection.overlap
        lines.append(
            f"of {shared.rows} rows in {shared.file}, {shared.same_prompt} ask what is trained on, {shared.same_row} with "
            "the same reply" + (f" (first: {shared.first})" if shared.first else "")
        )
    return lines


def _share(number: int, of: int) -> str:
    return f"{number} ({100 * number / of:.1f} %)"


def _show_samples(inspection: Any) -> None:
    """The examples; what bears the loss stands between » and «, in green where the terminal has colours."""
    if not inspection.samples:
        return
    print_line()
    print_line("examples as the model sees them; the loss is taken on what stands between » and «")
    for sample in inspection.samples:
        print_line()
        remark = f"; {sample.remark}" if sample.remark else ""
        print_line(f"{sample.source}: {sample.context_tokens} + {sample.learnt_tokens} tokens{remark}")
        print_text(f"  {_indented(sample.context)}»", end="")
        print_line(Green(_indented(sample.learnt)), "«")


def _indented(text: str) -> str:
    return text.replace("\n", "\n  ")
