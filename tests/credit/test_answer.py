"""What a class of one's own may answer, and how it is told what is wrong."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from recording import record

from offmarl.credit.answer import checked
from offmarl.credit.base import AgentVerdict, Credit, Decomposer, NoSettings, equal_split
from offmarl.credit.registry import decomposer_class, make_decomposer
from offmarl.errors import UsageError


@pytest.fixture(scope="module")
def transitions():
    return record("scm_a", 50, options={"agents": 2})[0]


@pytest.fixture
def answer(transitions):
    return Credit(equal_split(transitions))


def test_arrays_and_numbers_of_any_kind_become_plain_ones(transitions, answer):
    names = transitions.spec.agents
    given = Credit(
        reward=answer.reward.double().requires_grad_(),
        std=np.ones(answer.reward.shape),
        masks=np.ones((2, 3)),
        input_names=["a", "b", "c"],
        heldout_rows=np.arange(3),
        metrics={"fit_r2": torch.tensor(0.5), "skill": np.float32(0.25), "none": float("nan")},
        agents=[AgentVerdict(name, "linear", ambiguity=np.float64(0.5)) for name in names],
    )
    plain = checked(given, transitions, "my:Own")
    assert plain.reward.equal(answer.reward)
    assert plain.reward.dtype == torch.float32
    assert not plain.reward.requires_grad
    assert plain.masks.dtype == torch.bool
    assert plain.heldout_rows.tolist() == [0, 1, 2]
    assert plain.metrics == {"fit_r2": 0.5, "skill": 0.25, "none": None}
    assert plain.agents == [AgentVerdict(name, "linear", ambiguity=0.5) for name in names]
    assert [agent.verdict for agent in checked(answer, transitions, "my:Own").agents] == [
        "the method does not say"
    ] * 2


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("reward", torch.zeros(3, 2), r"reward has the shape \[3, 2\], expected \[R, N\] = \[52, 2\]"),
        ("reward", "nothing", "reward is a str, expected a tensor"),
        ("reward", torch.full((52, 2), torch.nan), "reward holds values that are not finite"),
        (
            "reward",
            torch.ones(52, 2),
            r"reward is \[1.0, 1.0\] in row 25, the last of an episode: it must be 0",
        ),
        ("std", torch.zeros(52), r"std has the shape \[52\]"),
        (
            "masks",
            torch.zeros(2, 7),
            r"masks has the shape \[2, 7\], expected \[N, V\] = \[2, 0\], V the number of input_names",
        ),
        ("shared_parents", torch.zeros(7), r"shared_parents has the shape \[7\], expected \[V\]"),
        ("heldout_rows", torch.tensor(3), r"heldout_rows has the shape \[\], expected \[H\]"),
        ("heldout_rows", torch.zeros(0), "heldout_rows are to be some of the rows 0 to 51"),
        ("heldout_rows", torch.tensor([52]), "heldout_rows are to be some of the rows 0 to 51"),
        ("heldout_rows", torch.tensor([25]), "heldout_rows name last rows"),
        ("metrics", {"fit": "good"}, "fit is 'good', expected a number or None"),
        ("agents", [AgentVerdict("somebody", "paid")], "agents are to be a list of an AgentVerdict for each"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(transitions, answer, field, value, complaint):
    with pytest.raises(UsageError, match=f"'my:Own' gave no answer that can be used: {complaint}"):
        checked(replace(answer, **{field: value}), transitions, "my:Own")


def test_an_answer_that_is_none_is_refused(transitions):
    with pytest.raises(UsageError, match="assign returned a NoneType"):
        checked(None, transitions, "my:Own")


class Half(Decomposer):
    def fit(self, transitions):
        pass


class Bare(Half):
    def assign(self, transitions):
        return Credit(equal_split(transitions))


class Odd(Bare):
    config_class = dict


@dataclass
class Level:
    level: float = 1.0


class Whole(Bare):
    config_class = Level

    def __init__(self, spec, config, *further):
        super().__init__(spec, config, *further)
        self.level = config.level


def test_a_class_of_ones_own_needs_two_methods_and_no_settings(transitions):
    with pytest.raises(UsageError, match="test_answer:Half': it has no assign"):
        decomposer_class("test_answer:Half")
    with pytest.raises(UsageError, match="test_answer:Odd': its config_class is to be a dataclass"):
        decomposer_class("test_answer:Odd")
    assert decomposer_class("test_answer:Bare").config_class is NoSettings
    assert make_decomposer("test_answer:Bare", transitions.spec).fit(transitions) is None
    assert make_decomposer("test_answer:Whole", transitions.spec, {"level": 2.0}).level == 2
