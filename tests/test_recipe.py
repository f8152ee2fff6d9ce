import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml

from tfedge.data import Metric
from tfedge.errors import SettingsError
from tfedge.recipe import Recipe, as_recipe, json_schema, load_recipe, named, to_yaml
from tfedge.recipe.budget import Budget, Figure, next_strength
from tfedge.recipe.settings import drop_of
from tfedge.recipe.steps import PARTS, STAGES, Plan, finetune, fp16, prune, qat, w8a8
from tfedge.recipe.strengths import STRENGTHS

BASE = {"model": "m.keras", "data": "digits"}


def written(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "stages", "modes"),
    [
        ("prune80_w8a8", ["prune", "quantize"], ("float32", "int8")),
        ("prune_qat", ["prune", "quantize"], ("float32", "int8")),
        ("prune90_finetune2_fp16", ["prune", "finetune"], ("float32", "float16")),
        ("w8a8", ["quantize"], ("float32", "int8")),
        ("fp16_w8", [], ("float32", "float16", "dynamic_int8")),
        ("w8a16", [], ("float32", "int16x8")),
        (
            "structured50_lowrank_prune80_cluster16_w8a8",
            ["structured_prune", "low_rank", "prune", "cluster", "quantize"],
            ("float32", "int8"),
        ),
    ],
)
def test_a_name_is_decoded_into_steps_and_modes(name, stages, modes):
    recipe = Recipe(**BASE, stages=name, max_drop=1)
    assert [step.stage for step in recipe.stages] == stages
    assert recipe.convert == modes


def test_plans_add_up_as_names_do():
    assert prune(80) + w8a8() == named("prune80_w8a8")
    assert named("prune90_finetune2_fp16") == prune(90) + finetune(2) + fp16()
    assert Plan() + qat() == named("qat")
    assert all(named(part).modes or named(part).steps for part in PARTS)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("prune80_w8b8", "Did you mean 'w8a8'"),
        ("prune100_w8a8", "1 to 99"),
        ("prune0", "1 to 99"),
        ("structured100", "1 to 99"),
        ("cluster1_w8a8", "at least 2 clusters"),
        ("w8a8_prune80", "last step"),
        ("w8a8_qat", "last step"),
        ("", "made of parts"),
    ],
)
def test_a_wrong_name_says_the_right_one(name, match):
    with pytest.raises(SettingsError, match=match):
        Recipe(**BASE, stages=name, max_drop=1)


# ---------------------------------------------------------------------- settings

WRONG = [
    ({"stagse": []}, r"`stagse`.*Did you mean 'stages'"),
    ({"train": {"epoch": 3}}, r"`train.epoch`.*Did you mean 'epochs'"),
    ({"train": {"epochs": 0}}, "from 1"),
    ({"train": {"epochs": "many"}}, "`train.epochs`"),
    ({"train": {"learning_rate": -1}}, "positive"),
    ({"data": {"source": "digits", "lables": "inputs"}}, "Did you mean 'labels'"),
    ({"data": {"source": "digits", "labels": "x"}}, "`inputs`"),
    ({"data": {"source": "digits", "validation": 0.9}}, "0 to 0.5"),
    ({"limits": {"size": 3}}, r"`limits.size`.*size_bytes"),
    ({"limits": {"latency_ms": 0}}, "positive"),
    ({"stages": [{"prnue": {}}]}, "Did you mean 'prune'"),
    ({"stages": [{"prune": {"sparsty": 0.5}}]}, "Did you mean 'sparsity'"),
    ({"stages": [{"prune": {"sparsity": 80}}]}, "Did you mean 0.8"),
    ({"stages": [{"prune": {"sparsity": "lots"}}]}, "sparsity"),
    ({"stages": [{"prune": {"sparsity": 0.8, "train": {"epoch": 1}}}]}, "`train` of a step"),
    ({"stages": [{"prune": {"sparsity": "auto"}}]}, "no `max_drop`"),
    ({"stages": [{"prune": {"block_size": "auto"}}], "max_drop": 1}, "`auto` stands for"),
    ({"stages": ["quantize", {"prune": {"sparsity": 0.5}}]}, "last step"),
    ({"stages": [{"quantize": "qat"}]}, "auto, calibrate, train"),
    ({"stages": [{"prune": {"sparsity": 0.5}, "finetune": {}}]}, "one stage in each item"),
    ({"stages": 3}, "list of steps"),
    ({"stages": [{"quantize": "auto"}], "convert": ["float32"]}, "Add `int8`"),
    ({"convert": ["int4"]}, "`convert` lists modes"),
    ({"convert": ["int9"]}, "Did you mean 'int8'"),
    ({"targets": ["gpu2"]}, "gpu2"),
    ({"allow_software": True}, "goes with the target `gpu`.*Add `gpu`"),
    ({"max_drop": -1}, "from 0"),
    ({"max_drop": "a lot"}, "from 0"),
    ({"seed": -1}, "from 0"),
    ({"input": {"scal": 2}}, r"`input.scal`.*Did you mean 'scale'"),
    ({"input": {"std": 0}}, "positive"),
    ({"model": None}, "`model`"),
]


