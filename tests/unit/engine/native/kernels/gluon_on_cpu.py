"""Runs a Gluon kernel on CPU tensors, one program after another, and is strict about what is asynchronous.

A copy poisons its buffer where it is started and delivers where it is waited for, by a group or by a barrier that
expects its bytes; a product reads its operands where it is waited for, and again where it is started. So a kernel that
reads a buffer too early, or overwrites one that a product still reads, gets NaN. Layouts are ignored, and what threads
do to each other is not modelled.

Knows the operations that the kernels tested here use, and as much of the assembler. Products are in fp32.
"""

from __future__ import annotations

import builtins
import itertools
import re
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

NAN = float("nan")


@dataclass(frozen=True)
class Pointer:
    """Places in a flat tensor."""

    of: torch.Tensor
    at: Any = 0

    def __add__(self, more: Any) -> Pointer:
        return Pointer(self.of, self.at + more)

    @property
    def shape(self) -> torch.Size:
        return torch.as_tensor(self.at).shape

    def places(self, mask: Any) -> torch.Tensor:
        """Checked: no place that is used lies outside."""
        at = torch.as_tensor(self.at).long()
        used = torch.ones_like(at, dtype=torch.bool) if mask is None else torch.broadcast_to(mask, at.shape)
        inside = (at >= 0) & (at < self.of.numel())
        assert bool((inside | ~used).all()), "reads or writes outside of a tensor"
        return torch.where(used, at, 0)


@dataclass
class Described:
    """What stands for a tensor's descriptor: a matrix, copied by boxes of `box` rows and columns."""

    of: torch.Tensor
    box: list[int]

    def inside(self, corner: Sequence[Any]) -> tuple[torch.Tensor, tuple[slice, slice]]:
        """The part of a box that lies within the matrix, and where in the box that is."""
        row, column = (int(at) for at in corner)
        assert 0 <= column <= self.of.shape[1] - self.box[1], "a box that lies partly beside the matrix"
        low, high = (min(max(at, 0), self.of.shape[0]) for at in (row, row + self.box[0]))
        where = slice(low - row, high - row) if low < high else slice(0, 0)
        return self.of[low:high, column : column + self.box[1]], (where, slice(None))


@dataclass
class Arrivals:
    """A barrier: the phase that it is in, and what must arrive before the next one."""

    phase: int = 0
    expected: int = 0
    copies: list[Callable[[], object]] = field(default_factory=list)
    bytes: int = 0


@dataclass
class Shared:
    """A buffer in shared memory."""

    data: torch.Tensor

    def slice(self, start: int, length: int, dim: int) -> Shared:
        return Shared(self.data.narrow(dim, start, length))

    def store(self, values: torch.Tensor) -> None:
        self.data.copy_(values)

    def index(self, number: Any) -> Shared:
        return Shared(self.data[int(number)])

    def permute(self, order: Sequence[int]) -> Shared:
        return Shared(self.data.permute(*order))

    def load(self, layout: Any) -> torch.Tensor:
        return self.data.clone()

    def poison(self) -> None:
        if self.data.is_floating_point():
            self.data.fill_(NAN)
        else:
            self.data.random_()


@dataclass
class Product:
    """One that was started."""

    a: Any
    b: Shared
    onto: torch.Tensor | Product
    """What it adds to: a sum, or the product before it, which need not be over."""
    adds: bool
    result: torch.Tensor | None = None

    def compute(self) -> torch.Tensor:
        a = self.a.data if isinstance(self.a, Shared) else self.a
        product = a.float() @ self.b.data.float()
        if not self.adds:
            return product
        if isinstance(self.onto, Product):
            return product + (self.onto.compute() if self.onto.result is None else self.onto.result)
        return product + self.onto


