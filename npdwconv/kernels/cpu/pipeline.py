"""Which passes make a kernel: those of Numba that kernels need, one of our own, and LLVM's, once over the whole.

Kernels are written in vectors, their functions are inlined and nothing in them counts references: Numba's passes that
rewrite, fuse or count, and LLVM's vectorisers, would find nothing to do (what it saves: docs/performance.md).
"""

from __future__ import annotations

import operator
from typing import Any

import llvmlite.binding as llvm
from numba import _dynfunc
from numba.core import ir, types
from numba.core.analysis import compute_cfg_from_blocks
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase
from numba.core.compiler_machinery import FunctionPass, PassManager, register_pass
from numba.core.ir_utils import build_definitions
from numba.core.typed_passes import (
    IRLegalization,
    NativeLowering,
    NoPythonBackend,
    NopythonTypeInference,
    PreLowerStripPhis,
)
from numba.core.untyped_passes import FixupArgs, GenericRewrites, IRProcessing, ReconstructSSA, TranslateByteCode

from npdwconv.kernels.cpu.machine import machine
from npdwconv.kernels.cpu.spec import Spec, TaskType


class Pipeline(CompilerBase):
    """How Numba compiles a kernel, and the functions that it calls."""

    def define_pipelines(self) -> list[Any]:
        passes = PassManager("kernel")
        for each in (
            TranslateByteCode,
            FixupArgs,
            IRProcessing,
            _BranchesOfTheSpec,
            GenericRewrites,
            ReconstructSSA,
            _Types,
            PreLowerStripPhis,
            IRLegalization,
            _Lowering,
            NoPythonBackend,
        ):
            passes.add_pass(each, each.__name__)
        passes.finalize()
        return [passes]


class _Unknown(Exception):
    """A value that only a call knows."""


@register_pass(mutates_CFG=True, analysis_only=False)
class _BranchesOfTheSpec(FunctionPass):
    """Where a spec decides a branch, the other side goes, before anybody finds types or writes code for it."""

    _name = "branches_of_the_spec"

    def __init__(self) -> None:
        super().__init__()  # abstract in Numba

    def run_pass(self, state: Any) -> bool:
        function, arguments = state.func_ir, state.args
        decided = False
        for block in function.blocks.values():
            branch = block.terminator
            if isinstance(branch, ir.Branch):
                try:
                    taken = branch.truebr if _known(function, arguments, branch.cond) else branch.falsebr
                except (_Unknown, ArithmeticError):  # such as a division that another branch keeps from happening
                    continue
                block.body[-1] = ir.Jump(taken, branch.loc)
                decided = True
        if decided:
            for label in compute_cfg_from_blocks(function.blocks).dead_nodes():
                del function.blocks[label]
            function._definitions = build_definitions(function.blocks)
        return decided


def _known(function: Any, arguments: Any, node: Any) -> Any:
    """The value of ``node`` where constants and a task's spec alone make it; else `_Unknown` is raised."""

    def known(inner: Any) -> Any:
        return _known(function, arguments, inner)

    match node:
        case ir.Var(name=name) if len(function._definitions[name]) == 1:
            return known(function._definitions[name][0])
        case ir.Const(value=value) | ir.Global(value=value) | ir.FreeVar(value=value):
            return value
        case ir.Arg(index=index) if isinstance(arguments[index], TaskType):
            return arguments[index].spec
        case ir.Expr(op="getattr"):
            spec = known(node.value)
            if isinstance(spec, Spec) and spec.knows(node.attr):
                return getattr(spec, node.attr)
        case ir.Expr(op="binop"):
            return node.fn(known(node.lhs), known(node.rhs))
        case ir.Expr(op="unary"):
            return node.fn(known(node.value))
        case ir.Expr(op="call") if known(node.func) is bool:
            return bool(known(node.args[0]))
    raise _Unknown


_OPERATORS = frozenset([max, min, range, *(getattr(operator, name) for name in operator.__all__)])
_signatures: dict[tuple[Any, ...], Any] = {}  # of operators, by types of integers: Numba's are the same in all kernels


class _Typing:
    """Numba's typing, asked only once what an operator makes of integers: before it knows, it tries what NumPy makes of
    arrays."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def resolve_function_type(self, function: Any, arguments: Any, named: Any) -> Any:
        plain = tuple(map(types.unliteral, arguments))
        integers = all(isinstance(kind, (types.Integer, types.Boolean)) for kind in plain)
        known = all(isinstance(kind, types.Literal) for kind in arguments)  # some operators give literals for literals
        if known or named or not integers or getattr(function, "typing_key", None) not in _OPERATORS:
            return self._context.resolve_function_type(function, arguments, named)
        key = (function, plain)
        if key not in _signatures:
            _signatures[key] = self._context.resolve_function_type(function, plain, named)
        return _signatures[key]


@register_pass(mutates_CFG=True, analysis_only=False)
class _Types(NopythonTypeInference):
    """Types of everything."""

    _name = "types_of_a_kernel"

    def run_pass(self, state: Any) -> bool:
        context, state.typingctx = state.typingctx, _Typing(state.typingctx)
        try:
            return bool(super().run_pass(state))
        finally:
            state.typingctx = context


@register_pass(mutates_CFG=True, analysis_only=False)
class _Lowering(NativeLowering):
    """Code for LLVM, in a library of our own, which nobody calls yet."""

    _name = "lowering_of_a_part"

    def run_pass(self, state: Any) -> bool:
        state.library = _Library(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.aligned = any(isinstance(kind, TaskType) and kind.spec.stacked for kind in state.args)
        state.library.enable_object_caching()
        state.flags.no_compile = True
        super().run_pass(state)
        described, library = state.cr.fndesc, state.library
        module, name = described.lookup_module(), described.qualname
        nothing = _dynfunc.make_function(module, name, "", 0, state.cr.env, (library,))
        state.cr = state.cr._replace(cfunc=nothing)  # what Python would call: as for any function without a wrapper
        state.targetctx.insert_user_function(nothing, described, [library])
        return True


class _Library(JITCodeLibrary):
    """Code that LLVM optimises and assembles once, as a whole; a function that a kernel calls only becomes part of it.

    Numba optimises each function by itself, the whole cheaply in order to drop counts of references, then the whole,
    for every function that a kernel calls and for the kernel.
    """

    aligned = False
    _linkable: Any = None

    def add_ir_module(self, module: Any) -> None:
        """Code whose stack begins with a whole vector where ``aligned``: LLVM by itself aligns it to 16 bytes.

        That takes a register, so it is only for specs that are `stacked`.
        """
        for function in module.functions if self.aligned else ():
            if not function.is_declaration:
                function.attributes.add("nounwind")  # alone, the other attribute is not written
                function.attributes.alignstack = machine().vector_bytes
        super().add_ir_module(module)

    def add_linking_library(self, library: Any) -> None:
        self._linking_libraries.append(library)

    def _get_module_for_linking(self) -> Any:
        """This code and what it calls, not optimised: whoever links it optimises all."""
        if self._linkable is None:
            module = self._final_module.clone()
            for library in dict.fromkeys(self._linking_libraries):
                module.link_in(library._get_module_for_linking(), preserve=True)
            for function in module.functions:
                if not function.is_declaration and function.linkage == llvm.Linkage.external:
                    function.linkage = "linkonce_odr"
            self._linkable = module
        return self._linkable

    def _optimize_functions(self, ll_module: Any) -> None:
        ll_module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self) -> None:
        passes, builder = self._codegen._module_pass_manager(loop_vectorize=False, slp_vectorize=False)
        passes.run(self._final_module, builder)