@pytest.mark.parametrize(("changes", "match"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_recipe_is_refused_with_the_rule_and_the_nearest_key(changes, match):
    with pytest.raises(SettingsError, match=match) as caught:
        as_recipe({**BASE, **changes})
    assert "pydantic" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train": {"epochs": 3, "loss": {"a": "mse", "b": "mae"}}},
        {"metric": {"a": "accuracy", "b": "mae"}, "max_drop": {"a": 0.5, "b": "3 %"}},
        {"data": {"source": "digits", "labels": "inputs", "validation": 0.1}},
        {"stages": [{"prune": {"sparsity": "auto"}}, "quantize"], "max_drop": 0.5},
        {"stages": [{"prune": {"threshold": 0.01}}, {"finetune": {"epochs": 2}}]},
        {"stages": [{"quantize": {"keep_float": ["head"], "train": {"epochs": 1}}}]},
        {"limits": {"gzip_bytes": 10_000}, "convert": ["float32", "float16"]},
        {"input": {"scale": 1 / 255, "mean": [0.5], "std": [0.25]}},
    ],
    ids=str,
)
def test_a_recipe_survives_yaml(changes, tmp_path):
    recipe = as_recipe({**BASE, "name": "recipe", **changes})
    path = written(tmp_path, to_yaml(recipe))
    assert load_recipe(path) == recipe


def test_quantize_is_searched_unless_settings_say_that_it_trains():
    def way(stage):
        return as_recipe({**BASE, "stages": [stage]}).stages[0].way

    assert way("quantize") == way({"quantize": "auto"}) == way({"quantize": None}) == "auto"
    assert way({"quantize": "calibrate"}) == "calibrate"
    assert way({"quantize": {"keep_float": ["x"]}}) == way({"quantize": "train"}) == "train"


