"""Inline the nested models of a tf_keras model: one flat graph, as TFMOT needs it.

The graph is read from the public `get_config()` of the models, so that call arguments such as
`training=False` on a frozen backbone are kept: each layer inside is then called with it.
"""

import copy
import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tfedge.engines.tfmot._library import tf_keras
from tfedge.errors import UnsupportedModelError
from tfedge.models import is_functional, layers_of

Reference = list[Any]  # [layer name, index of its call, index of the tensor]


@dataclass
class FlatLayer:
    """A layer of the flat graph.

    Attributes:
        name: Its name there; the layer's own unless two layers share one.
        kind: Its class.
        config: What the class makes it from.
        layer: The layer itself; `None` for an input.
        calls: The inbound references of each call, as Keras serialises them.
        inference_only: Whether every call has `training=False`.
    """

    name: str
    kind: type
    config: dict[str, Any]
    layer: Any = None
    calls: list[Any] = field(default_factory=list)
    inference_only: bool = True

    def make(self) -> Any:
        """A new layer of this configuration."""
        return self.kind.from_config(copy.deepcopy(self.config))  # type: ignore[attr-defined]


@dataclass
class FlatGraph:
    """A model without nested models.

    Attributes:
        name: Name of the model.
        layers: Its layers by name; input layers too.
        inputs: References to the inputs, structured as the model's.
        outputs: References to the outputs, structured as the model's.
    """

    name: str
    layers: dict[str, FlatLayer]
    inputs: Any
    outputs: Any

    def producers(self, name: str) -> list[str]:
        """Names of the layers that feed `name`; one for each tensor and call."""
        return [reference[0] for call in self.layers[name].calls for reference in self.refer(call)]

    def consumers(self, name: str) -> list[str]:
        """Names of the layers fed by `name`; one for each tensor and call."""
        return [flat.name for flat in self.layers.values() for _ in self._uses(flat, name)]

    def is_output(self, name: str) -> bool:
        """Whether an output of the model comes from the layer."""
        return any(reference[0] == name for reference in self.refer(self.outputs))

    def refer(self, structure: Any) -> Iterator[Reference]:
        """The references in `structure`, to be read or rewritten in place."""
        return _references(structure, self.layers)

    def _uses(self, flat: FlatLayer, name: str) -> list[str]:
        return [name for call in flat.calls for ref in self.refer(call) if ref[0] == name]

    def insert_after(
        self, name: str, inserted: Any, consumers: Iterable[str] | None = None
    ) -> None:
        """Put the layer `inserted` between the output of `name` and `consumers`.

        Args:
            name: A layer that gives one tensor.
            inserted: A Keras layer.
            consumers: Names of the layers that shall see the output of `inserted`; default: all,
                and the outputs of the model.
        """
        flat = FlatLayer(inserted.name, type(inserted), inserted.get_config(), inserted)
        calls = range(len(self.layers[name].calls))
        flat.calls = [[[name, call, 0, {}]] for call in calls]
        everyone = consumers is None
        for consumer in self.consumers(name) if everyone else consumers or ():
            for reference in self._rewritable(consumer, name):
                reference[0] = inserted.name
        if everyone:
            for reference in self.refer(self.outputs):
                if reference[0] == name:
                    reference[0] = inserted.name
        self.layers[inserted.name] = flat

    def _rewritable(self, consumer: str, name: str) -> list[Reference]:
        calls = self.layers[consumer].calls
        return [ref for call in calls for ref in self.refer(call) if ref[0] == name]

    def build(self) -> Any:
        """A new tf_keras model of this graph, with the weights of the layers that were read.

        The layers are made from their classes, not looked up by name: layers of one's own need no
        registration, and `Lambda` layers, whose code is in this process already, can be copied.
        """
        made = {flat.name: flat.make() for flat in self.layers.values()}

        class Made:
            @classmethod
            def from_config(cls, config: dict[str, Any]) -> Any:
                return made[config["name"]]

        entries = [
            {
                "class_name": "Made",
                "config": {"name": flat.name},
                "name": flat.name,
                "inbound_nodes": flat.calls,
            }
            for flat in self.layers.values()
        ]
        config = {
            "name": self.name,
            "layers": entries,
            "input_layers": self.inputs,
            "output_layers": self.outputs,
        }
        model = tf_keras().Model.from_config(copy.deepcopy(config), {"Made": Made})
        for flat in self.layers.values():
            if flat.layer is not None and flat.layer.weights:
                made[flat.name].set_weights(flat.layer.get_weights())
        return model


