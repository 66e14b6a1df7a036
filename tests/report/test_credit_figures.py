from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from offmarl.credit.base import Credit
from offmarl.credit.inputs import input_layout
from offmarl.credit.relabel import CreditReport
from offmarl.envs.registry import make
from offmarl.errors import UsageError
from offmarl.report.credit_figures import (
    EpisodeRewards,
    draw_credit,
    draw_skill_curve,
    episode_figure,
    episode_rewards,
    recovered_figure,
    skill_figure,
    typical_episode,
)
from offmarl.report.mask_figure import MOST_VARIABLES, edge_table, mask_figure
from offmarl.report.style import paper, save

MAGIC = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}


def overlapping(figure) -> list[tuple[str, str]]:
    """Pairs of visible texts whose boxes overlap by more than a pixel once the figure is laid out."""
    FigureCanvasAgg(figure).draw()
    ticks = {label for axes in figure.axes for label in (*axes.get_xticklabels(), *axes.get_yticklabels())}
    inside = {label for axes in figure.axes for label in _tick_labels(axes)}
    hidden = {text for axes in figure.axes if not axes.get_visible() for text in axes.findobj(Text)}
    seen = [
        (text.get_text(), text.get_window_extent())
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and text not in hidden
        if text not in ticks or text in inside
    ]
    return [
        (first, second)
        for (first, a), (second, b) in combinations(seen, 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1
    ]


def _tick_labels(axes) -> list[Text]:
    """The labels of the ticks that lie within the limits; matplotlib keeps others, undrawn."""
    labels = []
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        labels += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
        labels += [tick.label2 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    return labels


def made_up(n_agents: int, steps: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    truth = generator.normal(size=(steps, n_agents))
    return truth + 0.3 * generator.normal(size=truth.shape), truth


def invented_report(env: str, agents: int, kept: int, seed: int = 0) -> tuple[SimpleNamespace, CreditReport]:
    """A task with so many agents, and a mask of `kept` of an agent's own variables and one of a neighbour's."""
    spec = make(env, options={"agents": agents}).spec
    layout = input_layout(spec)
    generator = np.random.default_rng(seed)
    own = layout.belongs(agents)
    masks = torch.zeros_like(own)
    for agent in range(agents):
        chosen = generator.choice(np.flatnonzero(own[agent]), kept, replace=False)
        masks[agent, chosen] = True
        masks[agent, np.flatnonzero(own[(agent + 1) % agents])[3]] = True
    credit = Credit(
        torch.zeros(1, agents), masks=masks, edge_probability=masks * 0.9, input_names=layout.names
    )
    report = CreditReport("x", Path("x.h5"), "macca", {}, 0, "", 0.0, credit, None)
    return SimpleNamespace(spec=spec), report


@pytest.mark.parametrize("file_format", ["png", "pdf", "svg"])
def test_three_figures_are_written(dataset, report, tmp_path, file_format):
    drawn = draw_credit(dataset, report, tmp_path, file_format, episode=3)
    assert [path.name for path in drawn.paths] == [
        f"macca-mask.{file_format}",
        f"macca-recovered.{file_format}",
        f"macca-episode-3.{file_format}",
    ]
    assert sorted(tmp_path.iterdir()) == sorted(drawn.paths)
    for path in drawn.paths:
        assert path.read_bytes().startswith(MAGIC[file_format])


@pytest.mark.parametrize("file_format", ["png", "pdf", "svg"])
def test_the_same_figure_is_the_same_file(tmp_path, file_format):
    recovered, truth = made_up(2, 50, np.random.default_rng(0))
    for name in ("a", "b"):
        save(recovered_figure(recovered, truth, ("x", "y")), tmp_path / f"{name}.{file_format}")
    first, second = (tmp_path / f"{name}.{file_format}" for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_what_cannot_be_drawn_is_said(dataset, report, tmp_path):
    arrays = {name: array for name, array in dataset.card.arrays.items() if name != "agent_reward"}
    without_truth = SimpleNamespace(
        card=SimpleNamespace(arrays=arrays, episodes=dataset.card.episodes),
        spec=dataset.spec,
        episode_start=dataset.episode_start,
        read=dataset.read,
        id=dataset.id,
    )
    maskless = replace(report, method="shapley", credit=replace(report.credit, masks=None, std=None))
    drawn = draw_credit(without_truth, maskless, tmp_path)
    assert [path.name.split("-")[1] for path in drawn.paths] == ["episode"]
    assert "the method 'shapley' does not look for causes" in drawn.notes[0]
    assert "does not know the true ones" in drawn.notes[1]
    with pytest.raises(UsageError, match=r"--episode 99: .* episodes 0 to 79"):
        draw_credit(dataset, report, tmp_path, episode=99)


def test_the_heat_map_shows_every_kept_edge_and_every_true_cause_once():
    task, report = invented_report("scm_a", agents=3, kept=2)
    edges = edge_table(task, report)
    assert edges.kept.sum() == report.credit.masks.sum()
    assert edges.cause.sum() == sum(map(len, task.spec.causes))
    titles = [title for title, _ in edges.groups]
    assert titles == sorted(set(titles), key=titles.index), "an owner's variables stand together"
    assert {"agent_0's", "agent_1's", "agent_2's"} <= set(titles)
    shown = sum(len(names) for _, names in edges.groups)
    assert shown + edges.left_out == len(report.credit.input_names)
    assert np.allclose(edges.probability.max(0), report.credit.edge_probability.max(1).values)


def test_a_users_map_of_owners_groups_the_heat_map():
    task, report = invented_report("scm_a", agents=3, kept=2)
    first = task.spec.causes[0][0]
    before = dict(edge_table(task, report).groups)
    after = dict(edge_table(task, replace(report, config={"owner": {first: "nobody"}})).groups)
    assert first.removeprefix("agent_0.") in before["agent_0's"]
    assert first.removeprefix("agent_0.") not in after["agent_0's"]
    assert first in after["nobody's"]


def test_many_agents_share_the_rows_of_their_own_variables():
    task, report = invented_report("mpe_targets", agents=12, kept=3)
    edges = edge_table(task, report)
    own, *others = edges.groups
    assert own[0] == "its own"
    assert "target.relative_x" in own[1] or "next.target.relative_x" in own[1]
    assert edges.kept.sum() == report.credit.masks.sum()
    assert len(others) == 12, "a neighbour's variable stands under the neighbour"
    assert np.isnan(edges.probability).any(), "no agent sees itself from itself"
    assert sum(len(names) for _, names in edges.groups) <= MOST_VARIABLES


@pytest.mark.parametrize("agents", [3, 16])
def test_labels_do_not_overlap(agents):
    generator = np.random.default_rng(0)
    names = [f"predator_{k}" for k in range(agents)]
    recovered, truth = made_up(agents, 400, generator)
    rewards = EpisodeRewards(
        12, True, truth[:25].sum(1), recovered[:25], np.full((25, agents), 0.3), truth[:25]
    )
    task, report = invented_report("mpe_targets", agents, kept=4)
    with paper():
        for figure in (
            mask_figure(edge_table(task, report), task.spec.agents),
            recovered_figure(recovered, truth, names),
            recovered_figure(*made_up(agents, 2_000, generator), names),
            episode_figure(rewards, names),
        ):
            assert overlapping(figure) == []


def test_recovered_against_true_says_the_correlation_and_ignores_constants():
    recovered, truth = made_up(3, 500, np.random.default_rng(1))
    figure = recovered_figure(recovered + 7, truth, ("a", "b", "c"))
    correlation = np.corrcoef(truth[:, 1], recovered[:, 1])[0, 1]
    assert figure.axes[1].get_title() == f"b   r = {correlation:.3f}"
    low, high = figure.axes[1].get_ylim()
    assert abs(low + high) < 3, "both are drawn around zero"
    constant = np.zeros_like(truth)
    assert "undefined" in recovered_figure(recovered, constant, ("a", "b", "c")).axes[0].get_title()


def test_the_episode_shows_what_everybody_was_paid(dataset, report):
    number = typical_episode(dataset, report)
    rewards = episode_rewards(dataset, report, number)
    assert rewards.heldout
    assert len(rewards.team_reward) == dataset.spec.horizon
    assert np.allclose(rewards.recovered.sum(1), rewards.team_reward, atol=1e-4), "they add up"
    assert np.allclose(rewards.truth.sum(1), rewards.team_reward, atol=1e-4)
    axes = episode_figure(rewards, dataset.spec.agents).axes
    assert len(axes) == 1 + dataset.spec.n_agents
    lines = {line.get_label(): line.get_ydata() for line in axes[2].get_lines()}
    assert np.allclose(lines["recovered"], rewards.recovered[:, 1])
    assert np.allclose(lines["true"], rewards.truth[:, 1])
    (band,) = axes[2].collections
    low = band.get_paths()[0].get_extents().y0
    assert np.isclose(low, (rewards.recovered[:, 1] - rewards.std[:, 1]).min())


def skill_rows() -> list[dict]:
    generator = np.random.default_rng(0)
    return [
        {"method": method, "case": case, "transitions": size, "seed": seed, "skill": skill + noise}
        for case in ("scm_a", "scm_b1", "mpe_tag_individual", "scm_c", "scm_d")
        for method, skill in (("macca", 0.9), ("macca-paper", 0.1), ("difference", -30.0))
        for size in (3_000, 10_000, 100_000)
        for seed, noise in enumerate(0.05 * generator.normal(size=3))
    ]


def test_the_skill_curve_is_the_mean_over_seeds_with_arrows_for_what_is_too_low(tmp_path):
    rows = skill_rows()
    figure = skill_figure(rows)
    axes = figure.axes[0]
    lines = {line.get_label(): line for line in axes.get_lines()}
    of_macca = [row["skill"] for row in rows if row["method"] == "macca" and row["case"] == "scm_a"]
    assert np.allclose(lines["macca"].get_ydata(), np.reshape(of_macca, (3, 3)).mean(1))
    bottom = axes.get_ylim()[0]
    assert bottom < -1
    arrows = [line for line in axes.get_lines() if set(np.ravel(line.get_ydata())) == {bottom}]
    assert [len(line.get_xdata()) for line in arrows] == [3]
    colours = Counter(lines[method].get_color() for method in ("macca", "macca-paper", "difference"))
    assert set(colours.values()) == {1}
    with paper():
        assert overlapping(skill_figure(rows)) == []
        assert overlapping(skill_figure(rows[:9])) == []
    draw_skill_curve(rows, tmp_path / "skill.svg")
    assert (tmp_path / "skill.svg").read_bytes().startswith(MAGIC["svg"])


def test_undefined_skill_is_left_out_and_nothing_at_all_is_refused(tmp_path):
    rows = skill_rows()[:9]
    rows[0]["skill"], rows[1]["skill"] = None, float("nan")
    line = next(line for line in skill_figure(rows).axes[0].get_lines() if line.get_label() == "macca")
    assert line.get_ydata()[0] == pytest.approx(rows[2]["skill"])
    with pytest.raises(UsageError, match="no row has one"):
        draw_skill_curve([row | {"skill": None} for row in rows], tmp_path / "skill.png")
    assert list(tmp_path.iterdir()) == []
