"""Check that a `.tflite` file is sound before anything native opens it.

LiteRT follows what a file says: a tensor index, a stride of zero or a buffer that is too short can
end the whole process. What these checks let through has been decoded without leaving the file, and
its indices, sizes, shapes, quantization and order of operators fit together.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from tfedge.errors import FileFormatError
from tfedge.inspection.decode import Fields, decode
from tfedge.inspection.layout import BITS, DTYPES, OPERATORS
from tfedge.inspection.rules import (
    MAX_RANK,
    check_index,
    check_operands,
    check_options,
    check_shapes,
    require,
)

# Inputs 2 and 3 of the custom operator that Vela writes are memory for the NPU to work in.
SCRATCH: Final = {"ethos-u": slice(2, 4)}
MAX_SHARING: Final = 64  # tensors may share a buffer; a file made to be slow shares it by far more
MAX_SCALE: Final = 2.0**30
MAX_TENSOR_BYTES: Final = 2**31
MAX_ACTIVATION_BYTES: Final = 2**33
ZERO_POINTS: Final = {
    "int8": (-128, 127), "uint8": (0, 255), "int16": (0, 0), "int32": (0, 0), "int64": (0, 0),
    "int4": (-8, 7), "uint4": (0, 15), "int2": (-2, 1), "uint16": (0, 65_535),
}  # fmt: skip


def check_sound(data: bytes) -> Fields:
    """Raise unless `data` is a sound `.tflite` file.

    Args:
        data: The whole file. Any bytes: it neither crashes nor runs for long.

    Returns:
        The decoded file (see `decode`).

    Raises:
        FileFormatError: What is wrong, where, and the next move.

    Example:
        >>> check_sound(b"not a model")
        Traceback (most recent call last):
        ...
        tfedge.errors.FileFormatError: A `.tflite` file has at least 16 bytes. Received 11 bytes...
    """
    model = decode(data)
    subgraphs = model["subgraphs"] or []
    require(bool(subgraphs), "A model must have a subgraph", "none")
    for index, code in enumerate(model["operator_codes"] or []):
        _check_code(code, f"operator code {index}")
    buffers = [buffer_bytes(data, model, i) for i in range(len(model["buffers"] or []))]
    constants = sum(
        len(buffers[tensor["buffer"]])
        for subgraph in subgraphs
        for tensor in subgraph["tensors"] or []
        if tensor["buffer"] < len(buffers)
    )
    most = MAX_SHARING * len(data)
    require(constants <= most, f"The constants must fit in {most} bytes", constants)
    for index, subgraph in enumerate(subgraphs):
        _check_subgraph(model, buffers, subgraph, f"subgraph {index}")
    _check_calls(model, subgraphs)
    for entry in model["metadata"] or []:
        check_index(entry["buffer"], len(buffers), f"buffer of metadata {entry['name']!r}")
    for signature in model["signature_defs"] or []:
        _check_signature(signature, subgraphs)
    return model


def operator_name(model: Fields, operator: Fields) -> str:
    """Name of an operator's kind, e.g. `"CONV_2D"`; custom operators by their own name."""
    code = model["operator_codes"][operator["opcode_index"]]
    name = OPERATORS[max(code["builtin_code"], code["deprecated_builtin_code"])]
    return code["custom_code"] if name == "CUSTOM" else name


def buffer_bytes(data: bytes, model: Fields, index: int) -> np.ndarray:
    """Content of a buffer as uint8, empty for a buffer that holds nothing."""
    buffer = model["buffers"][index]
    if buffer["offset"] > 1:
        start, size = buffer["offset"], buffer["size"]
        require(
            start + size <= len(data), f"Buffer {index} must end in the file", f"{start} + {size}"
        )
        return np.frombuffer(data, np.uint8, size, start)
    return np.empty(0, np.uint8) if buffer["data"] is None else buffer["data"]


def _check_code(code: Fields, what: str) -> None:
    number = max(code["builtin_code"], code["deprecated_builtin_code"])
    if not 0 <= number < len(OPERATORS):
        raise FileFormatError(
            f"The number of {what} must be in [0, {len(OPERATORS)}). Received: {number}. The file "
            "is damaged, or written for a newer LiteRT than this version knows."
        )
    name = OPERATORS[number]
    unusable = name in ("DELEGATE", "PLACEHOLDER_FOR_GREATER_OP_CODES")
    require(not unusable, f"{what.capitalize()} must name an operator", name)
    if name == "CUSTOM":
        require(code["custom_code"], f"{what.capitalize()} is custom and must have a name", "none")


