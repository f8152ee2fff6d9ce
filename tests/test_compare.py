"""`tfedge compare`: differences are shown, and what must not be compared is not."""

import dataclasses
import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tfedge.cli.compare import compare as command
from tfedge.cli.compare import names_of
from tfedge.errors import DataError, SettingsError
from tfedge.recipe.comparing import compare, read_run
from tfedge.report import FileRecord, RunReport, StepRecord

HOST = {"name": "pi", "cpu": "Cortex-A76", "cores": 4, "arch": "aarch64", "load_average": 0.1}


def file(path, mode, accuracy, gzip_bytes, **changes):
    return FileRecord(
        path=path,
        mode=mode,
        outcome="accepted",
        figures={"accuracy": accuracy},
        size_bytes=3 * gzip_bytes,
        gzip_bytes=gzip_bytes,
        sparsity=0.5,
        macs=100,
        operators=4,
        **changes,
    )


def latency(model, p50_ms, *, threads=1, runtime="ai-edge-litert 2.3.0"):
    return {
        "model": model,
        "actual": "xnnpack",
        "threads": threads,
        "runtime": runtime,
        "p50_ms": p50_ms,
    }


def run(accuracy=0.97, gzip_bytes=2048, p50_ms=1.0, **changes):
    """The report of a run, with a baseline and an int8 file."""
    baseline = dataclasses.replace(
        file("baseline_float32.tflite", "float32", 0.98, 20480), outcome="baseline"
    )
    settings = {
        "name": "net",
        "fits": True,
        "best": "model_int8.tflite",
        "verdicts": (),
        "metrics": ({"name": "accuracy", "higher_is_better": True, "unit": "points"},),
        "budget": {"accuracy": 0.97},
        "limits": {},
        "steps": (
            StepRecord(step="0-baseline", title="as it came", outcome="baseline"),
            StepRecord(step="1-prune", title="prune to 80 %", outcome="accepted"),
        ),
        "files": (baseline, file("model_int8.tflite", "int8", accuracy, gzip_bytes)),
        "latency": (latency("model_int8.tflite", p50_ms),),
        "latency_verdicts": (),
        "layers": (),
        "data": {"name": "digits", "evaluation_samples": 500},
        "recipe": {"model": "m.keras", "train": {"epochs": 5}, "stages": [{"quantize": "auto"}]},
        "hashes": {"recipe": "r", "model": "m", "data": "d"},
        "versions": {"tfedge": "0.1.0", "keras": "3.15.1"},
        "host": HOST,
        "seconds": 12.0,
    }
    return RunReport(**{**settings, **changes})


def figure(comparison, what):
    return next(row for row in comparison.figures if row.what == what)


def test_figures_stand_side_by_side():
    found = compare({"a": run(), "b": run(0.96, 1024, 0.5)})
    assert found.warnings == ()
    assert figure(found, "accuracy of the best file").values == ("97.00 %", "96.00 %")
    assert figure(found, "accuracy of the baseline").values == ("98.00 %", "98.00 %")
    assert figure(found, "size after gzip -9").values == ("2.0 KiB", "1.0 KiB")
    assert figure(found, "zeros in kernels").values == ("50.00 %", "50.00 %")
    assert figure(found, "trials").values == ("1", "1")


def test_words_say_which_is_better_in_what():
    found = compare({"a": run(), "b": run(0.96, 1024, 0.5)})
    text = "\n".join(found.verdicts)
    assert "Highest accuracy: a 97.00 %; b 96.00 %. To the next one that is 5 of 500" in text
    assert "Smallest after gzip -9: b 1.0 KiB; a 2.0 KiB (2.00× larger)." in text
    assert "Fastest (xnnpack, 1 thread, ai-edge-litert 2.3.0): b 0.5 ms; a 1 ms (2.00×" in text


def test_equal_runs_are_said_to_be_equal():
    found = compare({"a": run(), "b": run()})
    assert found.settings == ()
    text = "\n".join(found.verdicts)
    assert "Same accuracy: 97.00 %." in text
    assert "Smallest: no difference, 6.0 KiB." in text


def test_a_lower_error_is_better():
    metrics = ({"name": "mae", "higher_is_better": False, "unit": ""},)
    runs = {}
    for name, mae in (("a", 2.0), ("b", 1.5), ("c", 3.0)):
        best = dataclasses.replace(file("model_int8.tflite", "int8", 0, 10), figures={"mae": mae})
        runs[name] = run(metrics=metrics, files=(best,))
    assert "Lowest mae: b 1.5; a 2, c 3." in compare(runs).verdicts


def test_settings_that_differ_are_shown_by_key_and_no_others():
    recipe = {
        "model": "m.keras",
        "train": {"epochs": 2},
        "stages": [{"prune": {"sparsity": "auto"}}, {"quantize": "auto"}],
    }
    rows = compare({"a": run(), "b": run(recipe=recipe)}).settings
    assert {row.what: row.values for row in rows} == {
        "train.epochs": ("5", "2"),
        "stages.1.quantize": ("auto", None),
        "stages.1.prune.sparsity": (None, "auto"),
        "stages.2.quantize": (None, "auto"),
    }


