"""What operators must look like: how many tensors they take, and options that cannot be zero."""

import math
from typing import Any, Final

from tfedge.errors import FileFormatError
from tfedge.inspection.decode import Fields
from tfedge.inspection.layout import DTYPES, OPERATORS, words

ANY: Final = 1_000_000
MAX_RANK: Final = 8


def _rows(*rows: tuple[tuple[int, int, int, int], str]) -> dict[str, tuple[int, int, int, int]]:
    return {name: counts for counts, names in rows for name in words(names)}


# Fewest and most inputs, fewest and most outputs.
ARITY: Final = _rows(
    (
        (1, 1, 1, 1),
        """ABS AVERAGE_POOL_2D CAST CEIL COMPLEX_ABS COS DENSIFY DEPTH_TO_SPACE DEQUANTIZE ELU EXP
        FAKE_QUANT FLOOR GELU HARD_SWISH IMAG L2_NORMALIZATION L2_POOL_2D LEAKY_RELU
        LOCAL_RESPONSE_NORMALIZATION LOG LOGICAL_NOT LOGISTIC LOG_SOFTMAX MATRIX_DIAG MAX_POOL_2D
        NEG QUANTIZE RANK READ_VARIABLE REAL RELU RELU6 RELU_0_TO_1 RELU_N1_TO_1 ROUND RSQRT SHAPE
        SIGN SIN SOFTMAX SPACE_TO_DEPTH SQRT SQUARE SQUEEZE TANH WHERE ZEROS_LIKE""",
    ),
    (
        (2, 2, 1, 1),
        """ADD ARG_MAX ARG_MIN ATAN2 BATCH_MATMUL BROADCAST_ARGS BROADCAST_TO CUMSUM DIV
        EMBEDDING_LOOKUP EQUAL EXPAND_DIMS FILL FLOOR_DIV FLOOR_MOD GATHER GATHER_ND GREATER
        GREATER_EQUAL LESS LESS_EQUAL LOGICAL_AND LOGICAL_OR MATRIX_SET_DIAG MAXIMUM MEAN MINIMUM
        MIRROR_PAD MUL NOT_EQUAL PAD POW PRELU REDUCE_ALL REDUCE_ANY REDUCE_MAX REDUCE_MIN
        REDUCE_PROD RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR REVERSE_SEQUENCE REVERSE_V2 RFFT2D
        SQUARED_DIFFERENCE SUB SUM TILE TRANSPOSE""",
    ),
    ((1, 2, 1, 1), "RESHAPE"),
    ((2, 3, 1, 1), "CONV_2D CONV_3D"),
    ((3, 3, 1, 1), "DEPTHWISE_CONV_2D"),  # LiteRT 2.3 dies on one without a bias
    ((2, 3, 1, 2), "FULLY_CONNECTED"),
    ((3, 4, 1, 1), "TRANSPOSE_CONV CONV_3D_TRANSPOSE"),
    (
        (3, 3, 1, 1),
        """BATCH_TO_SPACE_ND DYNAMIC_UPDATE_SLICE PADV2 RANGE SCATTER_ND SELECT SELECT_V2 SLICE
        SPACE_TO_BATCH_ND""",
    ),
    ((4, 5, 1, 1), "STRIDED_SLICE"),
    ((4, 4, 1, 1), "ONE_HOT SPARSE_TO_DENSE"),
    ((2, 2, 2, 2), "TOPK_V2"),
    ((2, 2, 1, ANY), "SPLIT"),
    ((3, 3, 1, ANY), "SPLIT_V"),
    ((1, 1, 1, ANY), "UNPACK"),
    ((1, ANY, 1, 1), "ADD_N CONCATENATION PACK"),
    ((1, 24, 1, 1), "UNIDIRECTIONAL_SEQUENCE_LSTM"),
    ((5, 5, 1, 1), "RNN SVDF UNIDIRECTIONAL_SEQUENCE_RNN"),
    ((1, 1, 2, 2), "UNIQUE"),
    ((2, 2, 0, 0), "ASSIGN_VARIABLE"),
    ((0, 0, 1, 1), "VAR_HANDLE"),
)

# Kinds whose inputs after the fewest may be left out (-1).
OPTIONAL: Final = frozenset(
    words("""CONV_2D CONV_3D CONV_3D_TRANSPOSE FULLY_CONNECTED RNN SVDF TRANSPOSE_CONV
    UNIDIRECTIONAL_SEQUENCE_LSTM UNIDIRECTIONAL_SEQUENCE_RNN""")
)

# Kinds without a rule in ARITY that may leave out inputs; so may custom operators.
MAY_LEAVE_OUT: Final = frozenset(
    words("LSTM BIDIRECTIONAL_SEQUENCE_LSTM BIDIRECTIONAL_SEQUENCE_RNN")
)

