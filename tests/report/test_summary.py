import json

import pytest
from studies import measured, study

from offmarl.report.headline import headline
from offmarl.report.score_figures import draw_study
from offmarl.report.score_tables import markdown, score_tables
from offmarl.report.summary import LAST, summarise

TAG, SPREAD = "tag/expert-v0", "spread/expert-v0"
TEAM, MACCA, TRUE = [18, 19, 20, 21, 22], [90, 91, 92, 93, 94], [95, 95, 95, 95, 95]


def told(*found):
    return headline(summarise(study(*found)))


def test_the_winner_against_the_team_reward_and_the_truth():
    sentences = told(
        measured("cql", "team", TEAM), measured("cql", "macca", MACCA), measured("cql", "true", TRUE)
    )
    # middle three of five: 92 and 20
    assert sentences.startswith("macca's rewards beat the team reward (cql) by 72.0 points (95 % interval ")
    assert "5 seeds, 1 task)." in sentences
    assert sentences.endswith(
        "The true rewards, which only a simulator knows, reach 95.0; cql on macca's rewards 92.0."
    )


def test_the_strongest_rival_is_named_after_the_team_reward():
    sentences = told(
        measured("cql", "team", TEAM), measured("cql", "macca", MACCA), measured("bc", "team", [50] * 5)
    )
    assert "cql on macca's rewards beats bc by 42.0 points" in sentences


def test_what_overlaps_is_not_told_apart():
    sentences = told(
        measured("cql", "macca", [10, 40, 50, 60, 90]), measured("omar", "macca", [12, 38, 49, 61, 88])
    )
    assert "cannot be told apart" in sentences
    assert "beat" not in sentences


def test_few_seeds_are_not_sure():
    sentences = told(measured("cql", "team", TEAM[:3]), measured("cql", "macca", MACCA[:3]))
    assert "macca's rewards are ahead of the team reward (cql) by 72.0 points" in sentences
    assert "so few seeds leave it unsure" in sentences
    alone = told(measured("cql", "team", TEAM[:1]), measured("cql", "macca", MACCA[:1]))
    assert "how sure that is cannot be known (1 seed, 1 task)" in alone


def test_a_method_alone_has_nothing_to_beat():
    sentence = told(measured("cql", "macca", MACCA))
    assert sentence.startswith("cql on macca's rewards reaches a normalised score of 92.0 (95 % interval 90.")
    assert sentence.endswith("5 seeds, 1 task); there is nothing to compare it with.")


def test_true_rewards_win_only_against_nobody():
    summary = summarise(study(measured("cql", "team", TEAM), measured("cql", "true", TRUE)))
    assert summary.winner == "cql on team"
    assert headline(summary) == (
        f"cql on the team reward reaches a normalised score of {summary.aggregates[1].iqm.value:.1f} "
        f"(95 % interval {summary.aggregates[1].iqm.low:.1f} to {summary.aggregates[1].iqm.high:.1f}, 5 seeds, 1 "
        "task); there is nothing to compare it with. The true rewards, which only a simulator knows, reach 95.0; "
        "cql on the team reward 20.0."
    )


def test_tuned_on_the_scores_is_said():
    variants = [measured("cql", "macca", MACCA, settings={"alpha": alpha}) for alpha in (1.0, 5.0)]
    summary = summarise(study(measured("cql", "team", TEAM), *variants))
    assert "each at its best setting" in headline(summary)
    assert any("chosen by these very scores" in warning for warning in summary.warnings)


def test_aggregates_over_two_tasks():
    summary = summarise(
        study(
            measured("cql", "team", [0, 10, 20, 30], TAG),
            measured("cql", "team", [40, 50, 60, 200], SPREAD),
            measured("bc", "team", [5, 5, 5, 5], TAG),
            measured("bc", "team", [45, 45, 45, 45], SPREAD),
        )
    )
    cql, bc = summary.aggregates
    assert (cql.method, cql.iqm.value) == ("cql on team", (20 + 30 + 40 + 50) / 4)
    assert cql.mean.value == pytest.approx((15 + 87.5) / 2)
    assert cql.optimality_gap.value == pytest.approx(100 - (15 + 62.5) / 2)  # 200 counts as 100
    assert (cql.seeds, cql.episodes) == (4, 100)
    # on tag three of four values exceed 5, on spread three of four exceed 45
    assert summary.against("cql on team", "bc").probability.value == pytest.approx(0.75)
    assert summary.against("bc", "cql on team").probability.value == pytest.approx(0.25)
    assert summary.against("bc", "cql on team").advantage.value == pytest.approx(25 - 35)
    assert (bc.iqm.value, bc.iqm.low, bc.iqm.high) == (25, 25, 25)  # its seeds are alike, whatever is drawn
    assert summary.profiles["bc"][0].value == 1.0  # everything is above the smallest score of all, 0
    json.dumps(summary.to_json(), allow_nan=False)


