import csv
import io

import pytest
from studies import measured, study

from offmarl.errors import UsageError
from offmarl.report.bench_tables import BenchTable
from offmarl.report.marl_eval import marl_eval_json
from offmarl.report.score_figures import draw_study
from offmarl.report.score_tables import (
    csv_text,
    grid_table,
    latex,
    markdown,
    score_tables,
    short_tables,
    task_table,
)
from offmarl.report.study import Curve, make_study
from offmarl.report.summary import summarise

TAG, SPREAD = "tag/expert-v0", "spread/expert-v0"


@pytest.fixture(scope="module")
def summary():
    return summarise(
        study(
            measured("td3_bc", "team", [10, 20, 30]),
            measured("td3_bc", "macca", [80, 80, 80]),
            measured("td3_bc", "team", [10, 20, 30], SPREAD),
            measured("td3_bc", "macca", [60, 60, 60], SPREAD),
        )
    )


def test_a_table_for_every_task_and_one_over_all(summary):
    titles = [table.title for table in score_tables(summary)]
    assert titles == ["Over 2 tasks", "td3_bc on macca, against", TAG, SPREAD]
    table = task_table(summary, TAG)
    assert table.columns == ["method", "IQM", "mean", "seeds", "episodes", "updates"]
    assert table.rows[0][:3] == ["(the logged team)", "", "30.0"]
    assert table.rows[1] == ["td3_bc on macca", "80.0 [80.0, 80.0]", "80.0 [80.0, 80.0]", "3", "100", "1,000"]
    assert table.rows[2][0] == "td3_bc on team"
    assert table.best == {(1, 1)}


def test_the_screen_shows_one_table_for_all_tasks(summary):
    assert [table.title for table in short_tables(summary)] == [
        "Over 2 tasks",
        "td3_bc on macca, against",
        "Every task",
    ]
    grid = grid_table(summary)
    assert grid.columns == ["method", TAG, SPREAD]
    assert grid.rows[1] == ["td3_bc on macca", "80.0 [80.0, 80.0]", "60.0 [60.0, 60.0]"]
    assert grid.best == {(1, 1), (1, 2)}
    assert "over 3 seeds of 100 episodes" in grid.note
    half = study(
        measured("a", "team", [1, 2]), measured("a", "team", [3], SPREAD), measured("a", "team", [4], "x/y")
    )
    turned = grid_table(summarise(half))
    assert (turned.columns, turned.rows[2]) == (["task", "a on team"], ["x/y", "4.0"])
    assert "over 1 to 2 seeds" in turned.note


def test_what_is_known_of_no_method_has_no_column():
    found = measured(
        "macca",
        None,
        [],
        values={"skill": [0.9, 0.8]},
        seeds=("0", "1"),
        episodes=None,
        steps=None,
        behaviour={},
    )
    table = task_table(summarise(study(found)), TAG)
    assert table.columns == ["method", "IQM", "mean", "optimality gap", "seeds"]
    assert (table.rows[0][0], table.rows[0][4]) == ("macca", "2")


def test_markdown_begins_with_the_headline_and_its_doubts(summary):
    text = markdown(summary, "offmarl report")
    assert "macca's rewards are ahead of the team reward (td3_bc) by 50.0 points" in text
    assert "**Warning:** fewer than 5 seeds" in text
    assert "| td3_bc on macca | **80.0 [80.0, 80.0]** | 80.0 [80.0, 80.0] | 3 | 100 | 1,000 |" in text


def test_latex_is_escaped_and_closed(summary):
    text = latex(summary, "offmarl report")
    assert r"td3\_bc on macca & \textbf{80.0 [80.0, 80.0]} & 80.0 [80.0, 80.0] & 3 & 100 & 1,000 \\" in text
    assert text.count(r"\begin{tabular}{lrrrrr}") == 2
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 4
    odd = BenchTable("50 % of R&D", ["a_b"], [["x < y ~ {z}"]]).latex()
    assert r"\caption{50 \% of R\&D}" in odd
    assert r"a\_b \\" in odd
    assert r"x \textless{} y \textasciitilde{} \{z\} \\" in odd


