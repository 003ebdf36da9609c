"""Whole guest programs made at random, the same for the same seed: loops, calls, returns, indirect jumps, memory
operands across pages, faults, self-modification, string instructions, x87, MMX, SSE and AVX, flags live everywhere.

A program runs on a RawGuest. Of 8 pages of its data one is missing and one is read-only. Before an instruction that
may fault it notes where to go on, and whether the arithmetic flags are to be kept: where the next instructions
overwrite them, they need not be right at a fault (docs/adr/0013). The handler mixes vector, error code, address and
flags into a log. At the end the program stores its registers, writes a checksum of data, registers and log to port E9h
as one doubleword, and halts.
"""

from __future__ import annotations

import random

from rawguest import RawGuest, assemble

CODE, DATA, STATE, STACK = 0x100000, 0x400000, 0x3F0000, 0x3E0000
WINDOW = 1 << 16  # what a 16-bit index reaches, beginning at DATA
RESUME, LOG, FAULTS, POINTER, COUNTERS, REGISTERS = STATE, STATE + 8, STATE + 16, STATE + 24, STATE + 64, STATE + 1024
TABLES = 0xB000  # page tables for DATA
HANDLERS = 0x2000
WITH_ERROR = {8, 10, 11, 12, 13, 14, 17}
FSGSBASE, OSXSAVE = 1 << 16, 1 << 18
CC = "o no b ae e ne be a s ns p np l ge le g".split()
NAMES = {
    64: "rax rcx rdx rbx rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split(),
    32: "eax ecx edx ebx ebp esi edi".split(),
}
ALU = "add adc sub sbb and or xor cmp test mov".split()


def part(register: str, size: int) -> str:
    """The name of a register's low `size` bytes."""
    if register[1:].isdigit():
        return register + {1: "b", 2: "w", 4: "d", 8: ""}[size]
    stem = register[1:]
    if size == 1:
        return stem[0] + "l" if stem.endswith("x") else stem + "l"
    return {2: "", 4: "e", 8: "r"}[size] + stem


