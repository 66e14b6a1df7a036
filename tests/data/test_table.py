import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import N_AGENTS, toy_spec

from offmarl.data.table import Transitions
from offmarl.errors import DataError, UsageError
from offmarl.streams import stream


def make_table(lengths: list[int], discrete: bool = False) -> tuple[Transitions, dict[str, torch.Tensor]]:
    """A table of episodes with `lengths` steps whose numbers tell rows and agents apart."""
    start = torch.tensor([0, *lengths]).cumsum(0) + torch.arange(len(lengths) + 1)
    rows = int(start[-1])
    spec = toy_spec(discrete)
    numbers = torch.arange(rows * 100, dtype=torch.float32).view(rows, 100)
    arrays = {
        "obs": numbers[:, :12].reshape(rows, N_AGENTS, 4),
        "state": numbers[:, 12:14],
        "action": (torch.arange(rows * N_AGENTS) % 3).view(rows, N_AGENTS)
        if discrete
        else numbers[:, 20:26].reshape(rows, N_AGENTS, 2),
        "team_reward": numbers[:, 30],
        "reward": numbers[:, 31:34],
        "terminated": torch.zeros(rows),
        "truncated": torch.zeros(rows),
        "alive": torch.ones(rows, N_AGENTS),
    }
    arrays["terminated"][start[1::2] - 2] = 1
    arrays["truncated"][start[2::2] - 2] = 1
    if discrete:
        arrays["legal"] = torch.arange(rows * N_AGENTS * 3).view(rows, N_AGENTS, 3) % 2 == 0
    return Transitions.from_arrays(spec, arrays, start), arrays


@pytest.mark.parametrize("discrete", [False, True])
@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=8), seeds=st.integers(1, 3))
def test_batch_is_row_and_successor(discrete, lengths, seeds):
    table, arrays = make_table(lengths, discrete)
    assert len(table) == sum(lengths)
    count = len(table)
    rows = table.transition_rows[torch.randint(count, (seeds, 7))]
    batch = table.batch(rows)
    for name in ("obs", "state", "reward", "terminated"):
        assert torch.equal(getattr(batch, name), arrays[name][rows])
    assert torch.equal(batch.action, arrays["action"][rows])
    assert batch.action.dtype == (torch.int64 if discrete else torch.float32)
    assert torch.equal(batch.next_obs, arrays["obs"][rows + 1])
    assert torch.equal(batch.next_state, arrays["state"][rows + 1])
    assert torch.equal(batch.next_action, arrays["action"][rows + 1])
    assert torch.equal(batch.done, arrays["terminated"][rows] + arrays["truncated"][rows])
    assert batch.alive.dtype == torch.bool
    assert batch.alive.all()
    if discrete:
        assert torch.equal(batch.legal, arrays["legal"][rows])
        assert torch.equal(batch.next_legal, arrays["legal"][rows + 1])
    else:
        assert batch.legal is None
        assert batch.next_legal is None


def test_transitions_never_cross_episodes():
    table, _ = make_table([1, 3, 2])
    assert table.transition_rows.tolist() == [0, 2, 3, 4, 6, 7]
    assert table.batch(table.transition_rows[None]).done.tolist() == [[1, 0, 0, 1, 0, 1]]


def test_sampling_covers_every_transition_and_nothing_else():
    table, arrays = make_table([2, 1, 4])
    batch = table.sample(7, [stream(0, "a")])
    drawn = {x.item() for _ in range(60) for x in table.sample(7, [stream(_, "b")]).obs[0, :, 0, 0]}
    assert drawn == set(arrays["obs"][table.transition_rows, 0, 0].tolist())
    assert batch.obs.shape == (1, 7, N_AGENTS, 4)


def test_a_seed_draws_the_same_alone_and_beside_others():
    table, _ = make_table([5] * 10)
    alone = [table.sample(16, [stream(3, "batches")]).obs for _ in range(2)]
    beside = table.sample(16, [stream(seed, "batches") for seed in (1, 3, 2)])
    assert torch.equal(alone[0][0], beside.obs[1])
    assert torch.equal(alone[0], alone[1])
    assert not torch.equal(beside.obs[0], beside.obs[1])
    generator = stream(3, "batches")
    assert not torch.equal(table.sample(16, [generator]).obs, table.sample(16, [generator]).obs)


