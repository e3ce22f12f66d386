"""Calls an ExecuTorch program through its C++ interface: Python's own costs microseconds of every inference.

The package brings libraries and headers for GNU's C++ library, so `g++` compiles a few lines that open a program,
fill its input once, and run it.
"""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from xdeploy.errors import UnsupportedError
from xdeploy.formats import Int8
from xdeploy.process.lock import scratch_folder

COMPILER = "g++"
_LIBRARIES = ("executorch", "executorch_backend_xnnpack", "executorch_kernels_optimized",
              "executorch_kernels_quantized", "executorch_threadpool")  # fmt: skip
_SOURCE = r"""
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

namespace executorch::extension::threadpool {
class ThreadPool {  // the package has the library without this header
  public:
    bool _unsafe_reset_threadpool(uint32_t threads);
};
ThreadPool *get_threadpool();
}  // namespace executorch::extension::threadpool

struct Program {
    executorch::extension::Module module;
    executorch::extension::TensorPtr input;
};

extern "C" void *xd_pte_open(const char *path, int8_t *codes, const int32_t *sizes, const uint8_t *order,
                             const int32_t *strides, int axes)
{
    using executorch::extension::make_tensor_ptr;
    executorch::extension::threadpool::get_threadpool()->_unsafe_reset_threadpool(1);
    auto *p = new Program{executorch::extension::Module(path), {}};
    p->input = make_tensor_ptr({sizes, sizes + axes}, codes, {order, order + axes}, {strides, strides + axes},
                               executorch::aten::ScalarType::Char);
    return (p->module.load_method("forward") == executorch::runtime::Error::Ok) ? p : nullptr;
}

extern "C" int xd_pte_fill(void *program)
{
    auto *p = static_cast<Program *>(program);
    return static_cast<int>(p->module.set_input("forward", p->input, 0));
}

extern "C" int xd_pte_run(void *program, const int8_t **codes, int64_t *size)
{
    auto found = static_cast<Program *>(program)->module.execute("forward");
    if (!found.ok()) {
        return static_cast<int>(found.error());
    }
    *codes = found->at(0).toTensor().const_data_ptr<int8_t>();
    *size = found->at(0).toTensor().numel();
    return 0;
}
"""


class Program:
    """A program in memory, on one thread.

    Args:
        data: the .pte file.
        example: an int8 input as the program takes it; its memory is read by every `fill`.

    Raises:
        UnsupportedError: no compiler, or the engine cannot load or run it.
    """

    def __init__(self, data: bytes, example: Tensor) -> None:
        self.calls, self.input = _library(), example
        with scratch_folder("pte") as folder:
            path = folder / "program.pte"
            path.write_bytes(data)
            strides = list(example.stride())
            order = sorted(range(example.dim()), key=lambda axis: (-strides[axis], axis))
            self.handle = ctypes.c_void_p(
                self.calls.xd_pte_open(
                    str(path).encode(), ctypes.c_void_p(example.data_ptr()), _array(ctypes.c_int32, example.shape),
                    _array(ctypes.c_uint8, order), _array(ctypes.c_int32, strides), example.dim(),
                )
            )  # fmt: skip
        if not self.handle:
            raise UnsupportedError("ExecuTorch does not load the program")
        self.codes, self.size = ctypes.POINTER(ctypes.c_int8)(), ctypes.c_int64()
        self.fill()
        self.run()

    def fill(self) -> None:
        """Take the input as it is now."""
        self._told(self.calls.xd_pte_fill(self.handle))

    def run(self) -> None:
        """One inference."""
        self._told(self.calls.xd_pte_run(self.handle, ctypes.byref(self.codes), ctypes.byref(self.size)))

    def output(self) -> Int8:
        """Codes of the last inference, in the order of memory (elements,)."""
        return np.ctypeslib.as_array(self.codes, (self.size.value,)).astype(np.int8)

    @staticmethod
    def _told(error: int) -> None:
        if error:
            raise UnsupportedError(f"ExecuTorch does not run the program: error {error}")


def _array(kind: Any, values: Iterable[int]) -> Any:
    numbers = list(values)
    return (kind * len(numbers))(*numbers)


@cache
def _library() -> ctypes.CDLL:
    """Raises UnsupportedError: no compiler, or it refuses."""
    if shutil.which(COMPILER) is None:
        raise UnsupportedError(f"{COMPILER} is not installed, which calls ExecuTorch's C++ interface")
    spec = importlib.util.find_spec("executorch")
    assert spec is not None
    root = Path(next(iter(spec.submodule_search_locations or ())))
    with scratch_folder("pte-call") as folder:
        source, out = folder / "call.cpp", folder / "call.so"
        source.write_text(_SOURCE, encoding="utf-8")
        include = root / "include"
        words = [
            COMPILER, "-std=c++17", "-O2", "-fPIC", "-shared", "-DC10_USING_CUSTOM_GENERATED_MACROS", f"-I{include}",
            f"-I{include / 'executorch/runtime/core/portable_type/c10'}", str(source), "-o", str(out),
            f"-L{root / 'lib'}", f"-Wl,-rpath,{root / 'lib'}", "-Wl,--no-as-needed", *(f"-l{n}" for n in _LIBRARIES),
        ]  # fmt: skip
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            line = next((x for x in done.stderr.splitlines() if "error" in x), "no reason was given")
            raise UnsupportedError(f"{COMPILER} does not compile ExecuTorch's interface: {line[:160]}")
        library = ctypes.CDLL(str(out))
    library.xd_pte_open.restype = ctypes.c_void_p
    return library
