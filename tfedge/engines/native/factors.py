"""Write one convolution kernel as smaller ones: the nearest that least squares finds."""

import numpy as np

SWEEPS = 8  # of alternating least squares; each brings the error down or leaves it
RIDGE = 1e-7  # part of the mean diagonal that is added to normal equations


def depthwise_and_pointwise(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The depthwise and the pointwise kernel that come nearest to a convolution.

    For each input channel the kernel is a matrix, places × output channels; its best approximation
    of rank 1 is its first singular triplet (Eckart and Young, "The approximation of one matrix by
    another of lower rank", 1936), and the channels do not depend on each other: no depthwise
    convolution of multiplier 1 comes nearer in the sum of squares.

    Args:
        kernel: Shape `(*places, inputs, outputs)`.

    Returns:
        Arrays of shapes `(*places, inputs, 1)` and `(*ones, inputs, outputs)`, float32.

    Example:
        >>> kernel = np.ones((3, 3, 2, 4), np.float32)
        >>> depthwise, pointwise = depthwise_and_pointwise(kernel)
        >>> depthwise.shape, pointwise.shape
        ((3, 3, 2, 1), (1, 1, 2, 4))
        >>> bool(np.allclose(depthwise * pointwise, kernel))
        True
    """
    *places, inputs, outputs = kernel.shape
    matrices = kernel.reshape(-1, inputs, outputs).transpose(1, 0, 2).astype(np.float64)
    left, values, right = np.linalg.svd(matrices, full_matrices=False)
    root = np.sqrt(values[:, :1])
    # a singular pair has no sign of its own: the larger part of the filter is made positive
    sign = np.sign(left[:, :, 0].sum(axis=1, keepdims=True) + 1e-30)
    depthwise = (left[:, :, 0] * root * sign).T.reshape(*places, inputs, 1)
    pointwise = (right[:, 0, :] * root * sign).reshape(*[1] * len(places), inputs, outputs)
    return depthwise.astype(np.float32), pointwise.astype(np.float32)


def two_threes(kernel: np.ndarray, sweeps: int = SWEEPS) -> tuple[np.ndarray, np.ndarray]:
    """Two 3×3 kernels that, one after the other, come near to a 5×5 one.

    One of them begins as the identity and the other as the middle of the kernel, on as many
    channels between the two as the kernel's smaller side has; then each in turn is set to the least
    squares solution for the other (alternating least squares, which never makes the error larger).

    Args:
        kernel: Shape `(5, 5, inputs, outputs)`.
        sweeps: How often both are solved for.

    Returns:
        Arrays of shapes `(3, 3, inputs, middle)` and `(3, 3, middle, outputs)`, float32, `middle`
        being the smaller of `inputs` and `outputs`.

    Example:
        >>> draw = np.random.default_rng(0)
        >>> a, b = draw.normal(size=(3, 3, 2, 2)), draw.normal(size=(3, 3, 2, 3))
        >>> first, second = two_threes(composed(a, b))
        >>> relative_error(composed(a, b), composed(first, second)) < 0.3
        True
    """
    kernel = kernel.astype(np.float64)
    inputs, outputs = kernel.shape[2:]
    middle = min(inputs, outputs)
    identity, core = np.zeros((3, 3, middle, middle)), kernel[1:4, 1:4]
    identity[1, 1] = np.eye(middle)
    first, second = (identity, core) if inputs == middle else (core, identity)
    for _ in range(sweeps):
        first = _solve_first(kernel, second)
        second = _solve_second(kernel, first)
    return first.astype(np.float32), second.astype(np.float32)


def composed(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The kernel of two 3×3 convolutions in a row.

    Args:
        first: Shape `(3, 3, inputs, middle)`.
        second: Shape `(3, 3, middle, outputs)`.

    Returns:
        Float64 array of shape `(5, 5, inputs, outputs)`.
    """
    result = np.zeros((5, 5, first.shape[2], second.shape[3]))
    for row, column in np.ndindex(3, 3):
        part = np.einsum("hwim,mo->hwio", first, second[row, column], optimize=True)
        result[row : row + 3, column : column + 3] += part
    return result


def diagonal_blocks(kernel: np.ndarray, groups: int) -> np.ndarray:
    """The kernel of a grouped convolution: the blocks on the diagonal of the whole one.

    Setting all others to zero is the nearest that a grouped convolution comes to the kernel.

    Args:
        kernel: Shape `(*places, inputs, outputs)`, both divisible by `groups`.
        groups: Number of groups.

    Returns:
        Array of shape `(*places, inputs / groups, outputs)`, of the kernel's type.

    Example:
        >>> diagonal_blocks(np.arange(16.0).reshape(1, 4, 4), 2)[0].tolist()
        [[0.0, 1.0, 10.0, 11.0], [4.0, 5.0, 14.0, 15.0]]
    """
    rows, columns = (size // groups for size in kernel.shape[-2:])
    blocks = [
        kernel[..., g * rows : (g + 1) * rows, g * columns : (g + 1) * columns]
        for g in range(groups)
    ]
    return np.concatenate(blocks, axis=-1)


def whole_kernel(blocks: np.ndarray, groups: int) -> np.ndarray:
    """The kernel of a plain convolution that does what a grouped one does.

    Args:
        blocks: Shape `(*places, inputs / groups, outputs)`.
        groups: Number of groups.

    Returns:
        Array of shape `(*places, inputs, outputs)`.
    """
    *places, rows, outputs = blocks.shape
    columns = outputs // groups
    whole = np.zeros((*places, rows * groups, outputs), blocks.dtype)
    for g in range(groups):
        own = slice(g * columns, (g + 1) * columns)
        whole[..., g * rows : (g + 1) * rows, own] = blocks[..., own]
    return whole


def relative_error(kernel: np.ndarray, approximation: np.ndarray) -> float:
    """Norm of the difference as a part of the norm of the kernel; 0 for a kernel of zeros."""
    norm = float(np.linalg.norm(kernel))
    return float(np.linalg.norm(kernel - approximation)) / norm if norm else 0.0


def _solve_first(kernel: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The first kernel that is best for a given second one; input channels are independent.

    By normal equations. The block of their matrix for the places p and q of the first kernel is the
    correlation of the second one with itself at the distance p - q.
    """
    middle, inputs = second.shape[2], kernel.shape[2]
    places = list(np.ndindex(3, 3))
    blocks = {
        (row, column): _correlation(second, row, column)
        for row in range(-2, 3)
        for column in range(-2, 3)
    }
    gram = np.block([[blocks[p[0] - q[0], p[1] - q[1]] for q in places] for p in places])
    gram[np.diag_indices_from(gram)] += RIDGE * max(float(np.trace(gram)) / len(gram), 1e-30)
    target = np.concatenate(
        [sum(second[r] @ kernel[p[0] + r[0], p[1] + r[1]].T for r in places) for p in places]
    )
    solved = np.linalg.solve(gram, target)
    return solved.reshape(3, 3, middle, inputs).transpose(0, 1, 3, 2)


def _solve_second(kernel: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The second kernel that is best for a given first one; output channels are independent."""
    flipped = _solve_first(kernel.transpose(0, 1, 3, 2), first.transpose(0, 1, 3, 2))
    return flipped.transpose(0, 1, 3, 2)


def _correlation(second: np.ndarray, row: int, column: int) -> np.ndarray:
    """Sum over r of `second[r] @ second[r + (row, column)].T` where both places exist."""
    total = np.zeros((second.shape[2], second.shape[2]))
    for y, x in np.ndindex(3, 3):
        if 0 <= y + row < 3 and 0 <= x + column < 3:
            total += second[y, x] @ second[y + row, x + column].T
    return total
