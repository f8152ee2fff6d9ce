"""What the target `edgetpu` asks of a recipe before training, and leaves in its report after it."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import keras
import numpy as np
import pytest
import yaml

import tfedge
from tfedge.accelerators.records import OperatorMapping
from tfedge.data import as_data
from tfedge.errors import FloatOperatorsError, ModelError, SettingsError, TfedgeWarning
from tfedge.inspection import inspect_model
from tfedge.recipe import as_recipe, run, targets
from tfedge.recipe.accelerating import accelerate, latency_there, sentences
from tfedge.recipe.planning import plan
from tfedge.recipe.proposing import propose, to_commented_yaml
from tfedge.recipe.targets import fit_of
from tfedge.report import plain

layers = keras.layers
FAKE = Path(__file__).parent / "fake_edgetpu_compiler.py"
MODULE = "tfedge.accelerators.edgetpu.preflight"
REFUSED = {"GELU"}  # kinds that the stand-in for the pre-flight does not take, by how
UNMAPPED = {"ELU", "HARD_SWISH"}
X = np.random.default_rng(0).random((64, 8, 8, 1), np.float32)
Y = np.random.default_rng(0).integers(0, 3, 64)


def stand_in(model):
    """A stand-in for the pre-flight: kinds in `REFUSED` and `UNMAPPED` are not taken."""
    data = model if isinstance(model, bytes) else Path(model).read_bytes()
    seen = inspect_model(data)
    rows = tuple(
        OperatorMapping(
            index=row.index,
            name=row.name,
            mapped=row.name not in REFUSED | UNMAPPED,
            reason="not there" if row.name in REFUSED | UNMAPPED else None,
            layer=row.output_name.split("/")[-1],
        )
        for row in seen.operators
    )
    fields = {
        "operators": rows,
        "mapped": sum(row.mapped for row in rows),
        "unmapped": sum(not row.mapped for row in rows),
        "unknown": 0,
        "fully_integer": seen.is_integer,
        "float_layers": tuple(row.output_name for row in seen.float_operators),
        "float_tensors": (),
        "refusals": tuple(f"{row.name} is too new." for row in rows if row.name in REFUSED),
        "cut": None,
        "changes": ("Change it.",) if any(not row.mapped for row in rows) else (),
        "parameter_bytes_on_chip": 1000,
        "parameter_bytes_streamed": 0,
    }
    plain = {**fields, "operators": [row.to_dict() for row in rows]}
    return SimpleNamespace(**fields, to_dict=lambda: plain)


@pytest.fixture(scope="module", autouse=True)
def preflight():
    with pytest.MonkeyPatch.context() as patch:
        module = ModuleType(MODULE)
        module.preflight = stand_in
        patch.setitem(sys.modules, MODULE, module)
        patch.setenv("PATH", "/nowhere")
        patch.delenv("EDGETPU_COMPILER", raising=False)
        yield


def network(activation="relu", *, compiled=True):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            layers.Conv2D(4, 3, activation=activation, name="conv"),
            layers.Flatten(),
            layers.Dense(3, "softmax", name="answer"),
        ],
        name="net",
    )
    if compiled:
        model.compile("adam", "sparse_categorical_crossentropy")
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models and their data as files."""
    path = tmp_path_factory.mktemp("targets")
    for name in ("relu", "gelu", "elu"):
        tfedge.save_model(network(name), path / f"{name}.keras")
    np.savez(path / "data.npz", x_train=X, y_train=Y, x_test=X[:16], y_test=Y[:16])
    return path


def recipe_of(folder, activation="relu", **changes):
    values = {
        "model": str(folder / f"{activation}.keras"),
        "data": str(folder / "data.npz"),
        "train": {"epochs": 1},
        "stages": [{"quantize": "calibrate"}],
        "targets": ["edgetpu"],
    }
    return as_recipe({**values, **changes})


# ---------------------------------------------------------------------------- the recipe


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"convert": ["float32"], "stages": []}, "runs int8 files. Received: convert="),
        ({"limits": {"latency_ms": 5}}, "edgetpu first"),
        ({"targets": ["edgtpu"]}, "edgtpu"),
    ],
)
def test_a_recipe_that_makes_nothing_for_its_target_is_refused(folder, changes, match):
    with pytest.raises(SettingsError, match=match):
        recipe_of(folder, **changes)


def test_the_edge_tpu_alone_gets_int8_files_alone(folder):
    assert recipe_of(folder).convert == ("int8",)
    assert recipe_of(folder, targets=["xnnpack", "edgetpu"]).convert == ("float32", "int8")
    both = recipe_of(folder, targets=["xnnpack", "edgetpu"], limits={"latency_ms": 5})
    assert as_recipe(both.to_dict()) == both


# ---------------------------------------------------------------------------- before training


def test_a_model_that_fits_is_told_nothing():
    fit = fit_of("edgetpu", network(), X[:8])
    assert (fit.mapped, fit.unmapped, fit.unknown) == (4, 0, 0)
    assert fit.notes == fit.patterns == ()


