"""Tasks: what a kernel is told, each value either compiled in or read when it runs.

A kernel is a function of one `Task` and the number of a work item. It reads ``task.width`` without knowing whether the
width is a constant of this specialisation or a number that came with the call: a `Spec` names what is *fixed*; the
rest are fields of a block of int64 that the launch hands over. Specialising a kernel means moving a name from the block
to the spec. The Numba type of a task carries its spec, so a kernel stays a module-level function; its compiled code is
kept on disk under a name made of the spec's text, in which a hash of the kernels' sources keeps old code from use.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.datamodel import models, register_default
from numba.core.imputils import lower_getattr_generic
from numba.core.typing.templates import AttributeTemplate, infer_getattr

from npdwconv.kernels.cpu.machine import machine

Fixed = int | bool | str


@dataclass(frozen=True)
class Spec:
    """One specialisation: names of the block's fields in order, and the names that are compiled in."""

    fields: tuple[str, ...]
    fixed: tuple[tuple[str, Fixed], ...]

    @cached_property
    def _values(self) -> dict[str, Fixed]:
        return dict(self.fixed)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in self._values:
            raise AttributeError(f"{name} is not compiled in")
        return self._values[name]

    def knows(self, name: str) -> bool:
        """Whether ``name`` is compiled in."""
        return name in self._values

    @property
    def stacked(self) -> bool:
        """Whether it keeps vectors on the stack and reads them often."""
        return ("stacked", True) in self.fixed

    def text(self) -> str:
        """What distinguishes it, for the cache on disk: its values, the machine, and the kernels' sources."""
        values = ",".join(f"{key}={value!r}" for key, value in self.fixed)
        return f"{values};{','.join(self.fields)};{machine()};{sources()}"


@cache
def sources() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class TaskType(types.Type):
    """The type of a task of one spec."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        super().__init__(name=f"Task[{spec.text()}]")


@register_default(TaskType)
class _TaskModel(models.PrimitiveModel):
    """A pointer to the block."""

    def __init__(self, manager: Any, kind: TaskType) -> None:
        super().__init__(manager, kind, ir.IntType(64).as_pointer())


@infer_getattr
class _TaskAttributes(AttributeTemplate):
    key = TaskType

    def generic_resolve(self, kind: TaskType, name: str) -> Any:
        if kind.spec.knows(name):
            return types.literal(getattr(kind.spec, name))
        return types.int64 if name in kind.spec.fields else None


@lower_getattr_generic(TaskType)
def _task_attribute(context: Any, builder: Any, kind: TaskType, task: Any, name: str) -> Any:
    if kind.spec.knows(name):
        value = getattr(kind.spec, name)
        if isinstance(value, str):
            return context.get_dummy_value()
        return ir.Constant(ir.IntType(1 if isinstance(value, bool) else 64), int(value))
    return field(builder, kind.spec, task, name)


def place(builder: Any, spec: Spec, task: Any, name: str) -> Any:
    """Where a field of the block lies."""
    return builder.gep(task, [ir.IntType(64)(spec.fields.index(name))])


def field(builder: Any, spec: Spec, task: Any, name: str) -> Any:
    """The value of a field of the block; it does not change while a kernel runs."""
    value = builder.load(place(builder, spec, task, name))
    value.set_metadata("invariant.load", builder.module.add_metadata([]))
    return value