@dataclass
class Machine:
    """Of one program."""

    program: tuple[int, int, int]
    copies: list[list[Callable[[], object]]] = field(default_factory=lambda: [[]])
    products: list[Product] = field(default_factory=list)
    barriers: dict[int, Arrivals] = field(default_factory=dict)
    stores: list[Callable[[], object]] = field(default_factory=list)

    def arrivals(self, place: Shared) -> Arrivals:
        return self.barriers[place.data.data_ptr()]

    def make_barrier(self, place: Shared, count: int) -> None:
        assert count == 1
        assert place.data.data_ptr() not in self.barriers, "a barrier that is made twice"
        self.barriers[place.data.data_ptr()] = Arrivals()

    def expect(self, place: Shared, size: int) -> None:
        barrier = self.arrivals(place)
        assert barrier.expected == 0, "more is expected before what was has come"
        barrier.expected = int(size)

    def copy_box(self, described: Described, corner: Sequence[Any], place: Shared, target: Shared) -> None:
        barrier = self.arrivals(place)
        assert list(target.data.shape) == described.box
        assert barrier.expected, "a copy that nobody expects"
        target.poison()
        source, where = described.inside(corner)
        values = torch.zeros(described.box, dtype=target.data.dtype)
        values[where] = source.to(target.data.dtype)
        barrier.copies.append(lambda: target.data.copy_(values))
        barrier.bytes += target.data.numel() * target.data.element_size()

    def wait_barrier(self, place: Shared, phase: Any) -> None:
        """Until the phase of that parity is over. One that is not over must have all it needs under way."""
        barrier = self.arrivals(place)
        if barrier.phase % 2 != int(phase):
            return
        assert barrier.bytes == barrier.expected > 0, "a wait that does not end"
        for deliver in barrier.copies:
            deliver()
        self.barriers[place.data.data_ptr()] = Arrivals(barrier.phase + 1)

    def store_box(self, described: Described, corner: Sequence[Any], source: Shared) -> None:
        target, where = described.inside(corner)
        before = source.data.clone()

        def deliver() -> None:
            assert torch.equal(source.data, before), "what is stored was overwritten on its way"
            target.copy_(before[where])

        self.stores.append(deliver)

    def wait_stores(self, outstanding: int) -> None:
        while len(self.stores) > outstanding:
            self.stores.pop(0)()

    def copy(self, target: Shared, source: Pointer, mask: Any = None) -> None:
        assert mask is None
        assert source.shape == target.data.shape
        target.poison()
        values = source.of[source.places(None)].to(target.data.dtype)
        self.copies[-1].append(lambda: target.data.copy_(values))

    def commit(self) -> None:
        self.copies.append([])

    def wait_copies(self, outstanding: int) -> None:
        while len(self.copies) - 1 > outstanding:
            for deliver in self.copies.pop(0):
                deliver()

    def start(self, a: Any, b: Shared, onto: Any, use_acc: bool = True, is_async: bool = False) -> Any:
        product = Product(a, b, onto, use_acc)
        assert not product.compute().isnan().any(), "a product whose operands are not there yet"
        self.products.append(product)
        return product if is_async else self.wait_products(0, [product])

    def wait_products(self, outstanding: int, deps: Sequence[Any]) -> Any:
        while len(self.products) > outstanding:
            product = self.products.pop(0)
            product.result = product.compute()
            assert not product.result.isnan().any(), "an operand was overwritten while it was read"
        # One that is not over yet stays what it is: nothing but another product can be made of it.
        found = tuple(one.result if isinstance(one, Product) and one.result is not None else one for one in deps)
        return found[0] if len(found) == 1 else found


@dataclass
class Assembler:
    """Runs the instructions of an inline assembler block on whole tensors of 32-bit words."""

    registers: dict[str, torch.Tensor]

    def run(self, code: str) -> torch.Tensor:
        for line in re.sub(r"\.reg[^;]*;|[{}]", "", code).split(";"):
            if line.strip():
                name, target, *sources = re.split(r"[\s,]+", line.strip())
                self.registers[target] = self._operate(name, [self._value(one) for one in sources])
        return self.registers["$0"]

    def _value(self, text: str) -> torch.Tensor:
        return self.registers[text] if text in self.registers else torch.tensor(int(text, 0))

    @staticmethod
    def _operate(name: str, values: list[torch.Tensor]) -> torch.Tensor:
        one, other = values
        if name == "mul.rn.bf16x2":
            halves = [(_bf16(one >> shift) * _bf16(other >> shift)).bfloat16() for shift in (0, 16)]
            low, high = (half.view(torch.int16).long() & 0xFFFF for half in halves)
            return high << 16 | low
        operations = {
            "and.b32": torch.bitwise_and,
            "shl.b32": torch.bitwise_left_shift,
            "shr.b32": torch.bitwise_right_shift,
            "mul.lo.u32": torch.mul,
        }
        return operations[name](one, other) & 0xFFFFFFFF


def _bf16(bits: torch.Tensor) -> torch.Tensor:
    """What the low 16 bits are as a bfloat16, in fp32."""
    low = bits & 0xFFFF
    return torch.where(low >= 1 << 15, low - (1 << 16), low).to(torch.int16).view(torch.bfloat16).float()


def _pairs(words: torch.Tensor, scales: torch.Tensor, code: str) -> torch.Tensor:
    """Two neighbours of int16 a register, and the first one's 32-bit word beside them. bf16."""
    low, high = (words.long() & 0xFFFF).unflatten(-1, (-1, 2)).unbind(-1)
    second = scales.long().unflatten(-1, (-1, 2))[..., 0] & 0xFFFFFFFF
    result = Assembler({"$1": high << 16 | low, "$2": second}).run(code)
    return torch.stack((_bf16(result), _bf16(result >> 16)), dim=-1).flatten(-2).bfloat16()


def _like(value: Any) -> torch.Tensor:
    return torch.as_tensor(value)


