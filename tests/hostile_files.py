"""Files that harm: of every form that is read, what was damaged, cut short, replaced, or made to exhaust the reader.

A content is bytes, or a function that makes something else under the name it is given.
"""

import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from functools import cache
from pathlib import Path

import torch
from checkpoints import POINTER
from safetensors.torch import save

HUGE = 5 * 2**30  # bytes of a sparse file: on disk it is next to nothing


def _sparse(path):
    with path.open("wb") as file:
        file.truncate(HUGE)


# What can stand in place of any file.
COMMON = {
    "empty": b"",
    "random bytes": bytes(range(7, 256)) * 20,
    "nothing but NUL bytes": b"\0" * 5000,
    "a pointer": POINTER,
    "a web page": b"<!DOCTYPE html><html><body>404</body></html>",
    "a folder": lambda path: path.mkdir(),
    **({"a pipe": os.mkfifo} if hasattr(os, "mkfifo") else {}),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to nothing": lambda path: path.symlink_to(path.with_name("gone")),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "gigabytes that are not there": _sparse,
}

JSON = {
    "cut": b'{"a": [1, 2',
    "deep lists": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "deeper than can be copied": b'{"a": ' + b"[" * 300 + b"]" * 300 + b"}",
    "digits": b'{"a": ' + b"9" * 5000 + b"}",
    "one name twice": b'{"a": 1, "a": 2}',
    "one name twice, inside": b'{"a": {"b": 1, "b": 2}}',
    "a list": b"[]",
    "a number": b"3",
    "null": b"null",
    "GBK": '{"a": "你好"}'.encode("gbk"),
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "a NUL byte": b'{"a": "b\0c"}',
    "two values": b'{"a": 1} {"a": 2}',
}

YAML = {
    "deep": b"a: " + b"[" * 20_000 + b"]" * 20_000,
    "deeper than is needed": b"a: " + b"[" * 150 + b"]" * 150,
    "a billion values": b"a: &a [x, x, x, x, x, x, x, x, x]\n"
    + b"".join(b"%c: &%c [%s]\n" % (n, n, b", ".join([b"*%c" % (n - 1)] * 9)) for n in range(98, 108)),
    "a billion merged": b"a: &a {k: 1}\n"
    + b"".join(b"%c: &%c {<<: [%s]}\n" % (n, n, b", ".join([b"*%c" % (n - 1)] * 9)) for n in range(98, 108)),
    "an alias within itself": b"a: &a [*a]\n",
    "digits": b"seed: " + b"9" * 5000 + b"\n",
    "digits in another base": b"seed: 0x" + b"f" * 5000 + b"\n",
    "digits by sixties": b"seed: 1" + b":59" * 3000 + b"\n",
    "a name twice": b"seed: 1\nseed: 2\n",
    "a name twice, inside": b"a: {b: 1, b: 2}\n",
    "a number for a name": b"1: 2\n",
    "a list for a name": b"[1, 2]: 3\n",
    "null for a name": b"~: 3\n",
    "code": b"a: !!python/object/apply:os.system [true]\n",
    "an unknown kind": b"a: !mine 3\n",
    "bytes": b"a: !!binary aGVsbG8=\n",
    "a set": b"a: !!set {b, c}\n",
    "a number that is none": b"a: !!int abc\n",
    "an empty number": b'a: !!int ""\n',
    "tabs": b"a:\n\t- b\n",
    "two documents": b"a: 1\n---\na: 2\n",
    "a NUL byte": b"a: b\0c\n",
    "GBK": "a: 你好".encode("gbk"),
    "a list": b"- a\n",
    "a text": b"hello\n",
    "cut": b"a: [1, 2\n",
}


# --- safetensors


def safetensors_file(header, data=b"", length=None):
    """A file with this header, whatever it says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(shape=(2,), offsets=(0, 8), dtype="F32"):
    """One tensor of a header."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


