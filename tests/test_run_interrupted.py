"""Runs that are killed, or meet a full disk, end as if nothing had happened."""

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

import tfedge

ROOT = Path(__file__).parent.parent
RECIPE = """
model: model.keras
data: data.npz
max_drop: 30
train: {epochs: 2, batch_size: 16}
stages:
  - prune: {sparsity: 0.6}
  - finetune: {epochs: 1}
  - quantize: {way: train}
convert: [float32, float16, int8]
seed: 5
"""
STEPS = ("0-baseline", "1-prune", "2-finetune", "convert-float32", "convert-float16", "3-quantize",
         "convert-int8")  # fmt: skip
TIMES = ("seconds", "started", "latency", "latency_verdicts")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trained model, data and a recipe."""
    path = tmp_path_factory.mktemp("run")
    data = tfedge.load_dataset("digits")
    few = data.train.take(160)
    np.savez(path / "data.npz", x_train=few.x, y_train=few.y,
             x_test=data.evaluation.x[:80], y_test=data.evaluation.y[:80])  # fmt: skip
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(8, 3, use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Dropout(0.2),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(few.x, few.y, epochs=8, verbose=0)
    tfedge.save_model(model, path / "model.keras")
    (path / "recipe.yaml").write_text(RECIPE)
    return path


def start(folder, output, **settings):
    return subprocess.Popen(
        [sys.executable, "-m", "tfedge", "optimize", str(folder / "recipe.yaml"), "--output",
         str(output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        **settings,
    )  # fmt: skip


def finish(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def figures(output):
    """All of a report but times."""

    def without_times(value):
        if isinstance(value, dict):
            return {k: without_times(v) for k, v in value.items() if k not in TIMES}
        return [without_times(item) for item in value] if isinstance(value, list) else value

    return without_times(json.loads((output / "report.json").read_text()))


def artefacts(output):
    """Hashes of the models and files of a run."""
    return {
        str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(output.rglob("*"))
        if path.suffix in (".keras", ".tflite", ".yaml")
    }


@pytest.fixture(scope="module")
def whole(folder):
    """A run that nothing interrupted."""
    output = folder / "whole"
    code, _, err = finish(start(folder, output))
    assert code == 0, err
    return output


def begun(output):
    """Names of the steps that have a folder."""
    return {path.name for path in (output / "steps").glob("*")}


def test_a_run_killed_in_each_step_ends_as_one_that_was_not(folder, whole):
    output = folder / "killed"
    killed_in = []
    for name in STEPS:
        process = start(folder, output)
        while process.poll() is None:
            here = next((f for f in begun(output) if f.startswith(f"{name}-")), None)
            if here is not None and not (output / "steps" / here / "record.json").exists():
                process.send_signal(signal.SIGKILL)
                killed_in.append(name)
                break
            time.sleep(0.002)
        process.communicate(timeout=300)
    assert len(killed_in) >= 5, killed_in  # the shortest steps may end between two looks
    code, _, err = finish(start(folder, output))
    assert code == 0, err
    assert figures(output) == figures(whole)
    assert artefacts(output) == artefacts(whole)
    assert not list(output.rglob(".*-*"))  # nothing half-written was left


def test_a_finished_run_is_not_done_again_and_a_changed_recipe_is(folder, whole, tmp_path):
    whole = Path(shutil.copytree(whole, tmp_path / "run"))
    before = {p: p.stat().st_mtime_ns for p in (whole / "steps").rglob("record.json")}
    code, _, err = finish(start(folder, whole))
    assert code == 0, err
    assert {p: p.stat().st_mtime_ns for p in (whole / "steps").rglob("record.json")} == before
    other = tmp_path / "recipe.yaml"
    other.write_text(
        RECIPE.replace("sparsity: 0.6", "sparsity: 0.5")
        .replace("model.keras", str(folder / "model.keras"))
        .replace("data.npz", str(folder / "data.npz"))
    )
    from tfedge.recipe import load_recipe, run

    report = run(load_recipe(other), whole, measure_latency=False)
    assert [row.title for row in report.steps if row.final][1] == "prune to 50 % zeros"
    baseline = next(p for p in before if "0-baseline" in str(p))
    assert baseline.stat().st_mtime_ns == before[baseline]  # nothing in it had changed
    assert all(not p.exists() for p in before if "1-prune" in str(p))


def test_changed_data_and_models_are_noticed(folder, tmp_path):
    from tfedge.recipe import as_recipe, run

    recipe = as_recipe(
        {
            "model": str(tmp_path / "m.keras"),
            "data": str(tmp_path / "d.npz"),
            "convert": ["float32"],
        }
    )
    model = tfedge.load_model(folder / "model.keras")
    tfedge.save_model(model, tmp_path / "m.keras")
    arrays = dict(np.load(folder / "data.npz"))
    np.savez(tmp_path / "d.npz", **arrays)
    first = run(recipe, tmp_path / "run", measure_latency=False)
    arrays["x_test"] = arrays["x_test"][::-1]
    np.savez(tmp_path / "d.npz", **arrays)
    second = run(recipe, tmp_path / "run", measure_latency=False)
    assert second.files[0].figures["accuracy"] < first.files[0].figures["accuracy"]
    model.layers[-1].bias.assign(np.eye(10)[3] * 100.0)
    tfedge.save_model(model, tmp_path / "m.keras")
    third = run(recipe, tmp_path / "run", measure_latency=False)
    assert third.hashes["model"] != second.hashes["model"]
    assert third.files[0].figures["accuracy"] <= 0.25


def test_two_runs_cannot_share_a_directory(folder, whole):
    from filelock import FileLock

    with FileLock(whole / ".lock"):
        code, _, err = finish(start(folder, whole))
    assert code == 2
    assert "one run at a time" in err
    assert "Traceback" not in err


def test_a_folder_of_something_else_is_left_alone(folder, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    code, _, err = finish(start(folder, tmp_path))
    assert code == 2
    assert "thesis.tex" in err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    "blocks", [22, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 40))]
)
def test_a_full_disk_ends_a_run_whole_and_it_goes_on_when_there_is_room(
    folder, whole, tmp_path, blocks
):
    output = tmp_path / "run"

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (blocks * 1024, resource.RLIM_INFINITY))

    code, _, err = finish(start(folder, output, preexec_fn=limit))
    assert code == 1, err
    lines = [line for line in err.splitlines() if line.startswith("tfedge: error:")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    assert "this process may write" in lines[0] or "disk is full" in lines[0]
    right = artefacts(whole)
    for name, digest in artefacts(output).items():
        assert right.get(name) == digest, f"{name} is half-written"
    code, _, err = finish(start(folder, output))
    assert code == 0, err
    assert figures(output) == figures(whole)
    assert artefacts(output) == right
