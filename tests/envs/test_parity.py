"""The particle world against mpe2: the same states and actions give the same everything."""

import numpy as np
import pytest
import torch

from offmarl.envs.registry import make

mpe2 = pytest.importorskip("mpe2")

EPISODES = 40  # per number of agents: 200 a task


def _mpe2_env(task: str, agents: int, actions: str):
    from mpe2 import simple_spread_v3, simple_tag_v3

    continuous = actions != "discrete"
    if task == "mpe_spread":
        return simple_spread_v3.parallel_env(N=agents, continuous_actions=continuous)
    return simple_tag_v3.parallel_env(
        num_adversaries=agents, num_good=1 + agents % 2, continuous_actions=continuous
    )


def _actions(
    actions: str, position: np.ndarray, rng: np.random.Generator, copies: int, agents: int
) -> np.ndarray:
    """Random, but a third of the episodes crowd in the middle and a third run for the edge."""
    force = rng.uniform(-1, 1, (copies, agents, 2))
    third = copies // 3
    force[:third] = np.clip(-4 * position[:third, :agents] + 0.3 * force[:third], -1, 1)
    force[third : 2 * third] = np.sign(position[third : 2 * third, :agents])
    if actions == "force":
        return force
    pressed = rng.uniform(-1, 1, (copies, agents, 5))
    pressed[..., 1::2] -= force
    pressed[..., 2::2] += force
    return pressed.argmax(-1) if actions == "discrete" else np.clip(pressed, -1, 1)


def _for_mpe2(actions: str, action: np.ndarray) -> np.ndarray:
    if actions == "discrete":
        return action
    if actions == "buttons":
        return (action + 1) / 2
    pressed = np.zeros(5)
    pressed[1::2], pressed[2::2] = np.maximum(-action, 0), np.maximum(action, 0)
    return pressed


@pytest.mark.parametrize("agents", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("task", ["mpe_spread", "mpe_tag"])
def test_equals_mpe2(task: str, agents: int) -> None:
    actions = ("force", "buttons", "discrete")[agents % 3]
    options = {"agents": agents, "actions": actions}
    if task == "mpe_tag":
        options |= {"prey": 1 + agents % 2, "background": "none"}
    ours = make(task, EPISODES, options=options, dtype=torch.float64)
    rng = np.random.default_rng(agents)
    ours.reset(agents)
    start = ours.entity_positions().numpy() * rng.choice([0.3, 1.0], (EPISODES, 1, 1))
    ours.set_state(torch.from_numpy(start))

    theirs = []
    for episode in range(EPISODES):
        env = _mpe2_env(task, agents, actions)
        env.reset(seed=episode)
        world = env.unwrapped.world
        for entity, place in zip(world.entities, start[episode], strict=True):
            entity.state.p_pos = place.copy()
        theirs.append(env)
    names = theirs[0].agents
    assert list(ours.spec.agents) == names

    collisions = outside = 0
    for _ in range(25):
        action = _actions(actions, ours.entity_positions().numpy(), rng, EPISODES, len(names))
        step = ours.step(torch.from_numpy(action))
        obs, rewards, places = np.zeros(step.successor.obs.shape), np.zeros(step.agent_reward.shape), []
        for episode, env in enumerate(theirs):
            joint = {name: _for_mpe2(actions, action[episode, k]) for k, name in enumerate(names)}
            _, reward, terminated, truncated, _ = env.step(joint)
            rewards[episode] = [reward[name] for name in names]
            inner = env.unwrapped  # computes observations in float64 and only then rounds them
            for k, agent in enumerate(inner.world.agents):
                expected = inner.scenario.observation(agent, inner.world)
                assert len(expected) == len(ours.spec.obs_names[k])
                obs[episode, k, : len(expected)] = expected
            places.append([entity.state.p_pos for entity in inner.world.entities])
            assert all(truncated.values()) == bool(step.truncated[episode])
            assert any(terminated.values()) == bool(step.terminated[episode])
        np.testing.assert_allclose(step.successor.obs.numpy(), obs, atol=1e-6, rtol=1e-6)
        np.testing.assert_allclose(step.agent_reward.numpy(), rewards, atol=1e-6, rtol=1e-6)
        np.testing.assert_allclose(step.team_reward.numpy(), rewards.sum(1), atol=1e-6, rtol=1e-6)
        np.testing.assert_allclose(
            step.successor.position.numpy(), np.array(places)[:, : len(names)], atol=1e-6
        )
        if not step.done.any():
            np.testing.assert_allclose(ours.entity_positions().numpy(), places, atol=1e-6)
        movers = step.successor.position
        touch = torch.cdist(movers, movers) < (0.3 if task == "mpe_spread" else 0.1)
        collisions += int((touch.flatten(1).sum(1) > len(names)).sum())
        outside += int((movers.abs() > 1).flatten(1).any(1).sum())
    assert collisions > EPISODES, "the episodes should contain collisions, or they prove little"
    assert outside > EPISODES, "and agents that leave the square"


@pytest.mark.parametrize("task", ["mpe_spread", "mpe_tag"])
def test_classic_rules_move_with_the_new_velocity(task: str) -> None:
    options = {"background": "none"} if task == "mpe_tag" else {}
    both = {}
    for rules in ("pettingzoo", "classic"):
        env = make(task, 1, options=options | {"rules": rules}, dtype=torch.float64)
        env.reset(0)
        movers = env.spec.n_agents
        far_apart = torch.arange(len(env.entities) * 2, dtype=torch.float64).view(1, -1, 2) * 3
        env.set_state(far_apart)
        env.step(torch.full((1, movers, 2), 0.5, dtype=torch.float64))
        both[rules] = env.entity_positions() - far_apart, env.entity_velocities()
        accelerations = torch.tensor([e.acceleration for e in env.entities[:movers]], dtype=torch.float64)
    velocity = 0.5 * accelerations * 0.1
    for rules in both:
        torch.testing.assert_close(both[rules][1][0, :, 0], velocity)
    assert not both["pettingzoo"][0].any()
    torch.testing.assert_close(both["classic"][0][0, :movers, 1], velocity * 0.1)
