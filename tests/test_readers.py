"""Every reader of the package and every file that harms: one clear line with the file's name, in bounded memory.

A new reader goes into ``READERS``; the last test here finds one that does not go through the guard.
"""

import ast
import json
import warnings
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import make_checkpoint, write_json
from hostile_files import BIN, COMMON, JSON, PREDICTIONS, ROWS_CSV, ROWS_JSON, ROWS_PARQUET, SAFETENSORS, VOCABULARY, YAML
from prefixes import save_peft_prefix, save_prefix, save_published_prefix
from safetensors.torch import save_file
from sources import PACKAGE, PACKAGE_FILES, parsed
from transformers import AutoConfig, AutoModel, AutoTokenizer

import ptuning
from ptuning.checkpoint.adapter import read_adapter
from ptuning.core.errors import UserError
from ptuning.core.result_files import save_metrics
from ptuning.data.calibration_rows import RowSettings, calibration_ids
from ptuning.data.example_store import pack, read_arrays, write_arrays
from ptuning.data.preprocess import Example
from ptuning.data.rows import read_rows
from ptuning.data.sentencepiece_file import load_processor
from ptuning.edges.run_arguments import parse_arguments
from ptuning.evaluation.answers import read_answers
from ptuning.evaluation.report.loss_curve import read_log_history
from ptuning.evaluation.report.row_counts import row_counts
from ptuning.model.prefix_encoder import PrefixConfig, PrefixEncoder
from ptuning.quantize.calibration import CalibrationSettings, _Workshop
from ptuning.quantize.folder import plan_quantization
from ptuning.serving.prefix_store import named_checkpoints
from ptuning.settings.settings_file import read_mapping

resource = pytest.importorskip("resource", reason="memory cannot be bounded on this system")
ROOM = 3 * 2**29  # bytes that reading a file of a few kilobytes may take, at most


