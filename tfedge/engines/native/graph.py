"""Read a Keras 3 model into a flat list of calls, and build a model from such a list."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import keras
from keras import tree

from tfedge.engines.native import _private
from tfedge.errors import UnsupportedModelError


@dataclass(frozen=True)
class Ref:
    """Stands for a tensor in the arguments of a `Call`."""

    index: int


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer or of a `keras.ops` operation.

    Attributes:
        operation: The layer or operation of the model that was read.
        name: Its name, made unique over the flat graph; calls of a shared layer have the same.
        args, kwargs: What it was called with; tensors are `Ref`.
        inputs, outputs: Indices of the tensors that go in and come out.
        trainable: Whether the layer and every model around it are trainable.
    """

    operation: Any
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    trainable: bool = True

    @property
    def is_layer(self) -> bool:
        """Whether this calls a layer, rather than a stateless operation of `keras.ops`."""
        return isinstance(self.operation, keras.layers.Layer)

    @property
    def kind(self) -> str:
        """Class name of the operation if Keras itself defines it, else an empty string.

        Layers of tfedge go by the Keras class that they are derived from.
        """
        own, base = type(self.operation).__mro__[:2]
        cls = base if own.__module__.partition(".")[0] == "tfedge" else own
        return cls.__name__ if cls.__module__.partition(".")[0] == "keras" else ""


@dataclass(frozen=True)
class Graph:
    """A model as calls in order of execution, nested models inlined.

    Attributes:
        name: Name of the model.
        inputs: Index of each input tensor, in the model's order.
        input_structure, output_structure: As the author gave them, with `Ref` for tensors.
        calls: All calls but those of the input layers.
        specs: Index to `KerasTensor` with shape, dtype and name.
    """

    name: str
    inputs: tuple[int, ...]
    input_structure: Any
    output_structure: Any
    calls: tuple[Call, ...]
    specs: dict[int, Any]

    @property
    def outputs(self) -> tuple[int, ...]:
        """Index of each output tensor."""
        return tuple(ref.index for ref in tree.flatten(self.output_structure))

    @cached_property
    def consumers(self) -> dict[int, list[Call]]:
        """Tensor index to the calls that read it."""
        readers: dict[int, list[Call]] = {index: [] for index in self.specs}
        for call in self.calls:
            for index in dict.fromkeys(call.inputs):
                readers[index].append(call)
        return readers

    @cached_property
    def producers(self) -> dict[int, Call]:
        """Tensor index to the call that writes it; inputs of the model are absent."""
        return {index: call for call in self.calls for index in call.outputs}

    def only_reader(self, call: Call) -> Call | None:
        """The one call that reads what `call` writes, unless the model returns that too."""
        if len(call.outputs) != 1 or call.outputs[0] in self.outputs:
            return None
        readers = self.consumers[call.outputs[0]]
        return readers[0] if len(readers) == 1 else None

    def is_shared(self, call: Call) -> bool:
        """Whether the layer of `call` is called elsewhere too."""
        return sum(other.operation is call.operation for other in self.calls) > 1


@dataclass
class _Reader:
    calls: list[Call] = field(default_factory=list)
    specs: dict[int, Any] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)  # id of operation to name
    taken: set[str] = field(default_factory=set)

    def new_tensor(self, spec: Any) -> int:
        index = len(self.specs)
        self.specs[index] = spec
        return index

    def name_of(self, operation: Any, prefix: str) -> str:
        if id(operation) not in self.names:
            name = operation.name
            if name in self.taken and prefix:
                name = f"{prefix}_{name}"
            base, count = name, 1
            while name in self.taken:
                name, count = f"{base}_{count}", count + 1
            self.taken.add(name)
            self.names[id(operation)] = name
        return self.names[id(operation)]

    def read(
        self, model: Any, feeds: Sequence[int], training: Any, trainable: bool, prefix: str
    ) -> Any:
        inputs, outputs = _private.structures(model)
        env = {id(t): i for t, i in zip(tree.flatten(inputs), feeds, strict=True)}
        for node in _private.nodes_in_order(model):
            if node.is_input or any(id(t) not in env for t in node.input_tensors):
                continue
            for tensor, index in zip(
                node.outputs, self._read_node(node, env, training, trainable, prefix), strict=True
            ):
                env[id(tensor)] = index
        return tree.map_structure(lambda t: Ref(env[id(t)]), outputs)

    def _read_node(
        self, node: Any, env: dict[int, int], training: Any, trainable: bool, prefix: str
    ) -> Sequence[int]:
        def to_ref(value: Any) -> Any:
            return Ref(env[id(value)]) if isinstance(value, keras.KerasTensor) else value

        args, kwargs = (tree.map_structure(to_ref, a) for a in _private.call_arguments(node))
        operation = node.operation
        if isinstance(operation, keras.layers.Layer):
            trainable = trainable and operation.trainable
            if training is not None and _private.takes_training(operation):
                kwargs.setdefault("training", training)
                if kwargs["training"] is None:
                    kwargs["training"] = training
        inputs = tuple(env[id(t)] for t in node.input_tensors)
        if is_inlinable(operation):
            inner = self.read(operation, inputs, kwargs.get("training"), trainable, operation.name)
            return [ref.index for ref in tree.flatten(inner)]
        outputs = tuple(self.new_tensor(t) for t in node.outputs)
        name = self.name_of(operation, prefix)
        self.calls.append(Call(operation, name, args, kwargs, inputs, outputs, trainable))
        return outputs


