"""What to change in a Keras model so that more of it runs on the Edge TPU."""

from collections.abc import Mapping, Sequence
from typing import Final

from tfedge.accelerators.edgetpu.graph import Graph, Operator
from tfedge.accelerators.edgetpu.memory import CACHE_BYTES, ParameterMemory
from tfedge.accelerators.edgetpu.rules import DTYPES, Status, Verdict, changes_size
from tfedge.report import format_bytes

MAX_NAMED: Final = 4

_HOST: Final = "leave it out of the model and do it on the host with the model's output"

# By kind of operator, for kinds that the Edge TPU does not take at all.
BY_KIND: Final[Mapping[str, str]] = {
    "LEAKY_RELU": "use `ReLU`, or `PReLU(shared_axes=[1, 2])`, which the Edge TPU takes",
    "HARD_SWISH": (
        "use `relu6`, or `silu` itself: it becomes LOGISTIC and MUL, which the Edge TPU takes"
    ),
    "ELU": "use `relu` (`Rewrite(patterns=('elu_to_relu',))`, then fine-tune)",
    "GELU": "use `relu6` (`Rewrite(patterns=('gelu_to_relu6',))`, then fine-tune)",
    "EXP": "use activations without an exponential, e.g. `relu6`, `sigmoid` or `tanh`",
    "LOG": "use activations without a logarithm, e.g. `relu6`; a log-softmax: on the host",
    "ABS": "write |x| as `maximum(x, -x)` (MAXIMUM and MUL are taken)",
    "NEG": "multiply by -1 (MUL is taken)",
    "DIV": "multiply by the reciprocal where the divisor is a constant (MUL is taken)",
    "POW": "write a square as a product (MUL is taken)",
    "SQUARE": "write a square as a product (MUL is taken)",
    "SQRT": "use `rsqrt` and a product (RSQRT and MUL are taken)",
    "ARG_MAX": _HOST,
    "ARG_MIN": _HOST,
    "TOPK_V2": _HOST,
    "CAST": "give the model integer inputs and outputs, `tfedge.convert(…, mode='int8')`",
    "DEQUANTIZE": (
        "ask for integer outputs, `tfedge.convert(…, mode='int8')`; at the end of the model it "
        "costs little on the CPU"
    ),
    "BATCH_MATMUL": "attention has no form that the Edge TPU takes: use convolutions instead",
    "GATHER": "take slices of fixed place (SLICE is taken), or look up on the host",
    "GATHER_ND": "take slices of fixed place (SLICE is taken), or look up on the host",
    "EMBEDDING_LOOKUP": "look embeddings up on the host and feed their values",
    "UNPACK": "take slices of fixed place (SLICE and SPLIT are taken)",
    "SPLIT_V": "split into equal parts (SPLIT is taken), or take slices",
    "MIRROR_PAD": "pad with zeros (`ZeroPadding2D`)",
    "PADV2": "pad with zeros (`ZeroPadding2D`)",
    "DEPTH_TO_SPACE": "use `Conv2DTranspose` or `UpSampling2D` with a convolution",
    "CONV_3D": "use two-dimensional convolutions",
    "SHAPE": "fix all shapes, `keras.Input(shape, batch_size=1)`",
    "WHILE": (
        "use an LSTM of one direction on a fixed batch, `keras.Input(…, batch_size=1)`: it becomes "
        "one operator"
    ),
    "BIDIRECTIONAL_SEQUENCE_LSTM": "use an LSTM of one direction",
}

# By kind of operator, for kinds that are taken within limits.
BY_LIMIT: Final[Mapping[str, str]] = {
    "RESIZE_BILINEAR": (
        "enlarge in steps of 2 (`UpSampling2D(2)` with a convolution after each), or leave the "
        "last enlargement to the host"
    ),
    "RESIZE_NEAREST_NEIGHBOR": "enlarge smaller feature maps, or leave it to the host",
    "SOFTMAX": "apply it to one vector of up to 16,000 classes, or on the host",
    "FULLY_CONNECTED": (
        "give its kernel one scale (`tfedge.convert` does), and use `Conv2D(units, 1)` where a "
        "`Dense` is applied at several positions"
    ),
    "MEAN": "reduce height and width only, with smaller maps (a stride or pooling before it)",
    "SUM": "reduce height, width or channels, never the batch",
    "CONCATENATION": "join computed tensors, without an activation in the operator",
    "PACK": "join along an inner dimension",
    "SPLIT": "split along an inner dimension",
    "PAD": "pad inner dimensions only",
    "PRELU": "use `PReLU(shared_axes=[1, 2])`: one slope per channel",
    "STRIDED_SLICE": "slice without steps; to thin out, use a convolution or pooling with strides",
    "CONV_2D": "dilate alike in height and width, with constant kernels",
    "DEPTHWISE_CONV_2D": "dilate alike in height and width, with constant kernels",
    "AVERAGE_POOL_2D": "put the activation into a layer of its own",
    "MAX_POOL_2D": "put the activation into a layer of its own",
}

