"""Find code, and classes of unknown modules, in the configuration of a model file.

The configuration is plain JSON. It is searched before any Keras sees the file, because Keras's own
safe mode is no protection in `tf_keras` (it ran the Lambda of an `.h5`), and because `tf_keras`
imports whatever module the configuration names.
"""

import builtins
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

KERAS_MODULES = frozenset({"keras", "tf_keras", "builtins", "keras_hub", "keras_cv", "keras_nlp"})

CODE_CLASSES = {
    "lambda": "a `Lambda` layer",
    "__lambda__": "a Python lambda",
    "tensorflowoplayer": "a raw TensorFlow operation",
    "tfsmlayer": "a layer that loads another SavedModel",
    "torchmodulewrapper": "a pickled PyTorch module",
}
# Values that the Kerases write as entries and read without looking anything up.
PLAIN_VALUES = frozenset(
    ["__bytes__", "__ellipsis__", "__keras_tensor__", "__numpy__", "__slice__", "__tensor__"]
)
# What Python's `marshal` writes for a function, in base64: type byte, then a small 32-bit count.
MARSHALLED = re.compile(r"(4w|Yw)[A-Za-z0-9+/]AAA")
MARSHALLED_LENGTH = 64

# Operations that `tf_keras` may call by name (`TFOpLambda`): those that only compute.
TENSOR_NAMESPACES = frozenset(
    {"__operators__", "audio", "bitwise", "dtypes", "image", "linalg", "math", "nn"}
    | {"quantization", "ragged", "random", "sets", "signal", "sparse", "strings"}
)
KERAS_NAMESPACES = ("keras.activations.", "keras.backend.", "keras.losses.", "keras.metrics.")
OPERATIONS_WITH_EFFECTS = frozenset(
    {"import_graph_def", "init_scope", "load_file_system_library", "load_library", "print", "Print"}
    | {"load_op_library", "matching_files", "numpy_function", "py_func", "py_function"}
    | {"read_file", "write_file"}
)
TENSOR_CLASSES = frozenset({"RaggedTensor", "sparse.SparseTensor", "SparseTensor"})

# Settings whose product is the least number of weights that a layer of the class has.
LEAST_WEIGHTS = {
    "Dense": ("units",),
    "Embedding": ("input_dim", "output_dim"),
    **dict.fromkeys(("SimpleRNN", "SimpleRNNCell", "GRU", "GRUCell"), ("units", "units")),
    **dict.fromkeys(("LSTM", "LSTMCell"), ("units", "units")),
    **{f"{kind}{n}D": ("filters",) for kind in ("Conv", "SeparableConv") for n in (1, 2, 3)},
    **{f"Conv{n}DTranspose": ("filters",) for n in (1, 2, 3)},
    **{f"DepthwiseConv{n}D": ("depth_multiplier",) for n in (1, 2)},
}
WEIGHTS_IN_A_NUMBER = 8  # weights may be stored packed: two of 4 bits in one byte


@dataclass(frozen=True)
class Named:
    """A class or function that a configuration asks for by module and name."""

    name: str
    registered: str
    module: str


def find_code(config: Any) -> str | None:
    """What in a configuration would run code when the model is loaded, in words.

    Args:
        config: Decoded JSON of a model file.

    Returns:
        A phrase such as "a `Lambda` layer (`normalise`)"; `None` if nothing was found.

    Example:
        >>> find_code({"class_name": "Lambda", "config": {"name": "normalise"}})
        'a `Lambda` layer (`normalise`)'
        >>> find_code({"class_name": "Dense", "config": {"name": "classes"}}) is None
        True
    """
    for value in _walk(config):
        if isinstance(value, str):
            if len(value) >= MARSHALLED_LENGTH and MARSHALLED.match(value):
                return "marshalled Python code"
        elif found := _code_of_entry(value):
            inner = value.get("config")
            name = inner.get("name") if isinstance(inner, Mapping) else None
            return f"{found} (`{name}`)" if isinstance(name, str) else found
    return None


def find_named(config: Any) -> list[Named]:
    """The classes and functions that a configuration takes from modules outside the Kerases.

    Args:
        config: Decoded JSON of a model file.

    Example:
        >>> find_named({"module": "my_pkg.layers", "class_name": "Gate", "config": {}})
        [Named(name='Gate', registered='Gate', module='my_pkg.layers')]
    """
    found: dict[Named, None] = {}
    for value in _walk(config):
        if isinstance(value, str) or not isinstance(value.get("module"), str):
            continue
        name = _asked_name(value)
        if name is None or value["module"].split(".")[0] in KERAS_MODULES:
            continue
        registered = value.get("registered_name")
        found[Named(name, registered if isinstance(registered, str) else name, value["module"])] = (
            None
        )
    return list(found)


