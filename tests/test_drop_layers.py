import keras
import numpy as np
import pytest
import tf_keras
from models import ZOO, inputs_of, labels_of, weights_of

from tfedge.data import Data, Split, find_metric
from tfedge.engines.native.costs import total_macs, total_parameters
from tfedge.engines.native.graph import read_graph
from tfedge.engines.native.layer_dropping import (
    drop,
    find_spans,
    outputs_without,
    without,
)
from tfedge.errors import ModelError, SettingsError, UnsupportedModelError
from tfedge.models import layers_of
from tfedge.stages._base import Context
from tfedge.stages._fit import make_fit
from tfedge.stages._judge_outputs import choose_figure
from tfedge.stages.drop_layers import DropLayers

L = keras.layers
LOSS = "sparse_categorical_crossentropy"


def says(model, x):
    """Outputs at inference, without the graph that `predict` would trace."""
    return np.asarray(model(x, training=False))


def blocks(idle=2, count=3):
    """A network of residual blocks, of which one adds nothing."""
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3), name="image")
    x = L.Conv2D(6, 3, padding="same", activation="relu", name="stem")(image)
    for number in range(count):
        y = L.Conv2D(6, 3, padding="same", use_bias=False, name=f"conv_{number}")(x)
        y = L.BatchNormalization(name=f"bn_{number}")(y)
        y = L.ReLU(name=f"relu_{number}")(y)
        y = L.Conv2D(6, 3, padding="same", name=f"last_{number}")(y)
        x = L.Add(name=f"add_{number}")([x, y])
    x = L.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(image, L.Dense(4, activation="softmax", name="classes")(x), name="blocks")
    for layer in model.layers:
        if layer.name == f"last_{idle}":
            layer.set_weights([np.zeros_like(w) for w in layer.get_weights()])
        elif layer.name == "classes":
            layer.set_weights([8 * w for w in layer.get_weights()])
    return model


def compiled(model):
    model.compile(keras.optimizers.SGD(0.05, momentum=0.5), LOSS, metrics=["accuracy"])
    return model


def data_of(model, samples=64):
    """Samples with the labels that the model itself gives them."""
    x = inputs_of(model, samples)
    y = says(model, x).argmax(axis=1)
    x = tuple(x) if isinstance(x, list) else x
    return Data(train=Split(x, y), evaluation=Split(x, y))


def accuracy(model, split):
    return np.mean(says(model, split.x).argmax(axis=1) == split.y)


# ---------------------------------------------------------------------- the graph


def test_blocks_layers_and_chains_are_found():
    spans, reasons = find_spans(read_graph(blocks(count=1)))
    found = {span.title: span.calls for span in spans}
    assert found == {
        "conv_0": ("conv_0",),
        "conv_0 … relu_0": ("conv_0", "bn_0", "relu_0"),
        "bn_0": ("bn_0",),
        "last_0": ("last_0",),
        "block of add_0": ("conv_0", "bn_0", "relu_0", "last_0", "add_0"),
        "bn_0 … relu_0": ("bn_0", "relu_0"),
    }
    assert "saves neither" in reasons["relu_0"]
    assert "has not the form of its input" in reasons["stem"]


def test_savings_are_those_of_the_model_that_is_left():
    graph = read_graph(blocks(count=2))
    for span in find_spans(graph)[0]:
        left = read_graph(drop(graph, span))
        assert total_macs(graph) - total_macs(left) == span.macs
        assert total_parameters(graph) - total_parameters(left) == span.parameters
        assert {call.name for call in graph.calls} - {c.name for c in left.calls} == set(span.calls)


def test_a_shortcut_with_a_layer_in_it_is_no_identity():
    image = keras.Input((8, 8, 3))
    x = L.Conv2D(6, 3, padding="same")(image)
    y = L.Conv2D(8, 3, padding="same")(x)
    z = L.Add(name="projected")([L.Conv2D(8, 1)(x), y])
    graph = read_graph(keras.Model(image, L.Dense(2)(z)))
    spans, reasons = find_spans(graph)
    assert "projected" not in [span.name for span in spans]
    assert "no identity shortcut" in reasons["projected"]


def test_an_addition_by_an_operator_is_a_block_too():
    image = keras.Input((8, 8, 3))
    x = L.Conv2D(6, 3, padding="same")(image)
    x = L.Conv2D(6, 3, padding="same", name="inner")(x) + x
    spans, _ = find_spans(read_graph(keras.Model(image, L.Dense(2)(x))))
    assert [span.calls[0] for span in spans if span.kind == "block"] == ["inner"]