BY_STATUS: Final[Mapping[Status, str]] = {
    Status.DATA_TYPE: (
        "quantize it to 8 bits: `tfedge.convert(…, mode='int8', calibration=…)`, and look at what "
        "`tfedge inspect` shows as float"
    ),
    Status.RANK: (
        "use a batch of 1 and at most three dimensions larger than 1 (reshape before, or split "
        "into several operators)"
    ),
    Status.NOT_CONSTANT: "make its kernel, shape or axis a constant",
    Status.VERSION: (
        "convert with TensorFlow 2.8 or older, or do without what brought the version (groups in a "
        "convolution, an activation in a transposed one)"
    ),
}

CONVERT: Final = (
    "Quantize the model to 8-bit integers: `tfedge.convert(model, mode='int8', calibration=…)`."
)
BATCH: Final = (
    "Fix the batch, `keras.Input(shape, batch_size=1)` (`tfedge.convert` does it for you): it is "
    "open in this file, and the compiler takes it as 1."
)
SHAPES: Final = (
    "Fix all shapes, `keras.Input(shape, batch_size=1)` with every size given: the compiler "
    "refuses files with open ones."
)


def advise(
    graph: Graph, verdicts: Sequence[Verdict], memory: ParameterMemory, *, quantized: bool
) -> tuple[str, ...]:
    """What to change in the model, in the order of its operators.

    Args:
        graph: The graph.
        verdicts: What the Edge TPU takes of each operator on its own.
        memory: Where its parameters will be kept.
        quantized: Whether it computes with 8-bit integers at all.

    Returns:
        Sentences; none where everything is as the Edge TPU wants it.
    """
    sentences = [] if quantized else [CONVERT]
    if any(changes_size(tensor) for tensor in graph.tensors):
        sentences.append(SHAPES)
    elif any(size < 0 for tensor in graph.tensors for size in tensor.signature):
        sentences.append(BATCH)
    if quantized:
        sentences += _by_operator(graph, verdicts)
    if memory.streamed:
        sentences.append(
            f"Make the model smaller: about {format_bytes(memory.streamed)} of parameters do not "
            f"fit on the chip ({format_bytes(CACHE_BYTES)}) and are sent for every run. Remove "
            "channels (`StructuredPrune`) or use a narrower model."
        )
    return tuple(sentences)


def change_for(operator: Operator, verdict: Verdict) -> str | None:
    """What to do about one operator that is not taken; `None` where nothing is known to help."""
    if operator.is_custom:
        return "have it last in the model, or do its work on the host"
    if operator.name in BY_KIND:
        return BY_KIND[operator.name]
    if operator.name == "QUANTIZE":
        return "give the model integer inputs, `tfedge.convert(…, mode='int8')`"
    reason = verdict.reason or ""
    for status, change in BY_STATUS.items():
        if reason.startswith(status):
            return change
    if reason.startswith(Status.NOT_SUPPORTED):
        return "put it behind the last operator that the Edge TPU takes, or leave it to the host"
    return BY_LIMIT.get(operator.name)


def is_8_bit(graph: Graph) -> bool:
    """Whether any operator of a graph computes with quantized 8-bit values."""
    return any(
        tensor.dtype in DTYPES and tensor.scales and not tensor.is_constant
        for operator in graph.operators
        for tensor in operator.outputs
    )


def _by_operator(graph: Graph, verdicts: Sequence[Verdict]) -> list[str]:
    found: dict[tuple[str, str], list[Operator]] = {}
    for operator, verdict in zip(graph.operators, verdicts, strict=True):
        if verdict.mapped is True:
            continue
        change = change_for(operator, verdict)
        if change is not None:
            found.setdefault((operator.name, change), []).append(operator)
    return [f"{_named(rows)}: {change}." for (_, change), rows in found.items()]


def _named(rows: Sequence[Operator]) -> str:
    """E.g. `LEAKY_RELU, operators 3 and 7 (layers a, b)`."""
    numbers = [str(row.index) for row in rows[:MAX_NAMED]]
    layers = list(dict.fromkeys(row.layer for row in rows if row.layer))[:MAX_NAMED]
    more = f" and {len(rows) - MAX_NAMED} more" if len(rows) > MAX_NAMED else ""
    word = "operator" if len(rows) == 1 else "operators"
    where = f" ({'layer' if len(layers) == 1 else 'layers'} {', '.join(layers)})" if layers else ""
    return f"{rows[0].name}, {word} {', '.join(numbers)}{more}{where}"