@contextmanager
def bounded_memory(room=ROOM):
    """Within it, this process gets no more than so much beyond what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def put(path, content):
    """Make a hostile file."""
    path.unlink(missing_ok=True)
    content(path) if callable(content) else path.write_bytes(content)


def model_with(name, **kinds):
    def make(folder):
        make_checkpoint(folder, **kinds)
        return folder / name

    return make


def with_index(folder):
    make_checkpoint(folder, shards=2)
    return folder / "model.safetensors.index.json"


def prefix_with(name, save):
    def make(folder):
        save(folder, PrefixEncoder(PrefixConfig(5, False, 3, 4, 32)))
        return folder / name

    return make


def alone(name):
    def make(folder):
        folder.mkdir(exist_ok=True)
        return folder / name

    return make


def load(path):
    return ptuning.load_model(path.parent, device="cpu")


def tokenizer(path):
    return ptuning.load_tokenizer(path.parent)


def auto(factory):
    return lambda path: factory.from_pretrained(path.parent)


def settings(path):
    return parse_arguments([str(path)])


def prefix(path):
    return read_adapter(path.parent)


def quantised(path):
    return plan_quantization(path.parent, path.parent.parent / "target", bits=4)


def calibration(path):
    return calibration_ids(ptuning.load_tokenizer("tiny-chatglm"), RowSettings(file=str(path)))


# name -> (makes a folder and says which file in it is to be replaced, reads it, the hostile contents beside the common ones)
READERS = {
    "config.json": (model_with("config.json"), load, JSON),
    "config.json, to quantise": (model_with("config.json"), quantised, JSON),
    "tokenizer_config.json": (model_with("tokenizer_config.json"), tokenizer, JSON),
    "special_tokens_map.json": (model_with("special_tokens_map.json"), tokenizer, JSON),
    "added_tokens.json": (model_with("added_tokens.json"), tokenizer, JSON),
    "tokenizer_config.json, by AutoTokenizer": (model_with("tokenizer_config.json"), auto(AutoTokenizer), JSON),
    "added_tokens.json, by the class": (model_with("added_tokens.json"), auto(ptuning.ChatGLMTokenizer), JSON),
    "ice_text.model": (model_with("ice_text.model"), tokenizer, VOCABULARY),
    "ice_text.model, alone": (model_with("ice_text.model"), load_processor, VOCABULARY),
    "an index": (with_index, load, JSON),
    "model.safetensors": (model_with("model.safetensors"), load, SAFETENSORS),
    "pytorch_model.bin": (model_with("pytorch_model.bin", form="bin"), load, BIN),
    "pytorch_model.bin, to quantise": (model_with("pytorch_model.bin", form="bin"), quantised, BIN),
    "prefix_encoder.safetensors": (prefix_with("prefix_encoder.safetensors", save_prefix), prefix, SAFETENSORS),
    "prefix_config.json": (prefix_with("prefix_config.json", save_prefix), prefix, JSON),
    "a published prefix": (prefix_with("pytorch_model.bin", save_published_prefix), prefix, BIN),
    "adapter_config.json": (prefix_with("adapter_config.json", save_peft_prefix), prefix, JSON),
    "adapter_model.safetensors": (prefix_with("adapter_model.safetensors", save_peft_prefix), prefix, SAFETENSORS),
    "settings.json": (alone("settings.json"), settings, JSON),
    "settings.yaml": (alone("settings.yaml"), settings, YAML),
    "rows.json": (alone("rows.json"), read_rows, ROWS_JSON),
    "rows.jsonl": (alone("rows.jsonl"), read_rows, ROWS_JSON),
    "rows.csv": (alone("rows.csv"), read_rows, ROWS_CSV),
    "rows.tsv": (alone("rows.tsv"), read_rows, ROWS_CSV),
    "rows.parquet": (alone("rows.parquet"), read_rows, ROWS_PARQUET),
    "predictions": (alone("generated_predictions.txt"), read_answers, PREDICTIONS),
    "calibration texts": (alone("texts.txt"), calibration, {"a NUL byte": b"a text\0\n", "GBK": "你好，世界".encode("gbk")}),
}
# What a reader may take: an empty settings file sets nothing, and a line of text is a text.
ALLOWED = {
    ("settings.yaml", "empty"),
    ("calibration texts", "a web page"),
    ("calibration texts", "a pointer"),
}


def refused(read, path):
    """The one line with which a file is refused, or what happened instead."""
    try:
        with bounded_memory(), warnings.catch_warnings():
            warnings.simplefilter("error")
            read(path)
        return "", "read without a word"
    except UserError as error:
        message = str(error)
        named = path.name in message or path.with_suffix("").name in message
        wrong = "\n" in message or len(message) > 1200 or not named or "more memory" in message
        return message, message if wrong else None
    except Exception as error:  # noqa: BLE001 - that there is no other is what is tested
        return "", f"{type(error).__name__}: {str(error)[:200]}"


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_every_hostile_file_is_one_line_with_its_name_in_bounded_memory(reader, tmp_path):
    make, read, contents = READERS[reader]
    faults = []
    for number, (name, content) in enumerate({**COMMON, **contents}.items()):
        if (reader, name) in ALLOWED:
            continue
        path = make(tmp_path / str(number))
        put(path, content)
        _, fault = refused(read, path)
        if fault:
            faults.append(f"{name}: {fault}")
    assert not faults, "\n".join(faults)


FACTORIES = (AutoConfig, AutoModel, AutoTokenizer, ptuning.ChatGLMConfig)


@pytest.mark.parametrize("factory", FACTORIES, ids=lambda factory: factory.__name__)
def test_the_auto_classes_refuse_a_damaged_folder_of_ours_alike(factory, tmp_path):
    faults = []
    for number, (name, content) in enumerate(JSON.items()):
        if not content.startswith(b"{"):
            continue
        path = model_with("config.json")(tmp_path / str(number))
        path.write_bytes(content.replace(b"{", b'{"model_type": "chatglm", ', 1))
        _, fault = refused(auto(factory), path)
        if fault:
            faults.append(f"{name}: {fault}")
    assert not faults, "\n".join(faults)


def test_folders_of_other_models_are_not_ours_to_judge(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "n_layer": 1, "n_layer": 1}')
    assert AutoConfig.from_pretrained(tmp_path).n_layer == 1
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(OSError, match="not a valid JSON file"):
        AutoConfig.from_pretrained(tmp_path)


# ---- values that are no values -----------------------------------------------------------------------------------------

WRONG_SIZES = {
    "vocab_size": (None, 0, -1, 2.5, "704", True, 10**9, 10**30, [704], 10**5),
    "hidden_size": (None, 0, -32, 32.0, "32", True, 10**9, {"a": 1}, 64, 34),
    "num_layers": (None, 0, -1, "3", True, 10**7, 999, 4),
    "num_attention_heads": (None, 0, -4, 4.0, "4", 3, 10**6),
    "inner_hidden_size": (0, -1, "x", 10**12, 64),
    "max_sequence_length": (None, 0, "x", 10**30),
    "layernorm_epsilon": (None, 0, -1e-5, float("nan"), float("inf"), "1e-5", True, 1),
    "pre_seq_len": (0, -1, "4", 10**9, 1.5),
    "bos_token_id": (-1, "x", 10**12, 704, [1]),
    "pad_token_id": (-1, 1.0, 704),
    "quantization_bit": (3, True, 4.0, "4", [4]),
    "position_encoding_2d": (False, 0, None, "yes"),
    "use_cache": (1, "no", None),
    "quantization_embeddings": (1, "no"),
    "torch_dtype": ("torch.int8", "half", 3, ["float16"], "float8_e4m3fn", "nope"),
    "dtype": ("torch.nope", {"a": 1}, "int4"),
    "rope_scaling": ({"type": "linear", "factor": 2.0}, 3, "x", [1]),
    "rope_parameters": ({"rope_type": "yarn"},),
    "output_attentions": (True, "x"),
    "tie_word_embeddings": (True, 1),
    "is_encoder_decoder": (True,),
    "pruned_heads": ({"0": [1]}, 3),
    "quantization_config": ({"quant_method": "gptq"}, 3),
    "num_hidden_layers": (7,),
    "architectures": (3, "x"),
    "auto_map": (3, {"AutoConfig": 3}, {"AutoConfig": ["x", 3]}),
    "model_type": (3, None, "llama", ["chatglm"]),
}


@pytest.mark.parametrize("key", WRONG_SIZES)
def test_a_wrong_value_in_config_json_is_refused_before_anything_is_allocated(key, tmp_path):
    folder = make_checkpoint(tmp_path)
    before = (folder / "config.json").read_text()
    for value in WRONG_SIZES[key]:
        (folder / "config.json").write_text(before)
        write_json(folder / "config.json", json.loads(before) | {key: value})
        message, fault = refused(load, folder / "config.json")
        assert fault is None, f"{value}: {fault}"
        # The right value may be that of the weights: then both are named.
        assert key.removesuffix("_hidden_layers") in message or "on file, config.json asks for" in message, message


HARMLESS = {
    "torch_dtype": ("torch.float32", "float16", None, "auto"), "rope_scaling": (None, {}, {"type": "default"}),
    "id2label": (3, [1], {"a": 1}, {"0": "x"}), "num_labels": ("x", 10**9, -1), "label2id": (4,), "problem_type": ("x", 3),
    "return_dict": (False, "x"), "use_return_dict": (True,), "output_hidden_states": (True,), "output_attentions": (False,),
    "pruned_heads": ({},), "attn_implementation": ("foo", 3), "_attn_implementation": ("flash_attention_2",),
    "head_dim": (3,), "to_dict": (3,), "__class__": (3,), "attribute_map": ({},), "sub_configs": (3,),
    "chunk_size_feed_forward": (-1, "x"), "temperature": ("hot",), "task_specific_params": (3,), "num_hidden_layers": (3,),
    "a note of mine": ("text", 3, None, [1], {"a": 1}), "inner_hidden_size": (None,), "quantization_bit": (None,),
}  # fmt: skip


@pytest.mark.parametrize("key", HARMLESS)
def test_keys_of_another_version_of_transformers_do_no_harm(key, tmp_path):
    folder = make_checkpoint(tmp_path)
    before = json.loads((folder / "config.json").read_text())
    for value in HARMLESS[key]:
        write_json(folder / "config.json", before | {key: value})
        model = load(folder / "config.json")
        ids = [5, 6, model.config.gmask_token_id, model.config.bos_token_id]
        assert torch.isfinite(model(torch.tensor([ids])).logits).all()
        assert AutoConfig.from_pretrained(folder).num_layers == model.config.num_layers == 3
        assert len(AutoTokenizer.from_pretrained(folder)("你好")["input_ids"]) > 2


WRONG_TOKENIZER = {
    "bos_token": (3, "", [], {"content": 3}, {"a": 1}, {"content": "<sop>", "lstrip": "x"}, "nowhere"),
    "pad_token": (True, ["<pad>"]), "gmask_token": (3, "nowhere"), "num_image_tokens": (-1, 10**9, 1.5, True, "0", 3),
    "tokenizer_class": ("LlamaTokenizer", 3, ["ChatGLMTokenizer"]), "padding_side": ("middle", 3),
    "truncation_side": ("up", []), "model_max_length": ("x", 0, -1, float("nan"), True, [1]),
    "clean_up_tokenization_spaces": ("x", 1), "split_special_tokens": ("x",), "do_lower_case": ("no",),
    "remove_space": (1,), "model_input_names": ("input_ids", [], [3], ["pixels"]),
    "additional_special_tokens": (3, [3], "x"),
    "extra_special_tokens": (3, [3], {"a": 3}), "added_tokens_decoder": (3, {"x": {"content": "a"}}, {"5": 3}, {"-1": "a"}),
    "auto_map": (3, {"AutoTokenizer": [3]}), "name_or_path": (3,), "chat_template": (3,),
}  # fmt: skip


@pytest.mark.parametrize("key", WRONG_TOKENIZER)
def test_a_wrong_value_in_tokenizer_config_json_is_refused_by_name(key, tmp_path):
    folder = make_checkpoint(tmp_path)
    path = folder / "tokenizer_config.json"
    before = json.loads(path.read_text(encoding="utf-8"))
    for value in WRONG_TOKENIZER[key]:
        write_json(path, before | {key: value})
        for read in (tokenizer, auto(AutoTokenizer), auto(ptuning.ChatGLMTokenizer)):
            if value == 3 and key == "num_image_tokens" and read is not tokenizer:
                continue  # a whole number; whether it fits the model is load_tokenizer's to tell
            with pytest.raises(UserError) as caught:
                read(path)
            assert "\n" not in str(caught.value)
            assert key in str(caught.value) or "no piece" in str(caught.value) or "different releases" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("special_tokens_map.json", ({"bos_token": 3}, {"additional_special_tokens": 3}, {"eos_token": {"content": 3}})),
        ("added_tokens.json", ({"a": -1}, {"a": "x"}, {"a": 10**30}, {"a": 1.5}, {str(n): n for n in range(11_000)})),
    ],
)
def test_wrong_tokens_beside_a_vocabulary_are_refused_by_name(name, values, tmp_path):
    folder = make_checkpoint(tmp_path)
    for value in values:
        write_json(folder / name, value)
        with pytest.raises(UserError, match=name):
            tokenizer(folder / name)


@pytest.mark.parametrize(
    ("name", "save", "values"),
    [
        ("prefix_config.json", save_prefix, {"base_model": 3, "source_prefix": ["x"], "history": "yes", "pre_seq_len": "5",
                                             "base_fingerprint": 4, "legacy_first_round": 1, "num_layers": [3]}),
        ("adapter_config.json", save_peft_prefix, {"num_virtual_tokens": "5", "num_transformer_submodules": [1],
                                                   "peft_type": 3, "base_model_name_or_path": 3, "num_layers": True,
                                                   "token_dim": 1.5}),
    ],
)  # fmt: skip
def test_wrong_settings_of_a_prefix_are_refused_by_name(name, save, values, tmp_path):
    path = prefix_with(name, save)(tmp_path)
    before = json.loads(path.read_text(encoding="utf-8"))
    for key, value in values.items():
        write_json(path, before | {key: value})
        with pytest.raises(UserError, match=f"{name} has {key}"):
            prefix(path)


@pytest.mark.parametrize(
    "index",
    [
        {"weight_map": {"a": "C:model.safetensors"}}, {"weight_map": {"a": "x\0.safetensors"}},
        {"weight_map": {"a": "x" * 5000 + ".safetensors"}}, {"weight_map": {"a": "model.bin"}},
        {"weight_map": {"a": ["x"]}}, {"weight_map": {"a": "x\n.safetensors"}}, {"weight_map": {"a": None}},
        {"weight_map": {str(n): f"{n}.safetensors" for n in range(50_000)}},
    ],
    ids=lambda index: str(index)[:40],
)  # fmt: skip
def test_odd_names_of_shards_are_refused_with_the_index(index, tmp_path):
    path = with_index(tmp_path)
    write_json(path, index)
    _, fault = refused(load, path)
    assert fault is None


@pytest.mark.parametrize("size", [float("nan"), float("inf"), 10**400, -1, True, "x"], ids=str)
def test_odd_sizes_in_an_index_do_no_harm(size, tmp_path):
    path = with_index(tmp_path)
    write_json(path, json.loads(path.read_text()) | {"metadata": {"total_size": size}})
    with_reason = refused(load, path)
    assert with_reason == ("", "read without a word") or with_reason[1] is None


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.complex64, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_prefix_of_other_numbers_is_refused_and_not_cast(form, dtype, tmp_path):
    state = {"transformer.prefix_encoder.embedding.weight": torch.ones(5, 192).to(dtype)}
    if form == "safetensors":
        save_file(state, tmp_path / "prefix_encoder.safetensors")
    else:
        torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=rf"embedding\.weight is stored as {dtype}"):
        read_adapter(tmp_path)


# ---- what falls back --------------------------------------------------------------------------------------------------


def test_readers_of_what_a_run_left_fall_back_and_say_so(tmp_path, caplog):
    """A finished run must not fail for a damaged file that it writes anew anyway."""
    for number, (name, content) in enumerate({**COMMON, **JSON}.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        put(folder / "trainer_state.json", content)
        assert read_log_history([folder]) == [], name
        put(folder / "part.safetensors", content)
        assert read_arrays(folder / "part.safetensors") is None, name
        if callable(content):
            continue
        for file in ("all_results.json", "report.json"):
            put(folder / file, content)
        save_metrics(folder, "predict", {"bleu-4": 1.0})
        assert json.loads((folder / "all_results.json").read_text())["predict_bleu-4"] == 1.0
        assert row_counts(None, {"test": [1, 2]}, folder)[0]["rows"] == 2


@pytest.mark.parametrize(
    "damage",
    [
        {"bounds": [0, 3, 2]}, {"bounds": [0, 2, 99]}, {"starts": [9, 9]}, {"row": [0, 7]}, {"row": [-1, 0]},
        {"ids": [-5] * 4}, {"extra": [1]}, {"starts": [1]},
    ],
    ids=str,
)  # fmt: skip
def test_prepared_rows_that_do_not_fit_together_are_made_anew(damage, tmp_path):
    examples = [Example([1, 2], [-100, 2], "a:1", 1, 1, 0, False), Example([3, 4], [-100, 4], "a:2", 1, 1, 0, False)]
    arrays = pack(examples, [0, 1])
    write_arrays(tmp_path / "rows.safetensors", arrays)
    assert read_arrays(tmp_path / "rows.safetensors", 2) is not None
    changed = {name: np.array(values, arrays.get(name, arrays["ids"]).dtype) for name, values in damage.items()}
    write_arrays(tmp_path / "rows.safetensors", arrays | changed)
    assert read_arrays(tmp_path / "rows.safetensors", 2) is None


def test_a_damaged_part_of_a_calibration_is_one_line(tmp_path):
    folder = make_checkpoint(tmp_path / "m")
    job = plan_quantization(folder, tmp_path / "t", bits=4)
    work = _Workshop(job, [[1, 2, 3]], CalibrationSettings())
    work.open()
    for name, content in {**COMMON, **SAFETENSORS}.items():
        if name == "gigabytes that are not there":
            continue  # a part may be that large: it is mapped, and refused for what stands in it
        path = work.folder / "layer-000.safetensors"
        put(path, content)
        for read in (lambda path: work._block(0, path), lambda path: list(work.tensors()), lambda path: work.report()):
            if path.is_file():  # others are made anew
                _, fault = refused(read, path)
                assert fault is None
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def test_messages_stand_in_a_working_directory_that_was_deleted(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    readers = (read_rows, read_answers, read_mapping, read_adapter, ptuning.load_model)
    for read in (*readers, lambda path: named_checkpoints(str(path))):
        with pytest.raises(UserError, match=r"\(?(working|current) directory"):
            read(Path("./nowhere/there.json"))


# ---- the house ---------------------------------------------------------------------------------------------------------

GUARDS = {"guarded", "_reading"}
# Calls that read a file or parse what stood in one.
READING = {
    "json": {"load", "loads"}, "yaml": {"load", "safe_load", "load_all", "SafeLoader"}, "torch": {"load"},
    "pickle": {"load", "loads", "Unpickler"}, "csv": {"reader", "DictReader"}, "mmap": {"mmap"}, "zipfile": {"ZipFile"},
    "np": {"load", "fromfile", "memmap"}, "tomllib": {"load", "loads"}, "tarfile": {"open"}, "os": {"open"},
}  # fmt: skip
READING_METHODS = {
    "read_text", "read_bytes", "load_from_serialized_proto", "from_file", "ParquetFile", "load_file", "safe_open",
}  # fmt: skip
# file:function -> why no guard is needed there.
OUTSIDE_THE_GUARD = {
    "core/reading.py:open_regular": "the guarded reader itself",
    "core/reading.py:parse_json": "the guarded reader itself",
    "settings/settings_file.py:_read_yaml": "called within the guard of read_mapping",
    "checkpoint/pickled_tensors.py:*": "called within the guard of weight_files",
    "data/table_files.py:read_csv": "parses a text that was read; what the csv module raises is caught there",
    "data/table_files.py:_separator": "parses a text that was read; what the csv module raises is caught there",
    "quantize/calibration.py:calibrate_checkpoint": "a method of the workshop, no file",
    "checkpoint/mapped_tensors.py:__init__": "called within the guard of weight_files",
    "data/sentencepiece_file.py:literal_processor": "made from a vocabulary that was read before",
    "kernels/allocator.py:zeros_when_read": "memory without a file",
    "edges/terminal.py:run": "opens the null device for writing",
    "kernels/*": "our own sources, and the system's figures; the compiled library has checks of its own",
    "memory/machine.py:*": "/proc/cpuinfo",
    "evaluation/report/page.py:*": "our own style sheet",
    "evaluation/journal.py:_is_ours": "a value that was made the line before",
    "edges/web/theme.py:*": "our own style sheet",
    "edges/web/reports.py:*": "checked and answered there",
    "edges/http/*": "the body of a request, not a file",
    "edges/output.py:*": "opens the null device",
    "engine/*": "opens and closes the engine's doors, no file",
    "core/atomic.py:__init__": "opens a file of lines to append to",
    "checkpoint/file_list.py:_sha256": "a regular file, whose bytes are only counted",
    "core/output_folder.py:*": "opens the lock of a folder",
    "checkpoint/run_checkpoints.py:*": "guarded by the list of files with their checksums",
    "training/progress.py:_keep_until": "lines of our own log; damaged ones are dropped",
}


def calls_outside_guards(tree):
    """(function, line, what) of every reading call that no guard surrounds."""

    def visit(node, function, guarded):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = node.name
        if isinstance(node, ast.With):
            names = {ast.unparse(item.context_expr).split("(")[0].split(".")[-1] for item in node.items}
            guarded = guarded or bool(names & GUARDS)
        if isinstance(node, ast.Call) and not guarded and reads(node):
            yield function, node.lineno, ast.unparse(node.func)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, function, guarded)

    yield from visit(tree, "", False)


def reads(call):
    """Whether a call reads a file, or parses one."""
    name = ast.unparse(call.func)
    owner, _, method = name.rpartition(".")
    own = not owner and method in ("read_text", "read_bytes")  # of ptuning.core.reading
    if (method in READING_METHODS and not own) or method in READING.get(owner, ()):
        return True
    if method == "open" and owner != "webbrowser":
        words = [*call.args, *(word.value for word in call.keywords if word.arg == "mode")]
        modes = [word.value for word in words if isinstance(word, ast.Constant) and isinstance(word.value, str)]
        return not any(set(mode) & set("wax+") and set(mode) <= set("rwabtx+") for mode in modes)
    return False


def test_no_file_is_read_outside_the_guard():
    found, used = [], set()
    for path in PACKAGE_FILES:
        name = path.relative_to(PACKAGE).as_posix()
        for function, line, what in calls_outside_guards(parsed(path)):
            place = f"{name}:{function}"
            reasons = [pattern for pattern in OUTSIDE_THE_GUARD if fnmatch(place, pattern)]
            used.update(reasons)
            if not reasons:
                found.append(f"{name}:{line} {function}: {what}")
    assert not found, "read through ptuning.core.reading, or say here why not:\n" + "\n".join(found)


def test_the_guard_is_missed_where_it_is_missing():
    code = "def f(p):\n json.loads(p.read_text())\n with guarded(p):\n  open(p)\n open(p, 'w')\n p.open('rb')\n"
    assert [(line, what) for _, line, what in calls_outside_guards(ast.parse(code))] == [
        (2, "json.loads"), (2, "p.read_text"), (6, "p.open"),
    ]  # fmt: skip
