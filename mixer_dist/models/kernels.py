"""Triton kernels of `fused`: each reads and writes every activation once.

All take contiguous tensors of fp32 or bf16, compute in fp32, and sum in a fixed order: the same
arguments give the same bits. An activation is seen as a matrix of rows and columns; programs take
tiles of it. In arguments, S tokens, B batch, C channels, D outputs of a map.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

SLOPE = tl.constexpr(1.5957691216057308)  # as in gelu.py: 2 * sqrt(2 / pi)
CUBE = tl.constexpr(0.044715)
# The fastest of those tried for H/14 on an H200.
TILE = 2048  # elements
COLUMNS = 1024  # of a GELU's tile
NUM_TILES = 16  # that a program of the GELU's backward pass takes, one below the other
NUM_PROGRAMS = 1056  # of LayerNorm's backward pass; each gives a row of partial sums
NORM_WARPS = 2  # of a row in LayerNorm


def gelu(x: Tensor, bias: Tensor, over_tokens: bool) -> Tensor:
    """Return GELU(x + bias); over tokens x is (D, B, C), over channels (S, B, D), the bias (D,)."""
    value = torch.empty_like(x)
    num_rows, num_columns = _matrix_shape(x, over_tokens)
    rows = TILE // COLUMNS
    grid = triton.cdiv(num_rows, rows), triton.cdiv(num_columns, COLUMNS)
    _gelu[grid](x, bias, value, num_rows, num_columns, over_tokens, rows, COLUMNS, num_warps=8)
    return value


def gelu_backward(
    grad: Tensor, x: Tensor, bias: Tensor, over_tokens: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return GELU(x + bias) and, for `grad`, the gradients of x, in its memory, and of the bias."""
    value = torch.empty_like(x)
    num_rows, num_columns = _matrix_shape(x, over_tokens)
    rows = TILE // COLUMNS
    grid = triton.cdiv(num_rows, rows * NUM_TILES), triton.cdiv(num_columns, COLUMNS)
    sums = (num_rows, grid[1]) if over_tokens else (grid[0], num_columns)
    partial = torch.empty(sums, dtype=torch.float32, device=x.device)
    _gelu_backward[grid](
        x, bias, grad, value, partial, num_rows, num_columns,
        over_tokens, rows, COLUMNS, NUM_TILES, num_warps=8,
    )  # fmt: skip
    return value, grad, partial.sum(1 if over_tokens else 0).to(bias.dtype)


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return LayerNorm(x) over the last axis, the means (S, B) and the reciprocal deviations."""
    value, num_columns = torch.empty_like(x), x.shape[-1]
    mean, rstd = torch.empty((2, *x.shape[:-1]), dtype=torch.float32, device=x.device)
    _layer_norm[(mean.numel(),)](
        x, weight, bias, value, mean, rstd, num_columns, epsilon,
        triton.next_power_of_2(num_columns), num_warps=NORM_WARPS,
    )  # fmt: skip
    return value, mean, rstd


def layer_norm_backward(
    grad: Tensor,
    of_residual: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return LayerNorm(x) and, for `grad`, the gradients of x, of the weight and of the bias.

    That of x is what LayerNorm gives plus `of_residual`, and takes the memory of `grad`.
    """
    value, num_columns = torch.empty_like(x), x.shape[-1]
    num_rows, columns = mean.numel(), triton.next_power_of_2(num_columns)
    grid = (min(NUM_PROGRAMS, num_rows),)
    partial = torch.empty((2, grid[0], num_columns), dtype=torch.float32, device=x.device)
    _layer_norm_backward[grid](
        x, weight, bias, mean, rstd, grad, of_residual, value, partial[0], partial[1],
        num_rows, num_columns, triton.cdiv(num_rows, grid[0]), columns, num_warps=NORM_WARPS,
    )  # fmt: skip
    of_weight, of_bias = partial.sum(1).to(weight.dtype)
    return value, grad, of_weight, of_bias