# Rank that an operand must have: (input number, rank).
RANKS: Final[dict[str, tuple[tuple[int, int], ...]]] = {
    "CONV_2D": ((0, 4), (1, 4)),
    "DEPTHWISE_CONV_2D": ((0, 4), (1, 4)),
    "TRANSPOSE_CONV": ((1, 4), (2, 4)),
    "CONV_3D": ((0, 5), (1, 5)),
    "FULLY_CONNECTED": ((1, 2),),
    "AVERAGE_POOL_2D": ((0, 4),),
    "MAX_POOL_2D": ((0, 4),),
}

OPTIONS: Final = {
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "TRANSPOSE_CONV": "TransposeConvOptions",
    "CONV_3D": "Conv3DOptions",
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    "L2_POOL_2D": "Pool2DOptions",
}
WINDOWED: Final = frozenset(OPTIONS) - {"TRANSPOSE_CONV", "CONV_3D", "L2_POOL_2D"}
SAME_SHAPE: Final = frozenset(
    words("""ABS CEIL COS DEQUANTIZE ELU EXP FLOOR GELU HARD_SWISH LEAKY_RELU LOG LOGICAL_NOT
    LOGISTIC LOG_SOFTMAX NEG QUANTIZE RELU RELU6 RELU_0_TO_1 RELU_N1_TO_1 ROUND RSQRT SIGN SIN
    SOFTMAX SQRT SQUARE TANH ZEROS_LIKE""")
)
SAME_DTYPE: Final = frozenset(
    words("""AVERAGE_POOL_2D CONV_2D DEPTHWISE_CONV_2D MAX_POOL_2D RESHAPE RNN SQUEEZE SVDF
    UNIDIRECTIONAL_SEQUENCE_LSTM UNIDIRECTIONAL_SEQUENCE_RNN""")
)
# Kinds that compute with the scales of their 8-bit tensors.
SCALED: Final = frozenset(
    words("""ADD AVERAGE_POOL_2D BATCH_MATMUL CONV_2D DEPTHWISE_CONV_2D DEQUANTIZE DIV EXP
    FULLY_CONNECTED GELU HARD_SWISH L2_NORMALIZATION LEAKY_RELU LOG LOGISTIC LOG_SOFTMAX MEAN MUL
    PRELU QUANTIZE RSQRT SOFTMAX SQRT SQUARED_DIFFERENCE SUB SUM SVDF TANH TRANSPOSE_CONV
    UNIDIRECTIONAL_SEQUENCE_LSTM""")
)
POSITIVE: Final = (
    "stride_w", "stride_h", "stride_d", "dilation_w_factor", "dilation_h_factor",
    "dilation_d_factor", "filter_width", "filter_height", "num_splits", "block_size",
)  # fmt: skip
MAX_STEP: Final = 2**16


def require(holds: Any, rule: str, received: object) -> None:
    """Raise `FileFormatError` unless `holds`.

    Args:
        holds: Whether the rule holds.
        rule: What must be so, without a full stop.
        received: What came instead.
    """
    if not holds:
        raise FileFormatError(
            f"{rule[0].upper()}{rule[1:]}. Received: {received}. The file is damaged: copy or "
            "convert it again."
        )


def check_index(index: int, count: int, what: str, *, lowest: int = 0) -> None:
    """Raise unless `lowest <= index < count`."""
    require(
        lowest <= index < count,
        f"The index of {what} must be at least {lowest} and below {count}",
        index,
    )


def check_operands(name: str, operator: Fields, tensors: list[Fields], what: str) -> None:
    """Raise unless the operator has as many inputs and outputs as its kind takes.

    Args:
        name: Kind of the operator, e.g. `"CONV_2D"`. Kinds without a rule pass.
        operator: Its decoded table; the tensor indices have been checked.
        tensors: The tensors of its subgraph.
        what: How to call it in a message.

    Raises:
        FileFormatError: A number of operands or a rank does not fit.
    """
    inputs = [] if operator["inputs"] is None else operator["inputs"].tolist()
    outputs = [] if operator["outputs"] is None else operator["outputs"].tolist()
    if name in ARITY:
        low, high, low_out, high_out = ARITY[name]
        require(low <= len(inputs) <= high, f"{what} must have {low} to {high} inputs", len(inputs))
        needed = inputs[:low] if name in OPTIONAL else inputs
        require(-1 not in needed, f"{what} must not leave out any of its inputs", needed)
        require(low_out <= len(outputs) <= high_out,
                 f"{what} must have {low_out} to {high_out} outputs", len(outputs))  # fmt: skip
    elif name in OPERATORS and name not in MAY_LEAVE_OUT:
        require(-1 not in inputs, f"{what} must not leave out any of its inputs", inputs)
    if name == "UNIDIRECTIONAL_SEQUENCE_LSTM":
        _check_gates(inputs, what)
    if name in SAME_DTYPE:
        first, output = tensors[inputs[0]], tensors[outputs[0]]
        require(first["type"] == output["type"], f"{what} must keep the element type",
                (first["type"], output["type"]))  # fmt: skip
    if name in SCALED:
        bare = [i for i in inputs + outputs if i >= 0 and _lacks_scale(tensors[i])]
        require(not bare, f"The 8-bit tensors of {what} must have a scale", f"none for {bare}")
    if name == "RESHAPE" and len(inputs) == 2:
        given = math.prod(_shape(tensors[inputs[1]]))
        require(given <= MAX_RANK, f"{what} must give a rank of at most {MAX_RANK}", given)
    for number, rank in RANKS.get(name, ()):
        shape = tensors[inputs[number]]["shape"]
        received = 0 if shape is None else len(shape)
        require(received == rank, f"Input {number} of {what} must have rank {rank}", received)