def test_batch_larger_than_the_data():
    table, _ = make_table([2, 2])
    with pytest.raises(UsageError, match="batch of 5 is larger than the data: 4"):
        table.sample(5, [stream(0)])


def test_with_reward_leaves_the_original_alone():
    table, arrays = make_table([3, 2])
    other = torch.rand(7, N_AGENTS)
    changed = table.with_reward(other)
    assert torch.equal(changed.column("reward"), other)
    assert torch.equal(table.column("reward"), arrays["reward"])
    assert torch.equal(changed.column("team_reward"), arrays["team_reward"])
    with pytest.raises(DataError, match=r"\[7, 3\]"):
        table.with_reward(other[:, :2])
    other[4, 1] = torch.nan
    with pytest.raises(DataError, match="row 4"):
        table.with_reward(other)


def test_reward_defaults_to_the_team_reward_of_everyone():
    table, arrays = make_table([3])
    del arrays["reward"]
    again = Transitions.from_arrays(table.spec, arrays, table.episode_start)
    assert torch.equal(again.column("reward"), arrays["team_reward"][:, None].expand(-1, N_AGENTS))


@pytest.mark.parametrize("which", [range(1, 3), range(4), range(0, 4, 2), range(3, 0, -1), range(2, 2)])
def test_episodes(which):
    lengths = [2, 3, 1, 4]
    table, arrays = make_table(lengths)
    part = table.episodes(which)
    rows = [row for e in which for row in range(int(table.episode_start[e]), int(table.episode_start[e + 1]))]
    assert torch.equal(part.column("obs"), arrays["obs"][rows])
    assert len(part) == sum(lengths[e] for e in which)
    if len(part):
        batch = part.batch(part.transition_rows[None])
        originals = torch.tensor(rows)[part.transition_rows]
        assert torch.equal(batch.next_obs[0], arrays["obs"][originals + 1])


def test_episodes_that_do_not_exist():
    table, _ = make_table([2, 3])
    with pytest.raises(UsageError, match="there are 2"):
        table.episodes(range(1, 3))


def test_episodes_of_episodes_keep_their_rows():
    table, arrays = make_table([2, 3, 1, 4])
    inner = table.episodes(range(1, 4)).episodes(range(1, 3))
    batch = inner.batch(inner.transition_rows[None])
    assert torch.equal(batch.next_obs[0], arrays["obs"][table.episodes(range(2, 4)).transition_rows + 7 + 1])
    assert torch.equal(inner.column("state"), arrays["state"][7:])


def test_statistics_are_over_transitions_and_survive_large_means():
    table, arrays = make_table([4] * 30)
    table.column("obs").copy_(1e4 + torch.randn(150, N_AGENTS, 4, generator=stream(0)))
    statistics = table.statistics()
    obs = table.column("obs")[table.transition_rows].double()
    reward = arrays["reward"][table.transition_rows].double()
    torch.testing.assert_close(statistics.obs_mean.double(), obs.mean(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(statistics.obs_std.double(), obs.std(0, correction=0), rtol=1e-3, atol=0)
    torch.testing.assert_close(statistics.reward_mean.double(), reward.mean(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(statistics.reward_std.double(), reward.std(0, correction=0), rtol=1e-5, atol=0)


def test_empty_table_is_refused_by_name():
    table, _ = make_table([2])
    empty = table.episodes(range(0))
    for use in (empty.statistics, lambda: empty.batch(torch.zeros(1, 1, dtype=torch.int64))):
        with pytest.raises(DataError, match="no transition"):
            use()
    with pytest.raises(UsageError, match="0 transitions"):
        empty.sample(1, [stream(0)])


def test_unknown_column_and_misshapen_array():
    table, arrays = make_table([2])
    with pytest.raises(UsageError, match="did you mean reward"):
        table.column("rewards")
    with pytest.raises(DataError, match="'obs' has shape"):
        Transitions.from_arrays(table.spec, {**arrays, "obs": arrays["obs"][:, :2]}, table.episode_start)
    del arrays["terminated"]
    with pytest.raises(DataError, match="'terminated' is missing"):
        Transitions.from_arrays(table.spec, arrays, table.episode_start)