DATA = b"\0" * 8
SAFETENSORS = {
    "offsets without end": safetensors_file(
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, Infinity]}}', DATA
    ),
    "offsets that are none": safetensors_file(b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, NaN]}}', DATA),
    "negative offsets": safetensors_file({"a": entry(offsets=(-8, 0))}, DATA),
    "offsets that overlap": safetensors_file({"a": entry(), "b": entry()}, DATA),
    "offsets beyond the end": safetensors_file({"a": entry((2**40,), (0, 2**42))}, DATA),
    "texts for offsets": safetensors_file({"a": entry(offsets=("0", "8"))}, DATA),
    "a shape beyond numbers": safetensors_file({"a": entry((2**40, 2**40))}, DATA),
    "a negative shape": safetensors_file({"a": entry((-2,))}, DATA),
    "a deep header": safetensors_file(b'{"a": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", DATA),
    "a header with digits": safetensors_file(
        b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 8]}}', DATA
    ),
    "a name twice": safetensors_file(b'{"a": %s, "a": %s}' % ((json.dumps(entry()).encode(),) * 2), DATA),
    "an unknown dtype": safetensors_file({"a": entry(dtype="F128")}, DATA),
    "a header longer than the file": safetensors_file(b"{}", length=10**9),
    "a header of 100 MB": lambda path: (path.write_bytes((10**8).to_bytes(8, "little") + b"{"), os.truncate(path, 2**28)),
    "a header without end": safetensors_file(b"{}", length=2**64 - 1),
    "a header that is no text": safetensors_file(b"\xff\xfe\xff", DATA),
    "a list for a header": safetensors_file(b"[]"),
    "a number for a tensor": safetensors_file({"a": 3}),
    "many names": save({f"transformer.layers.{n}.x": torch.empty(0) for n in range(20_000)}),
    "odd names": save({"\x1b[31m": torch.ones(2), "a\nb": torch.ones(2), "x" * 100_000: torch.ones(1)}),
}


# --- PyTorch's form


def torch_file(value, legacy=False):
    """What ``torch.save`` writes."""
    target = io.BytesIO()
    torch.save(value, target, _use_new_zipfile_serialization=not legacy)
    return target.getvalue()


def rezipped(data, change=lambda name, content: (name, content), compression=zipfile.ZIP_STORED, more=()):
    """An archive of PyTorch with its members changed."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(target, "w", compression) as after:
        for name in before.namelist():
            changed = change(name, before.read(name))
            if changed is not None:
                after.writestr(*changed)
        for name, content in more:
            after.writestr(name, content)
    return target.getvalue()


class Code:
    """Pickled, it is a call."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


def rebuilt(*arguments, function=torch._utils._rebuild_tensor_v2):
    """A tensor that is rebuilt from these arguments."""
    return Code(function, arguments)


class _Claims(pickle.Pickler):
    """Writes storages that say about themselves what they like."""

    def persistent_id(self, item):
        return item if isinstance(item, tuple) and item and item[0] == "storage" else None


def claimed(offset, shape, stride, elements, stored=64):
    """An archive whose one tensor claims these sizes of a storage of ``stored`` bytes."""
    target = io.BytesIO()
    storage = ("storage", torch.FloatStorage, "0", "cpu", elements)
    _Claims(target, protocol=2).dump({"w": rebuilt(storage, offset, shape, stride, False, OrderedDict())})
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", target.getvalue())
        file.writestr("archive/data/0", b"\0" * stored)
        file.writestr("archive/version", "3\n")
    return archive.getvalue()


def legacy_of(offset, shape, stride, elements):
    """The same in the form before PyTorch 1.6."""
    target = io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}):
        pickle.dump(value, target, protocol=2)
    storage = ("storage", torch.FloatStorage, "0", "cpu", elements, None)
    _Claims(target, protocol=2).dump({"w": rebuilt(storage, offset, shape, stride, False, OrderedDict())})
    pickle.dump(["0"], target, protocol=2)
    return target.getvalue() + struct.pack("<q", elements) + b"\0" * 64


TWO = torch.ones(2)
PLAIN = torch_file({"w": TWO})
EIGHT_GB = torch_file({"w": torch.zeros(1).expand(2 * 2**30)})
MANY_VIEWS = torch_file({f"transformer.layers.{n}.w": torch.zeros(4096)[:] for n in range(3)})


def _many_of_one():
    one = torch.zeros(100_000)
    return torch_file({f"w{n}": one for n in range(1000)})


@cache
def _unpacks_to_a_gigabyte():
    def replaced(name, content):
        return (name, b"\x80\x02" + b"N0" * 2**26 + b"}.") if name.endswith("data.pkl") else (name, content)

    return rezipped(PLAIN, replaced, zipfile.ZIP_DEFLATED)