def _check_gates(inputs: list[int], what: str) -> None:
    """An LSTM has all its gates, or all but the input gate (1, 5, 12)."""
    require(len(inputs) in (20, 24), f"{what} must have 20 or 24 inputs", len(inputs))
    gates = [inputs[i] for i in (2, 3, 4, 6, 7, 8, 13, 14, 15, 18, 19)]
    input_gate = [inputs[i] for i in (1, 5, 12)]
    whole = -1 not in gates and (-1 not in input_gate or set(input_gate) == {-1})
    require(whole, f"{what} must have the weights of each of its gates", inputs)


def check_options(name: str, operator: Fields, what: str) -> None:
    """Raise unless the options of the operator are those of its kind, and its steps positive.

    Raises:
        FileFormatError: Options are missing, of another kind, or hold a step of zero.
    """
    options = operator["builtin_options"]
    expected = OPTIONS.get(name)
    kind = None if options is None else options[""]
    if expected is not None:
        require(kind == expected, f"{what} must have `{expected}`", kind)
    outputs = 0 if operator["outputs"] is None else len(operator["outputs"])
    if name in ("SPLIT", "SPLIT_V") and options is not None and "num_splits" in options:
        require(options["num_splits"] == outputs, f"{what} must split into its {outputs} outputs",
                options["num_splits"])  # fmt: skip
    for field in POSITIVE:
        if options is not None and field in options:
            require(
                0 < options[field] < MAX_STEP,
                f"`{field}` of {what} must be in [1, {MAX_STEP})",
                options[field],
            )


def check_shapes(name: str, operator: Fields, tensors: list[Fields], what: str) -> None:
    """Raise unless the shapes of an operator's tensors follow from one another.

    Only kinds that LiteRT does not check by itself, and only tensors whose shape cannot change.

    Raises:
        FileFormatError: A shape does not follow.
    """
    if name not in SAME_SHAPE and name not in WINDOWED:
        return
    first, output = tensors[operator["inputs"][0]], tensors[operator["outputs"][0]]
    if _may_change(first) or _may_change(output):
        return
    received = _shape(output)
    if name in SAME_SHAPE:
        require(received == _shape(first), f"{what} must keep the shape {_shape(first)}", received)
        return
    filter_shape: tuple[int, ...] = ()
    if name in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        filter_shape = _shape(tensors[operator["inputs"][1]])
    expected = window_shape(name, _shape(first), filter_shape, operator["builtin_options"])
    require(received == expected, f"The output of {what} must have the shape {expected}", received)


def window_shape(
    name: str, shape: tuple[int, ...], filter_shape: tuple[int, ...], options: Fields
) -> tuple[int, ...]:
    """Shape (batch, height, width, channel) that a convolution or pooling gives.

    Example:
        >>> options = {"padding": 1, "stride_h": 2, "stride_w": 1}
        >>> options |= {"filter_height": 3, "filter_width": 3}
        >>> window_shape("MAX_POOL_2D", (1, 9, 9, 4), (), options)
        (1, 4, 7, 4)
    """
    channels = {"CONV_2D": filter_shape[:1], "DEPTHWISE_CONV_2D": filter_shape[3:]}
    window = filter_shape[1:3] or (options["filter_height"], options["filter_width"])
    strides = (options["stride_h"], options["stride_w"])
    dilations = (options.get("dilation_h_factor", 1), options.get("dilation_w_factor", 1))
    sizes = []
    for size, width, stride, dilation in zip(shape[1:3], window, strides, dilations, strict=True):
        room = size if options["padding"] == 0 else size - (width - 1) * dilation
        sizes.append(-(-room // stride))
    return (shape[0], *sizes, *channels.get(name, shape[3:]))


def _shape(tensor: Fields) -> tuple[int, ...]:
    return () if tensor["shape"] is None else tuple(tensor["shape"].tolist())


def _may_change(tensor: Fields) -> bool:
    signature = tensor["shape_signature"]
    return (signature is not None and bool((signature < 0).any())) or not _shape(tensor)


def _lacks_scale(tensor: Fields) -> bool:
    if DTYPES[tensor["type"]][0] not in ("int8", "uint8"):
        return False
    q = tensor["quantization"]
    return q is None or (q["details"] is None and (q["scale"] is None or not len(q["scale"])))
