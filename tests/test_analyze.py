import json
import xml.etree.ElementTree as ElementTree

import keras
import numpy as np
import pytest
import tf_keras
import yaml
from models import SIDE, ZOO, inputs_of, weights_of

from tfedge.analyze import analyze, draw
from tfedge.analyze.advice import rank_of
from tfedge.analyze.timing import operator_files
from tfedge.cli import main
from tfedge.convert import convert
from tfedge.data import Data, Split
from tfedge.engines.native.costs import peak_bytes, total_macs
from tfedge.engines.native.graph import read_graph
from tfedge.errors import (
    DataError,
    ModelError,
    SettingsError,
    UnsupportedModelError,
)
from tfedge.inspection import inspect_model
from tfedge.models import layers_of, load_model
from tfedge.recipe import as_recipe
from tfedge.recipe.steps import STAGES
from tfedge.runtime import open_model

L = keras.layers


def sequential(*layers, shape=(SIDE, SIDE, 4), name="model"):
    """A Sequential of these layers with seeded weights."""
    model = keras.Sequential([keras.Input(shape, name="image"), *layers], name=name)
    draw_ = np.random.default_rng(0)
    model.set_weights([draw_.normal(0.1, 0.4, w.shape) for w in model.get_weights()])
    return model


def row_of(analysis, layer):
    return next(row for row in analysis.layers if row.layer == layer)


def stages_of(analysis, layer):
    return [row.stage for row in analysis.suggestions if row.layer == layer]


# ---------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("name", ZOO)
def test_counts_are_those_of_the_model_and_every_layer_has_a_row(name):
    model = ZOO[name](keras)
    before = weights_of(model)
    analysis = analyze(model, measure=False)
    graph = read_graph(model)
    assert analysis.parameters == model.count_params()
    assert sum(row.parameters for row in analysis.layers) == model.count_params()
    assert analysis.macs == total_macs(graph) == sum(row.macs for row in analysis.layers)
    assert analysis.peak_bytes == peak_bytes(graph)
    assert sorted(row.layer for row in analysis.layers) == sorted(
        layer.name for layer in layers_of(model)
    )
    assert analysis.latency_ms is None
    assert sum(row.share for row in analysis.layers) == pytest.approx(1)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def lopsided():
    """One convolution that takes nearly all the time and few of the weights."""
    return sequential(
        L.Conv2D(4, 1, name="small"),
        L.Conv2D(64, 3, padding="same", activation="relu", name="first"),
        L.Conv2D(64, 5, padding="same", activation="relu", name="huge"),
        L.GlobalAveragePooling2D(name="pool"),
        L.Dense(300, activation="relu", name="head"),
        L.Dense(4, name="classes"),
        shape=(24, 24, 4),
    )


def test_the_slowest_layer_of_a_lopsided_model_comes_first():
    analysis = analyze(lopsided())
    first = analysis.layers[0]
    assert first.layer == "huge"
    assert first.share > 0.6
    assert first.operators == ("CONV_2D",)
    assert first.latency_ms > 5 * row_of(analysis, "small").latency_ms > 0
    assert [row.share for row in analysis.layers] == sorted(
        (row.share for row in analysis.layers), reverse=True
    )
    assert "Rewrite" in stages_of(analysis, "huge")
    assert "StructuredPrune" in stages_of(analysis, "huge")


def test_times_of_the_operators_add_up_to_about_the_time_of_the_file():
    analysis = analyze(lopsided())
    assert 0.5 < analysis.layers_ms / analysis.latency_ms < 2
    assert sum(row.latency_ms for row in analysis.layers) == pytest.approx(analysis.layers_ms)
    assert analysis.unassigned_ms == 0
    assert "run alone" in " ".join(analysis.notes)


@pytest.mark.parametrize("name", ["residual", "shared_layer", "nested", "two_inputs"])
def test_every_operator_of_a_file_goes_to_a_layer(name):
    analysis = analyze(ZOO[name](keras))
    assert analysis.unassigned_ms == 0
    held = {row.layer for row in analysis.layers if row.operators}
    for row in analysis.layers:
        assert row.operators or row.fused_into in held