@pytest.mark.parametrize(
    ("changes", "warning", "judged"),
    [
        ({"hashes": {"model": "m", "data": "other"}}, "different data", False),
        ({"hashes": {"model": "other", "data": "d"}}, "different models", True),
        (
            {"metrics": ({"name": "auc", "higher_is_better": True, "unit": "points"},)},
            "different metrics: accuracy; auc",
            False,
        ),
    ],
)
def test_what_is_not_comparable_is_warned_of_and_not_judged(changes, warning, judged):
    found = compare({"a": run(), "b": run(0.9, **changes)})
    assert len(found.warnings) == 1
    assert warning in found.warnings[0]
    assert any("accuracy" in sentence for sentence in found.verdicts) == judged


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"host": {**HOST, "cpu": "Cortex-A53"}}, "different hosts (pi, Cortex-A76, 4 cores"),
        ({"host": {**HOST, "name": "other"}}, "different hosts"),
        ({"latency": ()}, "it was not measured in b"),
        ({"latency": (latency("model_int8.tflite", 1.0, threads=4),)}, "in different ways"),
        ({"latency": (latency("model_int8.tflite", 1, runtime="tflite 2.14"),)}, "different ways"),
    ],
)
def test_latency_is_compared_only_where_it_was_measured_alike(changes, note):
    found = compare({"a": run(), "b": run(**changes)})
    assert not any(row.what.startswith("p50") for row in found.figures)
    assert any(note in text for text in found.notes)


def test_hosts_without_a_name_are_told_apart_by_what_is_left():
    anonymous = {key: value for key, value in HOST.items() if key != "name"}
    found = compare({"a": run(), "b": run(host=anonymous)})
    assert any(row.what.startswith("p50") for row in found.figures)


def test_a_busy_host_is_said():
    found = compare({"a": run(), "b": run(host={**HOST, "load_average": 9.0})})
    assert any("busy during b" in note for note in found.notes)


def test_other_versions_of_packages_are_said():
    found = compare({"a": run(), "b": run(versions={"tfedge": "0.1.0", "keras": "3.16"})})
    assert "keras differs: 3.15.1, 3.16." in found.notes


def test_runs_without_a_best_file_are_shown():
    lost = run(fits=False, best=None, latency=())
    found = compare({"a": run(), "b": lost})
    assert figure(found, "size").values[1] is None
    assert "Within its budget: only a." in found.verdicts
    assert "No run fits its budget." in compare({"b": lost, "c": lost}).verdicts


def test_one_run_cannot_be_compared():
    with pytest.raises(SettingsError, match="Two runs or more"):
        compare({"a": run()})


# ---------------------------------------------------------------------------- reading


@pytest.fixture
def folders(tmp_path):
    """Two run directories."""
    for name, report in (("a", run()), ("b", run(0.96, 1024, 0.5))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(report.to_dict()))
    return tmp_path


def test_a_directory_and_its_file_give_the_same_report(folders):
    assert read_run(folders / "a") == read_run(folders / "a" / "report.json")
    assert read_run(folders / "a").files[1].gzip_bytes == 2048


@pytest.mark.parametrize(
    ("content", "error", "match"),
    [
        (None, SettingsError, "No file `.*report.json`. Give a directory"),
        ("{", DataError, "damaged or is no JSON"),
        ("[" * 100_000, DataError, "damaged or is no JSON"),
        ("\udc00".encode("utf-8", "surrogatepass"), DataError, "damaged"),
        ("[]", DataError, "A report of a report|A report"),
        ("{}", DataError, "holds `name`"),
        (json.dumps({"name": "net", "versions": {"tfedge": "9.0"}}), DataError, "by tfedge 9.0"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path, content, error, match):
    if content is not None:
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / "report.json").write_bytes(data)
    with pytest.raises(error, match=match):
        read_run(tmp_path)


def test_a_run_that_has_not_ended_is_told_from_no_run(tmp_path):
    (tmp_path / "steps").mkdir()
    with pytest.raises(SettingsError, match="has not ended"):
        read_run(tmp_path)


# ---------------------------------------------------------------------------- the command


@click.group()
def cli():
    """Stands for the command line."""


cli.add_command(command)


def invoke(*arguments):
    result = CliRunner().invoke(cli, ["compare", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


def test_the_command_shows_tables_and_words(folders):
    code, output = invoke(folders / "a", folders / "b")
    assert code == 0
    assert "The recipes say the same." in output
    assert "97.00 %" in output
    assert "Smallest after gzip -9: b 1.0 KiB" in output


def test_what_is_not_comparable_comes_first(folders):
    (folders / "c").mkdir()
    other = run(hashes={"model": "m", "data": "other"})
    (folders / "c" / "report.json").write_text(json.dumps(other.to_dict()))
    assert invoke(folders / "a", folders / "c")[1].startswith("Not comparable: ")


def test_json_is_one_document(folders):
    values = json.loads(invoke(folders / "a", folders / "b", "--json")[1])
    assert values["runs"] == ["a", "b"]
    row = next(row for row in values["figures"] if row["what"] == "size after gzip -9")
    assert row["numbers"] == [2048, 1024]


def test_wrong_usage_is_refused(folders):
    with pytest.raises(SettingsError, match="alone"):
        invoke(folders / "a")
    with pytest.raises(SettingsError, match="twice"):
        invoke(folders / "a", folders / "b" / ".." / "a")
    assert invoke()[0] == 2


def test_runs_of_one_name_are_called_by_their_paths():
    assert names_of((Path("new/a/report.json"), Path("old/a"))) == ["new/a/report.json", "old/a"]
