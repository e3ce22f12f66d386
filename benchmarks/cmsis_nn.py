"""The four MLPerf Tiny networks as calls of CMSIS-NN, compiled and counted in this project's own emulator path.

Only the shapes matter for the count, so weights and inputs are random. Each layer is one function, as a compiler for
micro-controllers calls it; what CMSIS-NN does not offer (reshapes) costs nothing there either. CMSIS-NN itself is not
part of this project: its sources are given by their folder.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from xdeploy.bench.flash import Flash
from xdeploy.bench.runner import Ran
from xdeploy.bench.unicorn import UnicornRunner
from xdeploy.builder.elf import Elf, read_elf
from xdeploy.handover import Artifact

ROOT = Path(__file__).resolve().parents[1]
SCRATCH = 65536  # bytes of the arena that layers may scribble in
Shape = tuple[int, int, int]  # height, width, channels


@dataclass(frozen=True, slots=True)
class Layer:
    """One call: "conv", "depthwise", "linear", "add", "pool" or "softmax". pad: rows above, columns to the left."""

    op: str
    shape: Shape
    out: Shape
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    pad: tuple[int, int] = (0, 0)

    @property
    def weights(self) -> int:
        """Number of weights."""
        taps = self.kernel[0] * self.kernel[1]
        return {"conv": taps * self.shape[2] * self.out[2], "depthwise": taps * self.out[2],
                "linear": int(np.prod(self.shape)) * self.out[2]}.get(self.op, 0)  # fmt: skip

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return self.weights * self.out[0] * self.out[1]


def _window(op: str, x: Shape, channels: int, kernel: tuple[int, int], stride: int = 1) -> Layer:
    """A convolution with "same" padding as TensorFlow computes it: the odd row goes below."""
    sides = [-(-n // stride) for n in x[:2]]
    pads = [max(0, (o - 1) * stride + k - n) // 2 for n, o, k in zip(x, sides, kernel, strict=False)]
    return Layer(op, x, (sides[0], sides[1], channels), kernel, stride, (pads[0], pads[1]))


def _head(x: Shape, classes: int) -> Iterator[Layer]:
    yield Layer("pool", x, (1, 1, x[2]), x[:2], max(x[:2]))
    yield Layer("linear", (1, 1, x[2]), (1, 1, classes))
    yield Layer("softmax", (1, 1, classes), (1, 1, classes))


def resnet8() -> Iterator[Layer]:
    """Image classification (ic): ResNet-8 on 32 x 32 x 3."""
    yield (layer := _window("conv", (32, 32, 3), 16, (3, 3)))
    x = layer.out
    for channels, stride in ((16, 1), (32, 2), (64, 2)):
        first = _window("conv", x, channels, (3, 3), stride)
        yield from (first, _window("conv", first.out, channels, (3, 3)))
        if stride > 1:
            yield _window("conv", x, channels, (1, 1), stride)
        yield Layer("add", first.out, first.out)
        x = first.out
    yield from _head(x, 10)


def ds_cnn() -> Iterator[Layer]:
    """Keyword spotting (kws): DS-CNN on 49 x 10."""
    yield (layer := _window("conv", (49, 10, 1), 64, (10, 4), 2))
    x = layer.out
    for _ in range(4):
        yield _window("depthwise", x, 64, (3, 3))
        yield _window("conv", x, 64, (1, 1))
    yield from _head(x, 12)


def mobilenet() -> Iterator[Layer]:
    """Visual wake words (vww): MobileNetV1 0.25 on 96 x 96 x 3."""
    yield (layer := _window("conv", (96, 96, 3), 8, (3, 3), 2))
    x = layer.out
    blocks = ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), *[(128, 1)] * 5, (256, 2), (256, 1))
    for channels, stride in blocks:
        depthwise = _window("depthwise", x, x[2], (3, 3), stride)
        point = _window("conv", depthwise.out, channels, (1, 1))
        yield from (depthwise, point)
        x = point.out
    yield from _head(x, 2)


def autoencoder() -> Iterator[Layer]:
    """Anomaly detection (ad): fully connected, 640-128x4-8-128x4-640."""
    sizes = (640, 128, 128, 128, 128, 8, 128, 128, 128, 128, 640)
    for a, b in pairwise(sizes):
        yield Layer("linear", (1, 1, a), (1, 1, b))


NETWORKS: dict[str, Callable[[], Iterator[Layer]]] = {
    "ad": autoencoder, "ic": resnet8, "kws": ds_cnn, "vww": mobilenet,
}  # fmt: skip

# what CMSIS-NN of 2022 expects of CMSIS-Core and CMSIS-DSP
_INTRINSICS = {
    "smlad": "rrr", "sadd16": "rr", "ssub16": "rr", "sxtab16": "rr", "sxtb16": "r", "qadd": "rr", "qsub": "rr",
    "qadd16": "rr", "qadd8": "rr",
}  # fmt: skip
_MACROS = r"""
#ifndef XD_CORE
#define XD_CORE
#include <stdint.h>
#include <string.h>
#include <limits.h>
#include <math.h>
typedef int8_t q7_t; typedef int16_t q15_t; typedef int32_t q31_t; typedef int64_t q63_t;
#define __ASM __asm
#define __ALIGNED(x) __attribute__((aligned(x)))
#define __WEAK __attribute__((weak))
#define __RESTRICT __restrict
#define __INLINE inline
#define __STATIC_INLINE static inline
#define __STATIC_FORCEINLINE __attribute__((always_inline)) static inline
#define Q31_MAX ((q31_t)0x7FFFFFFFL)
#define Q31_MIN ((q31_t)0x80000000L)
#define Q7_MAX ((q7_t)0x7F)
#define Q7_MIN ((q7_t)0x80)
#define Q15_MAX ((q15_t)0x7FFF)
#define Q15_MIN ((q15_t)0x8000)
#define __CLZ(x) ((uint8_t)((x) ? __builtin_clz(x) : 32))
#define __ROR(x, n) (((uint32_t)(x) >> (n)) | ((uint32_t)(x) << (32 - (n))))
#define __SSAT(x, n) __extension__ ({ int32_t r_, a_ = (x); \
  __asm volatile ("ssat %0, %1, %2" : "=r"(r_) : "I"(n), "r"(a_)); r_; })
