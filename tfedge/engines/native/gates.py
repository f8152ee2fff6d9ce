"""Gates that close while a Keras 3 model trains: L0 regularisation by hard-concrete variables.

Louizos, Welling and Kingma 2018, "Learning Sparse Neural Networks through L0 Regularization",
arXiv:1712.01312. A gate is a random number in [0, 1] that is exactly 0 or 1 with some probability;
its parameter `log_alpha` is trained by way of the noise.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tfedge.engines.native.graph import Call, Copies, Graph, build_model, copy_layer, read_graph
from tfedge.engines.native.penalties import Target, group_shape
from tfedge.engines.native.stand_in import AbstractStandIn

BETA = 2 / 3  # temperature
GAMMA, ZETA = -0.1, 1.1  # what the concrete distribution is stretched to, before it is clipped
DROP_RATE = 0.05  # at the start: below 1/12 a gate at rest is exactly 1
EDGE = 1e-6  # of the uniform numbers


def sample_gates(log_alpha: Any, uniform: Any) -> Any:
    """Gates drawn for a training step: equations 10 and 11 of the paper.

    Args:
        log_alpha: Parameter of each gate.
        uniform: Numbers in (0, 1), of the same shape.

    Example:
        >>> sample_gates(np.float32([9.0, -9.0]), np.float32([0.5, 0.5])).numpy().tolist()
        [1.0, 0.0]
    """
    noise = ops.log(uniform) - ops.log(1 - uniform)
    return _stretched(ops.sigmoid((noise + log_alpha) / BETA))


def gates_at_rest(log_alpha: Any) -> Any:
    """Gates at inference: equation 13 of the paper.

    Example:
        >>> gates_at_rest(np.float32([3.0, 0.0, -3.0])).numpy().tolist()
        [1.0, 0.5, 0.0]
    """
    return _stretched(ops.sigmoid(log_alpha))


def open_probability(log_alpha: Any) -> Any:
    """The probability that a gate is not zero: equation 12 of the paper.

    Example:
        >>> round(float(open_probability(np.float32(0.0))), 4)
        0.8318
    """
    return ops.sigmoid(log_alpha - BETA * math.log(-GAMMA / ZETA))


def _stretched(concrete: Any) -> Any:
    return ops.clip(concrete * (ZETA - GAMMA) + GAMMA, 0.0, 1.0)


@keras.saving.register_keras_serializable("tfedge")
class ExpectedCount(keras.regularizers.Regularizer):
    """The expected number of weights behind open gates, times a strength.

    Args:
        strength: Factor.
        members: Weights behind each gate.
        speed: What the variable is to be multiplied with to give `log_alpha`.
    """

    def __init__(self, strength: float, members: float, speed: float) -> None:
        self.strength = strength
        self.members = members
        self.speed = speed

    def __call__(self, x: Any) -> Any:
        """The penalty of the gates with the variable `x`."""
        return self.strength * self.members * ops.sum(open_probability(self.speed * x))

    def get_config(self) -> dict[str, Any]:
        """Its settings."""
        return {"strength": self.strength, "members": self.members, "speed": self.speed}


@keras.saving.register_keras_serializable("tfedge")
class GatedWeights(AbstractStandIn):
    """Run a layer with gates on its kernel, and on its bias where they gate whole outputs.

    While training the gates are drawn anew in every step; at inference they rest.

    Args:
        layer: The layer. Its own weights are what trains beside the gates.
        kernel: Attribute that holds its kernel.
        groups: `"outputs"`, `"inputs"` or `"weights"`: what has a gate.
        strength: Penalty for each weight behind an open gate.
        speed: How many times as far a gate's `log_alpha` moves in a step of an adaptive optimizer
            as a weight does.
        seed: Of the draws.
    """

    def __init__(
        self,
        layer: Any,
        *,
        kernel: str,
        groups: str,
        strength: float,
        speed: float,
        seed: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(layer, **kwargs)
        self.kernel = kernel
        self.groups = groups
        self.strength = strength
        self.speed = speed
        self.seed = seed
        self.random = keras.random.SeedGenerator(seed)

    def build(self, input_shape: Any) -> None:
        if not self.layer.built:
            self.layer.build(input_shape)
        shape = tuple(getattr(self.layer, self.kernel).shape)
        gates = group_shape(self.layer, shape, self.groups) or shape
        start = math.log((1 - DROP_RATE) / DROP_RATE) / self.speed
        members = math.prod(shape) / math.prod(gates)
        self.gate = self.add_weight(
            name="gate",
            shape=gates,
            dtype="float32",
            initializer=keras.initializers.Constant(start),
            regularizer=ExpectedCount(self.strength, members, self.speed),
            autocast=False,
        )

    @property
    def log_alpha(self) -> Any:
        """The parameter of each gate. Float32."""
        return self.speed * self.gate.value

    def penalty(self) -> float:
        """What the gates add to the training loss now."""
        return float(self.gate.regularizer(self.gate.value))

    def gates(self, training: bool | None = None) -> Any:
        """The gates, drawn or at rest; they multiply the kernel. Float32."""
        if not training:
            return gates_at_rest(self.log_alpha)
        uniform = keras.random.uniform(
            self.gate.shape, EDGE, 1 - EDGE, dtype="float32", seed=self.random
        )
        return sample_gates(self.log_alpha, uniform)

    def effective_weights(self, gates: Any) -> dict[str, Any]:
        """Attribute of the layer to its gated value."""
        weights = {self.kernel: _product(getattr(self.layer, self.kernel), gates)}
        if self.groups == "outputs" and self.layer.use_bias:
            weights["bias"] = _product(self.layer.bias, ops.reshape(gates, (-1,)))
        return weights

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        gated = self.effective_weights(self.gates(training))
        replaced = {id(getattr(self.layer, name)): value for name, value in gated.items()}
        return self.call_with(replaced, inputs)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "kernel": self.kernel,
            "groups": self.groups,
            "strength": self.strength,
            "speed": self.speed,
            "seed": self.seed,
        }


def _product(variable: Any, gates: Any) -> Any:
    value = ops.convert_to_tensor(variable)
    return value * ops.cast(gates, value.dtype)


def build_gated(
    graph: Graph,
    targets: Sequence[Target],
    *,
    groups: str,
    strength: float,
    speed: float = 1.0,
    seed: int = 0,
) -> Any:
    """Build the model of a graph with gates on some of its layers, all open at rest.

    Args:
        graph: Of a Keras 3 model, which is not changed.
        targets: The kernels to be gated.
        groups: What has a gate.
        strength: Penalty for each weight behind an open gate.
        speed: How many times as far as a weight a gate moves in a step of an adaptive optimizer.
        seed: Of the draws; every layer has its own.

    Returns:
        A Keras model with own copies of all layers, not compiled.
    """
    gated = {id(target.layer): target for target in targets}
    copies = Copies()
    wrappers: dict[int, Any] = {}

    def emit(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        key = id(call.operation)
        if key not in gated:
            return copies.of(call)(*args, **kwargs)
        if key not in wrappers:
            wrappers[key] = GatedWeights(
                copies.of(call),
                kernel=gated[key].name,
                groups=groups,
                strength=strength,
                speed=speed,
                seed=seed + len(wrappers),
                trainable=call.trainable,
            )
        return wrappers[key](*args, **kwargs)

    return build_model(graph, emit)


def gated_layers(model: Any) -> list[GatedWeights]:
    """The gated layers of a model."""
    return [layer for layer in model.layers if isinstance(layer, GatedWeights)]


def fold_gates(model: Any, *, below: float = 0.0) -> Any:
    """Build the plain model that a gated one is at inference: gates multiplied into the weights.

    Args:
        model: A model from `build_gated`, which is not changed.
        below: Gates at rest that are no larger become zero.

    Returns:
        A Keras model with own copies of all layers, not compiled.
    """
    graph, copies = read_graph(model), Copies()
    folded: dict[int, Any] = {}

    def emit(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        wrapper = call.operation
        if not isinstance(wrapper, GatedWeights):
            return copies.of(call)(*args, **kwargs)
        if id(wrapper) not in folded:
            folded[id(wrapper)] = _folded(call, wrapper, below)
        kwargs = {name: value for name, value in kwargs.items() if name != "training"}
        return folded[id(wrapper)](*args, **kwargs)

    return build_model(graph, emit)


def _folded(call: Call, wrapper: GatedWeights, below: float) -> Any:
    gates = wrapper.gates()
    gates = ops.where(gates <= below, ops.zeros_like(gates), gates)
    values: Mapping[int, Any] = {
        id(getattr(wrapper.layer, name)): value
        for name, value in wrapper.effective_weights(gates).items()
    }
    weights = [np.asarray(values.get(id(v), v.value)) for v in wrapper.layer.weights]
    return copy_layer(wrapper.layer, weights=weights, name=call.name, trainable=call.trainable)
