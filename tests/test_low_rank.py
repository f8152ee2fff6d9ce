import keras
import numpy as np
import pytest
import tf_keras
from models import ZOO, inputs_of, labels_of, weights_of

from tfedge.data import Data, Split, find_metric
from tfedge.engines.native.costs import total_macs, total_parameters
from tfedge.engines.native.graph import read_graph
from tfedge.engines.native.low_rank import (
    Candidate,
    Option,
    as_matrix,
    build_factorized,
    candidate_of,
    energy_kept,
    factorize,
    spectrum,
)
from tfedge.engines.native.rank_choice import within_budget
from tfedge.errors import ModelError, SettingsError, UnsupportedModelError
from tfedge.models import layers_of
from tfedge.stages._base import Context
from tfedge.stages._fit import make_fit
from tfedge.stages.low_rank import LowRank

L = keras.layers
LOSS = "sparse_categorical_crossentropy"


def says(model, x):
    """Outputs at inference, without the graph that `predict` would trace."""
    return np.asarray(model(x, training=False))


def normal(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def joined(first, second, scheme):
    """The kernel that two factors stand for."""
    if scheme == "channel":
        return np.einsum("...cr,rf->...cf", first, second.reshape(second.shape[-2:]))
    return np.einsum("hcr,wrf->hwcf", first[:, 0], second[0])


def model_of(layer, shape):
    model = keras.Sequential([keras.Input(shape), layer])
    for index, weight in enumerate(model.weights):
        weight.assign(normal(weight.shape, index))
    return model


def forced(model, scheme, rank=None):
    """The model with its one layer factorised, also where that makes it larger; full by default."""
    graph = read_graph(model)
    candidate = candidate_of(graph, graph.calls[0], (scheme,))
    (scheme,) = candidate.spectra
    rank = rank or candidate.full_rank(scheme)
    return build_factorized(graph, {id(graph.calls[0].operation): Option(scheme, rank, 1.0, 0, 0)})


# ---------------------------------------------------------------------- mathematics


@pytest.mark.parametrize(
    ("shape", "scheme"),
    [
        ((12, 7), "channel"),
        ((3, 4, 9), "channel"),
        ((3, 5, 4, 6), "channel"),
        ((3, 5, 4, 6), "spatial"),
    ],
)
@pytest.mark.parametrize("rank", [1, 3, 4])
def test_the_error_of_a_rank_is_the_tail_of_the_singular_values(shape, scheme, rank):
    kernel = normal(shape)
    error = np.linalg.norm(joined(*factorize(kernel, rank, scheme), scheme) - kernel)
    values = np.linalg.svd(as_matrix(kernel, scheme))[1]
    assert error == pytest.approx(np.sqrt(np.sum(values[rank:] ** 2)), rel=1e-5)
    kept = energy_kept(spectrum(kernel, scheme))[rank - 1]
    assert 1 - kept == pytest.approx((error / np.linalg.norm(kernel)) ** 2, rel=1e-4)


def test_no_other_product_of_the_rank_comes_closer():
    kernel = normal((9, 6))
    best = np.linalg.norm(joined(*factorize(kernel, 2, "channel"), "channel") - kernel)
    for seed in range(20):
        left = normal((9, 2), seed)
        right = np.linalg.lstsq(left, kernel, rcond=None)[0]
        assert np.linalg.norm(left @ right - kernel) > best


def test_a_kernel_of_zeros_has_factors_of_zeros():
    first, second = factorize(np.zeros((4, 3), np.float32), 1, "channel")
    assert not first.any()
    assert not second.any()
    assert energy_kept(np.zeros(3)).tolist() == [1, 1, 1]


# ---------------------------------------------------------------------- layers


CONVOLUTIONS = [
    (L.Conv2D(5, 3, padding="same", activation="relu", name="a"), (7, 8, 3)),
    (L.Conv2D(5, (3, 2), strides=2, padding="same", name="a"), (7, 8, 3)),
    (L.Conv2D(5, (2, 3), strides=(1, 2), padding="valid", name="a"), (7, 8, 3)),
    (L.Conv2D(5, 3, dilation_rate=2, padding="same", use_bias=False, name="a"), (9, 9, 3)),
    (L.Conv2D(6, 1, strides=2, name="a"), (7, 8, 4)),
    (L.Conv1D(5, 3, padding="causal", dilation_rate=2, name="a"), (9, 4)),
    (L.Conv1D(5, 4, strides=3, padding="same", name="a"), (11, 4)),
    (L.Conv3D(4, 2, padding="same", name="a"), (4, 5, 4, 2)),
    (L.Dense(6, activation="tanh", name="a"), (9,)),
    (L.Dense(6, name="a"), (5, 9)),
]


@pytest.mark.parametrize("scheme", ["channel", "spatial"])
@pytest.mark.parametrize(("layer", "shape"), CONVOLUTIONS, ids=lambda v: getattr(v, "name", ""))
def test_full_rank_computes_the_same(layer, shape, scheme):
    model = model_of(type(layer).from_config(layer.get_config()), shape)
    x = normal((2, *shape))
    expected = says(model, x)
    np.testing.assert_allclose(
        says(forced(model, scheme), x), expected, atol=1e-5 * np.abs(expected).max()
    )


@pytest.mark.parametrize("scheme", ["channel", "spatial"])
@pytest.mark.parametrize(("layer", "shape"), CONVOLUTIONS, ids=lambda v: getattr(v, "name", ""))
def test_costs_of_an_option_are_those_of_the_model_that_it_makes(layer, shape, scheme):
    model = model_of(type(layer).from_config(layer.get_config()), shape)
    graph = read_graph(model)
    candidate = candidate_of(graph, graph.calls[0], (scheme,))
    for options in candidate.options.values():
        for option in options[:2]:
            built = read_graph(build_factorized(graph, {id(candidate.layer): option}))
            bias = candidate.layer.filters if "Conv" in type(layer).__name__ else 6
            assert total_macs(built) == option.macs < total_macs(graph)
            assert total_parameters(built) == option.parameters + bias * candidate.layer.use_bias


def test_settings_of_the_layer_go_where_they_belong():
    layer = L.Conv2D(
        16,
        3,
        activation="relu",
        kernel_regularizer=keras.regularizers.L2(1e-3),
        bias_regularizer=keras.regularizers.L1(1e-3),
        kernel_constraint=keras.constraints.NonNeg(),
        activity_regularizer=keras.regularizers.L2(1e-4),
        name="conv",
        dtype="mixed_float16",
    )
    model = keras.Sequential([keras.Input((8, 8, 8)), layer])
    layer.trainable = False
    factorized, report = LowRank(rank=4).apply(model)
    first, second = factorized.layers[-2:]
    assert (first.name, second.name) == ("conv_in", "conv")
    assert [la.dtype_policy.name for la in (first, second)] == ["mixed_float16"] * 2
    assert not first.trainable
    assert not second.trainable
    for side in (first, second):
        assert float(side.kernel_regularizer.l2) == pytest.approx(1e-3)
        assert side.kernel_constraint is None
    assert not first.use_bias
    assert first.activity_regularizer is None
    assert first.activation is keras.activations.linear
    assert second.activation is keras.activations.relu
    assert float(second.bias_regularizer.l1) == pytest.approx(1e-3)
    assert "constraint of conv" in report.notes[0]


def test_a_name_that_is_taken_is_numbered():
    layers = [keras.Input((16,)), L.Dense(16, name="a"), L.Dense(16, name="a_in")]
    factorized, _ = LowRank(rank=2).apply(keras.Sequential(layers))
    names = [layer.name for layer in factorized.layers[1:]]
    assert names == ["a_in_1", "a", "a_in_in", "a_in"]


def test_a_shared_layer_is_factorised_once():
    model = ZOO["shared_layer"](keras)
    factorized, report = LowRank(rank=2, layers=["shared_conv"]).apply(model)
    assert [la.name for la in layers_of(factorized)].count("shared_conv_in") == 1
    assert len(factorized.get_layer("shared_conv")._inbound_nodes) == 2
    positions, per_rank = 2 * 12 * 12, 3 * 3 * 3 + 8
    head = 16 * 4
    assert report.metrics["macs_after"] == positions * 2 * per_rank + head


@pytest.mark.parametrize(
    ("layer", "shape", "reason"),
    [
        (L.DepthwiseConv2D(3, name="x"), (8, 8, 4), "depthwise"),
        (L.Conv2D(8, 3, groups=2, name="x"), (8, 8, 8), "grouped"),
        (L.SeparableConv2D(8, 3, name="x"), (8, 8, 8), "separable"),
        (L.Conv2DTranspose(8, 3, name="x"), (8, 8, 8), "transposed"),
        (L.BatchNormalization(name="x"), (8, 8, 8), "no dense or convolution kernel"),
        (L.Dense(1, name="x"), (8, 8), "no smaller and cheaper than one at any rank"),
    ],
)
def test_layers_that_cannot_gain_are_left_alone_with_the_reason(layer, shape, reason):
    model = keras.Sequential([keras.Input(shape), layer, L.Flatten(), L.Dense(64, name="big")])
    _, report = LowRank(rank=1).apply(model)
    assert report.changed == ("big",)
    row = next(row for row in report.skipped if row.layer == "x")
    assert reason in row.reason


# ---------------------------------------------------------------------- choosing ranks


def test_energy_keeps_at_least_what_was_asked_and_not_a_rank_more():
    model = ZOO["dense"](keras)
    kernel = model.get_layer("hidden_1").get_weights()[0]
    _, report = LowRank(energy=0.8, layers=["hidden_1"]).apply(model)
    rank = report.metrics["rank_per_layer"]["hidden_1"]
    values = np.linalg.svd(kernel, compute_uv=False) ** 2
    kept = np.cumsum(values) / values.sum()
    assert kept[rank - 1] >= 0.8 > kept[rank - 2]
    assert report.metrics["energy_per_layer"]["hidden_1"] == pytest.approx(kept[rank - 1])


def test_a_fraction_of_the_full_rank_is_rounded_and_at_least_one():
    model = ZOO["dense"](keras)
    _, report = LowRank(rank=0.5, layers=["hidden_1"]).apply(model)
    assert report.metrics["rank_per_layer"] == {"hidden_1": 8}
    _, report = LowRank(rank=0.001).apply(model)
    assert set(report.metrics["rank_per_layer"].values()) == {1}


def test_ranks_may_be_said_by_layer():
    _, report = LowRank(rank={"hidden_1": 3, "hidden_2": 0.25}).apply(ZOO["dense"](keras))
    assert report.metrics["rank_per_layer"] == {"hidden_1": 3, "hidden_2": 4}


@pytest.mark.parametrize("budget", [{"flops": 0.7}, {"flops": 0.4}, {"params": 0.5}])
def test_a_budget_is_met_and_nearly_spent(budget):
    model = ZOO["residual"](keras)
    factorized, report = LowRank(**budget).apply(model)
    (kind, share), count = *budget.items(), report.metrics
    name = "macs" if kind == "flops" else "parameters"
    measured = {"flops": total_macs, "params": total_parameters}[kind](read_graph(factorized))
    assert count[f"{name}_after"] == measured
    assert share - 0.1 < measured / count[f"{name}_before"] <= share


def all_choices(candidates):
    """Every way to choose one option for each of some layers: (macs, energies multiplied)."""
    rows = [(0, 1.0)]
    for candidate in candidates:
        options = [o for group in candidate.options.values() for o in group]
        ways = [(candidate.macs, 1.0), *((o.macs, o.kept) for o in options)]
        rows = [(m + cost, kept * k) for m, kept in rows for cost, k in ways]
    return rows


@pytest.mark.parametrize("budget", [0.9, 0.75, 0.6, 0.45, 0.3])
def test_the_shared_budget_is_near_the_best_of_all_choices(budget):
    model = ZOO["residual"](keras)
    graph = read_graph(model)
    calls = [call for call in graph.calls if call.name in ("conv_1", "conv_2", "conv_3")]
    candidates = [candidate_of(graph, call) for call in calls]
    total = sum(candidate.macs for candidate in candidates)
    choices = within_budget(candidates, budget=budget, total=total, cost="flops")
    kept = np.prod([c.option.kept if c.option else 1.0 for c in choices])
    macs = sum(c.option.macs if c.option else c.candidate.macs for c in choices)
    best = max(k for m, k in all_choices(candidates) if m <= budget * total)
    assert macs <= budget * total
    assert best * 0.9 <= kept <= best * (1 + 1e-9)


def test_a_layer_of_low_rank_pays_before_one_of_full_rank():
    thin = normal((16, 2)) @ normal((2, 16), 1)
    layers = [keras.Input((16,)), L.Dense(16, name="full"), L.Dense(16, name="thin")]
    model = keras.Sequential(layers)
    model.get_layer("full").set_weights([normal((16, 16), 2), np.zeros(16)])
    model.get_layer("thin").set_weights([thin, np.zeros(16)])
    factorized, report = LowRank(flops=0.65).apply(model)
    assert report.metrics["rank_per_layer"] == {"thin": 2}
    x = normal((4, 16))
    np.testing.assert_allclose(says(factorized, x), says(model, x), atol=1e-3)


def test_a_square_kernel_separable_in_space_is_written_as_two_sides():
    model = model_of(L.Conv2D(8, 5, padding="same", name="a"), (12, 12, 8))
    kernel = np.einsum("hcr,wrf->hwcf", normal((5, 8, 3)), normal((5, 3, 8), 1))
    model.layers[-1].set_weights([kernel, np.zeros(8)])
    _, report = LowRank(energy=0.9999999).apply(model)
    assert report.metrics["scheme_per_layer"] == {"a": "spatial"}
    assert report.metrics["rank_per_layer"] == {"a": 3}


def test_an_open_side_has_no_count_but_can_be_factorised():
    layers = [keras.Input((None, None, 8)), L.Conv2D(16, 3, name="a")]
    model = keras.Sequential(layers)
    _, report = LowRank(rank=4).apply(model)
    assert report.changed == ("a",)
    assert "macs_after" not in report.metrics
    assert report.metrics["parameters_after"] == 4 * (9 * 8 + 16) + 16
    assert LowRank(params=0.5).apply(model)[1].changed == ("a",)
    with pytest.raises(UnsupportedModelError, match="size of every axis"):
        LowRank(flops=0.5).apply(model)


# ---------------------------------------------------------------------- the stage


@pytest.mark.parametrize("name", ZOO)
def test_every_model_of_the_zoo_computes_with_the_truncated_kernels(name):
    model = ZOO[name](keras)
    before = weights_of(model)
    factorized, report = LowRank(rank=0.5).apply(model)
    assert report.changed
    named = {*report.changed, *(row.layer for row in report.skipped)}
    assert named == {layer.name for layer in layers_of(model)}
    reference = ZOO[name](keras)
    for layer in layers_of(reference):
        if layer.name in report.changed:
            kernel, *bias = layer.get_weights()
            matrix = kernel.reshape(-1, kernel.shape[-1])
            u, values, v = np.linalg.svd(matrix, full_matrices=False)
            rank = report.metrics["rank_per_layer"][layer.name]
            cut = (u[:, :rank] * values[:rank]) @ v[:rank]
            layer.set_weights([cut.reshape(kernel.shape), *bias])
    x = inputs_of(model)
    np.testing.assert_allclose(says(factorized, x), says(reference, x), atol=1e-5)
    assert all(np.array_equal(a, b) for a, b in zip(before, weights_of(model), strict=True))
    trainable = sum(layer.trainable for layer in layers_of(model) if layer.weights)
    if name == "frozen_backbone":
        assert trainable == 1
        assert {w.path.split("/")[0] for w in factorized.trainable_weights} == {
            "classes",
            "classes_in",
        }


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("settings", [{"rank": 1.0}, {"energy": 1.0}])
def test_full_rank_leaves_the_model_as_it_is(name, settings):
    model = ZOO[name](keras)
    same, report = LowRank(**settings).apply(model)
    assert report.changed == ()
    x = inputs_of(model)
    np.testing.assert_allclose(says(same, x), says(model, x), atol=1e-5)


def test_an_adapted_normalization_keeps_its_statistics():
    normalize = L.Normalization()
    normalize.adapt(5 + 3 * normal((64, 16)))
    model = keras.Sequential([keras.Input((16,)), normalize, L.Dense(16)])
    factorized, _ = LowRank(rank=7).apply(model)
    x = 5 + 3 * normal((8, 16), 1)
    hidden = keras.Model(factorized.input, factorized.layers[1].output)
    np.testing.assert_allclose(says(hidden, x), normalize(x), atol=1e-5)


def test_a_compiled_model_comes_back_compiled_and_is_trained_where_there_is_a_fit():
    model = ZOO["conv_bn_relu"](keras)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.5), LOSS)
    split = Split(inputs_of(model, 48), labels_of(48))
    data = Data(train=split, evaluation=split)
    fit = make_fit(data, epochs=2, batch_size=16)
    context = Context(fit=fit, data=data, metric=find_metric("accuracy"))
    plain, _ = LowRank(rank=2).apply(model, Context(data=data, metric=context.metric))
    trained, report = LowRank(rank=2).apply(model, context)
    assert trained.optimizer.get_config() == model.optimizer.get_config()
    assert {"accuracy_before", "accuracy_factorized", "accuracy_trained"} <= set(report.metrics)
    assert not np.array_equal(plain.get_weights()[0], trained.get_weights()[0])
    assert report.metrics["rank_per_layer"] == {"conv_1": 2, "conv_2": 2, "classes": 2}


