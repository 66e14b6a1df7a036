"""The adapter of smacv2, against a double that speaks its interface (see starcraft_double)."""

import sys
from pathlib import Path

import pytest
import torch

from offmarl.behaviour.tuning import behaviour_config
from offmarl.envs.registry import default_options, describe, listing, make
from offmarl.envs.smac import MAPS, SmacV2Options, capabilities
from offmarl.errors import OffmarlError, UsageError

DOUBLE = Path(__file__).parent / "starcraft_double"


@pytest.fixture(autouse=True)
def double(monkeypatch):
    """Worker processes find the double: they are given this process's path."""
    monkeypatch.syspath_prepend(str(DOUBLE))
    assert "smacv2" not in sys.modules, "the parent process needs no StarCraft"


def battles(env_id: str = "smac_3m", num_envs: int = 2, workers: int = 1, **options):
    return make(env_id, num_envs, options=options, workers=workers)


def shoot(frame) -> torch.Tensor:
    """The last legal choice: shoot the last living enemy, or nothing for the dead."""
    order = torch.arange(frame.legal.shape[-1])
    return (frame.legal * (order + 1)).argmax(-1)


def wait(frame) -> torch.Tensor:
    """Stop, or nothing for the dead."""
    return frame.legal.long()[..., :2].argmax(-1)


def test_spec_names_and_deaths() -> None:
    with battles() as env:
        spec = env.spec
        training = behaviour_config(spec, {})
        assert training.num_envs + training.evaluation_episodes <= 16, "games that run at once"
        with make(spec.id, 1, backend=spec.backend, options=spec.options) as rebuilt:
            assert rebuilt.spec == spec
        assert spec.agents == ("ally_0", "ally_1", "ally_2")
        assert spec.backend == "smac"
        assert spec.horizon == 20
        assert not spec.has_agent_reward
        assert spec.action_names[0][:3] == ("no_op", "stop", "move_north")
        assert spec.action_names[0][-1] == "target_2"
        assert "ally_2.health" in spec.obs_names[1]
        assert "ally_0.health" in spec.obs_names[1]
        assert "ally_1.health" not in spec.obs_names[1]
        assert "health" in spec.obs_names[1]
        owner = dict(zip(spec.state_names, spec.state_owner, strict=True))
        assert owner["ally_2.health"] == owner["ally_2.last_action_action_8"] == 2
        assert owner["enemy_0.health"] == -1

        frame = env.reset(0)
        assert frame.alive.all()
        assert frame.position is None
        for _ in range(3):
            step = env.step(wait(frame))
            frame = step.frame
        assert frame.alive.tolist() == [[False, True, True]] * 2
        assert frame.legal[0, 0].tolist() == [True] + [False] * 8, "the dead have no_op and nothing else"
        assert not frame.legal[:, 1:, 0].any(), "the living must do something"
        assert not frame.obs[:, 0].any()
        names = spec.obs_names[2]
        assert frame.obs[0, 2, names.index("ally_0.health")] == 0
        assert frame.obs[0, 2, names.index("ally_1.health")] == 1
        assert frame.state[0, list(spec.state_names).index("ally_0.health")] == 0


def test_victory_defeat_and_what_was_seen_last() -> None:
    with battles() as env:
        frame = env.reset(0)
        steps = [env.step(shoot(frame))]
        while not steps[-1].done.any():
            assert not steps[-1].won.any()
            steps.append(env.step(shoot(steps[-1].frame)))
        last = steps[-1]
        assert last.won.all()
        assert last.terminated.all()
        assert not last.truncated.any()
        enemies = [k for k, name in enumerate(env.spec.state_names) if name.startswith("enemy")]
        assert not last.successor.state[:, enemies].any(), "the final state is kept"
        assert (last.frame.state[:, enemies] == 2).all(), "and the next battle has begun"
        earned = sum(step.team_reward for step in steps)
        torch.testing.assert_close(earned, torch.full((2,), 20.0))

        frame = env.reset(0)
        for t in range(9):
            step = env.step(wait(frame))
            assert step.done.all() == (t == 8)
            frame = step.frame
        assert step.terminated.all()
        assert not step.won.any()
        assert not step.successor.alive.any()