#define __PKHBT(a, b, n) __extension__ ({ uint32_t r_, a_ = (a), b_ = (b); \
  __asm ("pkhbt %0, %1, %2, lsl %3" : "=r"(r_) : "r"(a_), "r"(b_), "I"(n)); r_; })
#define __PKHTB(a, b, n) __extension__ ({ uint32_t r_, a_ = (a), b_ = (b); \
  __asm ("pkhtb %0, %1, %2, asr %3" : "=r"(r_) : "r"(a_), "r"(b_), "I"(n)); r_; })
#define __SXTB16_RORn(x, n) __extension__ ({ uint32_t r_, x_ = (x); \
  __asm volatile ("sxtb16 %0, %1, ror %2" : "=r"(r_) : "r"(x_), "i"(n)); r_; })
#define __SXTAB16_RORn(a, b, n) __extension__ ({ uint32_t r_, a_ = (a), b_ = (b); \
  __asm volatile ("sxtab16 %0, %1, %2, ror %3" : "=r"(r_) : "r"(a_), "r"(b_), "i"(n)); r_; })
"""


def core_header() -> str:
    """C text in place of arm_math_types.h and cmsis_compiler.h."""
    text = _MACROS
    for name, operands in _INTRINSICS.items():
        names = "abc"[: len(operands)]
        given = ", ".join(f"uint32_t {n}" for n in names)
        slots = ", ".join(f"%{i + 1}" for i in range(len(names)))
        inputs = ", ".join(f'"r"({n})' for n in names)
        text += (
            f"__STATIC_FORCEINLINE uint32_t __{name.upper()}({given}) {{ uint32_t r; "
            f'__asm volatile ("{name} %0, {slots}" : "=r"(r) : {inputs}); return r; }}\n'
        )
    return text + "#endif\n"


def driver(layers: list[Layer]) -> str:
    """C text: a function per layer, and `xd_net_run(input, output, arena)` which calls them in order."""
    size = max(int(np.prod(s)) for x in layers for s in (x.shape, x.out))
    parts = [
        '#include "arm_nnfunctions.h"\n#include <string.h>\n',
        "#define DIMS(...) &(const cmsis_nn_dims){__VA_ARGS__}\n",
        "extern const int8_t weights[]; extern const int32_t biases[], multipliers[], shifts[];\n",
    ]
    calls, at = [], 0
    for i, x in enumerate(layers):
        body = _call(x, at)
        parts.append(
            f"__attribute__((noinline)) void xd_net_k{i}(const int8_t *x, const int8_t *z, int8_t *y, void *s)\n"
            f"{{\n  (void)z; (void)s;\n{body}}}\n"
        )
        source, output = ("x" if i == 0 else f"a + {i % 2} * N"), f"a + {(i + 1) % 2} * N"
        last = "y" if i == len(layers) - 1 else output
        calls.append(f"  xd_net_k{i}({source}, {output}, {last}, a + 2 * N);\n")
        at += x.weights
    body = "".join(calls)
    parts.append(f"enum {{ N = {-(-size // 16) * 16} }};\nint xd_net_run(const int8_t *x, int8_t *y, int8_t *a)\n")
    return "".join(parts) + f"{{\n{body}  return 0;\n}}\n"


def _call(x: Layer, at: int) -> str:
    (h, w, c), (oh, ow, oc), (kh, kw) = x.shape, x.out, x.kernel
    context = f"  const cmsis_nn_context ctx = {{s, {SCRATCH}}};\n"
    shapes = f"DIMS(1, {h}, {w}, {c}), x, "
    ends = f"DIMS(1, 1, 1, {oc}), biases, DIMS(1, {oh}, {ow}, {oc}), y);\n"
    tile = f"{{{x.stride}, {x.stride}}}, {{{x.pad[1]}, {x.pad[0]}}}"
    channel = "  const cmsis_nn_per_channel_quant_params q = {(int32_t *)multipliers, (int32_t *)shifts};\n"
    if x.op == "conv":
        return (
            f"{context}{channel}  const cmsis_nn_conv_params p = {{3, -2, {tile}, {{1, 1}}, {{-128, 127}}}};\n"
            f"  (void)arm_convolve_wrapper_s8(&ctx, &p, &q, {shapes}DIMS({oc}, {kh}, {kw}, {c}), weights + {at}, {ends}"
        )
    if x.op == "depthwise":
        return (
            f"{context}{channel}  const cmsis_nn_dw_conv_params p = {{3, -2, 1, {tile}, {{1, 1}}, {{-128, 127}}}};\n"
            f"  (void)arm_depthwise_conv_wrapper_s8(&ctx, &p, &q, {shapes}"
            f"DIMS(1, {kh}, {kw}, {oc}), weights + {at}, {ends}"
        )
    if x.op == "linear":
        n = h * w * c
        return (
            f"{context}  const cmsis_nn_fc_params p = {{3, 0, -2, {{-128, 127}}}};\n"
            "  const cmsis_nn_per_tensor_quant_params q = {1518500250, -9};\n"
            f"  (void)arm_fully_connected_s8(&ctx, &p, &q, DIMS(1, 1, 1, {n}), x, DIMS({n}, 1, 1, {oc}), "
            f"weights + {at}, DIMS(1, 1, 1, {oc}), biases, DIMS(1, 1, 1, {oc}), y);\n"
        )
    if x.op == "add":
        return (
            "  (void)arm_elementwise_add_s8(x, z, 3, 1518500250, -1, 2, 1518500250, -2, 20, y, -2, 1518500250, -18, "
            f"-128, 127, {oh * ow * oc});\n"
        )
    if x.op == "pool":
        return (
            f"{context}  const cmsis_nn_pool_params p = {{{{{h}, {w}}}, {{0, 0}}, {{-128, 127}}}};\n"
            f"  (void)arm_avgpool_s8(&ctx, &p, {shapes}DIMS(1, {kh}, {kw}, 1), DIMS(1, {oh}, {ow}, {oc}), y);\n"
        )
    return f"  arm_softmax_s8(x, 1, {oc}, 1518500250, 23, -124, y);\n"


def compiled(name: str, sources: Path, core: str, folder: Path, optimise: str = "-O2") -> Artifact:
    """Compile one network against a tree of CMSIS-NN with arm-none-eabi-gcc; `core` as `-mcpu=` names it."""
    layers, folder = list(NETWORKS[name]()), folder / f"{name}-{core}{optimise}"
    folder.mkdir(parents=True, exist_ok=True)
    for header in ("arm_math_types.h", "cmsis_compiler.h", "arm_math.h"):
        (folder / header).write_text(core_header())
    rng = np.random.default_rng(5)
    channels = max(x.out[2] for x in layers)
    rng.integers(-127, 128, sum(x.weights for x in layers), np.int8).tofile(folder / "w.bin")
    tables = "".join(
        f"const int32_t {n}[{channels}] = {{{', '.join(map(str, v))}}};\n"
        for n, v in (("biases", rng.integers(-999, 999, channels)), ("multipliers", [1518500250] * channels),
                     ("shifts", [-9] * channels))
    )  # fmt: skip
    (folder / "net.c").write_text(driver(layers))
    (folder / "tables.c").write_text(
        f'#include <stdint.h>\n{tables}__asm__(".section .rodata.w,\\"a\\"\\n.balign 16\\n.global weights\\n'
        'weights:\\n.incbin \\"w.bin\\"\\n.previous");\n'
    )
    flags = [f"-mcpu={core}", "-mthumb", "-mfloat-abi=soft", optimise, "-ffunction-sections", "-fdata-sections", "-w",
             "-I.", f"-I{sources / 'Include'}"]  # fmt: skip
    parts = [p for p in sorted((sources / "Source").rglob("*_s8*.c")) if "_s4" not in p.name and "lstm" not in p.name]
    parts += [p for p in sorted((sources / "Source" / "NNSupportFunctions").glob("*.c")) if p not in parts]
    names = ["ConvolutionFunctions", "FullyConnectedFunctions", "PoolingFunctions", "SoftmaxFunctions",
             "BasicMathFunctions", "NNSupportFunctions"]  # fmt: skip
    wanted = [str(p.resolve()) for p in parts if p.parent.name in names and "f16" not in p.name and "f32" not in p.name]
    script = ROOT / "targets" / "support" / "bare.ld"
    subprocess.run(
        ["arm-none-eabi-gcc", *flags, "net.c", "tables.c", *wanted, "-nostartfiles", "-Wl,--gc-sections",
         "-Wl,-e,xd_net_run", f"-Wl,-T,{script}", "-lc", "-lgcc", "-o", "net.elf"], cwd=folder, check=True,
    )  # fmt: skip
    size = max(int(np.prod(s)) for x in layers for s in (x.shape, x.out))
    bytes_in, bytes_out = int(np.prod(layers[0].shape)), int(np.prod(layers[-1].out))
    manifest: dict[str, Any] = {
        "target": core, "isa": "", "kind": "firmware", "machine": "thumb",
        "input": {"bytes": bytes_in, "shape": [bytes_in]},
        "output": {"bytes": bytes_out, "shape": [bytes_out]},
        "arena": {"bytes": 2 * (-(-size // 16) * 16) + SCRATCH, "align": 16},
        "symbols": {"run": "xd_net_run", "calls": [f"xd_net_k{i}" for i in range(len(layers))]},
        "products": {"bare": "net.elf"},
    }  # fmt: skip
    return Artifact(folder, manifest)


def counted(artifact: Artifact, model: str, flash: Flash | None = None) -> tuple[Ran, Elf]:
    """Run one random input in the emulator, and count the reads of flash with a model of it."""
    codes = np.random.default_rng(7).integers(-128, 128, (1, artifact.manifest["input"]["bytes"])).astype(np.int8)
    return UnicornRunner(artifact, model, flash).run(codes), read_elf(artifact.folder / "net.elf")