def read_graph(model: Any) -> FlatGraph:
    """Read a tf_keras model, its nested models inlined.

    Args:
        model: A built functional or Sequential tf_keras model. It is not changed.

    Raises:
        UnsupportedModelError: The model is subclassed or not built, or a layer cannot be copied.
    """
    reader = _Reader()
    config = _functional_config(model)
    names = [reference[0] for reference in _all_references(config["input_layers"])]
    for entry in config["layers"]:
        if entry["name"] in names:
            reader.add_input(entry)
    feeds: list[Reference] = [[name, 0, 0] for name in names]
    outputs = _Level(reader, model, config, feeds, None, bool(model.trainable)).outputs()
    return FlatGraph(model.name, reader.layers, config["input_layers"], outputs)


def flatten(model: Any) -> Any:
    """An own copy of a tf_keras model, its nested models inlined.

    Args:
        model: A built functional or Sequential tf_keras model. It is not changed.

    Returns:
        A functional model with the same outputs, weights, layer names and `trainable` flags, not
        compiled. Layers of a nested model that is called with `training=False` are called so.

    Raises:
        UnsupportedModelError: The model is subclassed or not built, or a layer cannot be copied.
    """
    with own_classes(model):
        return read_graph(model).build()


def own_classes(model: Any) -> Any:
    """The scope in which Keras finds the classes and activations of `model` that it does not know.

    Keras looks up by name what a layer holds: the layer in a `TimeDistributed`, an activation.
    """
    known: dict[str, Any] = {}
    for layer in layers_of(model):
        inner = getattr(layer, "layer", None)
        for one in (layer,) if inner is None else (layer, inner):
            for candidate in (type(one), getattr(one, "activation", None)):
                name = getattr(candidate, "__name__", "")
                module = getattr(candidate, "__module__", None) or ""
                if name.isidentifier() and not module.startswith(("tf_keras.", "keras.")):
                    known[name] = candidate
    return tf_keras().utils.custom_object_scope(known)


class _Reader:
    """Collects the layers of all levels."""

    def __init__(self) -> None:
        self.layers: dict[str, FlatLayer] = {}
        self._by_identity: dict[int, FlatLayer] = {}

    def add_input(self, entry: dict[str, Any]) -> None:
        kind = tf_keras().layers.InputLayer
        self.layers[entry["name"]] = FlatLayer(entry["name"], kind, entry["config"])

    def add(self, layer: Any, path: str, trainable: bool) -> FlatLayer:
        flat = self._by_identity.get(id(layer))
        if flat is None:
            name = layer.name if layer.name not in self.layers else f"{path}_{layer.name}"
            while name in self.layers:
                name += "_"
            config = {**layer.get_config(), "name": name}
            if "trainable" in config:
                config["trainable"] = trainable and bool(layer.trainable)
            flat = self.layers[name] = FlatLayer(name, type(layer), config, layer)
            self._by_identity[id(layer)] = flat
        return flat


class _Level:
    """One call of one model: its layers are added to the reader, its outputs found."""

    def __init__(
        self,
        reader: _Reader,
        model: Any,
        config: dict[str, Any],
        feeds: list[Reference],
        training: bool | None,
        trainable: bool,
    ) -> None:
        self._reader, self._model, self._config = reader, model, config
        self._training, self._trainable = training, trainable
        names = [reference[0] for reference in _all_references(config["input_layers"])]
        self._feeds = dict(zip(names, feeds, strict=True))
        self._entries = {entry["name"]: entry for entry in config["layers"]}
        self._nested: dict[tuple[str, int], list[Reference]] = {}
        self._flat: dict[str, tuple[FlatLayer, int]] = {}
        plain = [e for e in config["layers"] if e["name"] not in self._feeds and not self._inner(e)]
        for entry in plain:  # reserve the calls first: references may point forwards
            layer = model.get_layer(entry["name"])
            flat = reader.add(layer, model.name, trainable)
            self._flat[entry["name"]] = (flat, len(flat.calls))
            flat.calls.extend([None] * len(entry["inbound_nodes"]))
        for entry in plain:
            self._write_calls(entry)

    def outputs(self) -> Any:
        return self._rewrite(self._config["output_layers"], {})

    def _inner(self, entry: dict[str, Any]) -> bool:
        layer = self._model.get_layer(entry["name"])
        return isinstance(layer, tf_keras().Model) and is_functional(layer)

    def _write_calls(self, entry: dict[str, Any]) -> None:
        flat, base = self._flat[entry["name"]]
        takes_training = "training" in inspect.signature(flat.layer.call).parameters
        for index, call in enumerate(entry["inbound_nodes"]):
            own = _keywords(call, self._entries).get("training")
            training = self._training if own is None else own
            flat.inference_only &= training is False
            extra = {"training": training} if takes_training and training is not None else {}
            flat.calls[base + index] = self._rewrite(call, extra)

    def _rewrite(self, value: Any, extra: dict[str, Any]) -> Any:
        if _is_reference(value, self._entries):
            keywords = [{**self._rewrite(value[3], {}), **extra}] if len(value) == 4 else []
            return [*self._resolve(value), *keywords]
        if isinstance(value, list | tuple):
            return type(value)(self._rewrite(item, extra) for item in value)
        if isinstance(value, dict):
            return {key: self._rewrite(item, extra) for key, item in value.items()}
        return value

    def _resolve(self, reference: Reference) -> Reference:
        name, call, tensor = reference[:3]
        if name in self._feeds:
            return list(self._feeds[name])
        if name in self._flat:
            flat, base = self._flat[name]
            return [flat.name, base + call, tensor]
        call -= self._first_call(name)
        if (name, call) not in self._nested:
            self._nested[name, call] = self._enter(name, call)
        return list(self._nested[name, call][tensor])

    def _first_call(self, name: str) -> int:
        """Index of a nested model's first call; Keras may count the building of it as call 0."""
        structures = [self._config["output_layers"]]
        structures += [entry["inbound_nodes"] for entry in self._config["layers"]]
        used = [ref[1] for ref in _references(structures, self._entries) if ref[0] == name]
        return max(used) - len(self._entries[name]["inbound_nodes"]) + 1

    def _enter(self, name: str, index: int) -> list[Reference]:
        inner = self._model.get_layer(name)
        call = self._entries[name]["inbound_nodes"][index]
        keywords = _keywords(call, self._entries)
        training = keywords.pop("training", None)
        unknown = sorted(key for key, value in keywords.items() if value is not None)
        if unknown:
            raise UnsupportedModelError(
                f"A nested model can be inlined if it is called with its inputs and `training` "
                f"alone. `{name}` is called with {', '.join(f'`{key}`' for key in unknown)}. "
                f"{_NEXT_MOVE}"
            )
        feeds = [self._resolve(reference) for reference in _references(call, self._entries)]
        level = _Level(
            self._reader,
            inner,
            _functional_config(inner),
            feeds,
            self._training if training is None else training,
            self._trainable and bool(inner.trainable),
        )
        return [reference[:3] for reference in _all_references(level.outputs())]