def test_time_that_runs_out_is_truncation() -> None:
    with battles("smac_2m_vs_1z") as env:
        frame = env.reset(0)
        for _ in range(4):
            step = env.step(wait(frame))
            frame = step.frame
        assert step.truncated.all()
        assert not step.terminated.any()
        frame = env.reset(0)
        for t in range(4):  # and a defeat in the very last step is a defeat
            step = env.step(shoot(frame) if t >= 2 else wait(frame))
            frame = step.frame
        assert step.terminated.all()
        assert step.won.all()


def test_a_game_that_breaks_down_cuts_the_episode() -> None:
    with battles(difficulty="1") as env:
        frame = env.reset(0)
        for _ in range(3):
            before = frame
            step = env.step(wait(frame))
            frame = step.frame
        assert step.truncated.all()
        assert not step.terminated.any()
        assert not step.won.any()
        assert torch.equal(step.successor.obs, before.obs), "nothing could be seen: the last sight stays"
        assert not env.step(wait(frame)).done.any(), "and it goes on"


def test_generated_teams_follow_the_seed() -> None:
    seen = []
    for workers, seed in ((1, 3), (2, 3), (1, 4)):
        with battles("smacv2_terran_5_vs_6", 2, workers) as env:
            assert env.spec.n_agents == 5
            assert len(env.spec.action_names[0]) == 12
            frame = env.reset(seed)
            assert frame.position is not None
            assert frame.position.shape == (2, 5, 2)
            trail = [frame.obs]
            for _ in range(6):
                frame = env.step(shoot(frame)).frame
                trail.append(frame.obs)
            seen.append(torch.stack(trail))
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0][0, 0], seen[0][0, 1]), "copies differ"


def test_a_reset_that_smacv2_repeats_by_itself() -> None:
    with battles("smacv2_zerg_5_vs_5", difficulty="3", conic_view=True) as env:
        assert "look_11" in env.spec.action_names[0]
        assert env.reset(0).alive.all()


def test_capabilities_are_those_of_the_published_configurations() -> None:
    assert capabilities("terran", 5, 6, SmacV2Options()) == {
        "n_units": 5,
        "n_enemies": 6,
        "team_gen": {
            "dist_type": "weighted_teams",
            "unit_types": ["marine", "marauder", "medivac"],
            "weights": [0.45, 0.45, 0.1],
            "exception_unit_types": ["medivac"],
            "observe": True,
        },
        "start_positions": {"dist_type": "surrounded_and_reflect", "p": 0.5, "map_x": 32, "map_y": 32},
    }
    assert capabilities("zerg", 5, 5, SmacV2Options())["team_gen"]["weights"] == [0.45, 0.1, 0.45]
    assert "exception_unit_types" not in capabilities("protoss", 5, 5, SmacV2Options())["team_gen"]


def test_what_is_missing_is_said_with_how_to_get_it(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("SC2PATH", str(tmp_path))
    with battles(difficulty="2") as env, pytest.raises(UsageError) as raised:
        env.reset(0)
    for step in ("no StarCraft II found", "(1) the package", "SC2PATH", "SMAC_Maps.zip"):
        assert step in str(raised.value)
    (tmp_path / "Versions").mkdir()
    (tmp_path / "Maps").mkdir()
    (tmp_path / "Maps" / "3m.SC2Map").touch()
    with battles(difficulty="2") as env, pytest.raises(OffmarlError, match="no StarCraft II found") as raised:
        env.reset(0)
    assert "three things" not in str(raised.value), "it is installed: something else is wrong"
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(DOUBLE)])
    with pytest.raises(UsageError, match=r"smacv2 cannot be imported.*three things"):
        battles()


def test_listing_and_wrong_names() -> None:
    ids = {entry.id for entry in listing()}
    assert {f"smac_{name}" for name in MAPS} <= ids
    assert {"smacv2_terran_5_vs_5", "smacv2_zerg_20_vs_23"} <= ids
    assert describe("smacv2_protoss_7_vs_9").agents == 7
    assert default_options("smacv2_terran_5_vs_5")["surrounded"] == 0.5
    assert "surrounded" not in default_options("smac_3m")
    with pytest.raises(UsageError, match="did you mean smac_3m"):
        make("smac_3mm")
    with pytest.raises(UsageError, match="both sides need a unit"):
        make("smacv2_terran_0_vs_3")
    with pytest.raises(UsageError, match="smac_3m has no backend 'gymnasium'"):
        make("smac_3m", backend="gymnasium")
    with pytest.raises(UsageError, match="difficulty"):
        make("smac_3m", options={"difficulty": "11"})
