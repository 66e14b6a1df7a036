import pytest
import torch

from offmarl.envs.registry import make
from offmarl.errors import UsageError

CASES = ["scm_a", "scm_b1", "scm_b2", "scm_c", "scm_c2", "scm_d", "scm_e", "scm_nonlocal"]


@pytest.mark.parametrize("case", CASES)
def test_causes_are_the_truth(case: str) -> None:
    """Changing a cause changes that agent's reward; changing anything else does not."""
    env = make(case, 64, dtype=torch.float64)
    spec = env.spec
    state = env.reset(0).state
    action = 2 * torch.rand(64, 4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 1
    reward = env.reward(state, action)
    names = [
        *spec.state_names,
        *(f"{a}.{d}" for a, ds in zip(spec.agents, spec.action_names, strict=True) for d in ds),
    ]
    assert len(names) == 38
    for k, name in enumerate(names):
        other_state, other_action = state.clone(), action.clone()
        if k < spec.state_dim:
            other_state[:, k] += 0.7
        else:
            other_action.view(64, -1)[:, k - spec.state_dim] *= -0.5
        changed = (env.reward(other_state, other_action) != reward).any(0)
        assert changed.tolist() == [name in own for own in spec.causes], name


@pytest.mark.parametrize("case", CASES)
def test_rewards_states_and_observations_agree(case: str) -> None:
    env = make(case, 8)
    frame = env.reset(5)
    assert frame.obs.shape == (8, 4, 12)
    assert env.spec.state_owner == (0,) * 6 + (1,) * 6 + (2,) * 6 + (3,) * 6 + (-1,) * 6
    assert torch.equal(frame.obs[:, 2], frame.state[:, [*range(12, 18), *range(24, 30)]])
    action = torch.full((8, 4, 2), 0.3)
    step = env.step(action)
    torch.testing.assert_close(step.team_reward, step.agent_reward.sum(1))
    same = torch.allclose(step.agent_reward, env.reward(frame.state, action))
    assert same == (case != "scm_e")
    for _ in range(23):
        assert not step.done.any()
        step = env.step(action)
    step = env.step(action)
    assert step.truncated.all()
    assert not step.terminated.any()
    assert not torch.equal(step.successor.state, step.frame.state)
    assert not env.step(action).done.any()


def test_noise_has_the_size_that_was_asked_for() -> None:
    noisy, plain = (make("scm_e", 20_000, options={"noise": noise}) for noise in (0.3, 0.0))
    for env in (noisy, plain):
        env.reset(1)
    action = 2 * torch.rand(20_000, 4, 2, generator=torch.Generator().manual_seed(0)) - 1
    residual = noisy.step(action).team_reward - plain.step(action).team_reward
    spread = plain.reward(plain.reset(2).state, action).sum(1).std()
    assert residual.std() / spread == pytest.approx(0.3, rel=0.05)


def test_correlated_state() -> None:
    state = make("scm_d", 50_000).reset(0).state
    correlation = torch.corrcoef(state.T)
    assert state.std(0).sub(1).abs().max() < 0.02
    off = correlation - torch.eye(30)
    assert off.amax(0).min() > 0.6, "every dimension has a neighbour in the chain"
    assert off.max() < 0.75


def test_structure_follows_its_seed_only() -> None:
    first, same = make("scm_b1"), make("scm_b1")
    other = make("scm_b1", options={"structure_seed": 1})
    assert first.spec.causes == same.spec.causes
    assert first.spec.causes != other.spec.causes
    assert torch.equal(first.reset(3).state, same.reset(3).state)
    assert not torch.equal(first.reset(3).state, first.reset(4).state)


def test_shared_terms_need_three_global_dimensions() -> None:
    with pytest.raises(UsageError, match="global_dims"):
        make("scm_c", options={"global_dims": 2})