@pytest.mark.parametrize(
    ("build", "name", "reason"),
    [
        (lambda x: L.Dropout(0.5, name="x")(x), "x", "acts only while training"),
        (lambda x: x * 2.0, None, "an operation without weights"),
        (lambda x: L.Conv2D(6, 3, strides=2, name="x")(x), "x", "has not the form"),
    ],
)
def test_what_cannot_go_has_a_reason(build, name, reason):
    image = keras.Input((8, 8, 6))
    graph = read_graph(keras.Model(image, L.Conv2D(2, 1)(build(image))))
    _, reasons = find_spans(graph)
    assert reason in reasons[name or graph.calls[0].name]


def test_outputs_and_inputs_of_the_model_are_never_lost():
    one, two = keras.Input((6,), name="one"), keras.Input((6,), name="two")
    gated = L.Add(name="add")([one, L.Multiply()([one, two])])
    model = keras.Model([one, two], L.Dense(6, name="end")(gated))
    spans, reasons = find_spans(read_graph(model))
    assert spans == []
    assert set(reasons) >= {"add", "end"}


def test_a_shared_layer_stays():
    first = keras.Input((6,))
    twice = L.Dense(6, name="twice")
    model = keras.Model(first, L.Dense(2)(twice(twice(first))))
    spans, reasons = find_spans(read_graph(model))
    assert spans == []
    assert "shared" in reasons["twice"]


@pytest.mark.parametrize("name", [*ZOO, "blocks"])
def test_outputs_seen_on_the_way_are_those_of_the_models_built(name):
    model = blocks() if name == "blocks" else ZOO[name](keras)
    graph = read_graph(model)
    spans, _ = find_spans(graph)
    x = inputs_of(model, 6)
    halves = [[a[i : i + 3] for a in x] if isinstance(x, list) else x[i : i + 3] for i in (0, 3)]
    whole, parted = outputs_without(graph, spans, halves)
    np.testing.assert_allclose(np.concatenate(whole), says(model, x), atol=1e-6)
    for span, outputs in list(zip(spans, parted, strict=True))[:4]:
        np.testing.assert_allclose(np.concatenate(outputs), says(drop(graph, span), x), atol=1e-6)


def test_every_nested_span_leaves_a_sound_graph():
    graph = read_graph(blocks())
    block = next(s for s in find_spans(graph)[0] if s.name == "add_1")
    smaller = without(graph, block.start, block.end)
    assert {s.name for s in find_spans(smaller)[0] if s.kind == "block"} == {"add_0", "add_2"}


# ---------------------------------------------------------------------- the stage


@pytest.mark.parametrize(("idle", "figure"), [(0, "accuracy"), (1, "distance"), (2, "accuracy")])
def test_the_block_that_adds_nothing_goes_first_and_costs_nothing(idle, figure):
    model = compiled(blocks(idle))
    before = weights_of(model)
    data = data_of(model)
    context = Context(data=data, metric=find_metric("accuracy"))
    if figure == "distance":
        context = Context(data=Data(train=Split(data.train.x)))
    smaller, report = DropLayers(count=1).apply(model, context)
    assert report.metrics["dropped"] == [f"block of add_{idle}"]
    assert report.metrics[f"{figure}_after"] == pytest.approx(report.metrics[f"{figure}_before"])
    assert accuracy(smaller, data.evaluation) == 1.0
    x = data.evaluation.x
    np.testing.assert_allclose(says(smaller, x), says(model, x), atol=1e-6)
    gone = {f"{part}_{idle}" for part in ("conv", "bn", "relu", "last", "add")}
    assert set(report.changed) == gone
    assert {row.layer for row in report.skipped} == {la.name for la in layers_of(model)} - gone
    assert all(np.array_equal(a, b) for a, b in zip(before, weights_of(model), strict=True))
    assert report.metrics["macs_after"] == total_macs(read_graph(smaller))
    assert report.metrics["parameters_after"] == smaller.count_params()
    assert smaller.compiled


def test_every_candidate_is_reported_with_its_figure():
    model = compiled(blocks())
    data = data_of(model)
    _, report = DropLayers(count=1).apply(model, Context(data=data))
    rows = report.metrics["candidates"]
    graph = read_graph(model)
    assert {row["candidate"] for row in rows} == {span.title for span in find_spans(graph)[0]}
    losses = [row["loss"] for row in rows]
    assert losses == sorted(losses)
    last = rows[-1]
    span = next(s for s in find_spans(graph)[0] if s.title == last["candidate"])
    worst = compiled(drop(graph, span))
    sample = data.train.take(512)
    assert last["loss"] == pytest.approx(worst.evaluate(sample.x, sample.y, verbose=0)[0], rel=1e-4)