# ---------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({}, "exactly one of"),
        ({"rank": 3, "energy": 0.9}, "Received: `rank`, `energy`"),
        ({"rank": 0}, r"from 1\) or a fraction"),
        ({"rank": 8.0}, r"Did you mean 8\?"),
        ({"rank": True}, "Received: True"),
        ({"rank": {"a": 0}}, "Received: 0"),
        ({"energy": 95}, r"Did you mean 0.95\?"),
        ({"energy": 0.0}, r"in \(0, 1\]"),
        ({"flops": 1.0}, r"may remain, in \(0, 1\)"),
        ({"params": 50}, r"Did you mean 0.5\?"),
        ({"rank": 2, "scheme": "chanel"}, "Did you mean 'channel'"),
        ({"rank": 2, "layers": "a"}, r"Did you mean \['a'\]"),
        ({"rank": 2, "exclude": "a"}, "`exclude` is a list"),
        ({"rank": {"a": 2}, "layers": ["a"]}, "Received `layers` too"),
    ],
)
def test_wrong_settings_are_refused_at_once(settings, match):
    with pytest.raises(SettingsError, match=match):
        LowRank(**settings)


@pytest.mark.parametrize(
    "settings",
    [{"rank": 1}, {"rank": 1.0}, {"energy": 1}, {"flops": 0.99}, {"rank": {"a": 2}}],
)
def test_their_good_neighbours_are_taken(settings):
    LowRank(**settings)


