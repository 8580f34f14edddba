from npdwconv.kernels.cpu.engine import Kernel
from npdwconv.kernels.cpu.tiles import start,row_inner,row_edge,finish

def _pixels(task, item):
    blocks = task.row_blocks
    n = item // blocks
    b = item % blocks
    rows = task.batch_rows
    p0 = b * task.block_rows
    p1 = min(p0 + task.block_rows, task.out_h)
    size = task.size
    lanes = task.lanes
    for group in range(0, task.channels, task.group):
        last = min(group + task.group, task.channels)
        for p in range(p0, p1):
            top = p * task.stride_h - task.low_h
            r0 = (max(-top, 0) + task.dilation_h - 1) // task.dilation_h
            r1 = min((task.height - 1 - top) // task.dilation_h + 1, task.kernel_h)
            for q in range(0, task.out_w, task.pixels):
                left_col = q * task.stride_w - task.low_w
                reach = left_col + (task.pixels - 1) * task.stride_w + (task.kernel_w - 1) * task.dilation_w
                inner = left_col >= 0 and reach < task.width
                count = min(task.out_w - q, task.pixels)
                xq = task.x + ((n * task.height + top) * task.x_row + left_col * task.x_pixel) * size
                oq = task.out + ((n * task.out_h + p) * task.out_row + q * task.out_pixel) * size
                for c in range(group, last, lanes):
                    left = last - c
                    sums = start(task, task.bias_at + c * size, left)
                    for r in range(r0, r1):
                        x = xq + (r * task.dilation_h * task.x_row + c) * size
                        w = task.weight + (r * task.kernel_w * task.weight_tap + c) * size
                        if inner:
                            sums = row_inner(task, sums, x, w, left, 0, 0)
                        else:
                            sums = row_edge(task, sums, x, w, left, -left_col, task.width - left_col)
                    finish(task, sums, oq + c * size, left, count)
pixels = Kernel(_pixels)