def find_classes(config: Any) -> set[str]:
    """The names of all classes in a configuration, without the packages they are registered in.

    Args:
        config: Decoded JSON of a model file.
    """
    entries = (value.get("class_name") for value in _walk(config) if isinstance(value, Mapping))
    return {name.rpartition(">")[2] for name in entries if isinstance(name, str)}


def find_oversized(config: Any, stored: int) -> str | None:
    """The first layer in a configuration that needs more weights than its file holds.

    Args:
        config: Decoded JSON of a model file.
        stored: How many numbers the file holds.

    Returns:
        A phrase; `None` if there is no such layer among those whose weights can be counted.

    Example:
        >>> find_oversized({"class_name": "Dense", "config": {"units": 10**9}}, stored=1000)
        'a `Dense` layer with `units` 1000000000, of 1000 stored numbers'
    """
    for entry in _walk(config):
        if isinstance(entry, str) or not isinstance(entry.get("config"), Mapping):
            continue
        name = str(entry.get("class_name")).rpartition(">")[2]
        keys = LEAST_WEIGHTS.get(name, ())
        sizes = [size for key in keys if isinstance(size := entry["config"].get(key), int | float)]
        if sizes and math.prod(sizes) > WEIGHTS_IN_A_NUMBER * stored:
            said = ", ".join(f"`{key}` {entry['config'].get(key)}" for key in dict.fromkeys(keys))
            return f"a `{name}` layer with {said}, of {stored} stored numbers"
    return None


def _walk(config: Any) -> Iterator[Any]:
    """Every dict and every string of a configuration, however deep."""
    waiting = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            yield value
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
        elif isinstance(value, str):
            yield value


def _asked_name(entry: Mapping[str, Any]) -> str | None:
    """The name that a loader would look up in the entry's module; `None` if it would not."""
    name = entry.get("class_name")
    if name == "__typespec__":
        name = entry.get("spec_name")
    elif name == "function":
        name = entry.get("config")
    return name if isinstance(name, str) and name not in PLAIN_VALUES else None


def _code_of_entry(entry: Mapping[str, Any]) -> str | None:
    class_name = entry.get("class_name")
    if "lambda" in (entry.get("function_type"), entry.get("output_shape_type")):
        return CODE_CLASSES["__lambda__"]
    if isinstance(entry.get("vocabulary"), str):
        return "a layer that reads another file of this machine"
    if not isinstance(class_name, str):
        return None
    last = re.split(r"[>.]", class_name)[-1]
    if last.lower() in CODE_CLASSES:
        return CODE_CLASSES[last.lower()]
    return _code_by_name(entry) or _code_of_operation(last, entry.get("config"))


def _code_by_name(entry: Mapping[str, Any]) -> str | None:
    """A name that would reach into a module: `os.system` of a Keras module, `eval` of Python's."""
    name, module = _asked_name(entry), entry.get("module")
    if name is None or not isinstance(module, str):
        return None
    if "." in name and module.split(".")[0] in KERAS_MODULES:
        return f"`{module}.{name}`, which is no layer of Keras"
    is_function = entry.get("class_name") == "function"
    if module == "builtins" and (not is_function or hasattr(builtins, name)):
        return f"the Python function `{name}`"
    return None


def _code_of_operation(class_name: str, config: Any) -> str | None:
    """TensorFlow called by name: computing is fine, reading and writing files is not."""
    settings = config if isinstance(config, Mapping) else {}
    if class_name == "TFOpLambda" and not _only_computes(str(settings.get("function"))):
        return f"the TensorFlow operation `{settings.get('function')}`"
    if class_name == "ClassMethod" and settings.get("cls_symbol") not in TENSOR_CLASSES:
        return f"a method of `{settings.get('cls_symbol')}`"
    attribute = str(settings.get("attr_name", ""))
    if class_name in ("InstanceMethod", "InstanceProperty") and attribute.startswith("_"):
        return f"the private attribute `{attribute}`"
    return None


def _only_computes(operation: str) -> bool:
    if operation.startswith(KERAS_NAMESPACES):
        return True
    name = re.sub(r"^compat\.v[12]\.", "", operation)
    space, dot, _ = name.partition(".")
    return space in TENSOR_NAMESPACES if dot else name not in OPERATIONS_WITH_EFFECTS
