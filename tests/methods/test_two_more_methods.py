"""A tuning method is only what its object says: two more of them, which the package does not know, are trained, resumed,
saved, evaluated and talked to, without a word about them anywhere but in the registry."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from more_methods import GATED, NORM
from runs import log_of, small_run

import ptuning
from ptuning.checkpoint.adapter import is_adapter_folder, read_adapter
from ptuning.core.choices import MethodName
from ptuning.core.errors import UserError
from ptuning.edges.run_arguments import parse_arguments
from ptuning.edges.tuning import run_tuning
from ptuning.evaluation.journal import SETTINGS_FILE
from ptuning.evaluation.run import run_evaluation
from ptuning.methods.registry import METHODS, active_method
from ptuning.serving.chat_service import load_service
from ptuning.serving.conversation import Conversation
from ptuning.settings.arguments import AnswerArguments, ServingArguments
from ptuning.settings.training_arguments import TuningArguments

ROOT = Path(__file__).resolve().parents[2]
FILES = {"final-norm": {"norm.safetensors", "norm.json"}, "gates": {"gains.bin", "shifts.safetensors", "gates.json"}}
RUN = {"pre_seq_len": None, "learning_rate": None, "logging_steps": 1, "save_steps": 2}
GREEDY = {"do_sample": False, "max_length": 24}
QUESTION = "类型#裙"


def arguments_of(method, argv):
    return replace(parse_arguments(argv), method=method.name)


@pytest.fixture(scope="module", params=[NORM, GATED], ids=lambda method: method.name)
def tuned(request, tmp_path_factory, golden, rows_file):
    """A method, and the folder of a run of it: four steps, evaluated beside the base model."""
    method, folder = request.param, tmp_path_factory.mktemp("run") / "run"
    argv = small_run(
        golden / "model", rows_file, folder, max_steps=4, do_predict=True, test_file=rows_file, compare_base=True,
        max_predict_samples=2, val_max_target_length=5, **RUN,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, method.name, method)
        yield method, folder, run_tuning(arguments_of(method, argv))


def test_the_names_are_those_of_the_registry():
    assert set(METHODS) == set(get_args(MethodName))
    assert all(method.name == name for name, method in METHODS.items())
    assert METHODS["prefix"].learning_rates.default == TuningArguments.__dataclass_fields__["learning_rate"].default


def test_who_trains_scores_and_estimates_does_not_know_which_methods_there_are():
    for room in ("training", "evaluation", "memory", "engine", "serving"):
        for path in (ROOT / "ptuning" / room).rglob("*.py"):
            named = set(re.findall(r"ptuning\.methods\.(\w+)", path.read_text(encoding="utf-8")))
            assert named <= {"method", "registry"}, path
            assert room in ("engine", "serving") or "prefix_encoder" not in path.read_text(encoding="utf-8"), path


def test_a_run_trains_and_saves_only_what_is_tuned(tuned):
    method, folder, result = tuned
    assert result.checkpoint == folder / "checkpoint-4"
    assert FILES[method.name] <= {path.name for path in result.checkpoint.iterdir()}
    assert sum(path.stat().st_size for path in result.checkpoint.iterdir()) < 100_000  # the backbone has 1.2 MB
    losses = [entry["loss"] for entry in log_of(result.checkpoint) if "loss" in entry]
    assert losses[-1] < losses[0]
    assert is_adapter_folder(result.checkpoint)
    assert read_adapter(result.checkpoint).method is method
    assert json.loads((result.checkpoint / "run.json").read_text())["description"]["learning_rate"] == (
        method.learning_rates.default
    )


def test_a_resumed_run_equals_one_without_a_stop(tuned, tmp_path, golden, rows_file):
    method, folder, _ = tuned
    shutil.copytree(folder / "checkpoint-2", tmp_path / "checkpoint-2")
    argv = small_run(golden / "model", rows_file, tmp_path, max_steps=4, resume_from_checkpoint="auto", **RUN)
    run_tuning(arguments_of(method, argv))
    straight, resumed, before = (
        read_adapter(path).tensors for path in (folder / "checkpoint-4", tmp_path / "checkpoint-4", folder / "checkpoint-2")
    )
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in straight.items())
    assert not any(torch.equal(tensor, resumed[name]) for name, tensor in before.items())


def test_a_loaded_checkpoint_changes_the_model_and_gives_it_back(tuned, golden):
    method, folder, _ = tuned
    base, model = (ptuning.load_model(path, device="cpu") for path in (golden / "model", folder / "checkpoint-4"))
    assert (active_method(base), active_method(model)) == (None, method)
    ids = torch.tensor([[353, 86, 89, 100]])
    with torch.no_grad():
        before, answers = base(ids).logits, model(ids).logits
        assert not torch.equal(before, answers)
        with method.disabled(model):
            assert active_method(model) is None
            assert torch.equal(model(ids).logits, before)
        assert torch.equal(model(ids).logits, answers)
        method.detach(model)
        assert torch.equal(model(ids).logits, before)


def test_the_report_names_the_method(tuned):
    method, folder, result = tuned
    assert [model.name for model in result.models] == ["base model", f"with the {method.words.noun}"]
    assert f"with the {method.words.noun}" in (folder / "report.md").read_text(encoding="utf-8")
    assert "prefix" not in (folder / "report.md").read_text(encoding="utf-8")
    assert result.noun == method.words.noun


def test_checkpoints_of_several_methods_are_evaluated_over_one_base_model(tuned, tmp_path, golden):
    _, folder, trained = tuned
    several = [folder / "checkpoint-2", golden / "checkpoint-prefix", folder / "checkpoint-4"]
    argv = [*map(str, several), "--output_dir", str(tmp_path), "--compare_base"]
    result = run_evaluation(parse_arguments(argv, task="evaluate"))
    scores = {model.checkpoint: model.task for model in result.models}
    assert list(scores) == [None, *several]
    assert scores[several[2]].predictions == trained.tuned.predictions
    assert scores[None].predictions == trained.base.predictions
    facts = [json.loads((model.folder / SETTINGS_FILE).read_text(encoding="utf-8")) for model in result.models]
    assert len({fact["prefix"] for fact in facts}) == 4  # answers of one are never taken for those of another
    assert facts[0]["prefix"] == "none"


def test_front_ends_answer_with_it_and_with_nothing_beside_it(tuned, golden):
    method, folder, _ = tuned
    checkpoint = str(folder / "checkpoint-4")
    tokenizer, model = ptuning.load_tokenizer(golden / "model"), ptuning.load_model(checkpoint, device="cpu")
    reply, _ = model.chat(tokenizer, QUESTION, **GREEDY)
    with method.disabled(model):
        assert model.chat(tokenizer, QUESTION, **GREEDY)[0] != reply
    service = load_service(ServingArguments(ptuning_checkpoint=[f"mine={checkpoint}"], device="cpu")).start()
    try:
        talk = Conversation(service, AnswerArguments(**GREEDY))
        assert "".join(talk.ask(QUESTION)).strip() == reply
        with pytest.raises(UserError, match=f"does not answer beside mine: a {method.words.noun} is part of the model"):
            talk.select_prefix(None)
        with pytest.raises(UserError, match="answers alone"):
            service.store.load("other", golden / "checkpoint-prefix")
        with pytest.raises(UserError, match="cannot be unloaded"):
            service.store.unload("mine")
    finally:
        service.stop()
    given = [f"p={golden / 'checkpoint-prefix'}", checkpoint]
    two = ServingArguments(model_name_or_path=str(golden / "model"), ptuning_checkpoint=given, device="cpu")
    with pytest.raises(UserError, match=f"a {method.words.noun} changes the model itself and answers alone"):
        load_service(two)


def test_what_does_not_belong_together_is_refused(tuned, tmp_path, golden, rows_file):
    method, folder, _ = tuned
    checkpoint = folder / "checkpoint-4"
    with pytest.raises(UserError, match=f"--pre_seq_len 5: .* holds a {method.words.noun}, which has no pre_seq_len"):
        ptuning.load_model(golden / "model", device="cpu", ptuning_checkpoint=checkpoint, pre_seq_len=5)
    argv = small_run(golden / "model", rows_file, tmp_path, **RUN, max_steps=1, init_from=golden / "checkpoint-prefix")
    with pytest.raises(UserError, match=f"checkpoint-prefix does not hold a {method.words.noun}"):
        run_tuning(arguments_of(method, argv))
    argv = small_run(golden / "model", rows_file, folder, max_steps=6, resume_from_checkpoint=checkpoint)
    with pytest.raises(UserError, match=f"holds a {method.words.noun}; this run trains a prefix"):
        run_tuning(parse_arguments(argv))