def _check_subgraph(
    model: Fields, buffers: Sequence[np.ndarray], subgraph: Fields, what: str
) -> None:
    tensors, operators = subgraph["tensors"] or [], subgraph["operators"] or []
    for index, tensor in enumerate(tensors):
        _check_tensor(tensor, buffers, f"tensor {index} ({tensor['name']}) of {what}")
    activations = sum(
        tensor_bytes(tensor) for tensor in tensors if not len(buffers[tensor["buffer"]])
    )
    require(
        activations <= MAX_ACTIVATION_BYTES,
        f"The activations of {what} must fit in {MAX_ACTIVATION_BYTES} bytes",
        activations,
    )
    for side in ("inputs", "outputs"):
        for tensor_index in _indices(subgraph[side]):
            check_index(tensor_index, len(tensors), f"a tensor in the {side} of {what}")
    for index, operator in enumerate(operators):
        place = f"operator {index} of {what}"
        check_index(
            operator["opcode_index"], len(model["operator_codes"] or []), f"code of {place}"
        )
        name = operator_name(model, operator)
        place = f"operator {index} ({name}) of {what}"
        for side in ("inputs", "outputs", "intermediates"):
            for tensor_index in _indices(operator[side]):
                lowest = 0 if side == "outputs" else -1
                check_index(
                    tensor_index, len(tensors), f"a tensor in the {side} of {place}", lowest=lowest
                )
        check_operands(name, operator, tensors, place)
        check_options(name, operator, place)
        check_shapes(name, operator, tensors, place)
    _check_order(model, subgraph, buffers, what)


def _indices(vector: np.ndarray | None) -> list[int]:
    return [] if vector is None else vector.tolist()


def shape_of(tensor: Fields) -> tuple[int, ...]:
    """Shape as stored; a dimension that may change is stored as 1."""
    return tuple(_indices(tensor["shape"]))


def dtype_of(tensor: Fields) -> str:
    """Element type of a tensor, e.g. `"int8"`."""
    return DTYPES[tensor["type"]][0]


def tensor_bytes(tensor: Fields) -> int:
    """Size of a dense tensor in bytes; 0 for strings, resources and variants."""
    return (math.prod(shape_of(tensor)) * BITS[dtype_of(tensor)] + 7) // 8


def _check_tensor(tensor: Fields, buffers: Sequence[np.ndarray], what: str) -> None:
    require(
        0 <= tensor["type"] < len(DTYPES),
        f"The element type of {what} must be in [0, {len(DTYPES)})",
        tensor["type"],
    )
    check_index(tensor["buffer"], len(buffers), f"the buffer of {what}")
    require(tensor["external_buffer"] == 0, f"{what} must be in the file itself", "external buffer")
    shape = shape_of(tensor)
    require(len(shape) <= MAX_RANK, f"The rank of {what} must be at most {MAX_RANK}", len(shape))
    require(min(shape, default=0) >= 0, f"The shape of {what} must not be negative", shape)
    signature = _indices(tensor["shape_signature"])
    fits = not signature or (
        len(signature) == len(shape)
        and all(s in (-1, d) for s, d in zip(signature, shape, strict=True))
    )
    require(fits, f"The shape signature of {what} must fit its shape {shape}", signature)
    size, stored = tensor_bytes(tensor), len(buffers[tensor["buffer"]])
    require(size < MAX_TENSOR_BYTES, f"The size of {what} must be below 2 GiB", f"shape {shape}")
    if stored and tensor["sparsity"] is None and BITS[dtype_of(tensor)]:
        require(
            stored == size, f"The buffer of {what} must hold {size} bytes ({shape})", f"{stored}"
        )
    require(not (stored and tensor["is_variable"]), f"{what} is a variable, without data", stored)
    if tensor["sparsity"] is not None:
        _check_sparsity(tensor["sparsity"], shape, stored, size, what)
    if tensor["quantization"] is not None:
        _check_quantization(
            tensor["quantization"], dtype_of(tensor), shape, what, constant=stored > 0
        )


def _check_quantization(
    q: Fields, dtype: str, shape: tuple[int, ...], what: str, *, constant: bool
) -> None:
    scale = np.empty(0) if q["scale"] is None else q["scale"]
    zero_point = np.empty(0) if q["zero_point"] is None else q["zero_point"]
    if q["details"] is not None or not len(scale):
        return
    # Kernels of LiteRT end the process on activations whose scale is denormal or enormous.
    low_scale = 0.0 if constant else float(np.finfo(np.float32).tiny)
    high_scale = float(np.finfo(np.float32).max) if constant else MAX_SCALE
    require(
        np.all(np.isfinite(scale)) and np.all(scale >= low_scale) and np.all(scale <= high_scale),
        f"The scales of {what} must be finite and positive, at most {high_scale:g}",
        scale.tolist()[:4],
    )
    require(
        len(zero_point) in (0, 1, len(scale)),
        f"{what} must have a zero point for each of its {len(scale)} scales",
        len(zero_point),
    )
    if len(scale) > 1:
        axis = q["quantized_dimension"]
        check_index(axis, len(shape), f"the quantized dimension of {what}")
        require(
            len(scale) == shape[axis],
            f"{what} must have one scale, or {shape[axis]} along axis {axis}",
            len(scale),
        )
    low, high = ZERO_POINTS.get(dtype, (-(2**63), 2**63 - 1))
    require(
        np.all(zero_point >= low) and np.all(zero_point <= high),
        f"The zero points of {what} must be in [{low}, {high}]",
        zero_point.tolist()[:4],
    )


