"""Matrix products for the CPU: register tiles, panels, and the kernels that walk over them.

``out[i, j] = epilogue(Σ_l a[i, l]·b[l, j])``. Lanes are columns j. A *panel* is a few vectors of columns: `b` over all
of the depth l, packed so that what one step of the depth needs is contiguous. A *tile* is a panel's width by a few
rows: its sums stay in registers while the depth runs, an element of `a` is spread over a vector and multiplied with
each of the panel's. `a` is read where it lies, by any two strides, so either operand of a convolution can be `a`.

A sum starts at the bias and runs over the depth in order, whatever the tile: no bit depends on how the work is split.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from npdwconv.kernels.cpu import activate
from npdwconv.kernels.cpu.arrays import LINE
from npdwconv.kernels.cpu.assembly import halved, opaque, pinned
from npdwconv.kernels.cpu.engine import compiled, inlined
from npdwconv.kernels.cpu.fetching import Walk, prefetch
from npdwconv.kernels.cpu.shuffles import square, transposed
from npdwconv.kernels.cpu.simd import STORED, Value, Vectors, int64
from npdwconv.kernels.cpu.slices import Slice
from npdwconv.kernels.cpu.spec import Spec, field

BANK = 7  # rows of a tile whose addresses share a base, so that the general registers suffice
UNROLLED = 2  # steps of the depth in one round of a tile's loop


def repeat(builder: Any, count: Value, carried: Sequence[Value], body: Callable[..., list[Value]]) -> list[Value]:
    """Emit a loop: ``count`` rounds of ``carried = body(*carried)``; what they are at its end."""
    before, inside, after = builder.block, *(builder.append_basic_block() for _ in range(2))
    builder.cbranch(builder.icmp_signed(">", count, int64(0)), inside, after)
    builder.position_at_end(inside)
    left, *values = (_phi(builder, value, before) for value in (count, *carried))
    results = [builder.sub(left, int64(1)), *body(*values)]
    end = builder.block
    for phi, result in zip((left, *values), results, strict=True):
        phi.add_incoming(result, end)
    builder.cbranch(builder.icmp_signed(">", results[0], int64(0)), inside, after)
    builder.position_at_end(after)
    finals = [_phi(builder, value, before) for value in carried]
    for final, result in zip(finals, results[1:], strict=True):
        final.add_incoming(result, end)
    return finals


def _phi(builder: Any, value: Value, block: Any) -> Value:
    phi = builder.phi(value.type)
    phi.add_incoming(value, block)
    return phi


class _Tile:
    """Emits one register tile of a kernel: ``rows`` × ``vectors`` sums, the last of a row a half one if that does."""

    def __init__(self, builder: Any, task: Value, spec: Spec, rows: int, vectors: int) -> None:
        self.builder, self.task, self.spec = builder, task, spec
        self.rows, self.vectors = rows, vectors
        self.v = v = Vectors(builder, STORED[str(spec.tile_type)][2])
        self.halved = vectors == spec.half
        self.kinds = [v] * (vectors - 1) + [Vectors(builder, v.dtype, v.lanes // 2) if self.halved else v]

    def number(self, name: str) -> Value:
        if self.spec.knows(name):
            return int64(int(getattr(self.spec, name)))
        return field(self.builder, self.spec, self.task, name)

    def places(self, base: Value, step: Value, count: Value | None) -> list[Value]:
        """The addresses of the rows, ``step`` bytes apart; of the last that exists in place of those that do not."""
        b, rows = self.builder, [int64(row) for row in range(self.rows)]
        if count is not None:
            last = b.sub(count, int64(1))
            rows = [b.select(b.icmp_signed("<", row, last), row, last) for row in rows]
        return [b.add(base, b.mul(step, row)) for row in rows]

    def start(self, bias: Value, mask: Value | None, count: Value | None) -> list[Value]:
        """The sums at the bias, which belongs to columns or to rows."""
        v, spec = self.v, self.spec
        if spec.bias_of == "columns":
            size, stored = int(spec.bias_size) * v.lanes, str(spec.bias_type)
            kinds = enumerate(self.kinds)
            return [kind.load(v.at(bias, j * size), stored, self.last(mask, j)) for j, kind in kinds] * self.rows
        if spec.bias_of == "rows":
            rows = self.places(bias, int64(int(spec.bias_size)), count)
            return [kind.splat(v.load_scalar(row, str(spec.bias_type))) for row in rows for kind in self.kinds]
        return [kind.zero() for kind in self.kinds] * self.rows

    def last(self, mask: Value | None, vector: int) -> Value | None:
        """The mask of one of the tile's vectors: only the last can be partial."""
        return mask if vector == self.vectors - 1 else None

    def sums(
        self,
        a: Value,
        panel: Value,
        depth: Value,
        first: list[Value],
        mask: Value | None,
        count: Value | None,
        ahead: list[Value],
    ) -> list[Value]:
        """``first`` plus the products over the depth; what is packed ``ahead`` meanwhile, see `Slice`."""
        b, v, spec = self.builder, self.v, self.spec
        size = int(spec.tile_size)
        step = v.index(self.number("tile_step"), size)
        row = v.index(self.number("tile_row"), size)
        bank = self.rows if count is not None or spec.a_packs else min(self.rows, BANK)
        offsets = [int64(row * size) for row in range(bank)]
        if not spec.a_packs:
            offsets = [opaque(b, offset) for offset in self.places(int64(0), row, count)[:bank]]
        bases = [b.add(a, b.mul(row, int64(start))) for start in range(0, self.rows, bank)]
        stored, width = (str(spec.b_type), int(spec.b_size)) if spec.direct else (v.dtype, v.bytes)
        line_bytes = self.vectors * v.lanes * width
        next_line = v.index(self.number("b_step"), width) if spec.direct else int64(line_bytes)
        soon = opaque(b, b.mul(step, int64(int(spec.a_next))))

        def one(bases: list[Value], panel: Value, sums: list[Value]) -> list[Value]:
            if spec.a_next:
                prefetch(b, b.add(bases[0], soon), near=True)
            for place in range(0, line_bytes if spec.right else 0, LINE):
                prefetch(b, v.at(panel, place + int(spec.right)), near=not spec.direct)
            line = [
                kind.load(v.at(panel, j * v.lanes * width), stored, self.last(mask, j) if spec.direct else None)
                for j, kind in enumerate(self.kinds)
            ]
            results = []
            for number in range(self.rows):  # an element is used up before the next is loaded: registers suffice
                place = b.add(bases[number // bank], offsets[number % bank])
                element = v.splat(v.load_scalar(place, str(spec.tile_type)))
                each = sums[number * self.vectors : (number + 1) * self.vectors]
                if self.halved:
                    results += halved(b, v, element, line, each)
                else:
                    results += pinned(b, [v.fma(element, y, z) for y, z in zip(line, each, strict=True)])
            return results

        walk, part = Walk(b, spec, self.task), Slice(b, spec, self.task, ahead)
        walked, packed = walk.start(), part.start()
        ends = [*accumulate([len(walked), len(packed), len(bases)])]

        def steps(count: int) -> Callable[..., list[Value]]:
            def body(panel: Value, *rest: Value) -> list[Value]:
                walked, packed, bases, results = (list(rest[start:end]) for start, end in pairwise([0, *ends, None]))
                if count == UNROLLED:
                    walked = walk.round(walked)
                for _ in range(count):
                    results, packed = one(bases, panel, results), part.round(packed)
                    bases, panel = [opaque(b, v.at(base, step)) for base in bases], v.at(panel, next_line)
                return [panel, *walked, *packed, *bases, *results]

            return body

        rounds = b.udiv(depth, int64(UNROLLED))
        carried = repeat(b, rounds, [panel, *walked, *packed, *bases, *first], steps(UNROLLED))
        walk.stop(carried[1 : 1 + len(walked)])
        carried = repeat(b, b.urem(depth, int64(UNROLLED)), carried, steps(1))
        return carried[-len(first) :]

    def finish(self, sums: list[Value], out: Value, other: Value, left: Value, count: Value | None, add: Value) -> None:
        """The epilogue, and the results written: the tile's rows are rows of ``out``, or columns where it is turned."""
        spec, finish = self.spec, activate.derivative if self.spec.chain else activate.activate
        kinds = self.kinds * self.rows
        sums = [finish(kind, str(spec.activation), z) for kind, z in zip(kinds, sums, strict=True)]
        if spec.turned:
            self._write_turned(sums, out, other, left, count, add)
        else:
            self._write(sums, out, other, left, count, add)

    def _write(self, sums: list[Value], out: Value, other: Value, left: Value, count: Value | None, add: Value) -> None:
        if not self.spec.streams:
            self._write_rows(sums, out, other, left, count, add)
            return
        b = self.builder
        begun = b.and_(out, int64(self.v.lanes * self.v.bytes - 1))  # of a vector: all rows begin alike
        with b.if_else(b.icmp_signed("==", begun, int64(0)), likely=True) as (whole, begun_before):
            with whole:
                self._write_rows(sums, out, other, left, count, add, streams=True)
            with begun_before:
                self._write_rows(sums, out, other, left, count, add)

    def _write_rows(
        self,
        sums: list[Value],
        out: Value,
        other: Value,
        left: Value,
        count: Value | None,
        add: Value,
        *,
        streams: bool = False,
    ) -> None:
        v, mask = self.v, self.tail(left)
        step = self.number("out_row")
        for row in range(self.rows):
            with self._exists(int64(row), count):
                start = self.builder.mul(step, int64(row))
                for j, kind in enumerate(self.kinds):
                    place = self.builder.add(start, int64(j * v.lanes))
                    value = sums[row * self.vectors + j]
                    self._put(kind, value, place, out, other, self.last(mask, j), add, streams=streams)

    def _write_turned(
        self, sums: list[Value], out: Value, other: Value, left: Value, count: Value | None, add: Value
    ) -> None:
        b = self.builder
        height = 1 << (self.rows - 1).bit_length()
        step = self.number("out_row")
        rows = int64(self.rows) if count is None else count
        for j, v in enumerate(self.kinds):
            lanes = min(height, v.lanes)
            short = Vectors(b, v.dtype, lanes)
            column = [*sums[j :: self.vectors], *[v.zero()] * (height - self.rows)]
            flat = square(v, column) if height == v.lanes else transposed(v, column)
            for lane in range(v.lanes):
                index = j * self.v.lanes + lane
                partial = self.partial and j == self.vectors - 1
                with self._exists(int64(index), left if partial else None):
                    for part in range(0, height, lanes):
                        number, place = divmod(lane * height + part, v.lanes)
                        value = v.shuffle(flat[number], flat[number], range(place, place + lanes))
                        mask = short.between(int64(0), b.sub(rows, int64(part)))
                        start = b.add(b.mul(step, int64(index)), int64(part))
                        self._put(short, value, start, out, other, mask, add)

    def _put(
        self,
        v: Vectors,
        value: Value,
        place: Value,
        out: Value,
        other: Value,
        mask: Value | None,
        add: Value,
        *,
        streams: bool = False,
    ) -> None:
        """Combine one vector with what belongs to the same place, and write it, past the caches if it is whole."""
        b, spec = self.builder, self.spec
        target = b.add(out, v.index(place, int(spec.out_size)))
        if spec.other_type:
            operand = v.load(b.add(other, v.index(place, int(spec.other_size))), str(spec.other_type), mask)
            value = b.fmul(value, operand) if spec.chain else b.fadd(value, operand)
        if spec.adds:
            value = self._added(v, value, target, mask, add)
        if streams and mask is None:
            v.stream(value, target)
        else:
            v.store(value, target, str(spec.out_type), mask)

    def _added(self, v: Vectors, value: Value, target: Value, mask: Value | None, add: Value) -> Value:
        """``value`` plus what is at ``target`` where ``add`` is not zero."""
        b, before = self.builder, self.builder.block
        with b.if_then(b.icmp_signed("!=", add, int64(0))):
            total = b.fadd(v.load(target, str(self.spec.out_type), mask), value)
            inside = b.block
        result = _phi(b, value, before)
        result.add_incoming(total, inside)
        return result

    def prefetch(self, out: Value) -> None:
        """Ask for the lines that the next panel's tile writes."""
        b, spec = self.builder, self.spec
        if not spec.ahead:
            return
        size = int(spec.out_size)
        step = self.v.index(self.number("out_row"), size)
        width = self.vectors * self.v.lanes * size
        for row in range(self.rows):
            for place in range(width, 2 * width, LINE):
                prefetch(b, self.v.at(out, b.mul(step, int64(row)), place), write=True)

    def tail(self, left: Value) -> Value | None:
        """The mask of the last vector; None where every vector is full."""
        if not self.partial:
            return None
        return self.kinds[-1].between(int64(0), self.builder.sub(left, int64((self.vectors - 1) * self.v.lanes)))

    @property
    def partial(self) -> bool:
        """Whether the last vector may have fewer columns than lanes."""
        return bool(self.spec.tail if not self.spec.half else self.halved and self.spec.half_tail)

    def _exists(self, index: Value, count: Value | None) -> Any:
        """Emit what follows only for an index below ``count``."""
        b = self.builder
        inside = ir.Constant(ir.IntType(1), 1) if count is None else b.icmp_signed("<", index, count)
        return b.if_then(inside, likely=True)


@intrinsic(prefer_literal=True)
def _tile(
    typing: Any,
    task: Any,
    rows: Any,
    vectors: Any,
    whole: Any,
    a: Any,
    panel: Any,
    bias: Any,
    out: Any,
    other: Any,
    depth: Any,
    count: Any,
    left: Any,
    add: Any,
    ahead: Any,
) -> Any:
    """One tile: ``count`` of its rows exist (all where ``whole``), and ``left`` columns from its first on."""
    spec = task.spec

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        task_, _, _, _, a_, panel_, bias_, out_, other_, depth_, count_, left_, add_, ahead_ = arguments
        if vectors.literal_value:
            tile = _Tile(builder, task_, spec, rows.literal_value, vectors.literal_value)
            existing = None if whole.literal_value else count_
            mask = tile.tail(left_)
            tile.prefetch(out_)
            first = tile.start(bias_, mask, existing)
            packed = cgutils.unpack_tuple(builder, ahead_)
            sums = tile.sums(a_, panel_, depth_, first, mask, existing, packed)
            tile.finish(sums, out_, other_, left_, existing, add_)
        return context.get_dummy_value()

    arguments = (task, rows, vectors, whole, a, panel, bias, out, other, depth, count, left, add, ahead)
    return types.none(*arguments), generate


@inlined
def _share(task: Any, packed: Any, ahead: Any) -> Any:
    """What a tile packs for `Slice`, after so many columns of a panel: the last ones again, where none is left.

    ``ahead``: where the panel's columns are, its place, the bytes of a step of either, how many columns. Where none is
    left a tile stays at the first step.
    """
    source, target, step, pitch, columns = ahead
    first, left = min(packed, columns - task.slice), packed < columns
    return source + first * task.b_line * task.b_size, target + first * task.size, step * left, pitch * left


def _rows(
    task: Any,
    a: Any,
    panel: Any,
    bias: Any,
    out: Any,
    other: Any,
    depth: Any,
    count: Any,
    wide: Any,
    left: Any,
    add: Any,
    ahead: Any,
) -> None:
    """``count`` rows by one panel; ``ahead``: see `_share`."""
    tile_step, row_step = task.tile_next * task.tile_size, task.tile_row * task.tile_size
    bias_step = task.bias_size if task.bias_of_rows else 0
    out_step = (1 if task.turned else task.out_row) * task.out_size
    other_step = (1 if task.turned else task.out_row) * task.other_size
    packed = 0
    whole = count // task.rows * task.rows if task.rows != task.rest else 0
    for r in range(0, whole, task.rows):
        ar = a + r // task.rows * tile_step + r % task.rows * row_step
        br, outr, otherr = bias + r * bias_step, out + r * out_step, other + r * other_step
        part = _share(task, packed, ahead)
        packed += task.slice
        if wide:
            _tile(task, task.rows, task.vectors, True, ar, panel, br, outr, otherr, depth, count, left, add, part)
        else:
            _tile(task, task.rows, task.last, True, ar, panel, br, outr, otherr, depth, count, left, add, part)
    for r in range(whole, count, task.rest):
        ar = a + r // task.rows * tile_step + r % task.rows * row_step
        br, outr, otherr = bias + r * bias_step, out + r * out_step, other + r * other_step
        part = _share(task, packed, ahead)
        packed += task.slice
        if wide:
            _tile(task, task.rest, task.vectors, False, ar, panel, br, outr, otherr, depth, count - r, left, add, part)
        else:
            _tile(task, task.rest, task.last, False, ar, panel, br, outr, otherr, depth, count - r, left, add, part)


def _first_vector(task: Any, p: Any) -> Any:
    """Where a panel begins, in vectors: after ``wide`` panels of ``vectors`` come those of ``last``."""
    return min(p, task.wide) * task.vectors + max(p - task.wide, 0) * task.last


rows_by_panel, first_vector = compiled(_rows), compiled(_first_vector)