def test_csv_holds_every_number_in_full(summary):
    rows = list(csv.DictReader(io.StringIO(csv_text(summary))))
    assert [(row["task"], row["method"]) for row in rows[:2]] == [
        (TAG, "td3_bc on macca"),
        (TAG, "td3_bc on team"),
    ]
    team = rows[1]
    assert (team["rewards"], team["metric"], team["seeds"], team["episodes"]) == ("team", "score", "3", "100")
    assert float(team["mean"]) == 20
    assert [float(value) for value in team["values"].split(";")] == [10, 20, 30]


def test_marl_eval_json(summary):
    answer, notes = marl_eval_json(summary.study)
    assert notes == []
    assert answer.keys() == {"tag", "spread"}
    assert answer["tag"].keys() == {"expert-v0"}
    assert answer["tag"]["expert-v0"]["td3_bc on team"] == {
        f"run_{run + 1}": {
            "step_1": {"step_count": 1_000, "return": [2.0 * score], "score": [score]},
            "absolute_metrics": {"return": [2.0 * score], "score": [score]},
        }
        for run, score in enumerate([10.0, 20.0, 30.0])
    }


def test_marl_eval_gets_win_rates_of_the_environments_that_have_them():
    values = {"return": [1.0], "win_rate": [0.25]}
    made = study(measured("cql", "team", [1]), measured("cql", "team", [1], "3m/random-v0", values=values))
    answer, _ = marl_eval_json(made)
    last = answer["3m"]["random-v0"]["cql on team"]["run_1"]["absolute_metrics"]
    assert last == {"return": [1.0], "win_rate": [0.25]}
    assert answer["tag"]["expert-v0"]["cql on team"]["run_1"]["absolute_metrics"].keys() == {
        "return",
        "score",
    }


def test_marl_eval_gets_what_it_can_bear():
    made = study(
        measured("A", "team", [1, 2, 3], settings={"alpha": 1.0}),
        measured("A", "team", [1, 2], settings={"alpha": 2.0}),
        measured("A", "team", [1, 2], "tag/other-v0", settings={"alpha": 1.0}),
    )
    answer, notes = marl_eval_json(made)
    assert answer["tag"]["expert-v0"].keys() == {"a on team alpha 1"}  # lower case, no comma
    assert answer["tag"]["expert-v0"]["a on team alpha 1"].keys() == {"run_1", "run_2"}
    assert "without A on team, alpha 2" in notes[0]
    assert "the first 2 of every method" in notes[1]
    with pytest.raises(UsageError, match="compares policies"):
        marl_eval_json(study(measured("macca", None, [0.9], values={"skill": [0.9]})))


def test_marl_eval_is_told_of_nothing_that_policies_do_not_earn():
    games = [
        measured(name, "true", [], values={"reward_first": [1.0]}, seeds=("0",)) for name in ("mfq", "cmfq")
    ]
    made = study(*games, metric="reward_first")
    with pytest.raises(UsageError, match="of tag none of return, score, win_rate was measured"):
        marl_eval_json(made)


def curve(method: str, metric: str, task: str = TAG) -> Curve:
    values = ((1.0, 2.0), (3.0, 4.0))
    return Curve(method, task, metric, (500, 1_000), (1.5, 3.5), (1.0, 3.0), (2.0, 4.0), values)


def test_marl_eval_has_the_steps_of_the_learning_curve_and_absolute_metrics_last():
    found = [measured("cql", "team", [3, 4]), measured("bc", "team", [3, 4])]
    curves = [curve(method, metric) for method in ("cql on team", "bc") for metric in ("score", "return")]
    run = marl_eval_json(make_study("x", found, None, curves=lambda named: curves))[0]["tag"]["expert-v0"][
        "bc"
    ]["run_2"]
    assert list(run) == ["step_1", "step_2", "absolute_metrics"]
    assert run["step_2"] == {"step_count": 1_000, "return": [4.0], "score": [4.0]}
    assert run["absolute_metrics"] == {"return": [8.0], "score": [4.0]}


def test_figures_are_drawn(tmp_path):
    found = [measured("cql", "team", [3, 4]), measured("bc", "team", [3, 4])]
    curves = [curve(method, "score") for method in ("cql on team", "bc")]
    drawn = draw_study(summarise(make_study("x", found, None, curves=lambda named: curves)), tmp_path, "svg")
    assert [path.stem for path in drawn] == ["intervals", "profile", "improvement", "curves"]
    assert drawn[-1].read_text().count('<g id="FillBetweenPolyCollection') == 2  # a band a method