def is_inlinable(operation: Any) -> bool:
    """Whether `operation` is a model whose own graph says all that it does."""
    functional = _private.functional_class()
    return isinstance(operation, (functional, keras.Sequential)) and (
        type(operation).call in {functional.call, keras.Sequential.call}
    )


def read_graph(model: Any) -> Graph:
    """Read a built Functional or Sequential Keras 3 model.

    Args:
        model: The model; it is not changed. Nested models are inlined: a `training=` they were
            called with is handed to their layers, and what was frozen stays frozen.

    Returns:
        Its flat graph. Layers in it are the model's own objects.

    Raises:
        UnsupportedModelError: The model is subclassed, or a Sequential that was never built.
    """
    if not is_inlinable(model):
        raise UnsupportedModelError(
            f"Only Functional and Sequential models have a graph that can be rebuilt. Received: "
            f"`{model.name}` of class `{type(model).__name__}`. Build it with "
            "`keras.Model(inputs, outputs)`."
        )
    if not model.built:
        raise UnsupportedModelError(
            f"`{model.name}` has no input shape yet. Call it once, or begin it with "
            "`keras.Input(shape)`."
        )
    reader = _Reader()
    structure, _ = _private.structures(model)
    inputs = [reader.new_tensor(t) for t in tree.flatten(structure)]
    reader.taken.update(t.name for t in tree.flatten(structure))
    refs = iter(inputs)
    input_structure = tree.map_structure(lambda _: Ref(next(refs)), structure)
    outputs = reader.read(model, inputs, None, model.trainable, "")
    return Graph(
        model.name, tuple(inputs), input_structure, outputs, tuple(reader.calls), reader.specs
    )


Emit = Callable[[Call, tuple[Any, ...], dict[str, Any]], Any]


def build_model(
    graph: Graph,
    emit: Emit,
    *,
    on_input: Callable[[int, Any], Any] | None = None,
    on_output: Callable[[int, Any], Any] | None = None,
) -> Any:
    """Build a Keras model by emitting each call of a graph anew.

    Args:
        graph: What to build.
        emit: `emit(call, args, kwargs)` returns the symbolic outputs of the call; `args` and
            `kwargs` hold symbolic tensors of the new model.
        on_input: `on_input(index, tensor)` returns what the graph shall read instead of an input.
        on_output: `on_output(index, tensor)` likewise, for what the model returns.

    Returns:
        A `keras.Model` with the inputs, outputs and name of the graph.
    """
    env: dict[int, Any] = {}
    sources: dict[int, Any] = {}
    for index in graph.inputs:
        spec = graph.specs[index]
        sources[index] = keras.Input(batch_shape=spec.shape, dtype=spec.dtype, name=spec.name)
        env[index] = on_input(index, sources[index]) if on_input else sources[index]

    def fill(value: Any) -> Any:
        return env[value.index] if isinstance(value, Ref) else value

    for call in graph.calls:
        args, kwargs = tree.map_structure(fill, (call.args, call.kwargs))
        results = tree.flatten(emit(call, args, kwargs))
        env.update(zip(call.outputs, results, strict=True))
    if on_output:
        env.update({index: on_output(index, env[index]) for index in graph.outputs})
    inputs = tree.map_structure(lambda ref: sources[ref.index], graph.input_structure)
    outputs = tree.map_structure(fill, graph.output_structure)
    return keras.Model(inputs, outputs, name=graph.name)


class Copies:
    """Own copies of the layers of a graph, one for each layer however often it is called."""

    def __init__(self) -> None:
        self._by_id: dict[int, Any] = {}

    def of(self, call: Call, cls: Any = None, **changes: Any) -> Any:
        """The copy of the layer that `call` calls, named as the call.

        Args:
            call: A call of a layer or operation; stateless operations are not copied.
            cls: Class of the copy, where it is to be another one of the same configuration.
            **changes: Entries of the layer's configuration to set, e.g. `activation="linear"`.
        """
        if not call.is_layer:
            return call.operation
        if id(call.operation) not in self._by_id:
            self._by_id[id(call.operation)] = copy_layer(
                call.operation, cls=cls, name=call.name, trainable=call.trainable, **changes
            )
        return self._by_id[id(call.operation)]


def copy_layer(layer: Any, *, cls: Any = None, weights: Any = None, **changes: Any) -> Any:
    """A new layer of the same class, configuration and weights.

    Args:
        layer: A built Keras 3 layer.
        cls: Class of the copy; its own where not given.
        weights: Arrays for it to hold; its own where not given.
        **changes: Entries of its configuration to set.
    """
    config = {**layer.get_config(), **changes}
    if isinstance(layer, keras.layers.Lambda):  # its code is in memory already: nothing is loaded
        copied = type(layer).from_config(config, safe_mode=False)
    else:
        copied = (cls or type(layer)).from_config(config)
    if layer.built:
        build_like(copied, layer)
        if layer.weights:
            copied.set_weights(layer.get_weights() if weights is None else weights)
        if isinstance(copied, keras.layers.Normalization):
            copied.finalize_state()  # its constants are derived from its weights
    return copied


def build_like(target: Any, layer: Any) -> None:
    """Build `target` for the shapes that `layer` was built for."""
    config = layer.get_build_config()
    if config and not target.built:
        target.build_from_config(config)
    if not target.built and not layer.weights:
        target.built = True