BIN = {
    "8 GB by a stride of 0": EIGHT_GB,
    "8 GB, before 1.6": torch_file({"w": torch.zeros(1).expand(2 * 2**30)}, legacy=True),
    "one storage a thousand times": _many_of_one(),
    "a storage larger than the file": claimed(0, (2**31,), (1,), 2**31),
    "a storage larger than the file, before 1.6": legacy_of(0, (2**31,), (1,), 2**31),
    "a tensor larger than its storage": claimed(0, (2**31,), (1,), 16),
    "an offset beyond the storage": claimed(2**40, (2,), (1,), 16),
    "an offset without end": claimed(2**70, (2,), (1,), 16),
    "a negative offset": claimed(-1, (2,), (1,), 16),
    "a negative stride": claimed(8, (2,), (-1,), 16),
    "a negative size": claimed(0, (-2,), (1,), 16),
    "a shape beyond numbers": claimed(0, (2**40, 2**40), (0, 0), 16),
    "shape and stride of different lengths": claimed(0, (2, 2), (1,), 16),
    "a text for a size": claimed(0, ("2",), (1,), 16),
    "a thousand dimensions": claimed(0, (1,) * 1000, (1,) * 1000, 16),
    "sparse": torch_file({"w": torch.sparse_coo_tensor([[0]], [1.0], (2**40,))}),
    "sparse rows": torch_file({"w": torch.eye(3).to_sparse_csr()}),
    "meta": torch_file({"w": torch.empty(2**40, device="meta")}),
    "quantised": torch_file({"w": torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.quint8)}),
    "nested": torch_file({"w": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])}),
    "conjugated": torch_file({"w": torch.ones(2, dtype=torch.complex64).conj()}),
    "a list": torch_file([TWO]),
    "a tensor": torch_file(TWO),
    "a number": torch_file(3),
    "numbers for names": torch_file({3: TWO}),
    "tuples for names": torch_file({(1, 2): TWO}),
    "code": torch_file({"w": Code(os.system, ("true",))}),
    "code, before 1.6": torch_file({"w": Code(os.system, ("true",))}, legacy=True),
    "code, bare": pickle.dumps({"w": Code(os.system, ("true",))}),
    "code in torch": torch_file({"w": Code(torch.hub.load, ("a", "b"))}),
    "code by attribute": torch_file({"w": Code(getattr, ("a", "upper"))}),
    "8 GB of bytes": torch_file({"w": Code(bytearray, (8 * 10**9,)), "v": Code(eval, ("1",))}),
    "a memo of 16 GB": b"\x80\x02]r\xff\xff\xff\x7f.",
    "bytes that are not there": b"\x80\x05\x96\x00\x00\x00\x00\x02\x00\x00\x00.",
    "a deep pickle": b"\x80\x02)" + b"\x85" * 200_000 + b"}q\x00h\x00s.",
    "a whole module": torch_file(torch.nn.Linear(2, 2)),
    "a part twice": rezipped(PLAIN, more=[("archive/data.pkl", b"\x80\x02}."), ("archive/data.pkl", b"\x80\x02}.")]),
    "compressed": rezipped(torch_file({"w": torch.zeros(10**6)}), compression=zipfile.ZIP_DEFLATED),
    "a pickle that unpacks to a gigabyte": lambda path: path.write_bytes(_unpacks_to_a_gigabyte()),
    "data that are missing": rezipped(PLAIN, lambda name, content: None if "/data/" in name else (name, content)),
    "big-endian": rezipped(PLAIN, lambda name, content: (name, b"big" if name.endswith("byteorder") else content)),
    "an archive of something else": rezipped(PLAIN, lambda name, content: (name.replace("data.pkl", "x"), content)),
    "TorchScript": rezipped(PLAIN, more=[("archive/constants.pkl", b"\x80\x02).")]),
    "cut in the middle": PLAIN[: len(PLAIN) // 2],
    "cut at the end": PLAIN[:-30],
    "before 1.6, cut": torch_file({"w": torch.ones(100)}, legacy=True)[:-50],
}


# --- rows

