import time

import numpy as np
import pytest
import torch

from offmarl.envs.mpe2 import encode_force
from offmarl.envs.opponents.policy import NetworkPolicy
from offmarl.envs.registry import make
from offmarl.errors import OffmarlError, UsageError

TINY = "pettingzoo:tiny_battle"


def tiny(num_envs: int = 2, workers: int = 1, **options):
    return make("tiny", num_envs, backend=TINY, options=options, workers=workers)


def first_legal(frame) -> torch.Tensor:
    return frame.legal.long().argmax(-1)


def test_masks_padding_deaths_and_auto_reset() -> None:
    with tiny(3, workers=2, health=3) as env:
        spec = env.spec
        assert spec.agents == ("red_0", "red_1", "blue_0")
        assert spec.groups == (("red_0",), ("red_1",), ("blue_0",)), "unequal observations are unequal roles"
        assert [len(names) for names in spec.obs_names] == [2, 3, 3]
        assert [len(names) for names in spec.action_names] == [3, 3, 2]
        assert spec.discrete
        assert spec.horizon == 5
        frame = env.reset(0)
        assert frame.obs.shape == (3, 3, 3)
        assert not frame.obs[:, 0, 2].any(), "narrow observations are padded with zeros"
        assert frame.legal.tolist()[0] == [[False, True, True], [False, True, True], [False, True, False]]
        assert frame.alive.all()

        step = env.step(first_legal(frame))
        assert step.agent_reward.tolist() == [[1.0, 1.0, 1.0]] * 3
        assert step.team_reward.tolist() == [3.0] * 3
        step = env.step(first_legal(step.frame))
        assert step.frame.alive.tolist() == [[False, True, True]] * 3
        assert not step.frame.obs[:, 0].any()
        assert not step.done.any()
        assert step.frame is step.successor
        survivors = step.frame.obs[:, 1:]
        step = env.step(first_legal(step.frame))
        assert step.terminated.all()
        assert not step.truncated.any()
        assert step.agent_reward[:, 0].tolist() == [0.0] * 3, "the dead earn nothing"
        assert torch.equal(step.successor.obs[:, 1:], survivors + 1), "the final observation is kept"
        assert step.successor.alive.tolist() == [[False, True, True]] * 3
        assert step.frame.alive.all()
        assert (step.frame.obs[:, 1, 0] % 10 == 0).all(), "and the next episode has begun"


def test_truncation_is_not_termination() -> None:
    with tiny(2, health=99) as env:
        frame = env.reset(0)
        for t in range(5):
            step = env.step(first_legal(frame))
            frame = step.frame
            assert step.truncated.all() == (t == 4)
            assert not step.terminated.any()
        assert step.successor.alive.all()
    with tiny(2, health=99, max_cycles=99, horizon=2) as env:
        assert env.spec.horizon == 2
        frame = env.reset(0)
        step = env.step(first_legal(frame))
        assert not step.done.any()
        assert env.step(first_legal(step.frame)).truncated.all()


def test_same_seed_same_episodes_whatever_the_workers() -> None:
    seen = []
    for workers in (1, 3):
        with tiny(4, workers=workers, health=2) as env:
            frame = env.reset(7)
            episodes = [frame.obs]
            for _ in range(4):
                frame = env.step(first_legal(frame)).frame
                episodes.append(frame.obs)
            seen.append(torch.stack(episodes))
            assert torch.equal(env.reset(7).obs, seen[-1][0])
            assert not torch.equal(env.reset(8).obs, seen[-1][0])
    assert torch.equal(*seen)
    starts = seen[0][[0, 2, 4], :, 1, 0]
    assert len(starts.unique()) > 2, "copies and episodes differ"


def test_masks_from_infos_and_global_state() -> None:
    with tiny(2, mask_in="info", state=True) as env:
        frame = env.reset(0)
        assert frame.legal[0].tolist() == [[False, True, True], [False, True, True], [False, True, False]]
        assert env.spec.state_dim == 2
        assert frame.state.tolist() == [[0.0, 3.0]] * 2
        assert env.step(first_legal(frame)).successor.state.tolist() == [[1.0, 3.0]] * 2


def test_box_actions_are_rescaled() -> None:
    with tiny(1, action="box", mask_in="none", health=99) as env:
        assert env.spec.action_type == "continuous"
        frame = env.reset(0)
        assert frame.legal is None
        action = torch.tensor([[[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0]]])
        assert env.step(action).agent_reward.tolist() == [[-2.0, 5.0, 12.0]]


def test_background_agents_follow_their_policy(tmp_path) -> None:
    with tiny(5, background={"blue": "random"}, health=3) as env:
        assert env.spec.agents == ("red_0", "red_1")
        assert env.spec.background == ("blue_0",)
        frame = env.reset(0)
        step = env.step(first_legal(frame))  # the battle itself refuses illegal actions
        assert step.agent_reward.shape == (5, 2)
        assert torch.equal(step.team_reward, step.agent_reward.sum(1))
    with pytest.raises(UsageError, match="no agent's name starts with 'green'"):
        tiny(background={"green": "random"})
    with pytest.raises(UsageError, match="neither 'random' nor"):
        tiny(background={"blue": "brave"})
    NetworkPolicy([(torch.zeros(4, 9), torch.zeros(4))]).save(tmp_path / "blue.safetensors")
    with pytest.raises(
        UsageError, match=r"blue.safetensors: it observes 9 numbers and gives 4, in this task"
    ):
        tiny(background={"blue": str(tmp_path / "blue.safetensors")})