def test_fused_layers_name_the_one_whose_operator_does_their_work():
    analysis = analyze(ZOO["residual"](keras))
    fused = {row.layer: row.fused_into for row in analysis.layers if row.fused_into}
    assert fused["bn_2"] == fused["relu_2"] == "conv_2"
    assert fused["shortcut"] == "relu_3"
    assert row_of(analysis, "bn_2").latency_ms == 0


def test_layers_whose_names_look_like_those_that_keras_numbers_are_told_apart():
    model = sequential(
        L.Conv2D(4, 1, name="conv_1"), L.Conv2D(32, 5, name="conv"), L.MaxPooling2D(name="conv_1_1")
    )
    analysis = analyze(model)
    assert analysis.layers[0].layer == "conv"
    assert row_of(analysis, "conv_1_1").operators == ("MAX_POOL_2D",)


def test_operations_that_are_no_layers_have_rows_and_times_too():
    image = keras.Input((SIDE, SIDE, 4))
    x = keras.ops.relu(L.Conv2D(4, 3)(image) * 3.0 + 1.0)
    model = keras.Model(image, keras.ops.mean(x, axis=(1, 2)))
    analysis = analyze(model)
    kinds = {row.kind for row in analysis.layers}
    assert {"Multiply", "Add", "Relu", "Mean"} <= kinds
    assert analysis.unassigned_ms == 0


def test_a_single_operator_computes_what_it_does_in_the_whole_file():
    model = sequential(L.Conv2D(5, 3, activation="relu"), L.Flatten(), L.Dense(3), shape=(6, 6, 2))
    data, report = convert(model, mode="float32")
    files = list(operator_files(data))
    assert len(files) == len(report.inspection.operators)
    x = np.random.default_rng(0).random((1, 6, 6, 2)).astype(np.float32)
    value = x
    for content in files:
        (operator,) = inspect_model(content).operators
        assert operator.name in ("CONV_2D", "RESHAPE", "FULLY_CONNECTED")
        with open_model(content, delegate="none") as single:
            (value,) = single.run([value])
    with open_model(data, delegate="none") as whole:
        assert np.array_equal(whole.run([x])[0], value)


def test_loops_are_timed_with_their_bodies():
    analysis = analyze(sequential(L.LSTM(16, name="lstm"), L.Dense(2), shape=(12, 3)))
    row = analysis.layers[0]
    assert row.layer == "lstm"
    assert "WHILE" in row.operators
    assert row.latency_ms > analysis.latency_ms / 10
    assert "WHILE" in " ".join(analysis.notes)  # run by LiteRT's own kernels


# ---------------------------------------------------------------------------- data and advice


def test_channels_that_never_change_on_the_data_are_counted():
    model = sequential(L.Conv2D(6, 3, activation="relu", name="conv"), L.Conv2D(3, 3, name="last"))
    kernel, bias = map(np.abs, model.get_layer("conv").get_weights())
    kernel[..., 0] = 0  # dead: its kernel is zero
    bias[1] = -100  # constant on these data: never above zero
    model.get_layer("conv").set_weights([kernel, bias])
    x = inputs_of(model, 16)
    for data in (x, Split(x), Data(train=Split(x))):
        row = row_of(analyze(model, data, measure=False), "conv")
        assert (row.dead_channels, row.constant_channels) == (1, 2)
    analysis = analyze(model, x, measure=False)
    assert {"RemoveDead", "StructuredPrune"} <= set(stages_of(analysis, "conv"))
    assert row_of(analyze(model, measure=False), "conv").constant_channels is None


def test_inputs_by_name_are_looked_at_as_the_model_takes_them():
    inputs = {"a": keras.Input((3,), name="a"), "b": keras.Input((5,), name="b")}
    joined = L.Concatenate()([L.Dense(4, name="left")(inputs["a"]), inputs["b"]])
    model = keras.Model(inputs, L.Dense(2, name="out")(joined))
    draw_ = np.random.default_rng(0)
    x = {"b": draw_.random((8, 5), np.float32), "a": draw_.random((8, 3), np.float32)}
    analysis = analyze(model, x, measure=False)
    assert row_of(analysis, "left").constant_channels == 0


