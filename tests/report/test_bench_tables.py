"""Tables of measured cells: rows, columns, intervals, the best of a sweep."""

import pytest

from offmarl.report.bench_tables import MeasuredCell, TableSpec, make_table


def cells(values: dict[tuple[str, str, str], list[float]], metric: str = "score") -> list[MeasuredCell]:
    return [
        MeasuredCell({"env": env, "sweep": sweep, "seed": seed}, {metric: numbers} if numbers else {})
        for (env, sweep, seed), numbers in values.items()
    ]


GRID = {
    ("b", "lo", "0"): [1.0, 3.0],
    ("a", "lo", "0"): [10.0],
    ("a", "hi", "0"): [20.0],
    ("b", "lo", "1"): [4.0, 4.0],
    ("a", "lo", "1"): [30.0],
    ("a", "hi", "1"): [],
}


def test_rows_follow_the_recipe_and_means_come_with_intervals_and_counts():
    spec = TableSpec(title="t", rows=["env", "sweep"], metrics=["score", "other"], digits=1)
    table = make_table(spec, cells(GRID))
    assert table.columns == ["env", "sweep", "score", "other", "seeds"]
    assert table.rows == [
        ["b", "lo", "3.0 [2.0, 4.0]", "-", "2"],
        ["a", "lo", "20.0 [10.0, 30.0]", "-", "2"],
        ["a", "hi", "20.0", "-", "1"],
    ]
    assert "each the mean of up to 2 on the same data" in table.note


def test_seeds_are_counted_by_the_metrics_that_they_have():
    measured = [
        MeasuredCell(
            {"env": "a", "seed": str(seed)}, {"score": [1.0], **({"hijack": [0.0]} if seed == 2 else {})}
        )
        for seed in range(3)
    ]
    spec = TableSpec(title="t", rows=["env"], metrics=["score", "hijack", "never"])
    assert make_table(spec, measured).rows == [["a", "1.00", "0.00", "-", "1–3"]]
    alone = TableSpec(title="t", rows=["env"], metrics=["hijack"])
    assert make_table(alone, measured).rows == [["a", "0.00", "1"]]
    none = TableSpec(title="t", rows=["env"], metrics=["never"])
    assert make_table(none, measured).rows == [["a", "-", "0"]]


def test_every_trained_seed_may_count_by_itself():
    spec = TableSpec(title="t", rows=["env"], metrics=["score"], over="seeds", where={"env": ["b"]}, digits=0)
    ((_, text, count),) = make_table(spec, cells(GRID)).rows
    assert text.startswith("3 [")
    assert count == "4"


def test_an_axis_across_gives_a_column_to_each_of_its_values():
    spec = TableSpec(title="t", rows=["env"], across="sweep", metrics=["score"], digits=0)
    table = make_table(spec, cells(GRID))
    assert table.columns == ["env", "lo", "hi", "seeds"]
    assert table.rows == [["b", "3 [2, 4]", "-", "2"], ["a", "20 [10, 30]", "20", "1–2"]]
    assert "| b | 3 [2, 4] | - | 2 |" in table.markdown()
    planned = make_table(spec, cells({**GRID, ("b", "hi", "0"): [], ("c", "lo", "0"): []}))
    assert [(row[0], row[-1]) for row in planned.rows] == [("b", "0–2"), ("a", "1–2")]


def test_numbers_of_a_paper_stand_beside_ones_own():
    published = {"source": "a paper", "numbers": {"b": {"lo": "7±1"}}}
    spec = TableSpec(
        title="t", rows=["env"], across="sweep", metrics=["score"], digits=0, published=published
    )
    table = make_table(spec, cells(GRID))
    assert table.rows == [["b", "3 [2, 4] (7±1)", "-", "2"], ["a", "20 [10, 30]", "20", "1–2"]]
    assert "a paper" in table.note
    with pytest.raises(ValueError, match="needs 'across'"):
        TableSpec(title="t", rows=["env"], metrics=["score"], published=published)


@pytest.mark.parametrize(("largest", "chosen"), [(True, "hi"), (False, "lo")])
def test_the_best_of_a_sweep_is_shown_with_its_name(largest, chosen):
    grid = {**GRID, ("a", "hi", "1"): [28.0]}
    best = {"over": ["sweep"], "metric": "score", "largest": largest}
    spec = TableSpec(title="t", rows=["env"], metrics=["score"], best=best, digits=0)
    rows = make_table(spec, cells(grid)).rows
    assert rows[1] == ["a", "24 [20, 28]" if largest else "20 [10, 30]", chosen, "2"]
