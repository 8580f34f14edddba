"""Functions of Python called from code that Numba compiles: by name, with any keywords, and kept on disk with the code.

What compiled code passes becomes Python objects (arrays without a copy), the function runs as it always does, and its
result goes back as values of a type that was settled from the arguments' types. Its exceptions are raised in the
compiled code, where they can be caught. The interpreter's lock is held for the call; kernels release it while they run.

Numba's ``objmode`` does the like, but code that contains it is not kept on disk, and it must spell out its result.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils
from numba.core import types as numba_types
from numba.core.callconv import RETCODE_USEREXC
from numba.core.errors import TypingError
from numba.core.imputils import lower_builtin
from numba.core.typing import signature
from numba.core.typing.templates import AbstractTemplate, infer_global

from npdwconv.errors import BackendUnavailableError, DTypeError, OptionError, ShapeError

types: Any = numba_types  # whose stub lacks most of its names

ERRORS = (ShapeError, DTypeError, OptionError, BackendUnavailableError, MemoryError)
FAILURE = types.Tuple([types.int64, types.unicode_type])

Kinds = Mapping[str, Any]  # Numba's types of the arguments of one call, by name
Result = Callable[[Kinds], Any]


def register(function: Callable[..., Any], call: Callable[..., Any], result: Result) -> None:
    """Let compiled code call ``function``, which returns a value of the type ``result(kinds of the arguments)``.

    What runs is ``call(name, known, names)(*values)``: the function's name, the arguments that were known at
    compilation, and the names and values of the others; it is pickled into the code. It returns a pair: the result and
    None, or None and what `failure` says of an exception.
    """
    parameters = inspect.signature(function)

    class Call(AbstractTemplate):
        key = function
        prefer_literal = True

        def generic(self, args: Sequence[Any], kws: Mapping[str, Any]) -> Any:
            try:
                kinds = parameters.bind(*args, **kws).arguments
                returned = result(kinds)
            except TypeError as error:
                raise TypingError(f"{function.__name__}: {error}") from None
            return signature(returned, *kinds.values()).replace(pysig=_passed(kinds))

    infer_global(function, types.Function(Call))
    lower_builtin(function, types.VarArg(types.Any))(_lowering(function.__name__, call))


def _passed(kinds: Kinds) -> inspect.Signature:
    """A signature of the arguments that a call has, and of no others."""
    return inspect.Signature([inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in kinds])


def known(kind: Any) -> tuple[bool, Any]:
    """Whether a type says what the value is, and that value."""
    if isinstance(kind, types.Literal):
        return True, kind.literal_value
    if isinstance(kind, types.NoneType):
        return True, None
    if isinstance(kind, types.Omitted):  # a default of the caller's own
        return True, kind.value
    if isinstance(kind, types.BaseTuple):
        parts = [known(part) for part in kind]
        return all(settled for settled, _ in parts), tuple(value for _, value in parts)
    return False, None


def _lowering(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def lower(context: Any, builder: Any, sig: Any, values: Sequence[Any]) -> Any:
        settled, names, passed = {}, [], []
        for argument, kind, value in zip(sig.pysig.parameters, sig.args, values, strict=True):
            fixed, constant = known(kind)
            if fixed:
                settled[argument] = constant
            else:
                names.append(argument)
                passed.append((kind, value))
        return _call(context, builder, call(name, settled, tuple(names)), passed, sig.return_type)

    return lower


def failure(error: Exception) -> tuple[int, str]:
    """An exception as compiled code can raise it: which of `ERRORS`, or one past them, and its message."""
    found = (place for place, kind in enumerate(ERRORS) if isinstance(error, kind))
    return next(found, len(ERRORS)), str(error) or type(error).__name__


def _call(context: Any, builder: Any, callee: Any, passed: Sequence[tuple[Any, Any]], returned: Any) -> Any:
    """Emit a call of the Python object ``callee`` with values of compiled code."""
    python = context.get_python_api(builder)
    lock = python.gil_ensure()
    environment = context.get_env_manager(builder)
    function = environment.read_const(environment.add_const(callee))
    for kind, value in passed:
        context.nrt.incref(builder, kind, value)  # which the object takes over
    objects = [python.from_native_value(kind, value, environment) for kind, value in passed]
    answer = python.call_function_objargs(function, objects)
    for item in objects:
        python.decref(item)
    _leave_if(context, builder, builder.icmp_unsigned("==", answer, answer.type(None)), lock)

    result, failed = (python.tuple_getitem(answer, place) for place in (0, 1))
    native_type, none = context.get_value_type(returned), python.borrow_none()
    place = cgutils.alloca_once_value(builder, ir.Constant(native_type, None))
    with builder.if_else(builder.icmp_unsigned("==", failed, none), likely=True) as (then, otherwise):
        with then:
            builder.store(_taken(context, builder, returned, result, answer, lock), place)
        with otherwise:
            kind_and_message = _taken(context, builder, FAILURE, failed, answer, lock)
            _raise(context, builder, *cgutils.unpack_tuple(builder, kind_and_message))
    return builder.load(place)


def _raise(context: Any, builder: Any, kind: Any, message: Any) -> None:
    """Emit the raising of ``ERRORS[kind]``: leave the function, or in a ``try`` go on to its handler."""
    convention = context.call_conv
    for place, error in enumerate((*ERRORS, RuntimeError)):
        with builder.if_then(builder.icmp_signed("==", kind, kind.type(place))):
            convention.set_dynamic_user_exc(builder, error, (message,), (types.unicode_type,))
    with builder.if_then(builder.not_(convention.check_try_status(builder).in_try)):
        convention._return_errcode_raw(builder, RETCODE_USEREXC)  # what Numba's own raise ends with


def _taken(context: Any, builder: Any, kind: Any, item: Any, owner: Any, lock: Any) -> Any:
    """The Python object ``item`` as a value of type ``kind``; ends what the call needed."""
    python = context.get_python_api(builder)
    native = python.to_native_value(kind, item)
    python.decref(owner)
    if native.cleanup is not None:
        native.cleanup()
    _leave_if(context, builder, native.is_error, lock)
    python.gil_release(lock)
    return native.value


def _leave_if(context: Any, builder: Any, condition: Any, lock: Any) -> None:
    """Give up where Python has an exception set that cannot be told apart, such as KeyboardInterrupt."""
    with builder.if_then(condition, likely=False):
        context.get_python_api(builder).gil_release(lock)
        context.call_conv.return_exc(builder)


# types of results


def like(operand: str) -> Result:
    """An array of the operand's dtype and rank in C order; ``out`` itself where it is passed."""

    def result(kinds: Kinds) -> Any:
        return _array(kinds, operand) if _absent(kinds, "out") else kinds["out"]

    return result


def arrays(*operands: str) -> Result:
    """A tuple of arrays like the operands."""
    return lambda kinds: types.Tuple([_array(kinds, name) for name in operands])


def gradients(form: Any) -> Result:
    """The named tuple ``form`` of arrays like the operands of those names; None for what is absent or not needed."""

    def result(kinds: Kinds) -> Any:
        settled, needs = known(kinds["needs"]) if "needs" in kinds else (True, form._fields)
        if not settled:
            raise TypeError(f"needs is a value of type {kinds['needs']}; compiled code needs literals there")
        wanted = (needs,) if isinstance(needs, str) else needs
        fields = [_array(kinds, name) if name in wanted else types.none for name in form._fields]
        return types.NamedTuple(fields, form)

    return result


def _absent(kinds: Kinds, name: str) -> bool:
    return name not in kinds or known(kinds[name]) == (True, None)


def _array(kinds: Kinds, name: str) -> Any:
    if _absent(kinds, name):
        return types.none
    kind = kinds[name]
    if isinstance(kind, types.Optional):
        return types.Optional(_array({name: kind.type}, name))
    if not isinstance(kind, types.Array):
        raise TypeError(f"{name} is a value of type {kind}; needed an array")
    return types.Array(kind.dtype, kind.ndim, "C")