ADVICE = [
    ((L.Flatten(), L.Dense(64, name="x"), L.Dense(2)), "Prune", "weights: zeros make the file"),
    ((L.Conv2D(32, 1, name="x"),), "Prune", "sparse kernels"),
    ((L.Conv2D(32, 3, name="x"),), "StructuredPrune", "32 output channels"),
    ((L.Conv2D(8, 5, name="x"),), "Rewrite", "two of 3×3"),
    ((L.Conv2D(8, 3, activation="silu", name="x"),), "Rewrite", "relu6"),
    ((L.SeparableConv2D(8, 3, name="x"), L.ReLU()), "Rewrite", "1×1 convolution"),
    ((L.Conv2D(8, 3, name="x"), L.BatchNormalization()), "Rewrite", "folded"),
]


@pytest.mark.parametrize(("layers", "stage", "match"), ADVICE)
def test_advice_names_the_stage_that_helps(layers, stage, match):
    analysis = analyze(sequential(*layers), measure=False)
    found = [row for row in analysis.suggestions if row.stage == stage and match in row.why]
    assert [row.layer for row in found] == ["x"]


def test_low_rank_is_advised_for_a_kernel_of_low_rank_only():
    model = sequential(L.Dense(64, name="x"), L.Dense(2), shape=(48,))
    assert "LowRank" not in stages_of(analyze(model, measure=False), "x")
    draw_ = np.random.default_rng(0)
    kernel = draw_.normal(size=(48, 3)) @ draw_.normal(size=(3, 64))
    model.get_layer("x").set_weights([kernel, np.zeros(64)])
    (why,) = (r.why for r in analyze(model, measure=False).suggestions if r.stage == "LowRank")
    assert why.startswith(f"rank {rank_of(kernel)} of 48")
    assert rank_of(kernel) <= 3


def test_a_pruned_kernel_is_not_to_be_pruned_again():
    model = sequential(L.Flatten(), L.Dense(64, name="x"))
    kernel, bias = model.get_layer("x").get_weights()
    kernel[np.random.default_rng(0).random(kernel.shape) < 0.8] = 0
    model.get_layer("x").set_weights([kernel, bias])
    assert "Prune" not in stages_of(analyze(model, measure=False), "x")


# ---------------------------------------------------------------------------- what comes out


def test_an_analysis_is_json_text_and_a_chart(tmp_path):
    analysis = analyze(ZOO["residual"](keras), inputs_of(ZOO["residual"](keras)))
    values = json.loads(json.dumps(analysis.to_dict(), allow_nan=False))
    assert values["layers"][0]["layer"] == analysis.layers[0].layer
    assert str(analysis).splitlines()[0].startswith("residual: 1,500 parameters, 197,024")
    assert all(row.layer in str(analysis) for row in analysis.layers)
    root = ElementTree.fromstring(draw(analysis))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert draw(analysis) == draw(analysis)
    assert "conv_2 (Conv2D)" in draw(analysis)


def test_a_chart_holds_names_of_every_kind_and_models_without_kernels():
    image = keras.Input((4, 4, 2))
    named = keras.Model(image, L.Conv2D(2, 3, name="a & b <$x$> 模型")(image), name="m$_$")
    for model in (named, sequential(L.Flatten())):
        text = draw(analyze(model, measure=False))
        ElementTree.fromstring(text)
    assert "模型" in draw(analyze(named, measure=False))


@pytest.mark.parametrize("name", ["dense", "residual", "nested"])
def test_the_suggested_recipe_is_one_that_loads(name):
    analysis = analyze(ZOO[name](keras), measure=False)
    recipe = as_recipe(analysis.recipe("model.keras", "digits", known=STAGES))
    assert [step.stage for step in recipe.stages if step.stage in ("prune", "quantize")] == [
        "prune",
        "quantize",
    ]
    with_rewrite = analysis.steps(["rewrite", "prune"])
    assert with_rewrite[-1] == {"prune": {"sparsity": "auto"}}
    folded = [{"rewrite": {"patterns": ["fold_batch_norm"]}}] if name != "dense" else []
    assert with_rewrite[:-1] == folded