def test_a_layer_that_passes_its_input_on_goes_first():
    keras.utils.set_random_seed(0)
    layers = [
        keras.Input((16,)),
        L.Dense(12, activation="relu", name="a"),
        L.Dense(12, name="idle"),
        L.Dense(12, activation="relu", name="b"),
        L.Dense(4, activation="softmax", name="classes"),
    ]
    model = keras.Sequential(layers)
    model.get_layer("idle").set_weights([np.eye(12), np.zeros(12)])
    smaller, report = DropLayers(count=1).apply(model, Context(data=data_of(model)))
    assert report.changed == ("idle",)
    assert [layer.name for layer in smaller.layers[1:]] == ["a", "b", "classes"]
    assert not smaller.compiled


def test_blocks_go_until_the_budget_is_met():
    model = blocks()
    _, report = DropLayers(flops=0.5, layers=["add_0", "add_1", "add_2"]).apply(
        model, Context(data=data_of(model))
    )
    share = report.metrics["macs_after"] / report.metrics["macs_before"]
    assert len(report.metrics["dropped"]) == 2
    assert 0.3 < share <= 0.5


def test_what_makes_the_figure_worse_than_allowed_is_put_back():
    model = compiled(blocks(idle=1, count=2))
    context = Context(data=data_of(model), metric=find_metric("accuracy"))
    smaller, report = DropLayers(max_worse=1e-9).apply(model, context)
    assert "block of add_1" in report.metrics["dropped"]
    assert report.metrics["accuracy_after"] == 1.0
    assert accuracy(smaller, context.data.train) == 1.0
    assert "was put back" in report.notes[1]
    _, report = DropLayers(max_worse=1e-9, count=9).apply(model, context)
    assert "not reached within `max_worse`" in report.notes[2]


def test_the_model_is_trained_on_after_every_drop_where_there_is_a_fit():
    model = compiled(blocks())
    data = data_of(model)
    seen = []
    fit = make_fit(data, epochs=2, batch_size=32)

    def watched(trained, callbacks):
        seen.append(len(trained.layers))
        return fit(trained, callbacks)

    stage = DropLayers(count=2, layers=["add_0", "add_1"])
    trained, report = stage.apply(model, Context(data=data, fit=watched))
    assert seen == [14, 9]
    loss, _ = trained.evaluate(data.train.x, data.train.y, verbose=0)
    assert report.metrics["loss_after"] == pytest.approx(loss, rel=1e-4)
    last = report.metrics["candidates"][-1]
    assert last["round"] == 2
    assert last["loss"] != pytest.approx(loss, rel=1e-4)  # as it was before the training
    assert trained.optimizer.get_config() == model.optimizer.get_config()


def test_choices_are_made_on_the_training_split_and_the_report_says_where():
    model = blocks()
    whole = data_of(model)
    wrong = Split(whole.train.x, (whole.train.y + 1) % 4)  # what the model never says
    _, report = DropLayers(count=1).apply(
        model, Context(data=Data(train=whole.train, evaluation=wrong), metric=find_metric("acc"))
    )
    assert report.metrics["acc_before"] == 1.0
    assert "of the training split" in report.notes[0]
    _, report = DropLayers(count=1, samples=32).apply(
        model, Context(data=Data(evaluation=wrong), metric=find_metric("acc"))
    )
    assert report.metrics["acc_before"] == 0.0
    assert "32 samples of the evaluation split" in report.notes[0]
    assert "too good" in report.notes[0]


def test_without_labels_it_counts_how_far_outputs_move():
    model = blocks(idle=1)
    context = Context(data=Data(train=Split(inputs_of(model, 32))))
    _, report = DropLayers(count=1).apply(model, context)
    assert report.metrics["dropped"] == ["block of add_1"]
    assert report.metrics["distance_after"] == pytest.approx(0, abs=1e-12)


def test_the_distance_is_the_noise_over_the_signal():
    reference = [np.array([[3.0, 4.0]]), np.array([[0.0, 5.0]])]
    figure = choose_figure(blocks(), Split(np.zeros((2, 1))), None, reference)
    assert figure.of(reference) == 0
    assert figure.of([np.array([[3.0, 4.0]]), np.array([[0.0, 0.0]])]) == pytest.approx(0.5)
    assert figure.worse_by(0.0, figure.of([np.array([[np.nan, 4.0]]), reference[1]])) == np.inf


