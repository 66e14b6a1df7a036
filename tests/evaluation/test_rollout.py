import torch

from offmarl.behaviour.random import RandomPolicy
from offmarl.envs.registry import make
from offmarl.evaluation.rollout import rollout


def test_returns_are_sums_of_rewards_over_one_episode():
    with make("mpe_targets", 16, options={"agents": 3, "horizon": 7}) as env:
        returns = rollout(env, RandomPolicy(env.spec), seed=5)
        again = rollout(env, RandomPolicy(env.spec), seed=5)
    assert (returns.length == 7).all()
    assert torch.allclose(returns.team, returns.agent.sum(1))
    assert torch.allclose(returns.mean_agent * 3, returns.team)
    assert torch.equal(returns.team, again.team), "the same seed gives the same episodes"
    assert returns.team.std() > 0
