"""What a recipe says: its cells, their names and settings, and what is wrong with it."""

from datetime import date
from pathlib import Path

import pytest
import yaml
from tiny_recipes import CREDIT, HASTY, POLICIES, Inline, changed, recipe

from offmarl.errors import UsageError
from offmarl.recipes.bench import OPEN, read_results, run_bench
from offmarl.recipes.recipe import CellSettings, expand, load_recipe, select

RECIPES = Path(__file__).parents[2] / "recipes"


def test_seeds_come_first_then_the_axes_as_written():
    cells = expand(recipe(CREDIT), [0, 1])
    places = [
        (cell.coordinates["seed"], cell.coordinates["env"], cell.coordinates["method"]) for cell in cells
    ]
    assert places[:4] == [
        ("0", "scm_a", "mean"),
        ("0", "scm_a", "macca"),
        ("0", "scm_c", "mean"),
        ("0", "scm_c", "macca"),
    ]
    assert [place[0] for place in places] == ["0"] * 4 + ["1"] * 4


def test_the_seed_reaches_every_stage_and_every_setting_that_asks_for_it():
    settings = expand(recipe(POLICIES, seeds=[3]), [3])[-1].settings
    assert {settings.collect.seed, settings.decompose.seed, settings.train.seed, settings.evaluate.seed} == {
        3
    }
    assert expand(recipe(CREDIT), [7])[0].settings.collect.options["structure_seed"] == 7


def test_a_name_changes_with_any_setting_and_with_nothing_else():
    names = [cell.name for cell in expand(recipe(CREDIT), [0])]
    assert names == [cell.name for cell in expand(recipe(CREDIT, title="Another title"), [0])]
    other = changed(CREDIT, "blocks/scm/collect/options/agents", 3)
    assert not set(names) & {cell.name for cell in expand(recipe(other), [0])}
    assert names[0].startswith("scm-scm_a-500-mean-s0-")


def test_rewards_that_are_not_built_in_are_decomposed_and_others_are_not():
    by_rewards = {cell.coordinates["rewards"]: cell.settings for cell in expand(recipe(POLICIES), [0])}
    assert by_rewards["macca"].decompose.method == "macca"
    assert by_rewards["macca"].decompose.settings == HASTY
    assert by_rewards["team"].decompose is None
    assert by_rewards["true"].train.rewards == "true"  # YAML reads a bare true as a boolean


def test_a_dataset_that_exists_takes_the_place_of_collect():
    settings = CellSettings.model_validate({"dataset": "a/b-v0", "train": {"learner": "bc"}})
    assert settings.evaluate.episodes == 200
    with pytest.raises(ValueError, match="either a stage 'collect' or a 'dataset'"):
        CellSettings.model_validate({"train": {"learner": "bc"}})


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("blocks/scm/collect/stepz", 5, "stepz.*Extra inputs"),
        ("blocks/scm/grid/size", [5], "no path of a setting, like collect.steps"),
        ("blocks/scm/grid/collect.env.x", [5], "nothing below it"),
        ("blocks/scm/grid/collect.env", [], "has no values"),
        ("blocks/scm/grid/collect.seed", [1, 2], "there is an axis 'seed' already"),
        ("tables/0/rows", ["envs"], "axis of table 'Skill' 'envs': did you mean env"),
        ("tables/0/metrics", ["a", "b"], "exactly one metric"),
        ("seeds", 0, "greater than or equal to 1"),
        ("blocks/scm/collect/options/day", date(2024, 1, 1), "blocks.scm: YAML reads 2024-01-01 as a date"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_said(path, value, message, tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(changed(CREDIT, path, value)))
    with pytest.raises(UsageError, match=message):
        expand(load_recipe(file), [0])


@pytest.mark.parametrize("text", ["when: 2020-13-45", "seeds: [1\ntitle: {", "seeds: !!int many"])
def test_a_file_that_is_no_yaml_is_one_line(text, tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match="is no YAML: ") as refused:
        load_recipe(file)
    assert "\n" not in str(refused.value)


def test_the_same_cell_twice_is_refused():
    twice = changed(CREDIT, "blocks/again", CREDIT["blocks"]["scm"])
    with pytest.raises(UsageError, match="are the same cell: keep one"):
        expand(recipe(twice), [0])


def test_unknown_names_are_refused_before_anything_runs(tmp_path):
    for path, value, message in [
        ("blocks/scm/grid/method/mean", {"decompose.method": "maccca"}, "did you mean macca"),
        ("blocks/scm/collect/quality", "expertt", "did you mean expert"),
        ("blocks/scm/grid/collect.env", ["scm_z"], "unknown environment"),
        ("blocks/scm/collect/options", {"agent": 3}, "did you mean agents"),
    ]:
        engine = Inline()
        with pytest.raises(UsageError, match=message):
            run_bench(recipe(changed(CREDIT, path, value)), tmp_path, engine)
        assert engine.keys == []
    with pytest.raises(UsageError, match="did you mean bc_weight"):
        read_results(recipe(changed(POLICIES, "blocks/td3bc/train/settings", {"bc_weigt": 1})), tmp_path)


def test_only_keeps_any_of_a_keys_values_and_all_of_the_keys():
    cells = expand(recipe(CREDIT), [0, 1])
    kept = select(cells, ["method=mean", "seed=0,1", "env=scm_a"])
    assert [(c.coordinates["method"], c.coordinates["seed"]) for c in kept] == [("mean", "0"), ("mean", "1")]
    with pytest.raises(UsageError, match="did you mean method"):
        select(cells, ["methods=mean"])
    with pytest.raises(UsageError, match="value of --only env= 'scm_b': did you mean"):
        select(cells, ["env=scm_b"])
    with pytest.raises(UsageError, match="expected key=value"):
        select(cells, ["mean"])


def test_keys_of_which_no_cell_has_all_are_refused():
    other = {**CREDIT["blocks"]["scm"], "grid": {"collect.env": ["scm_e"], "decompose.method": ["mean"]}}
    cells = expand(recipe(changed(CREDIT, "blocks/other", other)), [0])
    with pytest.raises(UsageError, match="--only block=other --only env=scm_a: no cell has all of these"):
        select(cells, ["block=other", "env=scm_a"])


def test_rewards_are_not_called_by_the_name_of_another_method():
    settings = {"collect": {"env": "scm_a"}, "decompose": {"method": "macca"}}
    with pytest.raises(ValueError, match=r"train\.rewards is additive, decompose\.method macca: name one"):
        CellSettings.model_validate({**settings, "train": {"learner": "bc", "rewards": "additive"}})
    own = CellSettings.model_validate({**settings, "train": {"learner": "bc", "rewards": "shared"}})
    assert own.decompose.method == "macca"


def test_the_recipes_of_the_repository_are_whole():
    sizes = {
        path.stem: len(expand(made, made.seed_list))
        for path in sorted(RECIPES.glob("*.yaml"))
        if (made := load_recipe(path))
    }
    assert sizes["credit"] == 5 * (8 + 1) * 4 * 6
    assert sizes["credit_matters"] == 5 * 2 * 3 * (1 + 4 * (3 + 2))
    assert "credit_bars" in sizes


def test_the_recipe_that_the_documentation_shows_is_one(tmp_path):
    page = (RECIPES.parent / "docs" / "benchmarks.md").read_text()
    file = tmp_path / "example.yaml"
    file.write_text(page.split("```yaml\n")[1].split("```")[0])
    assert read_results(load_recipe(file), tmp_path).count(OPEN) == 3 * 2 * 2
