"""Assembly of the Helium rows for packed weights: four output channels times a run of gathered pixels.

One function runs all output channels of a tile of pixels. For every four channels it decodes the weights once into
a buffer of 4 * K bytes and multiplies them with all pixels of the tile, two at a time: eight accumulators in the even
core registers, which is all VMLAVA can add into. For a single pixel there is nothing to share: the weights are decoded
in the multiply loop itself. A code is cut into planes of 4, 2 and 1 bits (PLANES), so that fields fill bytes: 16 codes
of two channels in 4-bit fields are a vector, those of four channels in 2-bit fields another. A codebook is looked up by
a gathering load, as Helium has no byte shuffle.

Between the channels' loop and the pixels' loop stay: q4 multipliers, q5 and q6 the clamp, q7 biases, and in VPR which
of the four channels exist.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .armasm import function

CHUNK, CHANNELS, UNROLL = 16, 4, 4
PUSHED = 13 * 4 + 8 * 8  # r0-r11 and lr, d8-d15; stack arguments follow
STACK_ARGS = (
    "decoded", "table", "residual", "row", "chunks", "entry", "channels", "valid", "stride", "shift", "out_zero",
    "low", "high", "add_a", "add_b", "add_const", "add_right", "add_low", "add_high",
)  # fmt: skip
_POINTERS = ("decoded", "table", "residual")
# odd core registers; loads that widen need one of r0-r7
_Y, _LEFT, _X, _W, _END, _X2 = "r1", "r3", "r5", "r7", "r9", "r11"
_TABLE, _D = _LEFT, _X  # before the pixels' loop; a single pixel needs no _LEFT
_EVEN = ("r0", "r2", "r4", "r6", "r8", "r10", "r12", "lr")
_RAW, _INDEX, _VALUE, _UPPER, _MASK = "q2", "q3", "q1", "q4", "q7"
# widths of the fields that make up a code, the lowest bits first; they stand in the weights in reverse order
PLANES = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 8: (8,)}


def move_run() -> tuple[str, str]:
    """(source, to, bytes): copy a run of at least one byte."""
    lines = ["push {r4, lr}", "dlstp.8 lr, r2", "1:", "vldrb.u8 q0, [r0], #16", "vstrb.8 q0, [r1], #16", "letp lr, 1b"]
    return function("move", "ptr, ptr, i32", [*lines, "pop {r4, pc}"])


def fill_run() -> tuple[str, str]:
    """(to, bytes, value): fill a run of at least one byte."""
    lines = ["push {r4, lr}", "vdup.8 q0, r2", "dlstp.8 lr, r1", "1:", "vstrb.8 q0, [r0], #16", "letp lr, 1b"]
    return function("fill", "ptr, i32, i32", [*lines, "pop {r4, pc}"])


def move_rows() -> tuple[str, str]:
    """(source, to, run, rows, stride): copy rows of `run` bytes, `stride` bytes apart, to one contiguous place."""
    lines = ["push {r4-r6, lr}", "ldr r6, [sp, #16]", "1:", "mov r4, r0", "mov r5, r1", "dlstp.8 lr, r2"]
    lines += ["2:", "vldrb.u8 q0, [r4], #16", "vstrb.8 q0, [r5], #16", "letp lr, 2b"]
    lines += ["add r0, r0, r6", "add r1, r1, r2", "subs r3, r3, #1", "bne 1b", "pop {r4-r6, pc}"]
    return function("rows", "ptr, ptr, i32, i32, i32", lines)


def clip_rows() -> tuple[str, str]:
    """(source, to, run, rows, stride, lead, count, iy, dy, height, value): as move_rows at the input's border.

    Only bytes lead..lead+count of a run lie inside the input, and only rows iy, iy + dy, ... inside 0..height-1; the
    rest becomes `value`.
    """
    lines = ["push {r4-r11, lr}", "ldr r4, [sp, #36]", "ldrd r5, r6, [sp, #40]", "ldrd r7, r8, [sp, #48]"]
    lines += ["ldrd r9, r10, [sp, #56]", "vdup.8 q1, r10", "1:", "cmp r7, r9", "bhs 2f", "cmp r6, r2", "beq 4f"]
    lines += ["2:", "mov r10, r1", "dlstp.8 lr, r2", "3:", "vstrb.8 q1, [r10], #16", "letp lr, 3b"]
    lines += ["cmp r7, r9", "bhs 6f", "cmp r6, #0", "ble 6f", "4:", "add.w r10, r0, r5", "add.w r11, r1, r5"]
    lines += ["dlstp.8 lr, r6", "5:", "vldrb.u8 q0, [r10], #16", "vstrb.8 q0, [r11], #16", "letp lr, 5b"]
    lines += ["6:", "add r0, r0, r4", "add r1, r1, r2", "add r7, r7, r8", "subs r3, r3, #1", "bne 1b"]
    return function("clip", f"ptr, ptr{9 * ', i32'}", [*lines, "pop {r4-r11, pc}"])


def _load(q: str, plane: int) -> list[str]:
    """The next fields of 16 k; of a plane of single bits 8 bytes, spread so that byte k begins with its four bits."""
    if plane > 1:
        return [f"vldrb.u8 {q}, [{_W}], #16"]
    return [f"vldrb.u16 {q}, [{_W}], #8", f"vshl.i16 {_INDEX}, {q}, #4", f"vorr {q}, {q}, {_INDEX}"]


def _join(low: int, high: int, bits: int) -> list[str]:
    """_INDEX = codes whose lower `bits` begin in bit `low` of _RAW, the others in bit `high` of _UPPER."""
    lines = [f"vshr.u8 {_INDEX}, {_RAW}, #{low}" if low else f"vmov {_INDEX}, {_RAW}"]
    lines += [f"vshr.u8 {_VALUE}, {_UPPER}, #{high}"] if high else []
    return [*lines, f"vsli.8 {_INDEX}, {_VALUE if high else _UPPER}, #{bits}"]


@dataclass(frozen=True, slots=True)
class BlockTile:
    """A run of pixels (`pixels` = 2: two at a time) or a single one (1) x all output channels, four at a time."""

    pixels: int
    bits: int  # per weight
    codebook: bool
    shifted: bool  # the sums, to the left, before the multiplication
    residual: bool

    @property
    def buffered(self) -> bool:
        """Whether four channels are decoded into a buffer first."""
        return self.pixels == 2 and self.bits < 8

    @property
    def decode_length(self) -> int:
        """Instructions that decode and store 16 weights of four channels."""
        return sum(len(decode) + 1 for decode in self._decode()) + 1

    @property
    def chunk_length(self) -> float:
        """Instructions per chunk of the multiply loop."""
        return len(self._chunk("vmlava")) + 2 / UNROLL

    def _slot(self, name: str) -> str:
        return f"[sp, #{PUSHED + 4 * STACK_ARGS.index(name)}]"

    def _acc(self, pixel: int, channel: int) -> str:
        return _EVEN[CHANNELS * pixel + channel]

    def _each(self, template: str) -> list[str]:
        return [template.format(q=f"q{p}") for p in range(self.pixels)]

    # ------------------------------------------------------------------------------------------ weights
    def _decode(self) -> Iterator[list[str]]:
        """Per channel: the lines that bring 16 of its weights into _VALUE."""
        first, *second = PLANES[self.bits]
        fields = min(8 // first, CHANNELS)
        for c in range(CHANNELS):
            lines = _load(_UPPER, second[0]) if second and c == 0 else []
            lines += _load(_RAW, first) if c % fields == 0 else []
            if second:
                lines += _join(first * (c % fields), second[0] * c, first)
                yield lines + (self._lookup(_INDEX, 0) if self.codebook else self._signed(_INDEX, 0))
            else:
                yield lines + (self._lookup if self.codebook else self._signed)(_RAW, self.bits * c % 8)

    def _lookup(self, codes: str, shift: int) -> list[str]:
        """The entries of the codes that begin in bit `shift`."""
        lines = []
        if shift:
            lines.append(f"vshr.u8 {_INDEX}, {codes}, #{shift}")
            codes = _INDEX
        if shift + self.bits < 8:
            lines.append(f"vand {_INDEX}, {codes}, {_MASK}")
        return [*lines, f"vldrb.u8 {_VALUE}, [{_TABLE}, {_INDEX}]"]

    def _signed(self, codes: str, shift: int) -> list[str]:
        """The signed integers that begin in bit `shift`."""
        up = 8 - self.bits - shift
        lines = [f"vshl.i8 {_VALUE}, {codes}, #{up}"] if up else []
        return [*lines, f"vshr.s8 {_VALUE}, {_VALUE if up else codes}, #{8 - self.bits}"]

    def _open_table(self) -> list[str]:
        return (
            [f"ldr {_TABLE}, {self._slot('table')}", f"vmov.i8 {_MASK}, #{2**self.bits - 1}"] if self.codebook else []
        )

    def _fill_buffer(self) -> list[str]:
        lines = [f"ldr {_W}, [sp, #4]", f"ldr {_D}, {self._slot('decoded')}", f"ldr r0, {self._slot('chunks')}"]
        lines += [*self._open_table(), "dls lr, r0", "4:"]
        for decode in self._decode():
            lines += [*decode, f"vstrb.8 {_VALUE}, [{_D}], #16"]
        return [*lines, "le lr, 4b", f"str {_W}, [sp, #4]"]

    # ----------------------------------------------------------------------------------------- multiply
    def _chunk(self, op: str) -> list[str]:
        """16 codes of each pixel times 16 weights of each channel; op "vmlava" adds, "vmlav" begins."""
        lines = [f"vldrb.u8 q{p}, [{x}], #16" for p, x in zip(range(self.pixels), (_X, _X2), strict=False)]
        if self.pixels == 1 and self.bits < 8:
            for c, decode in enumerate(self._decode()):
                lines += [*decode, f"{op}.s8 {self._acc(0, c)}, q0, {_VALUE}"]
            return lines
        for c in range(CHANNELS):
            lines.append(f"vldrb.u8 q{2 + c % 2}, [{_W}], #16")
            lines += [f"{op}.s8 {self._acc(p, c)}, q{p}, q{2 + c % 2}" for p in range(self.pixels)]
        return lines

    def entry(self, chunks: int) -> int:
        """Byte offset (and Thumb bit) where the turns begin after the first chunk: the last turn must end them."""
        skipped = UNROLL if chunks == 1 else (1 - chunks) % UNROLL
        return 1 + 4 * len(self._chunk("vmlava")) * skipped

    # ------------------------------------------------------------------------------------- output stage
    def _requantise(self) -> list[str]:
        lines = []
        for p in range(self.pixels):
            a = [self._acc(p, c) for c in range(CHANNELS)]
            lines += [f"vmov q{p}[2], q{p}[0], {a[0]}, {a[2]}", f"vmov q{p}[3], q{p}[1], {a[1]}, {a[3]}"]
        lines += self._constants() if self.pixels == 1 else []
        lines += self._each("vadd.i32 {q}, {q}, q7")
        lines += [f"ldr r0, {self._slot('shift')}", *self._each("vshl.s32 {q}, r0")] if self.shifted else []
        lines += [*self._each("vrmulh.s32 {q}, {q}, q4"), f"ldr r0, {self._slot('out_zero')}"]
        lines += self._each("vadd.i32 {q}, {q}, r0")
        return lines + [line for op in ("vmax.s32 {q}, {q}, q5", "vmin.s32 {q}, {q}, q6") for line in self._each(op)]

    def _constants(self) -> list[str]:
        """Biases and multipliers of four channels."""
        return ["ldr r0, [sp, #8]", "vldrw.u32 q7, [r0], #16", "vldrw.u32 q4, [r0], #16", "str r0, [sp, #8]"]

    def _add_residual(self, places: tuple[str, ...]) -> list[str]:
        """Acc = clamp((acc * a + r * b + const) >> shift), r at the places of the outputs, moved."""
        lines = [f"ldr r0, {self._slot('residual')}"]
        lines += [f"add {r}, {y}, r0" for r, y in zip(("r4", "r6"), places, strict=False)]
        lines += ["vpst" + "t" * (self.pixels - 1)]
        lines += [f"vldrbt.s32 q{2 + p}, [{r}]" for p, r in zip(range(self.pixels), ("r4", "r6"), strict=False)]
        lines += [f"ldr {r}, {self._slot(n)}" for r, n in (("r0", "add_a"), ("r4", "add_b"), ("r6", "add_const"))]
        lines += self._each("vmul.i32 {q}, {q}, r0")
        lines += [f"vmla.s32 q{p}, q{2 + p}, r4" for p in range(self.pixels)]
        lines += self._each("vadd.i32 {q}, {q}, r6")
        lines += [f"ldr r0, {self._slot('add_right')}", *self._each("vshl.s32 {q}, r0")]
        for name, op in (("add_low", "vmax"), ("add_high", "vmin")):
            lines += [f"ldr r0, {self._slot(name)}", "vdup.32 q2, r0", *self._each(op + ".s32 {q}, {q}, q2")]
        return lines

    # --------------------------------------------------------------------------------------------- loops
    def _pixels(self) -> list[str]:
        """The loop over the pixels of the tile, or the one pixel."""
        turns = [*self._chunk("vmlav"), f"ldr.w pc, {self._slot('entry')}", ".p2align 2"]
        turns += ["1:", *UNROLL * self._chunk("vmlava"), f"cmp {_X}, {_END}", "bne.w 1b"]
        if self.pixels == 1:
            lines = [f"ldr {_END}, {self._slot('row')}", f"add {_END}, {_END}, {_X}", *turns, *self._requantise()]
            lines += self._add_residual((_Y,)) if self.residual else []
            return [*lines, "vpst", f"vstrbt.32 q0, [{_Y}], #4"]
        weights = self._slot("decoded") if self.buffered else "[sp, #4]"
        lines = ["3:", f"ldr {_END}, {self._slot('row')}", f"ldr {_W}, {weights}", f"add {_END}, {_END}, {_X}"]
        lines += [f"mov {_X2}, {_END}", *turns, f"mov {_X}, {_X2}", *self._requantise()]
        # where there is no second pixel, it is stored first to the place of this one
        lines += [f"ldr r8, {self._slot('stride')}", f"add r2, {_Y}, r8", f"subs {_LEFT}, {_LEFT}, #2"]
        lines += ["it lt", f"movlt r2, {_Y}"]
        lines += self._add_residual((_Y, "r2")) if self.residual else []
        lines += ["vpstt", "vstrbt.32 q1, [r2]", f"vstrbt.32 q0, [{_Y}]", f"add.w {_Y}, r2, r8", "bgt.w 3b"]
        return lines if self.buffered else [*lines, f"str {_W}, [sp, #4]"]

    def lines(self) -> list[str]:
        """The function body."""
        head = ["vpush {d8-d15}", "push {r0-r11, lr}", "adr.w r12, 1f", f"ldr r4, {self._slot('entry')}"]
        head += ["add r12, r12, r4", f"str r12, {self._slot('entry')}"]
        if self.residual:
            head += [f"ldr r4, {self._slot('residual')}", "sub r4, r4, r3", f"str r4, {self._slot('residual')}"]
        for name, q in (("low", "q5"), ("high", "q6")):
            head += [f"ldr r4, {self._slot(name)}", f"vdup.32 {q}, r4"]
        if self.pixels == 1:
            head += [f"mov {_W}, r1", f"mov {_Y}, r3", *self._open_table()]
        block = [
            "2:",
            *(self._fill_buffer() if self.buffered else []),
            f"ldr r6, {self._slot('channels')}",
            "vctp.32 r6",
        ]
        block.append(f"ldr {_X}, [sp, #0]")
        if self.pixels == 1:
            block += self._open_table()[1:]
        else:
            block += [*self._constants(), f"ldr {_Y}, [sp, #12]", f"add r2, {_Y}, #4", "str r2, [sp, #12]"]
            block.append(f"ldr {_LEFT}, {self._slot('valid')}")
        tail = [f"ldr r6, {self._slot('channels')}", "subs r6, r6, #4", f"str r6, {self._slot('channels')}", "bgt.w 2b"]
        tail += ["add sp, sp, #16", "pop {r4-r11, lr}", "vpop {d8-d15}", "bx lr"]
        return [*head, *block, *self._pixels(), *tail]

    def function(self) -> tuple[str, str]:
        """LLVM IR and name; parameters x, w, bm, y and STACK_ARGS."""
        types = ["ptr" if name in _POINTERS else "i32" for name in STACK_ARGS]
        return function(f"mveblock{self.pixels}", ", ".join(["ptr"] * 4 + types), self.lines())