# ---------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "holds nothing"),
        ("- a\n- b\n", "holds list"),
        ("model: [", "is not YAML"),
        ("model: m.keras\n\tdata: x", "is not YAML"),
        ("a: &x [1]\nb: *x\n", "aliases"),
        ("model: !!python/object/apply:os.system ['true']\ndata: digits\n", "is not YAML"),
        ("data: digits\n", "`model` is missing"),
        ("model: m.keras\n", "`data` is missing"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_in_one_line(tmp_path, text, match):
    with pytest.raises(SettingsError, match=match) as caught:
        load_recipe(written(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_files_named_in_a_recipe_are_found_beside_it(tmp_path):
    (tmp_path / "m.keras").write_bytes(b"")
    recipe = load_recipe(written(tmp_path, "model: m.keras\ndata: digits\n"))
    assert recipe.model == str(tmp_path / "m.keras")
    assert recipe.source.source == "digits"


def test_the_schema_knows_every_key_and_accepts_what_the_recipe_accepts():
    jsonschema = pytest.importorskip("jsonschema")
    schema = json_schema()
    assert set(schema["properties"]) == {f.name for f in dataclasses.fields(Recipe)}
    good = yaml.safe_load(
        "model: m.keras\ndata: digits\nmax_drop: 0.5\nstages:\n- prune: {sparsity: auto}\n"
        "- quantize: auto\ntrain: {epochs: 3}\n"
    )
    jsonschema.validate(good, schema)
    jsonschema.validate({**good, "stages": "prune80_w8a8"}, schema)
    for wrong in ({"stagse": 1}, {"stages": "prune80_w9"}, {"stages": [{"prune": {"sparsty": 1}}]}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**good, **wrong}, schema)
    json.dumps(schema)


# ---------------------------------------------------------------------- budget


@pytest.mark.parametrize(
    ("text", "reference", "fraction", "wanted"),
    [
        (0.5, 0.98, True, 0.005),
        (0, 0.98, True, 0.0),
        (0.5, 12.0, False, 0.5),
        ("5 %", 12.0, False, 0.6),
        ("2%", 0.9, True, 0.018),
        ("1.5", 0.9, True, 0.015),
    ],
)
def test_a_drop_is_points_its_own_unit_or_relative(text, reference, fraction, wanted):
    assert drop_of(text, reference, fraction=fraction) == pytest.approx(wanted)


def figure(higher, reference, allowed):
    metric = Metric(name="m", higher_is_better=higher, function=max)
    return Figure(name="m", metric=metric, fraction=False, reference=reference, allowed=allowed)


@pytest.mark.parametrize(
    ("higher", "value", "holds"),
    [(True, 9.0, True), (True, 8.9, False), (True, 12.0, True), (False, 11.0, True),
     (False, 11.1, False), (False, 3.0, True)],
)  # fmt: skip
def test_a_budget_holds_in_the_direction_of_its_metric(higher, value, holds):
    budget = Budget((figure(higher, 10.0, 1.0),))
    assert (budget.broken({"m": value}) == "") is holds


def test_a_budget_of_zero_refuses_the_least_loss():
    budget = Budget((figure(True, 0.98, 0.0),))
    assert budget.broken({"m": 0.98}) == ""
    assert budget.broken({"m": 0.9799}) != ""


@pytest.mark.parametrize("limit", [0.0, 0.3, 0.62, 0.8, 0.87, 0.93, 0.97, 0.99, 1.0])
def test_the_search_ends_within_a_tenth_of_the_density_that_the_budget_allows(limit):
    accepted, rejected, tried, seen = 0.0, None, 0, []
    while (s := next_strength(accepted, rejected, tried, first=0.8, top=0.995)) is not None:
        seen.append(s)
        tried += 1
        accepted, rejected = (s, rejected) if s <= limit else (accepted, s)
        assert tried < 12
    assert len(set(seen)) == len(seen)
    wanted = min(limit, 0.995)
    if wanted > 0.15:
        assert accepted <= wanted
        assert (1 - accepted) / (1 - wanted) < 1.2


def test_the_reference_in_the_readme_is_a_recipe_with_every_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    text = (Path(__file__).parent.parent / "README.md").read_text()
    (block,) = re.findall(r"^```yaml\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    values = yaml.safe_load(block)
    recipe = as_recipe(values)
    left_out = {"name", "unsafe", "allow_software"}
    assert set(values) == {f.name for f in dataclasses.fields(Recipe)} - left_out
    stages = ["structured_prune", "prune", "cluster", "finetune", "quantize"]
    assert [step.stage for step in recipe.stages] == stages


# ---------------------------------------------------------------------- all stages


USUAL = {
    "rewrite": {"patterns": ["silu_to_hard_silu"]},
    "drop_layers": {"flops": "auto"},
    "low_rank": {"flops": "auto"},
    "structured_prune": {"params": 0.5},
    "remove_dead": None,
    "sparsity_penalty": {"kind": "l1", "strength": 1e-4},
    "prune": {"sparsity": "auto"},
    "cluster": {"number_of_clusters": "auto"},
    "finetune": {"distill": "baseline"},
    "quantize": {"weight_bits": 4, "per_layer": {"classes": {"weights": 8}}},
}


def test_every_stage_is_a_step_that_yaml_gives_back():
    assert list(USUAL) == list(STAGES)
    recipe = as_recipe({**BASE, "max_drop": 1, "stages": [{k: v} for k, v in USUAL.items()]})
    again = as_recipe(yaml.safe_load(to_yaml(recipe)))
    assert again == recipe
    assert again.steps[-2].distill == {"teacher": "baseline"}


@pytest.mark.parametrize(("stage", "strengths"), STRENGTHS.items())
def test_the_fraction_that_a_strength_takes_away_leads_back_to_it(stage, strengths):
    for strength in strengths:
        if strength.setting == "threshold":  # by the model's own weights
            continue
        for value in (strength.usual, strength.from_fraction(strength.top, dict)):
            fraction = strength.to_fraction(value, dict)
            assert 0 < fraction < 1
            assert strength.from_fraction(fraction, dict) == pytest.approx(value, rel=1e-3)


def test_fewer_clusters_are_the_stronger_setting():
    clusters = STRENGTHS["cluster"][0]
    values = [clusters.from_fraction(f, dict) for f in (0.8, clusters.first, 0.93, clusters.top)]
    assert values == sorted(values, reverse=True) and values[1] == 16 and values[-1] == 2


@pytest.mark.parametrize(
    ("step", "match"),
    [
        ({"cluster": {"number_of_clusters": 1}}, "2"),
        ({"cluster": {"clusters": 4}}, "no setting 'clusters'"),
        ({"low_rank": {"energy": "auto"}}, "`auto` stands for one setting"),
        ({"structured_prune": {"flops": 1.5}}, "flops"),
        ({"finetune": {"distill": {"temprature": 3}}}, "Did you mean 'temperature'"),
        ({"finetune": {"distill": {"alpha": 2}}}, "alpha"),
        ({"finetune": {"distill": 3}}, "`distill` of a step is a teacher"),
    ],
)
def test_wrong_settings_of_the_new_steps_are_refused(step, match):
    with pytest.raises(SettingsError, match=match):
        as_recipe({**BASE, "max_drop": 1, "stages": [step]})