def test_an_activation_that_the_compiler_refuses_is_refused_with_the_step_that_replaces_it():
    model = network("gelu")
    with pytest.raises(ModelError, match="GELU is too new.*patterns: .gelu_to_relu6.") as caught:
        fit_of("edgetpu", model, X[:8])
    assert "`net`" in str(caught.value)
    fit = fit_of("edgetpu", model, X[:8], strict=False)
    assert fit.patterns == ("gelu_to_relu6",)
    assert model.get_layer("conv").activation is keras.activations.gelu


def test_an_activation_that_stays_on_the_cpu_is_told_and_not_refused(monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "REFUSED", set())
    monkeypatch.setattr(sys.modules[__name__], "UNMAPPED", {"GELU"})
    fit = fit_of("edgetpu", network("gelu"), X[:8])
    assert fit.unmapped == 1
    assert (
        "1 of 5 operators would stay on the CPU beside the target `edgetpu`: GELU" in fit.notes[0]
    )
    assert "`- rewrite: {patterns: [gelu_to_relu6]}`" in fit.notes[1]
    assert fit.notes[-1] == "Change it."


def test_an_activation_without_a_pattern_is_told_without_an_offer():
    fit = fit_of("edgetpu", network("hard_silu"), X[:8])
    assert fit.unmapped == 1
    assert fit.patterns == ()
    assert not any("rewrite" in note for note in fit.notes)


def test_open_shapes_are_refused_before_anything_is_converted(monkeypatch):
    monkeypatch.setattr(targets, "_trial", None)
    model = keras.Sequential([keras.Input((None, 8, 1)), layers.Conv2D(2, 3)])
    with pytest.raises(ModelError, match=r"static shapes. .* of shape \(\?, 8, 1\)"):
        fit_of("edgetpu", model, None)


@pytest.mark.parametrize(
    ("found", "error", "match"),
    [
        ({"fully_integer": False, "float_layers": ("lstm",)}, FloatOperatorsError, "`lstm` have"),
        ({"fully_integer": False, "float_tensors": ("t",)}, FloatOperatorsError, "`t` have no int"),
        ({"operators": ("row",)}, ModelError, r"Nothing of `net` .*: ARG_MAX \(`top`\), why"),
    ],
)
def test_a_model_that_cannot_run_there_at_all_is_refused(monkeypatch, found, error, match):
    row = OperatorMapping(index=0, name="ARG_MAX", mapped=False, reason="why", layer="top")
    rows = (row,) if "operators" in found else ()
    fields = {"float_layers": (), "float_tensors": (), "fully_integer": True, **found}
    foreseen = SimpleNamespace(
        **{**fields, "operators": rows}, mapped=0, unmapped=1, unknown=0, refusals=(), changes=()
    )
    monkeypatch.setattr(targets, "_trial", lambda model, samples: foreseen)
    with pytest.raises(error, match=match):
        fit_of("edgetpu", network(), X[:8])


def test_a_run_refuses_before_its_first_step(folder, tmp_path):
    trains = [{"prune": {"sparsity": 0.5}}, {"quantize": "train"}]
    recipe = recipe_of(folder, "gelu", stages=trains)
    with pytest.raises(ModelError, match="gelu_to_relu6"):
        run(recipe, tmp_path / "run")
    assert not list((tmp_path / "run").glob("steps/*"))
    with pytest.raises(ModelError, match="gelu_to_relu6"):
        plan(recipe)


def test_the_recipes_own_rewrite_step_counts_before_it_is_done(folder):
    rewrite = {"rewrite": {"patterns": ["gelu_to_relu6"]}}
    recipe = recipe_of(folder, "gelu", stages=[rewrite, {"quantize": "calibrate"}])
    model = tfedge.load_model(folder / "gelu.keras")
    (fit,) = targets.fit_recipe(recipe, model, as_data((X, Y)))
    assert fit.unmapped == 0
    assert model.get_layer("conv").activation is keras.activations.gelu


def test_what_stays_on_the_cpu_is_a_warning_where_it_is_asked_for(folder, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "REFUSED", set())
    monkeypatch.setattr(sys.modules[__name__], "UNMAPPED", {"GELU"})
    model, data = tfedge.load_model(folder / "gelu.keras"), as_data((X, Y))
    with pytest.warns(TfedgeWarning, match="would stay on the CPU"):
        targets.fit_recipe(recipe_of(folder, "gelu"), model, data, warn=True)
    other = recipe_of(folder, "gelu", targets=["xnnpack"])
    assert targets.fit_recipe(other, model, data, warn=True) == ()


# ---------------------------------------------------------------------------- the proposal


def test_a_proposal_for_the_edge_tpu_puts_the_rewriting_first(tmp_path):
    data = as_data((X, Y))
    made = propose(network("gelu"), "net.keras", "d.npz", data, target="edgetpu")
    assert made.values["stages"][0] == {"rewrite": {"patterns": ["gelu_to_relu6"]}}
    assert made.values["targets"] == ["xnnpack", "edgetpu"]
    assert made.values["convert"] == ["int8"]
    assert any("`rewrite` replaces activations" in why for why in made.comments["stages"])
    assert any("GELU is too new" in note for note in made.notes)
    text = to_commented_yaml(made)
    assert as_recipe(yaml.safe_load(text)).targets == ("xnnpack", "edgetpu")