@pytest.mark.parametrize("name", ZOO)
def test_every_model_of_the_zoo_gives_what_it_can(name, tmp_path):
    model = ZOO[name](keras)
    before = weights_of(model)
    x = inputs_of(model, 16)
    split = Split(tuple(x) if isinstance(x, list) else x, labels_of(16))
    stage = DropLayers(max_worse=1e-12)
    smaller, report = stage.apply(model, Context(data=Data(train=split)))
    assert all(np.array_equal(a, b) for a, b in zip(before, weights_of(model), strict=True))
    named = [*report.changed, *(row.layer for row in report.skipped)]
    assert sorted(named) == sorted(layer.name for layer in layers_of(model))
    if not report.changed:
        np.testing.assert_allclose(says(smaller, x), says(model, x), atol=1e-6)
    smaller.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(says(loaded, x), says(smaller, x))


# ---------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({}, "Received: none of them"),
        ({"count": 1, "flops": 0.5}, "Received: `count`, `flops`"),
        ({"count": 0}, "`count` is a whole number from 1"),
        ({"flops": 1.0}, r"`flops` is a fraction in \(0, 1\)"),
        ({"flops": 50}, "Received: 50"),
        ({"max_worse": 0}, "`max_worse` is a number above 0"),
        ({"count": 1, "samples": 0}, "`samples` is a whole number"),
        ({"count": 1, "layers": "add"}, r"Did you mean \['add'\]"),
        ({"count": 1, "exclude": "add"}, "`exclude` is a list"),
    ],
)
def test_wrong_settings_are_refused_at_once(settings, match):
    with pytest.raises(SettingsError, match=match):
        DropLayers(**settings)
    DropLayers(flops=0.5, max_worse=0.01, layers=["add"], samples=8)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"count": 4, "layers": ["add_0", "add_1"]}, r"`count=4` cannot be met: after 2 pieces"),
        ({"flops": 0.1, "layers": ["add_0"]}, r"after 1 piece .* a fraction of 0\.\d+"),
        ({"count": 1, "layers": ["ad_0"]}, "'add_0'"),
        ({"count": 1, "exclude": ["nope"]}, "no layer 'nope'"),
    ],
)
def test_what_a_model_cannot_give_is_refused(settings, match):
    model = blocks()
    with pytest.raises(SettingsError, match=match):
        DropLayers(**settings).apply(model, Context(data=data_of(model)))


def test_excluded_layers_stay():
    model = blocks()
    context = Context(data=data_of(model))
    _, report = DropLayers(count=1, exclude=["last_2"]).apply(model, context)
    assert "block of add_2" not in report.metrics["dropped"]
    row = next(row for row in report.skipped if row.layer == "last_2")
    assert "not among the layers that were chosen" in row.reason


def test_models_that_cannot_be_dropped_from_are_refused():
    with pytest.raises(SettingsError, match="`data`"):
        DropLayers(count=1).apply(blocks())
    data = Data(train=Split(np.zeros((4, 16)), np.zeros(4)))
    with pytest.raises(UnsupportedModelError, match="to_keras3"):
        DropLayers(count=1).apply(ZOO["dense"](tf_keras), Context(data=data))
    model = ZOO["dense"](keras)
    model.layers[0].set_weights([np.full_like(w, np.nan) for w in model.layers[0].get_weights()])
    with pytest.raises(ModelError, match="hidden_1"):
        DropLayers(count=1).apply(model, Context(data=data))


def test_several_outputs_need_a_loss_or_a_metric():
    inputs = keras.Input((6,))
    x = L.Dense(6, name="idle")(inputs)
    model = keras.Model(inputs, {"a": L.Dense(2, name="a")(x), "b": L.Dense(1, name="b")(x)})
    model.get_layer("idle").set_weights([np.eye(6), np.zeros(6)])
    x = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)
    y = {"a": np.zeros(16, np.int64), "b": np.zeros((16, 1))}
    context = Context(data=Data(train=Split(x, y)))
    with pytest.raises(SettingsError, match="several outputs"):
        DropLayers(count=1).apply(model, context)
    model.compile("sgd", {"a": keras.losses.SparseCategoricalCrossentropy(), "b": "mse"})
    _, report = DropLayers(count=1).apply(model, context)
    assert report.changed == ("idle",)
    plain = model.evaluate(x, y, verbose=0, return_dict=True)["loss"]
    assert report.metrics["loss_before"] == pytest.approx(plain, rel=1e-5)
