"""Whole episodes and single steps drawn for learners of choices."""

import pytest
import torch

from offmarl.data.table import Transitions
from offmarl.envs.base import EnvSpec
from offmarl.errors import UsageError
from offmarl.streams import stream

LENGTH = torch.tensor([3, 1, 5, 2])


def table() -> Transitions:
    """Each row's observation is its number; the last step of every other episode terminates."""
    names = ("a", "b")
    spec = EnvSpec(
        id="numbers",
        agents=names,
        groups=(names,),
        action_type="discrete",
        obs_names=(("row", "agent"),) * 2,
        action_names=(("x", "y", "z"),) * 2,
        state_names=("row",),
        horizon=5,
    )
    start = torch.cat([torch.zeros(1, dtype=torch.int64), (LENGTH + 1).cumsum(0)])
    rows = int(start[-1])
    row = torch.arange(rows).float()
    terminated, truncated = torch.zeros(rows), torch.zeros(rows)
    terminated[start[1::2] - 2] = 1
    truncated[start[2::2] - 2] = 1
    arrays = {
        "obs": torch.stack([row.view(-1, 1).expand(rows, 2), torch.arange(2.0).expand(rows, 2)], 2),
        "state": row.view(-1, 1),
        "action": torch.stack([row % 3, (row + 1) % 3], 1),
        "legal": torch.ones(rows, 2, 3),
        "alive": torch.stack([torch.ones(rows), row % 2], 1),
        "reward": torch.stack([row, -row], 1),
        "team_reward": torch.zeros(rows),
        "terminated": terminated,
        "truncated": truncated,
    }
    return Transitions.from_arrays(spec, arrays, start)


def test_episodes_are_whole_and_padded_with_their_last_frame():
    data = table()
    generators = [stream(seed, "draw") for seed in range(3)]
    batch = data.sample_episodes(4, generators)
    S, B, T = batch.valid.shape
    assert batch.steps == T
    length = batch.valid.sum(2).long()
    assert length.max() == T
    assert batch.obs.shape == (3, 4, T + 1, 2, 2)
    for s in range(S):
        for b in range(B):
            own = int(length[s, b])
            first = int(batch.obs[s, b, 0, 0, 0])
            assert first in data.episode_start[:-1]
            episode = int((data.episode_start == first).nonzero())
            assert own == LENGTH[episode]
            rows = torch.arange(first, first + own + 1).float()
            assert torch.equal(batch.obs[s, b, : own + 1, 0, 0], rows)
            assert torch.equal(batch.obs[s, b, : own + 1, 1, 1], torch.ones(own + 1))
            assert torch.equal(batch.state[s, b, : own + 1, 0], rows)
            assert torch.equal(batch.action[s, b, :own, 1], (rows[:-1].long() + 1) % 3)
            assert torch.equal(batch.reward[s, b, :own, 1], -rows[:-1])
            assert torch.equal(batch.alive[s, b, : own + 1, 1], rows % 2 == 1)
            assert torch.equal(batch.valid[s, b, :own], torch.ones(own))
            ends = batch.terminated[s, b, :own]
            assert ends[:-1].sum() == 0
            assert ends[-1] == float(episode % 2 == 0)
            assert (batch.obs[s, b, own:, 0, 0] == first + own).all()
            assert (batch.valid[s, b, own:] == 0).all()
    assert len(length.unique()) > 1


def test_single_steps_are_windows_of_one_and_all_are_drawn():
    data = table()
    batch = data.sample_steps(8, [stream(0, "draw"), stream(1, "draw")])
    assert batch.steps == 1
    assert batch.valid.min() == 1
    first, second = batch.obs[:, :, 0, 0, 0], batch.obs[:, :, 1, 0, 0]
    assert torch.equal(second, first + 1)
    assert torch.equal(batch.alive[:, :, 1, 1], second % 2 == 1)
    assert torch.equal(batch.state[:, :, 1, 0], second)
    assert torch.equal(batch.reward[:, :, 0, 0], first)
    drawn = {float(x) for k in range(40) for x in data.sample_steps(8, [stream(k)]).obs[0, :, 0, 0, 0]}
    assert drawn == set(data.transition_rows.tolist())


def test_what_counts_is_alive_and_valid():
    batch = table().sample_episodes(4, [stream(2, "draw")])
    expected = batch.valid.unsqueeze(3) * batch.alive[:, :, :-1]
    assert torch.equal(batch.weight, expected)
    lives_on = (1 - batch.terminated.unsqueeze(3)) * batch.alive[:, :, 1:]
    assert torch.equal(batch.lives_on, lives_on)
    assert torch.equal(batch.next_legal[:, :, :-1], batch.legal_now[:, :, 1:])
    batch.alive = batch.legal = None
    assert torch.equal(batch.weight[..., 1], batch.valid)
    assert torch.equal(batch.lives_on[..., 0], 1 - batch.terminated)
    assert batch.next_legal is None
    assert batch.legal_now is None


def test_a_seeds_episodes_do_not_depend_on_the_seeds_beside_it():
    data = table()
    alone = data.sample_episodes(2, [stream(3, "draw")])
    beside = data.sample_episodes(2, [stream(seed, "draw") for seed in (1, 3, 2)])
    steps = alone.steps
    assert torch.equal(alone.obs[0], beside.obs[1, :, : steps + 1])
    assert beside.valid[1, :, steps:].sum() == 0


def test_more_than_there_are_is_refused():
    with pytest.raises(UsageError, match="batch of 5 is larger than the data: 4 episodes"):
        table().sample_episodes(5, [stream(0)])
    with pytest.raises(UsageError, match="batch of 12 is larger than the data: 11 transitions"):
        table().sample_steps(12, [stream(0)])
