"""Mistakes to make on purpose in the kernels for the CPU."""

from __future__ import annotations

from mutation import CPU, Mutation

CPU_MUTATIONS = [
    Mutation(
        "out may share its last element",
        f"{CPU}/pool.py",
        "and place < end and target <",
        "and place < end - 4 and target <",
    ),
    Mutation("out may be read-only", f"{CPU}/pool.py", "WRITABLE if i == task.result else READABLE", "READABLE"),
    Mutation("half a vector too early", f"{CPU}/simd.py", "kind(1 << (half - 1))", "kind(1 << half)"),
    Mutation("half a vector where it was", f"{CPU}/simd.py", "self.at(address, half * size)", "address"),
    Mutation("the end of some lanes is not written", f"{CPU}/simd.py", "sorted({0, count - most}", "sorted({0}"),
    Mutation("an operator's types are another's", f"{CPU}/pipeline.py", "(function, plain)", "(None, plain)"),
    Mutation("taps not turned", f"{CPU}/covering.py", "v.shuffle(value, value, places) if self.backwards else", ""),
    Mutation(
        "padding ignored where a kernel covers the plane",
        f"{CPU}/covering.py",
        "int(spec.tap_w) + int(spec.tap_step_w) * int(spec.low_w)",
        "int(spec.tap_w)",
    ),
    Mutation(
        "rows of taps one off where a kernel covers the plane",
        f"{CPU}/covering.py",
        "low, past = b.neg(top_),",
        "low, past = v.at(b.neg(top_), 1),",
    ),
    Mutation(
        "a single row's taps a vector apart swapped",
        f"{CPU}/taps.py",
        "(number - i, weights[i])",
        "(number - i, weights[-1 - i])",
    ),
    Mutation(
        "a single row's padding counts",
        f"{CPU}/taps.py",
        "b.neg(first), b.sub(width, first)",
        "b.neg(first), int64(v.lanes)",
    ),
    Mutation(
        "two planes of an adjoint written to one",
        f"{CPU}/column_tiles.py",
        "plane = self.twin if own and k else None",
        "plane = None",
        "AVX-512",
    ),
    Mutation(
        "results multiplied twice where tiles overlap",
        f"{CPU}/pixel_plans.py",
        "[p for p in fitting if places % p == 0]",
        "[p for p in fitting if places]",
    ),
    Mutation(
        "both planes' sums are the first one's",
        f"{CPU}/weight_rolling.py",
        "v.shuffle(value, value, lanes)",
        "v.shuffle(value, value, both[0])",
        "AVX-512",
    ),
    Mutation(
        "the last results on their way past the caches are lost",
        f"{CPU}/rolled_pixels.py",
        "for row in range(held):",
        "for row in range(held - 1):",
    ),
    Mutation(
        "results past the caches once more from the tiles before",
        f"{CPU}/rolled_pixels.py",
        "room, ready, held = ready, room, count",
        "room, ready, held = room, ready, count",
    ),
    Mutation(
        "steps written out one after the other read the same row",
        f"{CPU}/pixel_rolling.py",
        "v.at(x_, row_size)",
        "x_",
    ),
    Mutation(
        "LLVM may take a masked load for part of an FMA",
        f"{CPU}/simd.py",
        "return self._by_itself(value) if mask is not None and machine().masks else value",
        "return value",
        "AVX-512",
    ),
    Mutation(
        "LLVM may write one bfloat16 as wide as two",
        f"{CPU}/simd.py",
        'self._by_itself(value) if stored == "bfloat16" and machine().masks else value',
        "value",
        "AVX-512",
    ),
    Mutation(
        "an item packs the taps of one vector of channels too few",
        f"{CPU}/packed_taps.py",
        "range(begin, end, task.lanes)",
        "range(begin, end - task.lanes, task.lanes)",
    ),
    Mutation(
        "a strip padded like the image",
        f"{CPU}/chains.py",
        "padding = (read[0] - first, last - read[1])",
        "padding = (h.low, last - read[1])",
    ),
    Mutation(
        "a strip read from the image's first row on",
        f"{CPU}/network.py",
        "address(operand) - address(array)",
        "0",
    ),
    Mutation(
        "a branch decided by one of several values",
        f"{CPU}/pipeline.py",
        "case ir.Var(name=name) if len(function._definitions[name]) == 1:",
        "case ir.Var(name=name):",
    ),
    Mutation(
        "a column at the left edge is left out",
        f"{CPU}/pixel_rolling.py",
        "column < spec.missing",
        "column <= spec.missing",
    ),
    Mutation(
        "a vector is written past the caches as a whole, whatever its mask",
        f"{CPU}/column_tiles.py",
        "b.and_(v.all(mask), aligned)",
        "aligned",
    ),
    Mutation("a column of a slice is another's", f"{CPU}/slices.py", "self.lines[column // scale]", "self.lines[1]"),
    Mutation(
        "fewer columns than a slice are packed by tiles",
        f"{CPU}/product_kernels.py",
        "exists and columns >= task.slice",
        "exists",
    ),
    Mutation("a chunk is added to what was there before", f"{CPU}/dots.py", "mask=b.and_(mask, adds)", "mask=mask"),
    Mutation("rows share their sums", f"{CPU}/dots.py", "begin = (row - first) * part.lanes", "begin = 0"),
    Mutation(
        "a slice reaches past the columns of its panel",
        f"{CPU}/gemm.py",
        "min(packed, columns - task.slice), packed < columns",
        "packed, packed < columns",
    ),
    Mutation(
        "a shorter chunk counts as packed",
        f"{CPU}/product_kernels.py",
        "min(task.chunk, task.depth - start) == depth",
        "task.depth - start > 0",
    ),
    Mutation(
        "the panel in use is overwritten",
        f"{CPU}/product_kernels.py",
        "after % task.panels, after < last, spare)",
        "after % task.panels, after < last, panels)",
    ),
]