def language(machine: Machine) -> types.SimpleNamespace:
    """What kernels call `gl`."""

    def load(pointer: Pointer, mask: Any = None, other: Any = 0) -> torch.Tensor:
        values = pointer.of[pointer.places(mask)]
        return values if mask is None else torch.where(torch.broadcast_to(mask, values.shape), values, other)

    def store(pointer: Pointer, value: Any, mask: Any = None) -> None:
        at = pointer.places(mask)
        value = torch.broadcast_to(_like(value), at.shape).to(pointer.of.dtype)
        used = slice(None) if mask is None else torch.broadcast_to(mask, at.shape)
        pointer.of[at[used]] = value[used]

    def assembler(code: str, constraints: str, args: list[Any], **_: Any) -> Any:
        if "trap" in code:
            assert not bool((args[0] < 0).any()), "the kernel stops itself"
            return args[0]
        return _pairs(*args, code)

    def allocate(dtype: Any, shape: Any, layout: Any) -> Shared:
        buffer = Shared(torch.zeros(shape, dtype=dtype))
        buffer.poison()
        return buffer

    def create(shape: Any, dtype: Any, layout: Any = None) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)

    return types.SimpleNamespace(
        program_id=lambda axis: torch.tensor(machine.program[axis]),
        arange=lambda low, high, layout=None: torch.arange(low, high),
        load=load,
        store=store,
        zeros=create,
        full=lambda shape, value, dtype, layout=None: torch.full(shape, value, dtype=dtype),
        zeros_like=torch.zeros_like,
        where=lambda condition, one, other: torch.where(_like(condition), one, other),
        minimum=lambda one, other: torch.minimum(*torch.broadcast_tensors(_like(one), _like(other))),
        maximum=lambda one, other: torch.maximum(*torch.broadcast_tensors(_like(one), _like(other))),
        max=lambda x, axis: x.amax(axis),
        sum=lambda x, axis: x.sum(axis),
        exp=torch.exp,
        exp2=torch.exp2,
        join=lambda one, other: torch.stack((one, other), dim=-1),
        split=lambda x: x.unbind(-1),
        permute=lambda x, order: x.permute(*order),
        reshape=lambda x, shape: x.reshape(shape),
        broadcast=lambda one, other: torch.broadcast_tensors(one, other),
        expand_dims=lambda x, axis: x.unsqueeze(axis),
        convert_layout=lambda x, layout, assert_trivial=False: x,
        inline_asm_elementwise=assembler,
        allocate_shared_memory=allocate,
        static_range=builtins.range,
        int16=torch.int16,
        int32=torch.int32,
        int64=torch.int64,
        float32=torch.float32,
        bfloat16=torch.bfloat16,
        constexpr=lambda value: value,
        BlockedLayout=lambda *_, **__: None,
        SliceLayout=lambda *_, **__: None,
        DotOperandLayout=lambda *_, **__: None,
        SwizzledSharedLayout=lambda *_, **__: None,
        NVMMASharedLayout=lambda *_, **__: None,
        NVMMADistributedLayout=lambda *_, **__: None,
    )


def _is_jitted(value: Any) -> bool:
    return isinstance(getattr(value, "fn", None), types.FunctionType)


def _argument(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return Pointer(value.view(-1))
    if isinstance(value, TensorDescriptor):
        return Described(value.base, list(value.block_shape))
    return torch.tensor(value, dtype=torch.int64)


class Kernel:
    """Stands in for a jitted function of a module: `Kernel(module, name)[grid](...)`."""

    def __init__(self, module: types.ModuleType, name: str) -> None:
        self._names, self._name = dict(vars(module)), name
        for value in vars(module).values():  # what a function of another module calls there
            if _is_jitted(value):
                self._names = value.fn.__globals__ | self._names

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def run(*arguments: Any, num_warps: int, maxnreg: int = 255, **constants: Any) -> None:
            given = [_argument(one) for one in arguments]
            for program in itertools.product(*(range(size) for size in (*grid, 1, 1)[:3])):
                machine = Machine((program[0], program[1], program[2]))
                self._function(machine)(*given, **constants)
                assert not machine.stores, "ended before what it stores was read"
                assert not any(barrier.expected for barrier in machine.barriers.values()), "ended before a copy"

        return run

    def _function(self, machine: Machine) -> Callable[..., object]:
        """The kernel, with all that it calls bound to one program's machine."""
        known: dict[str, Any] = {
            "gl": language(machine),
            "async_copy": types.SimpleNamespace(
                async_copy_global_to_shared=machine.copy,
                commit_group=machine.commit,
                wait_group=machine.wait_copies,
            ),
            "mbarrier": types.SimpleNamespace(
                init=machine.make_barrier,
                expect=machine.expect,
                wait=machine.wait_barrier,
                MBarrierLayout=lambda: None,
            ),
            "tma": types.SimpleNamespace(
                async_copy_global_to_shared=machine.copy_box,
                async_copy_shared_to_global=machine.store_box,
                store_wait=machine.wait_stores,
            ),
            "fence_async_shared": lambda: None,
            "_barrier": lambda: None,
            "warpgroup_mma": machine.start,
            "warpgroup_mma_wait": lambda outstanding, deps: machine.wait_products(outstanding, deps),
            "range": lambda *bounds: builtins.range(*(int(bound) for bound in bounds)),
        }
        scope: dict[str, Any] = {**self._names, **known}
        for name, value in self._names.items():
            if _is_jitted(value):
                scope[name] = types.FunctionType(value.fn.__code__, scope, name, value.fn.__defaults__)
            elif type(value).__name__ == "constexpr":
                scope[name] = value.value
        return scope[self._name]  # type: ignore[no-any-return]
