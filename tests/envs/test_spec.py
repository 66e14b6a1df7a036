"""A task's description has to hold together."""

import pytest
from pydantic import ValidationError

from offmarl.envs.base import EnvSpec


def described(**changes):
    values = {
        "id": "task",
        "agents": ("a", "b"),
        "groups": (("a", "b"),),
        "action_type": "discrete",
        "obs_names": (("x",), ("x",)),
        "action_names": (("stay", "go"), ("stay", "go")),
        "horizon": 5,
    }
    return EnvSpec(**{**values, **changes})


def test_a_task_that_holds_together():
    assert (described().n_agents, described().horizon) == (2, 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"agents": (), "groups": (), "obs_names": (), "action_names": ()}, "there are no agents"),
        ({"agents": ("a", "a"), "groups": (("a", "a"),)}, "agents a are named twice"),
        ({"horizon": 0}, "horizon is 0: an episode has at least one step"),
        ({"horizon": -1}, "horizon is -1"),
        ({"groups": (("a",),)}, "are not a partition"),
        ({"obs_names": (("x",),)}, "obs_names has 1 entries for 2 agents"),
    ],
)
def test_what_does_not_hold_together_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        described(**changes)