@pytest.mark.parametrize(
    ("name", "settings", "match"),
    [
        ("dense", {"rank": 17}, "rank 17 is above its full rank 16"),
        ("dense", {"rank": 5, "layers": ["classes"]}, "above its full rank 4, layer 'classes'"),
        ("dense", {"rank": {"hiden_1": 2}}, "'hidden_1'"),
        ("dense", {"rank": 2, "exclude": ["nope"]}, "no layer 'nope'"),
        ("conv_bn_relu", {"rank": 2, "layers": ["bn_1"]}, "'bn_1' cannot be factorised"),
        ("depthwise", {"rank": 2, "layers": ["depthwise"]}, "depthwise: its kernel"),
        ("nested", {"rank": {"block": 2}}, "name its layers, such as 'conv_block'"),
        ("dense", {"flops": 0.05}, r"cannot be met: .* 100 of 832 .* a fraction of 0\.120"),
        ("dense", {"params": 0.05}, r"144 of 876 parameters remain"),
    ],
)
def test_what_a_model_cannot_give_is_refused(name, settings, match):
    with pytest.raises(SettingsError, match=match):
        LowRank(**settings).apply(ZOO[name](keras))


def test_a_rank_that_suits_some_layers_is_used_for_those():
    _, report = LowRank(rank=7).apply(ZOO["dense"](keras))
    assert report.changed == ("hidden_1", "hidden_2")
    assert "above its full rank 4" in report.skipped[0].reason


def test_excluded_layers_stay_whole():
    _, report = LowRank(rank=2, exclude=["hidden_1"]).apply(ZOO["dense"](keras))
    assert report.changed == ("hidden_2", "classes")


def test_models_that_cannot_be_factorised_are_refused():
    with pytest.raises(UnsupportedModelError, match="to_keras3"):
        LowRank(rank=2).apply(ZOO["dense"](tf_keras))
    model = ZOO["dense"](keras)
    model.layers[0].set_weights([np.full_like(w, np.nan) for w in model.layers[0].get_weights()])
    with pytest.raises(ModelError, match="hidden_1"):
        LowRank(rank=2).apply(model)


def test_a_candidate_knows_its_full_ranks():
    graph = read_graph(model_of(L.Conv2D(5, (3, 2), name="a"), (7, 8, 4)))
    candidate = candidate_of(graph, graph.calls[0])
    assert isinstance(candidate, Candidate)
    assert candidate.full_rank("channel") == 5
    assert candidate.full_rank("spatial") == 10
