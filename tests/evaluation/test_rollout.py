import pytest
import torch

from offmarl.behaviour.random import RandomPolicy
from offmarl.envs.registry import make
from offmarl.errors import UsageError
from offmarl.evaluation.rollout import rollout, task_of


def test_returns_are_sums_of_rewards_over_one_episode():
    with make("mpe_targets", 16, options={"agents": 3, "horizon": 7}) as env:
        returns = rollout(env, RandomPolicy(env.spec), seed=5)
        again = rollout(env, RandomPolicy(env.spec), seed=5)
    assert (returns.length == 7).all()
    assert torch.allclose(returns.team, returns.agent.sum(1))
    assert torch.allclose(returns.mean_agent * 3, returns.team)
    assert torch.equal(returns.team, again.team), "the same seed gives the same episodes"
    assert returns.team.std() > 0


def test_a_task_is_made_anew_from_its_spec_or_said_to_be_known_from_data_alone():
    with make("mpe_targets", options={"agents": 3, "horizon": 7}) as env:
        spec = env.spec
    with task_of(spec, 2) as same, task_of(spec, 2, {**spec.options, "horizon": 9}) as longer:
        assert (same.num_envs, same.spec) == (2, spec)
        assert longer.spec.horizon == 9
    with pytest.raises(UsageError, match=r"no simulator of shelves here.*evaluate --offline"):
        task_of(spec.model_copy(update={"id": "shelves"}), 2)
    own = spec.model_copy(update={"id": "shelves", "backend": "pettingzoo:no_such_module"})
    with pytest.raises(UsageError, match="no_such_module"):
        task_of(own, 2)
