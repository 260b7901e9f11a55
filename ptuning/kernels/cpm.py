"""The cpm_kernels backend (CUDA): our CUDA source, compiled by NVRTC and launched through cpm_kernels; cuBLAS multiplies.

cpm_kernels loads CUDA's libraries when it is imported, and raises where they are missing: it is imported by ``start``.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import sys
from functools import cache
from importlib import resources
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ptuning.kernels import reference
from ptuning.kernels.cuda_source import NAMES, SOURCE, THREADS
from ptuning.kernels.packed import PackedWeight

_KINDS = {torch.float16: "half", torch.bfloat16: "bfloat16"}


def start() -> tuple[str, torch.dtype]:
    """Compile for the current device. Gives device and dtype of what to try first.

    Raises:
        Exception: whatever the driver, NVRTC or cpm_kernels raises.
    """
    if not torch.cuda.is_available():
        raise RuntimeError(f"torch {torch.__version__} sees no CUDA device")
    _kernels(torch.cuda.get_device_capability())
    return "cuda", torch.float16


def product(inputs: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    """``inputs @ dequantised.T + bias`` as :func:`ptuning.kernels.reference.product`."""
    return reference.product(inputs, weight, bias, unpack)


def input_gradient(gradient: Tensor, weight: PackedWeight) -> Tensor:
    """``gradient @ dequantised`` as :func:`ptuning.kernels.reference.input_gradient`."""
    return reference.input_gradient(gradient, weight, unpack)


def refuse(weight: PackedWeight, inputs: Tensor) -> str | None:
    """Why this kernel cannot multiply these; None where it can."""
    if inputs.device.type != "cuda" or weight.data.device != inputs.device or weight.lanes:
        return f"cpm_kernels works on CUDA tensors; weight on {weight.data.device}, activations on {inputs.device}"
    if inputs.dtype not in _KINDS:
        return f"the cpm_kernels backend works in float16 and bfloat16, not in {inputs.dtype}"
    return None


def unpack(data: Tensor, scale: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """The float weight as :func:`ptuning.kernels.packed.dequantize_weight` makes it, in one pass over memory."""
    rows, width = data.shape
    unpacked = torch.empty(rows, width * 8 // bits, dtype=dtype, device=data.device)
    if not rows or not width:
        return unpacked
    with torch.cuda.device(data.device):
        kernel = _kernels(torch.cuda.get_device_capability(data.device))[NAMES[bits, _KINDS[dtype]]]
        stream = ctypes.c_void_p(torch.cuda.current_stream(data.device).cuda_stream)
        arguments = [
            ctypes.c_void_p(data.data_ptr()), ctypes.c_void_p(scale.data_ptr()), ctypes.c_void_p(unpacked.data_ptr()),
            ctypes.c_longlong(data.stride(0)), ctypes.c_int(width),
        ]
        kernel((rows, -(-width // THREADS), 1), (THREADS, 1, 1), 0, stream, arguments)
    return unpacked


@cache
def _kernels(capability: tuple[int, int]) -> dict[str, Any]:
    base = _cpm("kernels.base")
    module = base.LazyKernelCModule(compile_source(capability))
    return {name: base.KernelFunction(module, name) for name in NAMES.values()}


def compile_source(capability: tuple[int, int]) -> bytes:
    """PTX of our source for a device of this compute capability; needs NVRTC, but no GPU.

    Raises:
        RuntimeError: NVRTC is missing, or does not know the device.
    """
    nvrtc = _cpm("library.nvrtc")
    program = nvrtc.nvrtcProgram()
    nvrtc.nvrtcCreateProgram(program, SOURCE, "unpack.cu", 0, [], [])
    try:
        options = ["--gpu-architecture=compute_{}{}".format(*capability)]
        nvrtc.nvrtcCompileProgram(program, len(options), options)
        text = ctypes.create_string_buffer(nvrtc.nvrtcGetPTXSize(program))
        nvrtc.nvrtcGetPTX(program, text)
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return text.raw


def _cpm(name: str) -> Any:
    """A module of cpm_kernels. It asks setuptools' pkg_resources for its files, which newer setuptools no longer have."""
    stand_in = "pkg_resources" not in sys.modules and importlib.util.find_spec("pkg_resources") is None
    if stand_in:
        sys.modules["pkg_resources"] = _resources()
    try:
        return importlib.import_module(f"cpm_kernels.{name}")
    finally:
        if stand_in:
            del sys.modules["pkg_resources"]


def _resources() -> ModuleType:
    """The two functions of pkg_resources that cpm_kernels calls while it is imported."""
    module: Any = ModuleType("pkg_resources")
    module.resource_exists = lambda package, path: (_package_folder(package) / path).is_file()
    module.resource_string = lambda package, path: (_package_folder(package) / path).read_bytes()
    return module


def _package_folder(module: str) -> Any:
    return resources.files(module.rpartition(".")[0])