def test_a_model_of_tf_keras_is_looked_at_in_keras_3_and_that_is_said():
    analysis = analyze(ZOO["conv_bn_relu"](tf_keras), measure=False)
    ours = analyze(ZOO["conv_bn_relu"](keras), measure=False)
    assert "to_keras3" in analysis.notes[0]
    assert analysis.macs == ours.macs
    assert analysis.parameters == ours.parameters


ONLY_EVALUATION = Data(evaluation=Split(np.zeros((4, 16), np.float32), np.zeros(4, int)))


def subclassed():
    class Own(keras.Model):
        def call(self, x):
            return x

    return Own()


def nan_model():
    model = ZOO["dense"](keras)
    model.set_weights([np.full_like(w, np.nan) for w in model.get_weights()])
    return model


@pytest.mark.parametrize(
    ("make", "settings", "error", "match"),
    [
        (subclassed, {}, UnsupportedModelError, "functional"),
        (nan_model, {}, ModelError, "finite"),
        (lambda: ZOO["dense"](keras), {"threads": 0}, SettingsError, "whole number from 1"),
        (lambda: ZOO["dense"](keras), {"data": np.zeros((3, 5))}, DataError, "16"),
        (
            lambda: sequential(L.Conv2D(3, 3), shape=(None, None, 3)),
            {},
            UnsupportedModelError,
            "fixed",
        ),
        (lambda: ZOO["dense"](keras), {"data": ONLY_EVALUATION}, DataError, "neither"),
    ],
)
def test_what_cannot_be_analyzed_is_refused_with_the_reason(make, settings, error, match):
    with pytest.raises(error, match=match):
        analyze(make(), measure=False, **settings)


# ---------------------------------------------------------------------------- the command


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = ZOO["residual"](keras)
    model.save("model.keras")
    x = inputs_of(model, 40)
    np.savez("data.npz", x=x, y=np.arange(40) % 4)
    return tmp_path


def test_the_command_shows_draws_proposes_and_applies(folder, capfd):
    code = main(
        ["analyze", "model.keras", "--data", "data.npz", "--chart", "layers.svg"]
        + ["--recipe", "recipe.yaml", "--apply", "out.keras"]
    )
    output = capfd.readouterr().out
    assert code == 0
    assert "Layers, bottlenecks first" in output
    assert "What would help" in output
    assert "fold_batch_norm" in output
    ElementTree.parse(folder / "layers.svg")
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert recipe["data"] == "data.npz"
    assert as_recipe(recipe).metric == "accuracy"
    before, after = load_model("model.keras"), load_model("out.keras")
    assert "BatchNormalization" not in {type(layer).__name__ for layer in layers_of(after)}
    x = inputs_of(before)
    assert np.abs(before.predict(x, verbose=0) - after.predict(x, verbose=0)).max() < 1e-5


def test_the_command_prints_one_json_document(folder, capfd):
    assert main(["analyze", "model.keras", "--no-measure", "--json", "--apply", "out.h5"]) == 0
    values = json.loads(capfd.readouterr().out)
    assert values["macs"] == total_macs(read_graph(ZOO["residual"](keras)))
    assert values["files"] == {"apply": "out.h5"}
    assert values["applied"]["metrics"]["patterns"]["fold_batch_norm"]["outcome"] == "kept"


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("--chart", "a.png"), ".svg file"),
        (("--recipe", "a.json"), ".yaml or .yml"),
        (("--apply", "model"), ".keras or .h5"),
        (("--apply", "model.keras"), "another file than the model"),
        (("--threads", "0"), "x>=1"),
    ],
)
def test_files_of_the_wrong_kind_are_refused_before_work(folder, capfd, arguments, match):
    content = (folder / "model.keras").read_bytes()
    assert main(["analyze", "model.keras", *arguments]) == 2
    captured = capfd.readouterr()
    assert match in captured.err
    assert captured.out == ""
    assert (folder / "model.keras").read_bytes() == content


def test_a_model_file_that_carries_code_is_refused(folder, capfd):
    x = keras.Input((3,))
    keras.Model(x, L.Lambda(lambda value: value * 2)(x)).save("lambda.keras")
    assert main(["analyze", "lambda.keras", "--apply", "out.keras"]) == 1
    assert "unsafe" in capfd.readouterr().err
    assert not (folder / "out.keras").exists()
