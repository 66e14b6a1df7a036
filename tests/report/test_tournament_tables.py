"""Tables and the figure of a tournament, from pairs that nobody played."""

import numpy as np
import pytest
from PIL import Image

from offmarl.behaviour.tournament import Pair, Rules
from offmarl.report.tournament import TournamentReport
from offmarl.report.tournament_figure import draw_tournament

RULES = Rules()


def battle(a, b, agents, won, drawn=0.0, **changes) -> Pair:
    entries = {
        "games": 40,
        "win_rate": won,
        "win_interval": (won, won),
        "draw_rate": drawn,
        "loss_rate": 1 - won - drawn,
        "enemies_left": 0.25,
        "enemies_left_number": 0.25 * agents,
        "own_left": 0.5,
        "a_reward": (0.1, 0.2),
        "b_reward": (0.3, 0.4),
        "steps": 120,
        "a_seeds": (0,),
        "b_seeds": (0,),
        "a_trained_on": 64,
        "b_trained_on": None,
        "epsilon": 0.05,
        "seed": 0,
        "seconds": 1,
    }
    return Pair(a=a, b=b, agents=agents, **(entries | changes))


@pytest.fixture
def report() -> TournamentReport:
    names = ("battle/one/cmfq", "battle/two/mfq", "random")
    pairs = [
        battle(names[0], names[1], 64, 0.5, 0.2, b_trained_on=64, b_seeds=(0, 1, 2)),
        battle(names[0], names[2], 64, 0.9),
        battle(names[1], names[2], 64, 1.0, a_seeds=(0, 1, 2)),
        battle(names[0], names[1], 100, 0.25, b_trained_on=64, b_seeds=(0, 1, 2)),
    ]
    return TournamentReport(RULES, names, tuple(pairs))


def test_what_one_wins_the_other_loses_and_draws_are_halved(report):
    cmfq, mfq, chance = report.names
    assert report.value(cmfq, mfq, 64) == pytest.approx(0.6)
    assert report.value(mfq, cmfq, 64) == pytest.approx(0.4)
    assert report.value(chance, mfq, 64) == 0
    assert report.value(chance, mfq, 100) is None
    assert report.value(cmfq, cmfq, 64) is None


def test_the_standings_show_how_it_goes_with_more_agents_than_in_training(report):
    assert report.standing_columns() == ["contestant", "trained on", "64 agents", "100 agents"]
    assert report.standings() == [
        ["one/cmfq", "64 agents", "0.75", "0.25"],
        ["two/mfq", "64 agents, 3 seeds", "0.70", "0.75"],
        ["random", "-", "0.05", "-"],
    ]
    assert any("several seeds" in note for note in report.notes())


def test_where_the_side_of_the_map_decides_a_reader_is_warned(report):
    assert not any("warning" in note for note in report.notes())
    one_sided, fair = (
        battle("cmfq", "mfq", 64, 0.5, win_rate_by_side=rates) for rates in ((1.0, 0.05), (0.7, 0.3))
    )
    notes = TournamentReport(RULES, ("cmfq", "mfq"), (one_sided, fair)).notes()
    assert any(note.startswith("warning: in 1 of 2 pairs the side of the map decides") for note in notes)


def test_a_row_says_who_won_and_what_was_left(report):
    row = dict(zip(report.columns(), report.rows()[0], strict=True))
    assert (row["a"], row["b"]) == ("one/cmfq", "two/mfq")
    assert (row["drawn"], row["b wins"]) == ("0.20", "0.30")
    assert row["enemies left"] == "25% (16.0)"
    assert len(report.rows()) == 4


def test_in_a_pursuit_both_take_the_predators_side_and_oneself_is_an_opponent_too():
    nothing = dict.fromkeys(
        ("win_rate", "win_interval", "draw_rate", "loss_rate", "enemies_left", "own_left")
    )
    alone = {"a_reward": (0.5, None), "b_reward": (None, -0.2)}
    pairs = (battle("a", "a", 20, 0, **nothing, **alone), battle("a", "b", 20, 0, **nothing))
    report = TournamentReport(Rules("magent_pursuit"), ("a", "b"), pairs)
    assert [row[1:5] for row in report.rows()] == [
        ["a", "a", "0.500", "-0.200"],
        ["a", "b", "0.100", "0.400"],
        ["b", "a", "0.300", "0.200"],
    ]
    assert report.value("a", "a", 20) == 0.5
    assert report.value("b", "a", 20) == 0.3


def test_the_figure_has_a_panel_a_size_and_colours_that_can_be_told_apart(report, tmp_path):
    path = tmp_path / "table.png"
    draw_tournament(report, path)
    with Image.open(path) as image:
        width, height = image.size
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert width > height  # two panels
    blue, orange = (0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00)
    for colour in (blue, orange):  # who wins all and who wins nothing
        assert (np.abs(pixels.astype(int) - colour).sum(1) < 6).sum() > 500