def test_spec_rebuilds_the_environment() -> None:
    with tiny(1, health=2, background={"blue": "random"}) as env:
        spec = env.spec
    with make(spec.id, 1, backend=spec.backend, options=spec.options, workers=1) as again:
        assert again.spec == spec


def test_errors_arrive_readable() -> None:
    env = tiny(2, workers=2, fail_at=1)
    frame = env.reset(0)
    frame = env.step(first_legal(frame)).frame
    with pytest.raises(
        OffmarlError, match=r"RuntimeError: the battle is off \(in step, copies 0..0 of tiny_battle"
    ):
        env.step(first_legal(frame))
    env.close()

    env = tiny(1, exit_at=0)
    frame = env.reset(0)
    started = time.perf_counter()
    with pytest.raises(OffmarlError, match=r"worker process died in 'step' \(exit code 7\)"):
        env.step(first_legal(frame))
    assert time.perf_counter() - started < 10

    with pytest.raises(UsageError, match="MultiDiscrete"):
        tiny(action="multi", mask_in="none")
    with pytest.raises(UsageError, match="unexpected keyword argument 'helth'"):
        tiny(helth=3)
    with pytest.raises(UsageError, match="cannot import 'no_such_module'"):
        make("x", backend="pettingzoo:no_such_module")
    with pytest.raises(UsageError, match="horizon"):
        tiny(max_cycles=None)
    with pytest.raises(UsageError, match="call reset"), tiny(1) as env:
        env.step(torch.zeros(1, 3, dtype=torch.int64))
    with tiny(1) as env:
        env.reset(0)
        with pytest.raises(UsageError, match=r"shape \(1, 3, 1\), expected \(1, 3\)"):
            env.step(torch.zeros(1, 3, 1, dtype=torch.int64))


def test_workers_are_gone_after_close() -> None:
    env = tiny(2, workers=2)
    env.reset(0)
    processes = list(env._workers._processes)
    env.close()
    assert not any(process.is_alive() for process in processes)
    for use in (lambda: env.reset(0), lambda: env.step(torch.zeros(2, 3, dtype=torch.int64))):
        with pytest.raises(UsageError, match="the environment is closed"):
            use()


def test_no_force_presses_no_button() -> None:
    force = torch.tensor([[[0.0, 0.0], [-0.2, 0.1], [0.0, 0.3]]])
    assert encode_force(force, "discrete").tolist() == [[0, 1, 4]]


def test_mpe2_behind_the_adapter_is_the_particle_world() -> None:
    """From one state, the same forces lead both backends to the same successor."""
    ours = make("mpe_spread", 2, dtype=torch.float64)
    with make("mpe_spread", 2, backend="pettingzoo", workers=1) as theirs:
        assert theirs.spec.obs_names == ours.spec.obs_names
        assert theirs.spec.action_names == ours.spec.action_names
        assert "mpe2" in theirs.spec.versions
        seen = theirs.reset(3)
        position = seen.position.double()
        offsets = seen.obs[:, 0, 4:10].view(2, 3, 2).double()
        ours.reset(0)
        ours.set_state(torch.cat([position, position[:, :1] + offsets], 1))
        for k in range(25):
            action = torch.rand(2, 3, 2, generator=torch.Generator().manual_seed(k)) * 2 - 1
            a, b = ours.step(action.double()), theirs.step(action)
            torch.testing.assert_close(a.successor.obs.float(), b.successor.obs, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(a.agent_reward.float(), b.agent_reward, atol=1e-4, rtol=1e-4)
        assert a.truncated.all()
        assert b.truncated.all()


@pytest.mark.parametrize("actions", ["force", "buttons", "discrete"])
def test_world_comm_has_a_leader_and_fleeing_prey(actions: str) -> None:
    with make("mpe_world", 2, options={"actions": actions}, workers=1) as env:
        spec = env.spec
        assert spec.backend == "pettingzoo"
        assert spec.agents[0] == "leadadversary_0"
        assert spec.n_agents == 4
        assert spec.groups == (spec.agents[:1], spec.agents[1:])
        assert spec.background == ("agent_0", "agent_1")
        frame = env.reset(0)
        assert frame.obs.shape == (2, 4, 34)
        assert [len(names) for names in spec.obs_names] == [34] * 4
        place = {name: k for k, name in enumerate(spec.obs_names[1])}
        prey = [place[f"agent_0.relative_{axis}"] for axis in "xy"]
        nothing = torch.zeros(2, 4, spec.action_dim)
        if actions == "buttons":
            nothing -= 1
        if actions == "discrete":
            nothing = torch.zeros(2, 4, dtype=torch.int64)
            assert frame.legal.sum(-1).tolist() == [[20, 5, 5, 5]] * 2
        moved = []
        for _ in range(3):
            step = env.step(nothing)
            moved.append(step.successor.obs[:, 0, prey] - frame.obs[:, 0, prey])
            frame = step.frame
        assert np.abs(moved[-1].numpy()).max() > 0.01, "the prey runs while the predators stand"
        assert step.agent_reward.shape == (2, 4)