def test_a_proposal_without_training_says_what_it_leaves_out():
    made = propose(network("gelu"), "net.keras", "d.npz", as_data(X), target="edgetpu")
    assert not any("rewrite" in stage for stage in made.values["stages"])
    assert any("Activations are not replaced" in why for why in made.comments["stages"])


def test_a_model_that_fits_is_proposed_as_it_is():
    made = propose(network(), "net.keras", "d.npz", as_data((X, Y)), target="edgetpu")
    assert [next(iter(stage)) for stage in made.values["stages"]] == ["quantize"]


# ---------------------------------------------------------------------------- after the run


@pytest.fixture(scope="module")
def done(folder, tmp_path_factory):
    """A run for the Edge TPU alone, without compiler and device."""
    path = tmp_path_factory.mktemp("run")
    return run(recipe_of(folder), path), path


def test_the_report_holds_the_pre_flight_of_the_int8_file_and_why_it_is_not_compiled(done):
    report, path = done
    (row,) = report.accelerators
    assert (row["target"], row["path"], row["compiled"]) == ("edgetpu", "model_int8.tflite", None)
    assert row["preflight"]["mapped"] == 4
    assert "apt-get install edgetpu-compiler" in row["why_not"]
    (note,) = [note for note in report.notes if "edgetpu" in note]
    assert note.startswith("model_int8.tflite on edgetpu: 4 of 4 operators are predicted")
    assert note.endswith("`tfedge doctor edgetpu` says how to get it.")
    assert json.loads((path / "report.json").read_text())["accelerators"] == plain([row])


def test_latency_that_nobody_measured_is_not_in_the_report(done):
    report, _ = done
    assert report.latency == ()
    (said,) = report.latency_verdicts
    assert said.startswith("Latency on edgetpu was not measured: There is no compiled file.")
    assert "No Edge TPU is attached" in said


def test_the_int8_file_takes_and_gives_integers(done):
    _, path = done
    seen = inspect_model(path / "model_int8.tflite")
    assert seen.is_integer
    assert {tensor.dtype for tensor in (*seen.inputs, *seen.outputs)} == {"int8"}


def test_where_a_compiler_is_the_compiled_file_stands_beside_the_others(
    done, folder, tmp_path, monkeypatch, shared_file
):
    _, path = done
    program = tmp_path / "edgetpu_compiler"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKE}" "$@"\n')
    program.chmod(0o755)
    compiled = shared_file("mobilenet_v1_0.25_128_quant_edgetpu.tflite")
    monkeypatch.setenv("EDGETPU_COMPILER", str(program))
    monkeypatch.setenv("FAKE_EDGETPU_COMPILED", str(compiled))
    (row,) = accelerate(["xnnpack", "edgetpu"], path)
    assert row["compiled"] == "model_int8_edgetpu.tflite"
    assert (path / row["compiled"]).read_bytes() == compiled.read_bytes()
    assert row["compilation"]["path"] == row["compiled"]
    (said,) = sentences([row])
    assert said.startswith(
        "model_int8_edgetpu.tflite: 4 of 4 operators run on edgetpu, as edgetpu_"
    )
    (path / row["compiled"]).unlink()
    monkeypatch.setenv("FAKE_EDGETPU_SCENARIO", "internal")
    (row,) = accelerate(["edgetpu"], path)
    assert row["compiled"] is None
    assert "an error in the compiler itself" in sentences([row])[0]


def test_no_accelerator_no_row(done):
    assert accelerate(["xnnpack"], done[1]) == ()
    assert accelerate(["edgetpu"], done[1] / "nowhere") == ()


def test_latency_is_measured_where_file_and_device_are(monkeypatch, tmp_path):
    asked = []

    def benchmark(models, **settings):
        asked.append((models, settings))
        row = SimpleNamespace(to_dict=lambda: {"model": next(iter(models)), "p50_ms": 2.0})
        return SimpleNamespace(rows=(row,), verdicts=("Fast.",), notes=(), failures=())

    state = SimpleNamespace(problems=())
    monkeypatch.setattr("tfedge.runtime.edgetpu.find_edgetpu", lambda: state)
    monkeypatch.setattr(sys.modules["tfedge.benchmark"], "benchmark", benchmark)
    row = {"target": "edgetpu", "compiled": "m_edgetpu.tflite"}
    rows, said = latency_there([row], tmp_path)
    assert rows == ({"model": "m_edgetpu.tflite", "p50_ms": 2.0},)
    assert said == ("Fast.",)
    ((models, settings),) = asked
    assert models == {"m_edgetpu.tflite": tmp_path / "m_edgetpu.tflite"}
    assert settings["delegates"] == ("edgetpu",)
    state.problems = ("No Edge TPU is attached: plug one in. And so on.",)
    rows, said = latency_there([row], tmp_path)
    assert rows == ()
    (why,) = said
    assert why == (
        "Latency on edgetpu was not measured: No Edge TPU is attached: plug one in. `tfedge doctor "
        "edgetpu` says more."
    )