ROW = '{"content": "问", "summary": "答"}\n'.encode()
ROWS_JSON = {
    "deep": ROW + b'{"content": "a", "summary": "b", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep array": b"[" * 100_000,
    "digits": ROW + b'{"content": "a", "summary": "b", "x": ' + b"9" * 5000 + b"}",
    "a name twice": ROW + b'{"content": "a", "content": "b", "summary": "c"}\n',
    "a name twice in an array": b'[{"content": "a",\n"content": "b", "summary": "c"}]',
    "a NUL byte": ROW + b'{"content": "a\0b", "summary": "c"}\n',
    "a hole": ROW * 2000 + b"\0" * 10_000,
    "NaN": b'{"content": NaN, "summary": "b"}',
    "nothing that can be seen": '{"content": "\u200b\ufeff", "summary": "\u2060"}'.encode(),
    "halves of characters": b'{"content": "\\ud800", "summary": "\\udfff"}',
    "a GBK line": ROW + '{"content": "类型", "summary": "裙子"}'.encode("gbk"),
    "a deep history": b'{"prompt": "a", "response": "b", "history": "' + b"[" * 50_000 + b'"}',
}
ROWS_CSV = {
    "a column twice": b"content,summary,content\na,b,c\n",
    "a column twice, semicolons": b"content;summary;content\na;b;c\n",
    "a quote that is never closed": b'content,summary\na,"b\n' * 3,
    "a NUL byte": b"content,summary\na,b\0\n",
    "a NUL byte far down": b"content,summary\n" + b"a,b\n" * 3000 + b"a,\0\n",
    "too many fields": b"content;summary\na;b;c\n",
    "nothing but a header": b"content\tsummary\n",
    "names without letters": b",,\n1,2,3\n",
    "one column": b"content\na\n",
    "nothing that can be seen": "content,summary\n\u200b,\u200b\n".encode(),
}


def _parquet(**columns):
    def make(path):
        import pyarrow
        import pyarrow.parquet

        arrays = {name: value() if callable(value) else pyarrow.array(value) for name, value in columns.items()}
        names = [name.rstrip("_") for name in arrays]
        pyarrow.parquet.write_table(pyarrow.Table.from_arrays(list(arrays.values()), names=names), path)

    return make


def _repeated(text, count):
    def column():
        import numpy as np
        import pyarrow

        return pyarrow.DictionaryArray.from_arrays(pyarrow.array(np.zeros(count, np.int32)), pyarrow.array([text]))

    return column


def _cut_parquet(path):
    _parquet(content=["a"] * 100, summary=["b"] * 100)(path)
    path.write_bytes(path.read_bytes()[:-40])


ROWS_PARQUET = {
    "a column twice": _parquet(content=["a"], content_=["b"], summary=["c"]),
    "bytes that are no text": _parquet(content=[b"\xff\xfe"], summary=["b"]),
    "numbers": _parquet(content=[1.5], summary=["b"]),
    "objects": _parquet(content=[{"a": 1}], summary=["b"]),
    "lists": _parquet(content=[["a"]], summary=["b"]),
    "nothing but nulls": _parquet(content=[None], summary=["b"]),
    "gigabytes of one text": _parquet(content=_repeated("x" * 2**20, 4000), summary=["y"] * 4000),
    "millions of rows in nothing": _parquet(content=_repeated("x", 9_000_000), summary=_repeated("x", 9_000_000)),
    "cut": _cut_parquet,
    "random inside": b"PAR1" + bytes(range(256)) * 4 + b"PAR1",
}

PREDICTIONS = {
    "deep": b"[" * 100_000,
    "digits": b'{"labels": "a", "predict": ' + b"9" * 5000 + b"}",
    "a name twice": b'{"labels": "a", "predict": "b", "labels": "c"}',
    "a number": b'{"labels": "a", "predict": 3}',
    "GBK": '{"labels": "你好", "predict": "b"}'.encode("gbk"),
    "an index without end": b'{"index": 1e999, "reference": "a", "answer": "b"}',
    "tokens without end": b'{"index": 1, "tokens": Infinity, "reference": "a", "answer": "b"}',
    "a truth value for an index": b'{"index": true, "reference": "a", "answer": "b"}',
    "numbers for a history": b'{"index": 1, "history": [1], "reference": "a", "answer": "b"}',
}

VOCABULARY = {
    "a field without end": b"\x0a" + b"\xff" * 5000,
    "a field beyond the end": b"\x0a\xff\xff\xff\x7f",
    "cut": Path(__file__).parents[1].joinpath("ptuning/assets/tiny-chatglm/ice_text.model").read_bytes()[:5000],
}
