import json
import re

import numpy as np
import pytest

from offmarl.credit.relabel import decompose
from offmarl.data.store import Dataset
from offmarl.errors import UsageError
from offmarl.report.charts import (
    KEPT_TRUE,
    KEPT_WRONG,
    MISSED,
    SHARED,
    Chart,
    bars_chart,
    curves_chart,
    mask_chart,
    recovered_chart,
)
from offmarl.report.mask_figure import EdgeTable
from offmarl.report.page import PageTable, as_script, write_page

NASTY = "</script><script>alert(1)</script><!-- & \u2028"


def embedded(html: str) -> dict:
    """What the page gives to its script."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    return json.loads(found[1])


@pytest.fixture(scope="module")
def hunt(random_dataset):
    """Predators and a prey, decomposed without looking for causes."""
    with Dataset.open(random_dataset("mpe_tag_individual", 300, 4)) as dataset:
        decompose(dataset, "additive", {"steps": 30})
        yield dataset


@pytest.fixture(scope="module")
def page(hunt, tmp_path_factory) -> str:
    """A page of a dataset alone."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    table = PageTable(f"title {NASTY}", ["a", "b"], [["x", NASTY]], "a note")
    write_page(path, [], [hunt], headline=[f"Somebody won {NASTY}."], tables=[table])
    return path.read_text(encoding="utf-8")


def test_nothing_is_fetched_from_anywhere(page):
    own = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r'(?:src|href)="(?!#|data:)', own)
    assert "@import" not in own
    assert not re.search(r"url\(", own)


def test_names_cannot_break_out_of_the_page(page):
    assert page.count("<script>alert(1)") == 0
    assert "&lt;script&gt;alert(1)" in page
    assert page.count("</script>") == 3  # data, library, script
    assert json.loads(as_script({"name": NASTY})) == {"name": NASTY}
    assert "<" not in as_script({"name": NASTY})


def test_undefined_numbers_are_null_and_never_nan():
    with pytest.raises(ValueError, match="JSON"):
        as_script({"value": float("nan")})
    no = np.array([[False]])
    chart = mask_chart(EdgeTable([("a's", ["x"])], np.array([[np.nan]]), no, no, None, 0), ["a"])
    assert json.loads(as_script(chart))["data"][0]["z"] == [[None]]


def test_the_viewer_gets_the_episode_as_it_was_recorded(hunt, page):
    told = embedded(page)
    assert len(told["episodes"]) == 4
    for episode in told["episodes"]:
        number = int(re.search(r"episode (\d+)", episode["title"])[1])
        first, end = hunt.episode_start[number : number + 2].tolist()
        position = hunt.read("position")[first:end].numpy()
        np.testing.assert_allclose(np.array(episode["world"]["x"][:3]).T, position[..., 0], rtol=1e-3)
        np.testing.assert_allclose(np.array(episode["world"]["y"][:3]).T, position[..., 1], rtol=1e-3)
        truth = hunt.read("agent_reward")[first : end - 1].numpy()
        np.testing.assert_allclose(np.array(episode["truth"]).T, truth, rtol=1e-3)
        reward = np.array(episode["reward"])
        np.testing.assert_allclose(reward.sum(0), episode["team"], rtol=1e-2, atol=1e-2)
        assert episode["rewards"] == "additive"
        assert [body["kind"] for body in episode["world"]["bodies"]] == [
            *["agent"] * 3,
            *["obstacle"] * 2,
            "prey",
        ]


def test_every_chart_is_one_that_plotly_understands():
    graph = pytest.importorskip("plotly.graph_objects")
    edges = EdgeTable(
        [("a's", ["x", "y"]), ("nobody's", ["z"])],
        np.array([[0.9, 0.1], [0.2, np.nan], [0.6, 0.7]]),
        np.array([[True, False], [False, False], [True, False]]),
        np.array([[False, False], [False, False], [False, True]]),
        np.array([[True, False], [True, False], [True, False]]),
        0,
    )
    reading = {"step": 5, "loss": {"mean": 1.0, "seeds": [0.5, 1.5]}}
    rewards = np.random.default_rng(0).normal(size=(50, 2))
    charts: list[Chart] = [
        bars_chart([("bc", 10.0, 8.0, 12.0), ("cql", 30.0, None, None)], "return"),
        curves_chart({"run": [reading], "other": []}, "loss"),
        mask_chart(edges, ["a", "b"]),
        recovered_chart(rewards, rewards, ["a", "b"]),
    ]
    for chart in charts:
        graph.Figure(data=chart["data"], layout=chart["layout"])  # raises for a property that does not exist
        as_script(chart)


