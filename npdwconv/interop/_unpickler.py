"""Interop room: a pickle machine that builds plain containers and tensors, and has no way to anything else.

Not a subclass of `pickle.Unpickler`: that one takes extension codes from the cache of `copyreg` without asking
`find_class`, sets attributes on whatever a BUILD is aimed at, and sizes its memo by the largest index named.
Here `pickletools` decodes the opcodes; the tables OPCODES and GLOBALS are all that they can do.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import IO, Any, TypeVar

from npdwconv.errors import CheckpointError
from npdwconv.interop._globals import GLOBALS, Global, key

T = TypeVar("T")

# A pickle holds what its calls are given, so these are not much longer in all than the pickle itself.
COPIES_PER_BYTE = 16


class Unpickler:
    """Reads one pickle from a stream and leaves the stream right behind it."""

    def __init__(self, stream: IO[bytes], persistent_load: Callable[[object], object]) -> None:
        self.stream, self.persistent_load = stream, persistent_load
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.copied = 0

    def load(self) -> object:
        """The value that the pickle describes, with tensors and storages not yet made arrays."""
        try:
            return self._run()
        except CheckpointError:
            raise
        except (ValueError, DeprecationWarning) as err:  # the latter if an escape in a text opcode is no good
            raise CheckpointError(f"the pickle is damaged: {str(err)[:200]}") from err
        except MemoryError as err:
            raise CheckpointError("the pickle claims a string longer than memory") from err

    def _run(self) -> object:
        for opcode, arg, _ in pickletools.genops(self.stream):
            if opcode.name == "STOP":
                break
            if opcode.name not in OPCODES:
                shown = f" {arg[:200]!r}" if isinstance(arg, str) else ""
                raise CheckpointError(
                    f"the pickle uses the opcode {opcode.name}{shown}, which no tensor or plain container needs"
                )
            OPCODES[opcode.name](self, arg)
        return self.take(1)[0]

    def find_class(self, module: object, name: object) -> None:
        """Push what GLOBALS has under this name; refuse any other by its name."""
        if type(module) is not str or type(name) is not str:
            raise CheckpointError("the pickle asks for a global whose name is no string")
        dotted = f"{module}.{name}"
        if dotted not in GLOBALS:
            raise CheckpointError(
                f"the pickle asks for {dotted[:200]!r}; only tensors and plain containers are read: "
                "save a state_dict, or load the file with the program that wrote it if you trust it"
            )
        self.stack.append(GLOBALS[dotted])

    def top(self, kind: type[T]) -> T:
        """The object on top of the stack, which must be exactly a ``kind``."""
        value = self.peek()
        if type(value) is not kind:
            raise CheckpointError(f"the pickle fills a {type(value).__name__} as if it were a {kind.__name__}")
        return value

    def peek(self) -> object:
        """The object on top of the stack."""
        if not self.stack:
            raise CheckpointError("the pickle uses what it has not put on its stack")
        return self.stack[-1]

    def take(self, count: int) -> list[Any]:
        """Pop the last ``count`` objects, in the order in which they were pushed."""
        if count > len(self.stack):
            raise CheckpointError("the pickle takes more from its stack than it put there")
        taken = self.stack[-count:]
        del self.stack[-count:]
        return taken

    def mark(self) -> None:
        """Begin a group; what lies below is out of reach until the group is taken."""
        self.below.append(self.stack)
        self.stack = []

    def group(self) -> list[Any]:
        """Pop everything since the last mark."""
        if not self.below:
            raise CheckpointError("the pickle takes a group that it did not begin")
        taken, self.stack = self.stack, self.below.pop()
        return taken

    def reduce(self) -> None:
        """Call a global with a tuple of arguments."""
        called, args = self.take(2)
        if type(called) is not Global or type(args) is not tuple:
            raise CheckpointError(f"the pickle calls a {type(called).__name__} with a {type(args).__name__}")
        self.copied += sum(len(arg) for arg in args if isinstance(arg, (str, bytes, list, tuple, dict)))
        if self.copied > COPIES_PER_BYTE * self.stream.tell():
            raise CheckpointError("the pickle copies the same values over and over")
        try:
            self.stack.append(called.make(*args))
        except (TypeError, ValueError) as err:
            reason = str(err) if isinstance(err, CheckpointError) else f"{called.name} has unfit arguments: {err}"
            raise CheckpointError(reason) from err

    def build(self) -> None:
        """Drop attributes set on a mapping: those of a state_dict are versions of modules."""
        self.take(1)
        self.top(dict)


def _extend(vm: Unpickler, items: list[Any]) -> None:
    vm.top(list).extend(items)


def _add(vm: Unpickler, items: list[Any]) -> None:
    vm.top(set).update(map(key, items))


def _setitems(vm: Unpickler, items: list[Any]) -> None:
    if len(items) % 2:
        raise CheckpointError("the pickle has a key without a value")
    vm.top(dict).update((key(name), value) for name, value in zip(items[::2], items[1::2], strict=True))


def _put(vm: Unpickler, slot: int) -> None:
    vm.memo[slot] = vm.peek()


def _get(vm: Unpickler, slot: int) -> None:
    if slot not in vm.memo:
        raise CheckpointError("the pickle reads what it has not put into its memo")
    vm.stack.append(vm.memo[slot])


def _push(vm: Unpickler, value: object) -> None:
    vm.stack.append(value)


def _skip(_vm: Unpickler, _arg: object) -> None: ...


Step = Callable[[Unpickler, Any], object]

OPCODES: dict[str, Step] = {
    **dict.fromkeys(("PROTO", "FRAME"), _skip),
    **dict.fromkeys(("NONE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "BINFLOAT"), _push),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"), _push),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"), _push),
    "NEWTRUE": lambda vm, _: _push(vm, True),
    "NEWFALSE": lambda vm, _: _push(vm, False),
    "EMPTY_LIST": lambda vm, _: _push(vm, []),
    "EMPTY_DICT": lambda vm, _: _push(vm, {}),
    "EMPTY_SET": lambda vm, _: _push(vm, set()),
    "EMPTY_TUPLE": lambda vm, _: _push(vm, ()),
    "MARK": lambda vm, _: vm.mark(),
    "TUPLE": lambda vm, _: _push(vm, tuple(vm.group())),
    "TUPLE1": lambda vm, _: _push(vm, tuple(vm.take(1))),
    "TUPLE2": lambda vm, _: _push(vm, tuple(vm.take(2))),
    "TUPLE3": lambda vm, _: _push(vm, tuple(vm.take(3))),
    "FROZENSET": lambda vm, _: _push(vm, frozenset(map(key, vm.group()))),
    "APPEND": lambda vm, _: _extend(vm, vm.take(1)),
    "APPENDS": lambda vm, _: _extend(vm, vm.group()),
    "ADDITEMS": lambda vm, _: _add(vm, vm.group()),
    "SETITEM": lambda vm, _: _setitems(vm, vm.take(2)),
    "SETITEMS": lambda vm, _: _setitems(vm, vm.group()),
    "GLOBAL": lambda vm, names: vm.find_class(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda vm, _: vm.find_class(*vm.take(2)),
    "REDUCE": lambda vm, _: vm.reduce(),
    "BUILD": lambda vm, _: vm.build(),
    "BINPERSID": lambda vm, _: _push(vm, vm.persistent_load(vm.take(1)[0])),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _put),
    "MEMOIZE": lambda vm, _: _put(vm, len(vm.memo)),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _get),
}
