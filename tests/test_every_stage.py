"""What every stage promises, on every model of the zoo, in both Kerases where it takes both.

A row of `CASES` is a stage with settings that do something, settings that do nothing, and the
oracle: what the stage must have done to the weights.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import pytest
import tf_keras
from fresh import run_fresh
from models import ZOO, inputs_of, labels_of, weights_of

from tfedge import (
    Cluster,
    Context,
    Data,
    DropLayers,
    FineTune,
    LowRank,
    Prune,
    Quantize,
    RemoveDead,
    Rewrite,
    SparsityPenalty,
    Split,
    StructuredPrune,
    save_model,
)
from tfedge.engines.native.kernels import kernels_of
from tfedge.models import copy_model, layers_of
from tfedge.stages._base import AbstractTrainedStage

KERASES = {"keras3": keras, "tf_keras": tf_keras}
LOSS = "sparse_categorical_crossentropy"
SAMPLES = 16
SCAFFOLDING = ("pruning_wrapper", "cluster_wrapper", "quantize", "gate", "penal", "clustered")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A stage to hold to its promises.

    Attributes:
        name: Of the case.
        real: The stage with settings that change something.
        neutral: With settings that change nothing; `None` where it has none.
        oracle: `oracle(before, after)` asserts that the change is the one that was asked for.
        kerases: Which models it takes.
        keeps_wrappers: Whether wrappers stay until `convert`.
    """

    name: str
    real: Any
    neutral: Any = None
    oracle: Callable[[Any, Any], None]
    kerases: tuple[str, ...] = ("keras3", "tf_keras")
    keeps_wrappers: bool = False


# ---------------------------------------------------------------------------- oracles


def kernels(model, *, depthwise=False):
    return [k for layer in layers_of(model) for k in kernels_of(layer, depthwise=depthwise)]


def pruned_by_magnitude(sparsity):
    def oracle(before, after):
        pairs = list(zip(kernels(before), kernels(after), strict=True))
        assert pairs
        for old, new in pairs:
            if not old.layer.trainable and sparsity != 0.5:
                continue  # one shot (0.5) prunes frozen layers too, training does not
            values = old.variable.numpy()
            kept = max(1, round(values.size * (1 - sparsity)))
            floor = np.sort(np.abs(values), axis=None)[-kept]
            np.testing.assert_array_equal(
                new.variable.numpy(), np.where(np.abs(values) >= floor, values, 0)
            )

    return oracle