def test_the_mask_marks_true_wrong_and_missed_edges():
    probability, kept = np.array([[0.9, 0.8, 0.1]]), np.array([[True, True, False]])
    none, cause = np.array([[False, False, False]]), np.array([[True, False, True]])
    table = EdgeTable([("a's", ["x"])], probability, kept, none, cause, 0)
    (trace,) = mask_chart(table, ["a", "b", "c"])["data"]
    assert trace["text"] == [[KEPT_TRUE, KEPT_WRONG, MISSED]]
    shared = EdgeTable([("nobody's", ["x"])], probability, kept, np.array([[False, False, True]]), cause, 0)
    assert mask_chart(shared, ["a", "b", "c"])["data"][0]["text"] == [[KEPT_TRUE, KEPT_WRONG, SHARED]]
    assert trace["z"] == [[0.9, 0.8, 0.1]]
    unknown = EdgeTable([("a's", ["x"])], probability, kept, none, None, 0)
    assert mask_chart(unknown, ["a", "b", "c"])["data"][0]["text"] == [[KEPT_TRUE, KEPT_TRUE, ""]]


def test_scores_are_shown_best_on_top_with_their_intervals():
    chart = bars_chart([("bc", 10.0, 8.0, 13.0), ("cql", 30.0, None, None)], "return")
    (trace,) = chart["data"]
    assert (trace["y"], trace["x"]) == (["bc", "cql"], [10.0, 30.0])  # the last is on top
    assert trace["error_x"]["array"] == [3.0, 0]
    assert trace["error_x"]["arrayminus"] == [2.0, 0]
    assert "cql with 30.0" in chart["label"]


def test_bands_lie_between_the_seeds():
    lines = [{"step": k, "loss": {"mean": 2.0, "seeds": [1.0, 3.0]}} for k in range(400)]
    low, high, mean = curves_chart({"run": lines}, "loss")["data"]
    assert (set(low["y"]), set(high["y"]), set(mean["y"])) == ({1.0}, {3.0}, {2.0})
    assert high["fill"] == "tonexty"
    assert len(mean["y"]) <= 2 * 150


def test_a_page_without_anything_to_show_is_refused(tmp_path):
    with pytest.raises(UsageError, match="offmarl collect"):
        write_page(tmp_path / "page.html", [])
    assert list(tmp_path.iterdir()) == []


def test_tables_alone_make_a_page(tmp_path):
    write_page(tmp_path / "page.html", [], tables=[PageTable("t", ["a"], [["1"]])], headline=["A won."])
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "A won." in html
    assert embedded(html)["episodes"] == []
    assert 'id="viewer"' not in html


def test_of_very_many_agents_those_that_were_paid_most_have_a_bar(random_dataset, tmp_path):
    with Dataset.open(random_dataset("mpe_targets", 60, 2, agents=23)) as dataset:
        write_page(tmp_path / "page.html", [], [dataset])
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "offmarl decompose --dataset mpe_targets/random-v0 finds out" in html
    for episode in embedded(html)["episodes"]:
        paid = np.abs(np.array(episode["reward"])).sum(1)
        assert len(paid) == 23
        left_out = sorted(set(range(23)) - set(episode["listed"]))
        assert len(episode["listed"]) == 20
        assert paid[left_out].max() <= paid[episode["listed"]].min()


def test_a_page_needs_no_scores(succeed, offmarl, home):
    succeed("collect --env mpe_targets --quality random --steps 100 --num-envs 2 --set env.agents=2")
    path = home / "page.html"
    told = succeed(f"report --html {path}")  # nothing was trained
    assert told["page"] == str(path)
    assert "offmarl decompose" in told["headline"]
    before = len(embedded(path.read_text(encoding="utf-8"))["episodes"])
    succeed("train --learner bc --rewards team --steps 5 --set train.batch_size=16")
    done = offmarl(f"report --html {path}")  # trained, but not evaluated
    assert done.returncode == 0, done.stderr
    assert "offmarl evaluate" in done.stderr
    told = embedded(path.read_text(encoding="utf-8"))
    assert len(told["episodes"]) == before + 2  # those that the policy played
    assert told["curves"]
    assert offmarl("report").returncode == 2  # without a page there is nothing to say