def _check_sparsity(
    sparsity: Fields, shape: tuple[int, ...], stored: int, size: int, what: str
) -> None:
    order, dims = _indices(sparsity["traversal_order"]), sparsity["dim_metadata"] or []
    blocks = _indices(sparsity["block_map"])
    require(
        sorted(order) == list(range(len(shape) + len(blocks))) and len(dims) == len(order),
        f"The sparsity of {what} must describe each of {len(shape)} + {len(blocks)} dimensions",
        f"{len(order)} in its order, {len(dims)} described",
    )
    require(all(0 <= b < len(shape) for b in blocks), f"The blocks of {what} must be axes", blocks)
    require(0 < stored <= size, f"The buffer of {what} must hold at most {size} bytes", stored)
    for dim in dims:
        if dim["format"] == 0:
            require(dim["dense_size"] > 0, f"A dense size in {what} must be positive",
                    dim["dense_size"])  # fmt: skip
            continue
        segments = _values(dim["array_segments"])
        indices = _values(dim["array_indices"])
        rising = len(segments) > 1 and segments[0] == 0 and np.all(np.diff(segments) >= 0)
        require(rising and segments[-1] == len(indices) and np.all(indices >= 0)
                and np.all(indices < max(shape, default=0)),
                f"The sparse index of {what} must rise and end at its data", "another")  # fmt: skip


def _values(vector: Fields | None) -> np.ndarray:
    if vector is None or vector["values"] is None:
        return np.empty(0, np.int64)
    return vector["values"].astype(np.int64)


def _check_order(model: Fields, subgraph: Fields, buffers: Sequence[np.ndarray], what: str) -> None:
    """Every tensor that is read is an input, a constant, a variable, scratch, or written before."""
    tensors = subgraph["tensors"] or []
    inputs = set(_indices(subgraph["inputs"]))
    ready = inputs | {
        index
        for index, tensor in enumerate(tensors)
        if len(buffers[tensor["buffer"]]) or tensor["is_variable"] or tensor_bytes(tensor) == 0
    }
    written: set[int] = set()
    for index, operator in enumerate(subgraph["operators"] or []):
        read = _indices(operator["inputs"])
        del read[SCRATCH.get(operator_name(model, operator), slice(0, 0))]
        missing = set(read) - ready - {-1}
        require(
            not missing,
            f"Operator {index} of {what} must read tensors that are written before it",
            f"tensors {sorted(missing)}",
        )
        outputs = _indices(operator["outputs"])
        again = [
            i for i in outputs if i in written or i in inputs or len(buffers[tensors[i]["buffer"]])
        ]
        require(
            not again and len(set(outputs)) == len(outputs),
            f"Operator {index} of {what} must write tensors that nothing else writes",
            f"tensors {again or outputs}",
        )
        written.update(outputs)
        ready.update(outputs)
    missing = set(_indices(subgraph["outputs"])) - ready
    require(
        not missing, f"Something must write the outputs of {what}", f"tensors {sorted(missing)}"
    )


_CALLED: Final = (
    "subgraph", "then_subgraph_index", "else_subgraph_index", "init_subgraph_index",
    "cond_subgraph_index", "body_subgraph_index", "comparator_subgraph_index",
    "update_computation_subgraph_index", "decomposition_subgraph_index",
)  # fmt: skip


def called_subgraphs(operator: Fields) -> list[int]:
    """Indices of the subgraphs that an operator runs (branches, loops)."""
    called = []
    for options in (operator["builtin_options"], operator["builtin_options2"]):
        if options is not None:
            called += [options[field] for field in _CALLED if field in options]
            called += _indices(options.get("branch_subgraph_indices"))
    return called


def _check_calls(model: Fields, subgraphs: list[Fields]) -> None:
    """Subgraphs that are called exist, and none calls itself."""
    calls: list[set[int]] = []
    for subgraph in subgraphs:
        called = {i for op in subgraph["operators"] or [] for i in called_subgraphs(op)}
        for index in called:
            check_index(index, len(subgraphs), "a subgraph that an operator calls")
        calls.append(called)
    callers = [0] * len(calls)
    for called in calls:
        for index in called:
            callers[index] += 1
    free = [index for index, count in enumerate(callers) if count == 0]
    for index in free:  # grows while it is walked: each subgraph follows all its callers
        for inner in calls[index]:
            callers[inner] -= 1
            if callers[inner] == 0:
                free.append(inner)
    caught = sorted(set(range(len(calls))) - set(free))
    require(not caught, "No subgraph may call itself", f"subgraphs {caught[:4]}")


def _check_signature(signature: Fields, subgraphs: list[Fields]) -> None:
    what = f"signature {signature['signature_key']!r}"
    check_index(signature["subgraph_index"], len(subgraphs), f"the subgraph of {what}")
    count = len(subgraphs[signature["subgraph_index"]]["tensors"] or [])
    for side in ("inputs", "outputs"):
        for entry in signature[side] or []:
            check_index(entry["tensor_index"], count, f"{side[:-1]} {entry['name']!r} of {what}")