def trained_as_keras_trains(before, after):
    """The weights of a plain `fit` of a copy, bit for bit."""
    k = KERASES["keras3" if isinstance(before, keras.Model) else "tf_keras"]
    copy = copy_model(before)
    k.utils.set_random_seed(0)
    split = data_of(before).train
    copy.optimizer.learning_rate = 1e-3
    copy.fit(**split.fit_arguments(8, seed=0), epochs=1, verbose=0)
    for ours, theirs in zip(after.get_weights(), copy.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def rounded_to_int8(before, after):
    """Kernels that take the 255 levels of a symmetric range, per channel or per tensor."""
    if not isinstance(before, keras.Model):  # TFMOT is its own oracle
        return
    from tfedge.engines.native.fake_quant import QuantizedWeights

    wrappers = [layer for layer in after.layers if isinstance(layer, QuantizedWeights)]
    assert wrappers
    for wrapper in wrappers:
        if wrapper.batch_norm is not None:
            continue
        for spec in wrapper.specs:
            rounded = keras.ops.convert_to_numpy(wrapper.effective_weights()[spec.name])
            values = keras.ops.convert_to_numpy(getattr(wrapper.layer, spec.name))
            kept = {None: (), (2, 3): (2, 3)}.get(spec.axis, (spec.axis,))
            axes = tuple(i for i in range(values.ndim) if i not in kept)
            step = np.abs(values).max(axis=axes, keepdims=True) / 127
            assert np.abs(rounded - values).max() <= 0.5001 * step.max()
            levels = rounded / np.where(step > 0, step, 1)
            np.testing.assert_allclose(levels, np.rint(levels), atol=1e-3)


def nearest_of_evenly_spaced(count):
    """Every weight at the nearest of `count` values from the smallest to the largest weight."""

    def oracle(before, after):
        for old, new in zip(kernels(before), kernels(after), strict=True):
            if not old.layer.trainable:
                continue
            values = old.variable.numpy()
            centroids = np.linspace(values.min(), values.max(), count, dtype=np.float32)
            gaps = np.abs(values[..., None] - centroids)
            np.testing.assert_allclose(
                np.abs(values - new.variable.numpy()), gaps.min(axis=-1), atol=1e-5
            )
            assert len(np.unique(new.variable.numpy())) <= count

    return oracle


def truncated_to_rank_one(before, after):
    """Dense kernels that are the first term of their singular value decomposition."""
    new, factorised = {layer.name: layer for layer in layers_of(after)}, 0
    for layer in layers_of(before):
        if type(layer).__name__ != "Dense" or f"{layer.name}_in" not in new:
            continue
        left, values, right = np.linalg.svd(layer.kernel.numpy(), full_matrices=False)
        product = new[f"{layer.name}_in"].kernel.numpy() @ new[layer.name].kernel.numpy()
        np.testing.assert_allclose(product, values[0] * left[:, :1] @ right[:1], atol=1e-4)
        factorised += 1
    assert factorised >= 1


def only_pieces_went(before, after):
    """What is left has the kernels that it had."""
    old = {(k.layer.name, k.name): k.variable.numpy() for k in kernels(before, depthwise=True)}
    left = {(k.layer.name, k.name): k.variable.numpy() for k in kernels(after, depthwise=True)}
    assert set(left) <= set(old)
    for key, values in left.items():
        np.testing.assert_array_equal(values, old[key])


def small_weights_are_zero(threshold):
    def oracle(before, after):
        for old, new in zip(kernels(before), kernels(after), strict=True):
            values = old.variable.numpy()
            if old.layer.trainable:
                values = np.where(np.abs(values) < threshold, 0, values)
            np.testing.assert_array_equal(new.variable.numpy(), values)

    return oracle


def smaller_and_reported(before, after):
    """Kernels of the filters that stay are slices of those that were, and fewer."""
    new = {layer.name: layer for layer in layers_of(after)}
    for old in kernels(before, depthwise=True):
        values = old.variable.numpy()
        left = kernels_of(new[old.layer.name], depthwise=True)[0].variable.numpy()
        assert all(a <= b for a, b in zip(left.shape, values.shape, strict=True))
        assert np.isin(left, values).all()
    assert after.count_params() < before.count_params()


def same_outputs(before, after):
    np.testing.assert_allclose(outputs(after), outputs(before), atol=1e-5)


KERAS_3 = ("keras3",)
CASES = {
    case.name: case
    for case in (
        Case(
            name="prune",
            real=Prune(sparsity=0.6, end=1.0, frequency=1),
            neutral=Prune(sparsity=0.0),
            oracle=pruned_by_magnitude(0.6),
        ),
        Case(
            name="prune_at_once",
            real=Prune(sparsity=0.5, one_shot=True),
            neutral=Prune(sparsity=0.0, one_shot=True),
            oracle=pruned_by_magnitude(0.5),
        ),
        Case(name="finetune", real=FineTune(epochs=1, batch_size=8, learning_rate=1e-3),
             oracle=trained_as_keras_trains),
        Case(
            name="cluster",
            real=Cluster(number_of_clusters=6),
            neutral=Cluster(number_of_clusters=100_000),
            oracle=nearest_of_evenly_spaced(6),
        ),
        Case(
            name="cluster_at_once",
            real=Cluster(number_of_clusters=6, one_shot=True, kmeans_steps=0),
            neutral=Cluster(number_of_clusters=100_000, one_shot=True),
            oracle=nearest_of_evenly_spaced(6),
        ),
        Case(name="quantize", real=Quantize(), oracle=rounded_to_int8, keeps_wrappers=True),
        Case(
            name="structured_prune",
            real=StructuredPrune(amount=0.5, round_to=1, min_channels=2),
            neutral=StructuredPrune(amount=0.0),
            oracle=smaller_and_reported,
            kerases=KERAS_3,
        ),
        Case(
            name="remove_dead",
            real=RemoveDead(),
            neutral=RemoveDead(),
            oracle=same_outputs,
            kerases=KERAS_3,
        ),
        Case(
            name="low_rank",
            real=LowRank(rank=1),
            neutral=LowRank(rank=1.0),
            oracle=truncated_to_rank_one,
            kerases=KERAS_3,
        ),
        Case(
            name="drop_layers",
            real=DropLayers(max_worse=100.0),
            oracle=only_pieces_went,
            kerases=KERAS_3,
        ),
        Case(
            name="sparsity_penalty",
            real=SparsityPenalty(kind="l1", strength=1e-4, threshold=0.02, zero_out=True),
            neutral=SparsityPenalty(kind="l1", strength=0.0),
            oracle=small_weights_are_zero(0.02),
            kerases=KERAS_3,
        ),
        Case(
            name="rewrite",
            real=Rewrite(),
            neutral=Rewrite(patterns=("drop_identity",)),
            oracle=same_outputs,
            kerases=KERAS_3,
        ),
    )
}  # fmt: skip
PAIRS = [
    pytest.param(case, kind, model, id=f"{case.name}-{kind}-{model}")
    for case in CASES.values()
    for kind in case.kerases
    for model in ZOO
]
every_pair = pytest.mark.parametrize(("case", "kind", "model"), PAIRS)


# ---------------------------------------------------------------------------- what was made


@dataclass(frozen=True, kw_only=True)
class Made:
    before: Any
    weights: list[np.ndarray]
    after: Any
    report: Any


@functools.cache
def built(kind, name):
    k = KERASES[kind]
    model = ZOO[name](k)
    model.compile(k.optimizers.SGD(0.0), LOSS)  # a rate of 0: what changes is the stage's doing
    return model


def data_of(model):
    split = Split(inputs_tuple(model, SAMPLES), labels_of(SAMPLES))
    return Data(train=split, evaluation=split, calibration=Split(inputs_tuple(model, SAMPLES)))


def inputs_tuple(model, count):
    x = inputs_of(model, count)
    return tuple(x) if isinstance(x, list) else x


def fit(model, callbacks=()):
    k = keras if isinstance(model, keras.Model) else tf_keras
    k.utils.set_random_seed(0)
    return model.fit(
        inputs_of(model, SAMPLES), labels_of(SAMPLES), batch_size=8, verbose=0,
        callbacks=list(callbacks),
    )  # fmt: skip


@functools.cache
def made(name, kind, model_name):
    case, model = CASES[name], built(kind, model_name)
    weights = weights_of(model)
    context = Context(fit=fit, data=data_of(model))
    after, report = case.real.apply(model, context)
    return Made(before=model, weights=weights, after=after, report=report)


def outputs(model):
    return np.asarray(model(inputs_of(model, 8), training=False))


# ---------------------------------------------------------------------------- the promises


@every_pair
def test_the_model_that_came_in_stays_bit_equal(case, kind, model):
    result = made(case.name, kind, model)
    for now, then in zip(result.before.get_weights(), result.weights, strict=True):
        np.testing.assert_array_equal(now, then)
    assert result.after is not result.before


@every_pair
def test_the_change_is_the_one_that_was_asked_for(case, kind, model):
    result = made(case.name, kind, model)
    case.oracle(result.before, result.after)


@every_pair
def test_every_layer_is_reported_once(case, kind, model):
    result = made(case.name, kind, model)
    report = result.report
    rows = [*report.changed, *(row.layer for row in report.skipped)]
    assert sorted(rows) == sorted(layer.name for layer in layers_of(result.before))
    assert all(row.reason for row in report.skipped)


@every_pair
def test_no_wrapper_is_left(case, kind, model):
    if case.keeps_wrappers:
        return
    for layer in layers_of(made(case.name, kind, model).after):
        assert type(layer).__module__.partition(".")[0] in ("keras", "tf_keras"), layer
        assert getattr(layer, "kernel_constraint", None) is None


@every_pair
def test_a_compiled_model_comes_back_compiled(case, kind, model):
    result = made(case.name, kind, model)
    assert result.after.loss == LOSS
    assert type(result.after.optimizer).__name__ == "SGD"
    assert result.after.optimizer is not result.before.optimizer


@pytest.mark.parametrize(
    ("case", "kind", "model"), [pair for pair in PAIRS if pair.values[0].neutral is not None]
)
def test_neutral_settings_change_no_output(case, kind, model):
    before, stage = built(kind, model), case.neutral
    if isinstance(stage, AbstractTrainedStage):  # training would move batch statistics
        after, _ = stage.finish(stage.prepare(before))
    else:
        after, _ = stage.apply(before, Context(data=data_of(before)))
    np.testing.assert_allclose(outputs(after), outputs(before), atol=1e-5)


IN_A_FRESH_PROCESS = """
import sys
from pathlib import Path
import numpy as np
import tfedge
for folder in sorted(Path(sys.argv[1]).iterdir()):
    model = tfedge.load_model(folder / "model.keras")
    x = [np.load(folder / f"x{i}.npy") for i in range(len(model.inputs))]
    now = np.asarray(model(x[0] if len(x) == 1 else x, training=False))
    worst = np.abs(now - np.load(folder / "outputs.npy")).max()
    print(folder.name, worst)
"""


@pytest.mark.parametrize("kind", KERASES)
def test_a_saved_model_predicts_the_same_in_a_fresh_process(kind, tmp_path):
    names = [pair.id for pair in PAIRS if pair.values[1] == kind]
    for pair in PAIRS:
        case, of, model = pair.values
        if of == kind:
            folder = tmp_path / pair.id
            folder.mkdir()
            after = made(case.name, kind, model).after
            save_model(after, folder / "model.keras")
            x = inputs_of(after, 8)
            for index, array in enumerate(x if isinstance(x, list) else [x]):
                np.save(folder / f"x{index}.npy", array)
            np.save(folder / "outputs.npy", outputs(after))
    said = run_fresh(IN_A_FRESH_PROCESS, tmp_path)
    worst = {name: float(value) for name, value in map(str.split, said.splitlines())}
    assert sorted(worst) == sorted(names)
    assert max(worst.values()) <= 1e-5, worst
