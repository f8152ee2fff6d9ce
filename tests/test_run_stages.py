"""Runs of recipes with every stage: what is asked is in the files, the budget holds."""

import keras
import numpy as np
import pytest

import tfedge
from tfedge.inspection import inspect_model
from tfedge.recipe import as_recipe, run
from tfedge.recipe.planning import plan

layers = keras.layers


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A convolutional network for the digits, wide enough to lose something."""
    path = tmp_path_factory.mktemp("digits") / "model.keras"
    data = tfedge.load_dataset("digits")
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(32, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, activation="silu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(data.train.x, data.train.y, epochs=8, verbose=0)
    tfedge.save_model(model, path)
    return path


def recipe_of(path, stages, **changes):
    values = {"model": str(path), "data": "digits", "name": "r", "train": {"epochs": 3}}
    return as_recipe({**values, "stages": stages, **changes})


def kernels(report, folder):
    return [
        w
        for w in inspect_model(folder / report.best).weights
        if w.is_kernel and np.prod(w.shape) > 99
    ]


def test_pruned_clustered_and_quantised_the_file_has_all_three(trained, tmp_path):
    recipe = recipe_of(
        trained,
        [
            {"prune": {"sparsity": 0.7}},
            {"cluster": {"number_of_clusters": 16, "train": {"learning_rate": 1e-4}}},
            {"quantize": "calibrate"},
        ],
    )
    report = run(recipe, tmp_path / "run", measure_latency=False)
    weights = kernels(report, tmp_path / "run")
    assert len(weights) >= 3
    assert all(w.distinct <= 33 for w in weights)  # 16, or their negatives too behind a norm
    assert sum(w.zeros for w in weights) >= 0.69 * sum(np.prod(w.shape) for w in weights)
    assert report.files[-1].figures["accuracy"] > 0.9


def test_half_of_the_filters_go_and_the_model_learns_from_itself_as_it_was(trained, tmp_path):
    recipe = recipe_of(
        trained,
        [
            {"rewrite": {"patterns": ["silu_to_hard_silu"], "max_drop": None}},
            {"structured_prune": {"flops": 0.5}},
            {"finetune": {"epochs": 3, "distill": {"teacher": "baseline", "temperature": 3}}},
            "remove_dead",
            {"quantize": "calibrate"},
        ],
    )
    report = run(recipe, tmp_path / "run", measure_latency=False)
    before, after = report.files[0], report.files[-1]
    assert after.macs <= 0.52 * before.macs
    assert after.figures["accuracy"] > before.figures["accuracy"] - 0.05
    titles = [row.title for row in report.steps]
    assert "structured prune to 50 % of the MACs" in titles
    assert "train on with a teacher" in titles
    assert not report.files[-1].float_operators
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_the_budget_chooses_how_many_filters_go(trained, tmp_path):
    recipe = recipe_of(trained, "structured_w8a8", max_drop=2.0)
    report = run(recipe, tmp_path / "run", measure_latency=False)
    tried = [row for row in report.steps if row.strength]
    assert report.fits and len(tried) >= 2
    accepted = [row.strength["flops"] for row in tried if row.outcome == "accepted"]
    assert report.files[-1].macs <= (min(accepted) + 0.02) * report.files[0].macs
    assert all(row.reason for row in tried if row.outcome == "rejected")


def test_four_bits_by_training_reach_the_file(trained, tmp_path):
    recipe = recipe_of(
        trained,
        [{"quantize": {"weight_bits": 4, "per_layer": {"Conv2D": {"weights": 8}}}}],
    )
    report = run(recipe, tmp_path / "run", measure_latency=False)
    dtypes = {w.dtype for w in kernels(report, tmp_path / "run") if len(w.shape) == 2}
    assert dtypes == {"int4"}
    assert report.files[-1].figures["accuracy"] > 0.9


def test_a_dry_run_knows_every_stage(trained):
    stages = [
        "rewrite",
        {"low_rank": {"flops": "auto"}},
        {"structured_prune": {"flops": 0.6}},
        "remove_dead",
        {"sparsity_penalty": {"kind": "group_lasso", "strength": 1e-3}},
        {"prune": {"sparsity": 0.5}},
        {"cluster": {"number_of_clusters": 8}},
        {"quantize": "train"},
    ]
    rows = plan(recipe_of(trained, stages, max_drop=1)).rows
    assert len(rows) == len(stages) + 2
    assert all(row.changes for row in rows[2:3])
    assert all(row.skips is not None for row in rows[:-3])
    at_rest = [row.step for row in rows if row.what.endswith("without training")]
    assert at_rest == ["1-rewrite", "4-remove_dead"]
    assert [row.step for row in rows[:-2] if not row.training_steps] == at_rest