class Program:
    """`text` is the assembly of a program of about `size` instructions, run some hundred times over in loops. With an
    odd seed it leaves its code alone: translated code gets far only where nobody writes."""

    def __init__(self, seed: int, bits: int, size: int = 400) -> None:
        self.random, self.bits = random.Random(seed * 2 + bits // 64), bits
        self.registers = NAMES[bits]
        self.word = bits // 8
        self.lines: list[str] = []
        self.labels = self.counters = 0
        self.functions = 5
        self.modifies = seed % 2 == 0
        self.patches: list[str] = []
        self.text = self._make(size)

    # Pieces

    def _pick(self, *choices: str) -> str:
        return self.random.choice(choices)

    def _label(self) -> str:
        self.labels += 1
        return f"l{self.labels}"

    def _size(self) -> int:
        return self.random.choice((1, 2, 4, 8) if self.bits == 64 else (1, 2, 4))

    def _reg(self, size: int) -> str:
        names = self.registers
        if size == 1 and self.bits == 32:
            names = names[:4]
        return part(self.random.choice(names), size)

    def _imm(self, size: int) -> int:
        bits = min(size * 8, 32) - 1
        edge = self.random.choice((0, 1, -1, 127, -128, (1 << bits) - 1, -(1 << bits)))
        value = self.random.choice((edge, self.random.randint(-(1 << bits), (1 << bits) - 1)))
        return max(min(value, (1 << bits) - 1), -(1 << bits))

    def _memory(self, size: int) -> str:
        """Anywhere in the window, often across a page; says before where to go on if it faults."""
        width = {1: "byte", 2: "word", 4: "dword", 8: "qword", 10: "tbyte", 16: "xmmword", 32: "ymmword"}[size]
        if self.random.random() < 0.3:
            page = self.random.randrange(1, 16) << 12
            return f"{width} ptr [{DATA + page - self.random.randrange(size + 1):#x}]"
        index = self.random.choice(self.registers)
        self.lines.append(f"movzx {part(index, 4)}, {part(index, 2)}")
        return f"{width} ptr [{index} + {DATA - self.random.randrange(16):#x}]"

    def _risky(self, text: str) -> None:
        after = self._label()
        self.lines += [f"mov dword ptr [{RESUME:#x}], offset {after}", text, f"{after}:"]
        if self.random.random() < 0.2:  # flags are read, whoever wrote them
            self.lines += ["pushf" if self.bits == 32 else "pushfq", f"pop {self.random.choice(self.registers)}"]

    def _operand(self, size: int) -> str:
        return self._memory(size) if self.random.random() < 0.4 else self._reg(size)

    def _emit(self, text: str) -> None:
        if "ptr" in text:
            self._risky(text)
        else:
            self.lines.append(text)

    # Kinds of instructions

    def arithmetic(self) -> None:
        size = self._size()
        left = self._operand(size)
        right = self._reg(size) if self.random.random() < 0.5 else str(self._imm(size))
        if "ptr" not in left and self.random.random() < 0.4:
            right = self._memory(size)
        op = self._pick(*ALU)
        if op == "test" and "ptr" in right:
            left, right = right, left
        lock = "lock " if "ptr" in left and op not in ("cmp", "test", "mov") and self.random.random() < 0.2 else ""
        self._emit(f"{lock}{op} {left}, {right}")

    def unary(self) -> None:
        self._emit(f"{self._pick('inc', 'dec', 'neg', 'not')} {self._operand(self._size())}")

    def shift(self) -> None:
        size = self._size()
        count = self._pick("cl", str(self.random.randrange(1, 8 * size)))
        self._emit(f"{self._pick('shl', 'shr', 'sar', 'rol', 'ror', 'rcl', 'rcr')} {self._operand(size)}, {count}")

    def wide_shift(self) -> None:
        size = self.random.choice((4, self.word))
        count = self._pick("cl", str(self.random.randrange(1, 31)))
        self._emit(f"{self._pick('shld', 'shrd')} {self._operand(size)}, {self._reg(size)}, {count}")

    def multiply(self) -> None:
        size = self._size()
        if self.random.random() < 0.4 and size > 1:
            self._emit(f"imul {self._reg(size)}, {self._operand(size)}")
        else:
            self._risky(f"{self._pick('mul', 'imul', 'div', 'idiv')} {self._operand(size)}")

    def bits_of(self) -> None:
        size = self.random.choice((2, 4, self.word))
        op = self._pick("bt", "bts", "btr", "btc", "bsf", "bsr", "popcnt")
        if op.startswith("bt"):
            self._emit(f"{op} {self._operand(size)}, {self.random.randrange(8 * size)}")
        else:
            self._emit(f"{op} {self._reg(size)}, {self._operand(size)}")

    def move(self) -> None:
        size = self.random.choice((4, self.word))
        small = self.random.choice((1, 2))
        reg = self._reg(size)
        op = self._pick("movzx", "movsx", "cmov", "set", "xchg", "xadd", "cmpxchg", "lea", "bswap")
        if op in ("movzx", "movsx"):
            self._emit(f"{op} {reg}, {self._operand(small)}")
        elif op == "cmov":
            self._emit(f"cmov{self._pick(*CC)} {reg}, {self._operand(size)}")
        elif op == "set":
            self._emit(f"set{self._pick(*CC)} {self._operand(1)}")
        elif op == "lea":
            self.lines.append(f"lea {reg}, [{self._reg(self.word)} + {self._reg(self.word)}*4 + {self._imm(4)}]")
        elif op == "bswap":
            self.lines.append(f"bswap {reg}")
        else:
            self._emit(f"{op} {self._operand(size)}, {reg}")

    def flags(self) -> None:
        op = self._pick("lahf", "sahf", "clc", "stc", "cmc", "cld", "popf")
        if op == "popf":
            self.lines += [f"push {self.random.getrandbits(12) & 0x8D5 | 2}", "popf" if self.bits == 32 else "popfq"]
        else:
            self.lines.append(op)

    def stack(self) -> None:
        n = self.random.randrange(1, 4)
        self.lines += [f"push {self.random.choice(self.registers)}" for _ in range(n)]
        self.arithmetic()
        self.lines += [f"pop {self.random.choice(self.registers)}" for _ in range(n)]

    def string(self) -> None:
        di, si, cx = ("rdi", "rsi", "rcx") if self.bits == 64 else ("edi", "esi", "ecx")
        for register in (di, si):
            page = self.random.randrange(1, 16) << 12
            self.lines.append(f"mov {register}, {DATA + page - self.random.randrange(300):#x}")
        self.lines.append(f"mov {cx}, {self.random.choice((0, 1, 7, self.random.randrange(600)))}")
        op = self._pick("rep movs", "rep stos", "rep lods", "repne scas", "repe cmps", "movs", "stos", "lods", "scas")
        down = self.random.random() < 0.2
        self.lines += ["std"] * down
        self._risky(op + self._pick(*("bwdq" if self.bits == 64 else "bwd")))
        self.lines += ["cld"] * down

    def fault(self) -> None:
        self._risky(self._pick("ud2", "int3", "int 0x1f", "xor ecx, ecx; div ecx", "mov eax, 8; mov fs, eax",
                               f"mov eax, [{DATA + 0x7010:#x}]", f"mov [{DATA + 0x5010:#x}], eax",
                               f"add dword ptr [{DATA + 0x4FFE:#x}], 5", "mov eax, 0x1234; mov es, eax"))

    def vector(self) -> None:
        a, b = (f"xmm{self.random.randrange(8)}" for _ in range(2))
        kind = self.random.random()
        if kind < 0.3:
            self._emit(f"movups {a}, {self._memory(16)}")
        elif kind < 0.5:
            self._emit(f"movups {self._memory(16)}, {a}")
        elif kind < 0.9:
            op = self._pick("addps", "mulps", "subpd", "divpd", "paddd", "pmuludq", "pxor", "pcmpeqb", "punpcklbw",
                            "psubusw", "minps", "maxpd", "sqrtps", "cvtdq2ps", "pshufb", "andnps")
            self.lines.append(f"{op} {a}, {b}")
        else:
            self.lines.append(self._pick(f"ucomisd {a}, {b}", f"pmovmskb eax, {a}", f"cvttsd2si ecx, {a}",
                                         f"movd {a}, edx", f"cvtsi2sd {a}, ebx"))

    def x87(self) -> None:
        kind = self.random.random()
        if kind < 0.3:
            self._emit(f"fld {self._memory(self.random.choice((4, 8, 10)))}")
        elif kind < 0.5:
            self._emit(f"fstp {self._memory(self.random.choice((4, 8, 10)))}")
        else:
            self.lines.append(self._pick("fld1", "fldpi", "fadd st, st(1)", "fmul st, st(2)", "fdivr st, st(1)", "fchs",
                                         "fabs", "fsqrt", "fxch", "frndint", "fcomi st, st(1)", "fincstp",
                                         "ffree st(3)"))

    def vector_memory(self) -> None:
        """Aligned forms raise #GP more often than not."""
        a, b = self.random.randrange(8), self.random.randrange(8)
        kind = self.random.random()
        if kind < 0.4:
            op = self._pick("paddd", "mulps", "pxor", "movaps", "movdqa", "addpd", "pshufb")
            self._risky(f"{op} xmm{a}, {self._memory(16)}")
        elif kind < 0.5:
            self._risky(f"movaps {self._memory(16)}, xmm{a}")
        elif kind < 0.7:
            self._risky(f"{self._pick('vpaddd', 'vmulps', 'vpxor', 'vaddpd')} ymm{a}, ymm{b}, {self._memory(32)}")
        elif kind < 0.8:
            self._risky(f"vmovups {self._memory(32)}, ymm{a}")
        elif kind < 0.9:
            self._risky(f"{self._pick('vmovaps', 'vmovdqa')} ymm{a}, {self._memory(32)}")
        else:
            self._risky(self._pick(f"vpaddw ymm{a}, ymm{b}, ymm1", f"vperm2f128 ymm{a}, ymm{b}, ymm2, 0x21",
                                   f"vextracti128 xmm{a}, ymm{b}, 1", "vzeroupper", f"vcvtdq2pd ymm{a}, xmm{b}"))

    def media(self) -> None:
        self.lines += [f"movd mm{self.random.randrange(4)}, {self._reg(4)}",
                       f"{self._pick('paddw', 'pxor', 'pmaddwd', 'psubb')} mm{self.random.randrange(4)}, mm1",
                       f"movd {self._reg(4)}, mm{self.random.randrange(4)}", "emms"]

    def x87_memory(self) -> None:
        op = self._pick("fadd", "fmul", "fsubr", "fdiv", "fcom")
        self._risky(f"{op} {self._memory(self.random.choice((4, 8)))}")
        op, sizes = self.random.choice((("fild", (2, 4, 8)), ("fistp", (2, 4, 8)), ("fisttp", (2, 4))))
        self._risky(f"{op} {self._memory(self.random.choice(sizes))}")

    def high_bytes(self) -> None:
        a, b = self._pick("ah", "bh", "ch", "dh"), self._pick("al", "bl", "cl", "dl", "ah", "ch")
        at = f"byte ptr [{DATA + self.random.randrange(0x4000):#x}]"
        self.lines.append(self._pick(f"add {a}, {b}", f"mov {a}, {b}", f"xchg {b}, {a}", f"sbb {b}, {a}",
                                     f"mov {at}, {a}", f"cmp {a}, {at}", f"movzx eax, {a}", f"setc {a}"))

    def bit_fields(self) -> None:
        size = self.random.choice((4, self.word))
        a, b, c = self._reg(size), self._operand(size), self._reg(size)
        self._risky(self._pick(f"andn {a}, {c}, {b}", f"blsr {a}, {b}", f"bextr {a}, {b}, {c}", f"shlx {a}, {b}, {c}",
                               f"rorx {a}, {b}, 7", f"pdep {a}, {c}, {b}", f"pext {a}, {c}, {b}", f"mulx {a}, {c}, {b}",
                               f"adcx {a}, {b}", f"adox {a}, {b}", f"tzcnt {a}, {b}", f"lzcnt {a}, {b}",
                               f"crc32 {part(a, 4) if size == 8 else a}, {self._operand(1)}",
                               f"movbe {a}, {self._memory(size)}", f"movbe {self._memory(size)}, {a}"))

    def live_flags(self) -> None:
        """Accesses between who writes flags and who reads them."""
        a, b = self._reg(self.word), self._reg(self.word)
        self.lines.append(self._pick(f"add {a}, {b}", f"cmp {a}, {b}", "stc", f"neg {a}", f"shr {a}, 1"))
        for _ in range(self.random.randrange(1, 4)):
            size = self._size()
            reg = self._reg(size)
            self._risky(self._pick(f"mov {reg}, {self._memory(size)}", f"mov {self._memory(size)}, {reg}"))
        self.lines.append(self._pick(f"adc {a}, {b}", f"sbb {b}, {a}", f"set{self._pick(*CC)} al",
                                     f"cmov{self._pick(*CC)} {a}, {b}", f"rcl {a}, 1"))

    def structure(self) -> None:
        """Several accesses off one register, which share a check; the end of a page may lie between them."""
        base = self._pick(*self.registers)
        self.lines.append(f"mov {part(base, 4)}, {DATA + (self.random.randrange(16) << 12) - 64:#x}")
        for _ in range(self.random.randrange(2, 6)):
            size = self._size()
            reg = self._reg(size)
            while reg in (part(base, size), base):
                reg = self._reg(size)
            at = f"[{base} + {self.random.randrange(128)}]"
            self._risky(self._pick(f"mov {reg}, {at}", f"mov {at}, {reg}", f"add {at}, {reg}", f"xor {reg}, {at}"))

    def exchange(self) -> None:
        wide = self.bits == 64 and self.random.random() < 0.5
        self._risky(self._pick("", "lock ") + ("cmpxchg16b " + self._memory(16) if wide else
                                               "cmpxchg8b " + self._memory(8)))

    def other_addressing(self) -> None:
        """32-bit addressing and segment bases, in 64-bit code."""
        if self.bits == 32:
            self.arithmetic()
        elif self.random.random() < 0.5:
            index = part(self._pick(*self.registers), 4)
            self.lines.append(f"movzx {index}, {part('r' + index[1:] if index[0] == 'e' else index[:-1], 2)}")
            self._risky(f"{self._pick('add', 'mov', 'sbb')} {self._reg(4)}, dword ptr [{index} + {DATA - 8:#x}]")
        else:
            self.lines += [f"mov edx, {DATA + self.random.randrange(1 << 15):#x}", "wrgsbase rdx"]
            reg = self._reg(8)
            self._risky(self._pick(f"add {reg}, gs:[{self.random.randrange(0x8000):#x}]",
                                   f"mov gs:[{self.random.randrange(0x8000):#x}], {reg}"))

    def flush(self) -> None:
        """Every translation, or one."""
        page = DATA + (self.random.randrange(16) << 12)
        reg = self.registers[self.random.randrange(7)]
        self.lines.append(self._pick(f"mov {reg}, cr3; mov cr3, {reg}", f"invlpg [{page:#x}]"))

    # Control

    def frame(self) -> None:
        pointer, stack = ("rbp", "rsp") if self.bits == 64 else ("ebp", "esp")
        self.lines += [f"push {pointer}", f"mov {pointer}, {stack}", f"sub {stack}, {8 * self.random.randrange(1, 9)}"]
        reg = self.registers[0]
        self.lines += [f"mov [{pointer} - 8], {reg}", f"add {reg}, [{pointer} - 8]", "leave"]

    def short_branch(self) -> None:
        over = self._label()
        reg = self._reg(4)
        self.lines += [self._pick(f"jecxz {over}", f"loop {over}", f"loopne {over}"), f"lea {reg}, [{reg} + 3]",
                       f"{over}:"]  # fmt: skip

    def call_by_memory(self, callees: list[int]) -> None:
        width = "qword" if self.bits == 64 else "dword"
        self.lines += [f"mov {width} ptr [{POINTER:#x}], offset f{self.random.choice(callees)}",
                       f"call {width} ptr [{POINTER:#x}]"]

    def recursion(self) -> None:
        """To a depth at which pairs of calls and returns do not suffice."""
        start, end, over = self._label(), self._label(), self._label()
        self.lines += [f"mov ecx, {self.random.choice((3, 40, 700))}", f"call {start}", f"jmp {over}",
                       f"{start}: dec ecx", f"jz {end}", f"call {start}", f"{end}:"]
        self.lines += [f"adc {self._reg(4)}, 1", f"ret {self._pick('', '', '0')}", f"{over}:"]

    def modify_opcode(self) -> None:
        """The next instruction becomes another one; ADC only behind what writes the flags, or what it reads may be lost
        (docs/adr/0013)."""
        if not self.modifies:
            self.straight(5)
            return
        label = self._label()
        between = self._pick("", "nop", "add ebx, eax")
        opcodes = (0x05, 0x2D, 0x35, 0xB8, 0x15 if between.startswith("add") else 0x0D, 0xA9)
        self.lines += [f"mov byte ptr [{label}], {self.random.choice(opcodes):#x}", between,
                       f"{label}: .byte 0xb8; .long {self._imm(4)}"]

    def forward_jump(self) -> None:
        after = self._label()
        self.lines.append(f"j{self._pick(*CC)} {after}")
        self.straight(self.random.randrange(1, 5))
        self.lines.append(f"{after}:")

    def loop(self) -> None:
        counter, start = COUNTERS + 4 * self.counters, self._label()
        self.counters += 1
        self.lines += [f"mov dword ptr [{counter:#x}], {self.random.randrange(2, 40)}", f"{start}:"]
        self.straight(self.random.randrange(3, 14))
        self.lines += [f"dec dword ptr [{counter:#x}]", f"jnz {start}"]

    def strided_loop(self) -> None:
        """Operands that move by a constant each time round: across pages, into what faults, or out early."""
        if self.bits == 32:
            self.structure()
            return
        pointer, fixed, index, counter, value, other = self.random.sample(self.registers, 6)
        stride = self.random.choice((1, 2, 4, 8, 12, 16, 24, 40, 136, 400, -1, -4, -8, -16, -56))
        scale, step = self.random.choice((1, 2, 4, 8)), self.random.choice((1, 2, 3, 8, -1, -2, -5))
        times = self.random.randrange(2, min(250, 0x3800 // max(abs(stride), abs(step * scale))))
        start, after = self._label(), self._label()
        for register in (pointer, fixed):
            self.lines.append(f"mov {register}, {DATA + self.random.randrange(0x4000, 0xC000):#x}")
        self.lines += [f"mov {counter}, {times}", f"xor {part(index, 4)}, {part(index, 4)}"]
        self.lines += [f"mov dword ptr [{RESUME:#x}], offset {after}", f"{start}:"]
        body = [self._strided(self._pick(pointer, f"{fixed} + {index}*{scale}", fixed), value, other, after)
                for _ in range(self.random.randrange(1, 6))]
        move = self._pick(f"add {pointer}, {stride}", f"lea {pointer}, [{pointer} + {stride}]",
                          f"lea {other}, [{pointer} + {stride}]; mov {pointer}, {other}")
        for text in (move, f"add {index}, {step}"):
            body.insert(self.random.randrange(len(body) + 1), text)
        last = self._pick(f"sub {counter}, 1", f"dec {counter}",
                          f"lea {counter}, [{counter} - 1]; add {value}, {counter}; cmp {counter}, 0")
        self.lines += [*body, last, f"jnz {start}", f"{after}:"]

    def _strided(self, at: str, value: str, other: str, out: str) -> str:
        size = self._size()
        at = f"[{at} + {self.random.randrange(-40, 40)}]"
        return self._pick(f"mov {part(value, size)}, {at}", f"mov {at}, {part(other, size)}",
                          f"add {part(value, size)}, {at}", f"xor {at}, {part(value, size)}",
                          f"movzx {value}, byte ptr {at}",
                          f"movups xmm{self.random.randrange(8)}, {at}", f"movups {at}, xmm{self.random.randrange(8)}",
                          f"vpaddd ymm1, ymm2, {at}", f"paddb xmm1, {at}", f"lea {other}, [{value} + {other}*2]",
                          f"cmp {value}, {at}; je {out}", f"imul {value}, {other}, 77", f"adc {other}, 0",
                          f"add {other}, [{DATA + self.random.randrange(0x3000):#x}]", f"lock xadd {at}, {other}",
                          f"movq xmm3, {other}", f"setc {at}", f"bt dword ptr {at}, 5", f"addsd xmm4, {at}")

    def jump_table(self) -> None:
        """Through a register to one of four places."""
        places, end, table = [self._label() for _ in range(4)], self._label(), self._label()
        index = self.registers[0]
        self.lines += [f"mov eax, {part(self.random.choice(self.registers), 4)}", "and eax, 3",
                       f"mov eax, [{index}*4 + {table}]", f"jmp {index}", f"{table}:"]
        self.lines += [f".long {place}" for place in places]
        for place in places:
            self.lines.append(f"{place}:")
            self.straight(2)
            self.lines.append(f"jmp {end}")
        self.lines.append(f"{end}:")

    def return_to(self) -> None:
        place = self._label()
        self.lines += [f"push offset {place}", "ret", "ud2", f"{place}:"]

    def modify(self) -> None:
        """Writes the constant of an instruction: one that comes at once, or one of another place."""
        if not self.modifies:
            self.straight(5)
            return
        label = self._label()
        target = self.random.choice(self.patches) if self.patches and self.random.random() < 0.5 else label
        self.patches.append(label)
        self.lines += [f"mov dword ptr [{target} + 1], {self._reg(4)}", f"{label}: mov eax, 0x12345678"]

    def straight(self, n: int) -> None:
        kinds = (self.arithmetic, self.arithmetic, self.unary, self.shift, self.wide_shift, self.multiply, self.bits_of,
                 self.move, self.move, self.flags, self.stack, self.string, self.vector, self.vector, self.x87,
                 self.vector_memory, self.media, self.x87_memory, self.high_bytes, self.bit_fields, self.live_flags,
                 self.live_flags, self.structure, self.structure, self.exchange, self.other_addressing)
        for _ in range(n):
            self.random.choice(kinds)()
        if self.random.random() < 0.1:
            self.fault()

    def body(self, size: int, callees: list[int]) -> None:
        """`callees`: functions that may be called."""
        end = len(self.lines) + size * 2
        while len(self.lines) < end:
            kind = self.random.random()
            if kind < 0.12 and callees:
                self.lines.append(f"call f{self.random.choice(callees)}")
            elif kind < 0.17 and callees:
                self.lines += [f"mov eax, offset f{self.random.choice(callees)}", f"call {self.registers[0]}"]
            elif kind < 0.2 and callees:
                self.call_by_memory(callees)
            elif kind < 0.3:
                self.forward_jump()
            elif kind < 0.42:
                self.loop()
            else:
                self.random.choice((self.jump_table, self.return_to, self.modify, self.fault, self.frame,
                                    self.short_branch, self.recursion, self.modify_opcode, self.flush,
                                    self.strided_loop, self.strided_loop, *[lambda: self.straight(5)] * 6))()

    def _make(self, size: int) -> str:
        pointer = part("rsp" if self.bits == 64 else "esp", self.word)
        self.lines += [f"mov {pointer}, {STACK:#x}", "fninit"]
        again, counter = self._label(), COUNTERS - 4
        self.lines += [f"mov dword ptr [{counter:#x}], 10", f"{again}:"]
        self.body(size, list(range(self.functions)))
        self.lines += [f"dec dword ptr [{counter:#x}]", f"jnz {again}"]
        self._finish()
        for number in range(self.functions):
            self.lines.append(f"f{number}:")
            self.body(size // 8, list(range(number + 1, self.functions)))
            self.lines.append("ret")
        return "\n".join(self.lines)

    def _finish(self) -> None:
        """Registers into memory, all of it into one number."""
        for n, name in enumerate(self.registers):
            self.lines.append(f"mov [{REGISTERS + 8 * n:#x}], {name}")
        for n in range(8):
            at = REGISTERS + 128 + 16 * n
            self.lines += [f"movups [{at:#x}], xmm{n}", f"fstp tbyte ptr [{at + 128:#x}]"]
        stack, saved = ("rsi", "pushfq") if self.bits == 64 else ("esi", "pushfd")
        self.lines += [f"mov {stack}, {STATE:#x}", saved, f"pop {self.registers[0]}", "mov ebx, eax"]
        for start, length in ((STATE, 4096), *((DATA + (page << 12), 4096) for page in range(16) if page & 7 != 7)):
            loop = self._label()
            self.lines += [f"mov {stack}, {start:#x}", f"mov ecx, {length // 4}", f"{loop}: rol ebx, 5",
                           f"add ebx, [{stack}]", f"add {stack}, 4", "dec ecx", f"jnz {loop}"]
        self.lines += ["mov eax, ebx", "out 0xe9, eax", "cli", "hlt"]


def handler(bits: int) -> str:
    """Stubs of 16 bytes for 32 vectors and what they lead to."""
    lines = []
    for vector in range(32):
        lines += [".balign 16", *([] if vector in WITH_ERROR else ["push 0"]), f"push {vector}", "jmp common"]
    a, c, sp, back, at = ("rax", "rcx", "rsp", "iretq", 8) if bits == 64 else ("eax", "ecx", "esp", "iretd", 4)
    lines += ["common:", f"push {a}", f"push {c}", f"mov {a}, [{LOG:#x}]"]
    for slot in (2, 3, 4, 6):  # vector, error code, RIP, RFLAGS
        lines += [f"rol {a}, 7", f"add {a}, [{sp} + {slot * at}]"]
    lines += [f"mov {c}, cr2", f"rol {a}, 7", f"add {a}, {c}", f"mov [{LOG:#x}], {a}", f"inc dword ptr [{FAULTS:#x}]"]
    lines += [f"mov eax, [{RESUME:#x}]", f"mov [{sp} + {4 * at}], {a}"]
    lines += [f"pop {c}", f"pop {a}", f"add {sp}, {2 * at}", back]
    return "\n".join(lines)


def prepare(guest: RawGuest, program: Program, seed: int) -> None:
    """Everything in its place; the guest stands before the first instruction."""
    bits = program.bits
    guest.put(HANDLERS, assemble(handler(bits), bits, HANDLERS))
    for vector in range(32):
        (guest.gate64 if bits == 64 else guest.gate32)(vector, HANDLERS + 16 * vector)
    guest.put(DATA, random.Random(seed).randbytes(WINDOW + 4096))
    (guest.start64 if bits == 64 else guest.start32)(program.text, CODE)
    entries = [DATA + (page << 12) | (0 if page & 7 == 7 else 1 if page & 7 == 5 else 3) for page in range(1024)]
    size = 8 if bits == 64 else 4
    guest.put(TABLES, b"".join(e.to_bytes(size, "little") for e in entries[: 4096 // size]))
    state = guest.state()
    if bits == 64:
        guest.put(0x8000 + 0x2000 + 8 * (DATA >> 21), (TABLES | 3).to_bytes(8, "little"))
        state.cr4 |= 0x600 | FSGSBASE
    else:
        directory = 0xC000
        guest.put(directory, b"".join((n << 22 | 0x83).to_bytes(4, "little") for n in range(1024)))
        guest.put(directory + 4 * (DATA >> 22), (TABLES | 3).to_bytes(4, "little"))
        state.cr3, state.cr4, state.cr0 = directory, 0x610, state.cr0 | 1 << 31
    state.cr0 |= 1 << 16 | 1 << 1  # WP, MP
    state.cr4 |= OSXSAVE
    state.xcr0 = 7
    guest.set_state(state)