def add_branch(
    residual: Tensor, x: Tensor, bias: Tensor, mask: Tensor | None, over_tokens: bool
) -> Tensor:
    """Return residual + mask * (x + bias), (S, B, C): the bias (S,) or (C,), the mask (B,)."""
    result, (num_tokens, batch, num_columns) = torch.empty_like(x), x.shape
    columns = triton.next_power_of_2(num_columns)
    rows = max(1, TILE // columns)
    grid = (triton.cdiv(num_tokens * batch, rows),)
    _add_branch[grid](
        residual, x, bias, bias if mask is None else mask, result, num_tokens * batch, batch,
        num_columns, over_tokens, mask is not None, rows, columns, num_warps=8,
    )  # fmt: skip
    return result


def _matrix_shape(x: Tensor, over_tokens: bool) -> tuple[int, int]:
    """Rows and columns of a hidden layer, of which one kind has a bias each."""
    num_rows = x.shape[0] if over_tokens else x.shape[0] * x.shape[1]
    return num_rows, x.numel() // num_rows


@triton.jit
def _gelu(
    x_ptr, bias_ptr, value_ptr, num_rows, num_columns,
    PER_ROW: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    inside = (row < num_rows) & (column < num_columns)
    at = row.to(tl.int64) * num_columns + column
    if PER_ROW:
        bias = tl.load(bias_ptr + row, mask=row < num_rows, other=0.0)
    else:
        bias = tl.load(bias_ptr + column, mask=column < num_columns, other=0.0)
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32) + bias.to(tl.float32)
    sigmoid = tl.sigmoid((x + x * x * x * CUBE) * SLOPE)
    tl.store(value_ptr + at, (x * sigmoid).to(value_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _gelu_backward(
    x_ptr, bias_ptr, grad_ptr, value_ptr, partial_ptr, num_rows, num_columns,
    PER_ROW: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, NUM_TILES: tl.constexpr,
):  # fmt: skip
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    of_bias = tl.zeros((ROWS, COLUMNS), tl.float32)
    for tile in range(NUM_TILES):
        first = (tl.program_id(0) * NUM_TILES + tile) * ROWS
        row = (first + tl.arange(0, ROWS))[:, None]
        inside = (row < num_rows) & (column < num_columns)
        at = row.to(tl.int64) * num_columns + column
        if PER_ROW:
            bias = tl.load(bias_ptr + row, mask=row < num_rows, other=0.0)
        else:
            bias = tl.load(bias_ptr + column, mask=column < num_columns, other=0.0)
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32) + bias.to(tl.float32)
        grad = tl.load(grad_ptr + at, mask=inside, other=0.0).to(tl.float32)
        sigmoid = tl.sigmoid((x + x * x * x * CUBE) * SLOPE)
        z_slope = (x * x * 3 * CUBE + 1) * SLOPE
        of_x = grad * (sigmoid + x * z_slope * sigmoid * (1 - sigmoid))
        tl.store(value_ptr + at, (x * sigmoid).to(value_ptr.dtype.element_ty), mask=inside)
        tl.store(grad_ptr + at, of_x.to(grad_ptr.dtype.element_ty), mask=inside)
        if PER_ROW:
            place = (first + tl.arange(0, ROWS)).to(tl.int64) * tl.num_programs(1)
            is_row = first + tl.arange(0, ROWS) < num_rows
            tl.store(partial_ptr + place + tl.program_id(1), tl.sum(of_x, 1), mask=is_row)
        else:
            of_bias += of_x
    if not PER_ROW:
        place = tl.program_id(0) * num_columns + tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        is_column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS) < num_columns
        tl.store(partial_ptr + place, tl.sum(of_bias, 0), mask=is_column)


@triton.jit
def _layer_norm(
    x_ptr, weight_ptr, bias_ptr, value_ptr, mean_ptr, rstd_ptr, num_columns, epsilon,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    inside = column < num_columns
    x = tl.load(x_ptr + row * num_columns + column, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(x, 0) / num_columns
    centered = tl.where(inside, x - mean, 0.0)
    rstd = 1 / tl.sqrt(tl.sum(centered * centered, 0) / num_columns + epsilon)
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
    value = (centered * rstd * weight + bias).to(value_ptr.dtype.element_ty)
    tl.store(value_ptr + row * num_columns + column, value, mask=inside)
    tl.store(mean_ptr + row, mean)
    tl.store(rstd_ptr + row, rstd)


@triton.jit
def _layer_norm_backward(
    x_ptr, weight_ptr, bias_ptr, mean_ptr, rstd_ptr, grad_ptr, residual_ptr, value_ptr,
    of_weight_ptr, of_bias_ptr, num_rows, num_columns, rows_of_program, COLUMNS: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, COLUMNS)
    inside = column < num_columns
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
    of_weight = tl.zeros((COLUMNS,), tl.float32)
    of_bias = tl.zeros((COLUMNS,), tl.float32)
    first = tl.program_id(0) * rows_of_program
    for row in range(first, min(first + rows_of_program, num_rows)):
        at = tl.cast(row, tl.int64) * num_columns + column
        mean, rstd = tl.load(mean_ptr + row), tl.load(rstd_ptr + row)
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptr + at, mask=inside, other=0.0).to(tl.float32)
        residual = tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
        normed = (x - mean) * rstd
        scaled = grad * weight
        along = tl.sum(scaled * normed, 0) / num_columns
        level = tl.sum(scaled, 0) / num_columns
        of_x = residual + (scaled - normed * along - level) * rstd
        value = normed * weight + bias
        tl.store(value_ptr + at, value.to(value_ptr.dtype.element_ty), mask=inside)
        tl.store(grad_ptr + at, of_x.to(grad_ptr.dtype.element_ty), mask=inside)
        of_weight += grad * normed
        of_bias += grad
    at = tl.program_id(0) * num_columns + column
    tl.store(of_weight_ptr + at, of_weight, mask=inside)
    tl.store(of_bias_ptr + at, of_bias, mask=inside)


@triton.jit
def _add_branch(
    residual_ptr, x_ptr, bias_ptr, mask_ptr, result_ptr, num_rows, batch, num_columns,
    PER_TOKEN: tl.constexpr, IS_MASKED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    inside = (row < num_rows) & (column < num_columns)
    at = row.to(tl.int64) * num_columns + column
    if PER_TOKEN:
        bias = tl.load(bias_ptr + row // batch, mask=row < num_rows, other=0.0)
    else:
        bias = tl.load(bias_ptr + column, mask=column < num_columns, other=0.0)
    branch = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32) + bias.to(tl.float32)
    if IS_MASKED:
        branch *= tl.load(mask_ptr + row % batch, mask=row < num_rows, other=0.0).to(tl.float32)
    result = tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32) + branch
    tl.store(result_ptr + at, result.to(result_ptr.dtype.element_ty), mask=inside)