def test_seeds_episodes_and_the_last_checkpoint_are_said():
    summary = summarise(study(measured("cql", "team", [1, 2, 3]), measured("bc", "team", [1, 2, 3, 4, 5])))
    assert summary.warnings[0].startswith(
        "fewer than 5 seeds (cql on team on tag/expert-v0): the interval of 3"
    )
    assert LAST in summary.notes
    assert summary.to_json()["tasks"][TAG][0]["episodes"] == 100
    enough = summarise(study(measured("cql", "team", TEAM)))
    assert enough.warnings == ()


def test_methods_are_compared_on_the_tasks_that_all_have():
    summary = summarise(
        study(
            measured("cql", "team", TEAM, TAG),
            measured("bc", "team", TEAM, TAG),
            measured("bc", "team", TEAM, SPREAD),
        )
    )
    assert summary.compared == (TAG,)
    assert any(f"not every method was measured on {SPREAD}" in warning for warning in summary.warnings)


def test_returns_are_not_averaged_over_tasks():
    found = [measured("cql", "team", TEAM, task) for task in (TAG, SPREAD)]
    summary = summarise(study(*found, measured("bc", "team", [1] * 5, TAG), metric="return"))
    assert summary.compared == (TAG,)
    summary = summarise(study(*found, metric="return"))
    assert summary.compared == ()
    assert summary.aggregates == ()
    assert headline(summary).startswith("tag/expert-v0: cql on the team reward reaches a return")


def test_what_cannot_be_told_from_the_best_is_marked_with_it():
    summary = summarise(
        study(
            measured("a", "team", [10, 40, 50, 60, 90]),
            measured("b", "team", [12, 38, 49, 61, 88]),
            measured("c", "team", [1, 1, 1, 1, 1]),
            measured("a", "true", [99, 99, 99, 99, 99]),
        )
    )
    assert [(line.result.method, line.best) for line in summary.lines[TAG]] == [
        ("a on true", False),  # an upper bound
        ("a on team", True),
        ("b on team", True),
        ("c on team", False),
    ]
    assert [summary.is_best(one.method) for one in summary.aggregates] == [False, True, True, False]


def credits(metric: str, **found: list[float]):
    """What decomposition methods reach of a metric that no policy has."""
    return summarise(
        study(
            *(
                measured(name, None, [], values={metric: values}, seeds=tuple("01234"))
                for name, values in found.items()
            ),
            metric=metric,
        )
    )


def test_where_less_is_better_the_least_wins():
    low, high = [0.0, 0.0, 0.1, 0.1, 0.1], [0.7, 0.7, 0.8, 0.8, 0.9]
    summary = credits("hijack", worse=high, better=low)
    assert summary.winner == "better"
    assert [line.result.method for line in summary.lines[TAG]] == ["better", "worse"]
    assert [line.best for line in summary.lines[TAG]] == [True, False]
    pair = summary.against("better", "worse")
    assert pair.probability.value == 1.0
    assert pair.advantage.value == pytest.approx((0.7 + 0.8 + 0.8) / 3 - (0.0 + 0.1 + 0.1) / 3)
    assert headline(summary).startswith("better beats worse by 0.700 of hijack, where less is better (95 % ")
    (table, *_) = score_tables(summary)
    assert table.title == "better, against"
    assert "scores less than" in table.note
    assert credits("rewards_hijack", worse=high, better=low).winner == "better"
    assert credits("cpu_seconds", worse=high, better=low).winner == "better"
    assert credits("pearson", worse=low, better=high).winner == "better"


def test_where_nobody_knows_what_is_better_nothing_wins(tmp_path):
    summary = credits("edges", many=[5.0] * 5, few=[2.0] * 5)
    assert headline(summary) == (
        "No method is named the best: whether more or less of edges is better is not known."
    )
    assert summary.winner is None
    assert summary.improvements == ()
    assert not any(line.best for line in summary.lines[TAG])
    assert not any(summary.is_best(method) for method in ("many", "few"))
    assert [table.title for table in score_tables(summary)] == [TAG]
    assert "**" not in markdown(summary, "offmarl report").partition("| --- |")[2]
    assert "improvement.png" not in {path.name for path in draw_study(summary, tmp_path)}
