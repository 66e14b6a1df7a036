"""Foraging, the warehouse and any environment of Gymnasium's multi-agent convention."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from offmarl.envs.registry import default_options, describe, make
from offmarl.errors import UsageError

needs_foraging = pytest.mark.skipif(find_spec("lbforaging") is None, reason="needs lbforaging")
needs_warehouse = pytest.mark.skipif(find_spec("rware") is None, reason="needs rware")


def game(num_envs: int = 2, target: str = "tuple_game:TupleGame", **options):
    return make("game", num_envs, backend=f"gymnasium:{target}", options={"horizon": 3, **options}, workers=1)


def test_any_class_of_the_convention() -> None:
    with game(masks=True, state=True) as env:
        spec = env.spec
        assert spec.agents == ("agent_0", "agent_1")
        assert [len(names) for names in spec.obs_names] == [2, 3]
        assert (spec.action_dim, spec.state_dim, spec.horizon) == (3, 5, 3)
        assert spec.backend == "gymnasium:tuple_game:TupleGame"
        with make(spec.id, 1, backend=spec.backend, options=spec.options) as rebuilt:
            assert rebuilt.spec == spec
        frame = env.reset(0)
        assert frame.legal.tolist() == [[[True, True, False], [False, True, True]]] * 2
        first = frame.obs[:, 1, 0].clone()
        assert first[0] != first[1]
        assert frame.state[0].tolist() == [0, 0, *[float(first[0])] * 3]
        assert torch.equal(env.reset(0).obs[:, 1, 0], first)
        step = env.step(torch.tensor([[0, 1], [1, 2]]))
        assert step.agent_reward.tolist() == [[0, 1], [1, 2]]
        assert step.team_reward.tolist() == [1, 3]
        assert step.terminated.tolist() == [False, True]
        assert step.successor.obs[:, 0, 0].tolist() == [1, 1], "the final observation is kept"
        assert step.frame.obs[:, 0, 0].tolist() == [1, 0]
        env.step(torch.tensor([[0, 1], [1, 1]]))
        step = env.step(torch.tensor([[0, 1], [1, 1]]))
        assert step.truncated.tolist() == [True, False]
        assert not step.terminated.any()
        assert step.won is None


def test_an_id_with_its_own_time_limit() -> None:
    with make("game", 1, backend="gymnasium:tuple_game:TupleGame-v0", workers=1) as env:
        assert env.spec.horizon == 4
        env.reset(0)
        for t in range(4):
            step = env.step(torch.ones(1, 2, dtype=torch.int64))
            assert bool(step.truncated) == (t == 3)


def test_time_that_is_called_termination_is_truncation_nevertheless() -> None:
    with game(1, time_is="termination", horizon=5) as env:
        env.reset(0)
        for _ in range(5):
            step = env.step(torch.ones(1, 2, dtype=torch.int64))
        assert step.truncated.all()
        assert not step.terminated.any()


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("tuple_game:TupleGame", {"spaces_of": 3}, "2 observation and 3 action spaces"),
        ("tuple_game:TupleGame", {"colour": 3}, "does not take {'colour': 3}"),
        ("tuple_game:Missing", {}, "'tuple_game' has no 'Missing'"),
        ("tuple_gam:TupleGame", {}, "cannot import 'tuple_gam'"),
        ("CartPole-v1", {}, "is Box, expected a Tuple"),
        ("NoSuchThing-v7", {}, "NoSuchThing"),
    ],
)
def test_what_cannot_be_used_is_said(target, options, message) -> None:
    with pytest.raises(UsageError) as raised:
        game(1, target, **options)
    assert message in str(raised.value)


def test_a_single_reward_is_refused_and_so_is_no_horizon() -> None:
    with game(1, pays="team") as env:
        env.reset(0)
        with pytest.raises(UsageError, match=r"pays 2\.0, expected a list of 2"):
            env.step(torch.ones(1, 2, dtype=torch.int64))
    with pytest.raises(UsageError, match="tuple_game:TupleGame does not say after how many steps"):
        make("game", 1, backend="gymnasium:tuple_game:TupleGame", workers=1)


@needs_foraging
def test_foraging_against_the_package_itself() -> None:
    from lbforaging.foraging import ForagingEnv

    theirs = ForagingEnv(2, 1, 2, 1, None, (5, 5), 2, 5, 50, False)
    rng = np.random.default_rng(0)
    with make("lbf_5x5_2p_2f", 1, options={"horizon": 30, "state": True}, workers=1) as env:
        frame = env.reset(3)
        names = [{name: k for k, name in enumerate(agent)} for agent in env.spec.obs_names]
        # The episode's seed is the adapter's; put the package into the state that our observation describes.
        loaded = 0
        for _ in range(6):
            _put(theirs, frame.obs[0, 0], names[0])
            ended = False
            while not ended:
                seen = theirs._make_gym_obs()
                np.testing.assert_array_equal(frame.obs[0].numpy(), seen)
                np.testing.assert_array_equal(frame.state[0].numpy(), np.concatenate(seen))
                for i in range(2):
                    assert frame.position[0, i].tolist() == list(theirs.players[i].position[::-1])
                action = rng.integers(0, 6, 2)
                _, rewards, *_ = theirs.step(list(action))
                step = env.step(torch.from_numpy(action)[None])
                np.testing.assert_allclose(step.agent_reward[0].numpy(), rewards, rtol=1e-6)
                assert float(step.team_reward) == pytest.approx(sum(rewards))
                loaded += sum(rewards) > 0
                np.testing.assert_array_equal(step.successor.obs[0].numpy(), theirs._make_gym_obs())
                ended, frame = bool(step.done), step.frame
                assert bool(step.terminated) == (theirs.field.sum() == 0)
        assert loaded > 2


def _put(env, seen, names) -> None:
    """Give lbforaging's environment the foods and players that agent 0 sees."""
    env.reset(seed=0)
    env.field[:] = 0
    for k in range(2):
        row, column, level = (
            int(seen[names[f"food_{k}.{what}"]]) for what in ("position_y", "position_x", "level")
        )
        if row >= 0:
            env.field[row, column] = level
    env._food_spawned = env.field.sum()
    for player, who in zip(env.players, ("", "agent_1."), strict=True):
        row, column, level = (
            int(seen[names[f"{who}{what}"]]) for what in ("position_y", "position_x", "level")
        )
        player.position, player.level = (row, column), level
    env._gen_valid_moves()