_NEXT_MOVE = "Build it as one functional model, or move it to Keras 3: `tfedge.models.to_keras3`."


def _functional_config(model: Any) -> dict[str, Any]:
    """The configuration of a functional model; a Sequential one is written as a chain."""
    if not is_functional(model):
        raise UnsupportedModelError(
            f"TFMOT works on functional and Sequential tf_keras models. Received: "
            f"`{type(model).__name__}`. {_NEXT_MOVE}"
        )
    if not model.built or not model.inputs:
        raise UnsupportedModelError(
            f"The model `{model.name}` has no input shape yet. Give its first layer an "
            f"`input_shape`, or call `model.build(…)`."
        )
    try:
        config = copy.deepcopy(model.get_config())
    except NotImplementedError as error:
        raise UnsupportedModelError(
            f"Each layer needs a `get_config` to be copied: {error} Add the method to its class."
        ) from error
    return _chain(model, config) if isinstance(model, tf_keras().Sequential) else config


def _chain(model: Any, config: dict[str, Any]) -> dict[str, Any]:
    entries = [e for e in config["layers"] if e["class_name"] != "InputLayer"]
    tensor = model.inputs[0]
    name = next((e["config"]["name"] for e in config["layers"] if e not in entries), None)
    name = name or f"{model.name}_input"
    source = tf_keras().layers.InputLayer(tensor.shape[1:], dtype=tensor.dtype.name, name=name)
    layers = [{"config": source.get_config(), "name": name, "inbound_nodes": []}]
    for entry in entries:
        call: list[Any] = [[name, 0, 0, {}]]
        name = entry["config"]["name"]
        layers.append({**entry, "name": name, "inbound_nodes": [call]})
    first = layers[0]["name"]
    return {
        "name": config["name"],
        "layers": layers,
        "input_layers": [[first, 0, 0]],
        "output_layers": [[name, 0, 0]],
    }


def _is_reference(value: Any, names: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) in (3, 4)
        and isinstance(value[0], str)
        and value[0] in names
        and all(isinstance(index, int) for index in value[1:3])
    )


def _references(structure: Any, names: Any) -> Iterator[Reference]:
    """All references in a structure, in Keras's order (dictionaries by sorted key)."""
    if _is_reference(structure, names):
        yield structure
        structure = structure[3:]
    if isinstance(structure, dict):
        structure = [structure[key] for key in sorted(structure)]
    if isinstance(structure, list | tuple):
        for item in structure:
            yield from _references(item, names)


class _Anything:
    """Stands for a set that holds every name."""

    def __contains__(self, name: object) -> bool:
        return True


def _all_references(structure: Any) -> Iterator[Reference]:
    return _references(structure, _Anything())


def _keywords(call: Any, names: Any) -> dict[str, Any]:
    """The keyword arguments of a call, from its serialised inbound references."""
    found: dict[str, Any] = {}
    for reference in _references(call, names):
        if len(reference) == 4:
            found.update(reference[3])
    return found