@needs_foraging
def test_foraging_options_and_names() -> None:
    with make("lbf_6x6_3p_1f", 1, options={"sight": 2, "coop": True, "observe_levels": False}) as env:
        assert env.spec.obs_names[0] == (
            *("food_0.window_y", "food_0.window_x", "food_0.level", "window_y", "window_x"),
            *("seen_0.window_y", "seen_0.window_x", "seen_1.window_y", "seen_1.window_x"),
        )
        assert env.reset(0).position is None
        with make(env.spec.id, 1, backend=env.spec.backend, options=env.spec.options) as rebuilt:
            assert rebuilt.spec == env.spec
        assert "lbforaging" in env.spec.versions
    assert describe("lbf_9x9_4p_2f").agents == 4
    assert default_options("lbf_9x9_4p_2f")["horizon"] == 50
    with pytest.raises(UsageError, match="1 as height, expected at least 3"):
        make("lbf_1x6_3p_1f")
    with pytest.raises(UsageError, match="did you mean lbf_8x8_2p_2f"):
        make("lbf_8x8_2p_2")


@needs_warehouse
def test_warehouse_observations_and_rewards() -> None:
    with make("rware_tiny_3ag_hard", 2, options={"horizon": 4}, workers=1) as env:
        frame = env.reset(0)
        names = {name: k for k, name in enumerate(env.spec.obs_names[0])}
        assert len(names) == frame.obs.shape[-1] == 71
        assert frame.position.shape == (2, 3, 2)
        facing = [names[f"facing_{way}"] for way in ("up", "down", "left", "right")]
        forward = torch.tensor([[0.0, -1.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 0.0]])
        for _ in range(3):
            step = env.step(torch.ones(2, 3, dtype=torch.int64))
            way = frame.obs[..., facing].argmax(-1)
            moved = step.frame.position - frame.position
            free = moved.abs().sum(-1) > 0
            assert free.any()
            torch.testing.assert_close(moved[free], forward[way[free]])
            assert (frame.obs[..., names["cell_x+0_y+0.has_agent"]] == 1).all(), "one sees oneself"
            frame = step.frame
        assert env.step(torch.zeros(2, 3, dtype=torch.int64)).truncated.all()
        assert not env.spec.shared_reward
    with pytest.raises(UsageError, match="1 agents and 0 requests"):
        make("rware_tiny_1ag_hard")
    # The shelf that is brought is replaced by one that was not asked for.
    with pytest.raises(UsageError, match=r"32 shelves asked for at once of 32 .*env.requests=31"):
        make("rware_tiny_2ag", options={"requests": 32}, workers=1)
    with pytest.raises(UsageError, match="111 agents do not fit into a warehouse of 110 cells"):
        make("rware_tiny_111ag", workers=1)


def test_missing_packages_are_one_line(monkeypatch) -> None:
    monkeypatch.setattr("offmarl.envs.gymnasium_build.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r'pip install "offmarl\[foraging\]"'):
        make("lbf_8x8_2p_2f")
    with pytest.raises(UsageError, match=r'pip install "offmarl\[warehouse\]"'):
        make("rware_tiny_2ag")
