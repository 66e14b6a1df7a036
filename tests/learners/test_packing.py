"""Frames without padding and without the dead against all frames."""

import pytest
import torch
from episodes import batch_of, learner_of

from offmarl.learners.packing import packed

G, M, T = 2, 4, 5
NEEDED = torch.tensor([[3, 5, 0, 3], [1, 2, 3, 4]])
COUNTS = [4, 3, 3, 1, 1]  # rows of the network that needs most


def frames() -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs [G, T * M, 3], and which are needed [G, T, M]."""
    there = torch.arange(T).unsqueeze(1) < NEEDED.unsqueeze(1)
    return torch.randn(G, T * M, 3), there


def test_what_is_needed_is_packed_step_by_step_and_returns_to_its_place():
    inputs, there = frames()
    made = packed(inputs, NEEDED)
    assert made.counts == COUNTS
    assert made.inputs.shape == (G, sum(COUNTS), 3)
    back = made.padded(made.inputs).view(G, T, M, 3)
    everything = inputs.view(G, T, M, 3)
    assert torch.equal(back[there], everything[there])
    missing = (back == 0).all(-1)
    assert missing.sum() == G * (T * M - sum(COUNTS))
    start = 0
    for t, count in enumerate(COUNTS):  # a row keeps its place from step to step
        rows = NEEDED.sort(dim=1, descending=True, stable=True).indices[:, :count]
        expected = torch.stack([everything[g, t, rows[g]] for g in range(G)])
        assert torch.equal(made.inputs[:, start : start + count], expected)
        start += count


def test_nothing_is_moved_where_everything_is_needed():
    inputs = frames()[0]
    made = packed(inputs, torch.full((G, M), T))
    assert made.inputs is inputs
    assert made.counts == [M] * T
    assert made.padded(inputs) is inputs


def test_steps_are_cut_out_of_frames():
    inputs, _ = frames()
    for needed in (NEEDED, torch.full((G, M), T)):
        whole = packed(inputs, needed)
        back = whole.padded(whole.inputs).view(G, T, M, 3)
        for steps in (slice(None, -1), slice(1, None), slice(-1, None), slice(1, 3)):
            part = whole[steps]
            assert part.counts == whole.counts[steps]
            found = part.padded(part.inputs).view(G, len(part.counts), M, 3)
            assert torch.equal(found, back[:, steps]), steps


def test_lifetimes_end_with_the_window_or_the_last_frame_alive(battle):
    batch = batch_of(learner_of("bc", battle, (0, 1), trunk="gru"), battle, 6)
    frames_of = batch.valid.sum(2).long() + 1  # [S, B]
    for s, b, n in torch.cartesian_prod(*(torch.arange(size) for size in batch.lifetimes.shape)).tolist():
        alive = batch.alive[s, b, : frames_of[s, b], n]
        assert batch.lifetimes[s, b, n] == (alive.nonzero().max() + 1 if alive.any() else 0)
    assert (batch.lifetimes < frames_of.unsqueeze(2)).any()
    batch.alive = None
    assert torch.equal(batch.lifetimes, frames_of.unsqueeze(2).expand_as(batch.lifetimes))


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("trunk", ["gru", "mlp"])
def test_networks_say_of_what_is_needed_what_they_say_of_everything(battle, trunk, share):
    learner = learner_of("cql", battle, (0, 1), trunk=trunk, share=share, td_lambda=0.5)
    learner.observe(battle.statistics())
    batch = batch_of(learner, battle, 6)
    found = learner.run(learner.critic, learner.inputs(batch))
    needed = torch.arange(batch.steps + 1).view(-1, 1) < batch.lifetimes.unsqueeze(2)  # [S, B, T + 1, N]
    assert needed.float().mean() < 0.9
    batch.alive, batch.valid = None, torch.ones_like(batch.valid)
    everything = learner.run(learner.critic, learner.inputs(batch))
    torch.testing.assert_close(found[needed], everything[needed], atol=1e-6, rtol=1e-5)
    assert (found == 0).all(-1).any()


@pytest.mark.parametrize("trunk", ["gru", "mlp"])
def test_windows_at_whose_end_nobody_lives_and_windows_of_the_dead_teach(battle, trunk):
    for last in (2, 0):  # the last frame in which anybody lives; none
        learner = learner_of("icq", battle, trunk=trunk)
        learner.observe(battle.statistics())
        batch = batch_of(learner, battle, 6)
        batch.alive = torch.zeros_like(batch.alive)
        batch.alive[:, :, :last] = True
        assert batch.lifetimes.max() == last
        before = learner.policy.network.flat.clone()
        learner.update(batch)
        assert learner.policy.network.flat.isfinite().all()
        assert torch.equal(learner.policy.network.flat, before) == (last == 0)


def test_a_batch_in_any_order_of_windows_teaches_the_same(battle):
    states = []
    for order in ([0, 1, 2, 3, 4, 5], [3, 5, 0, 4, 1, 2]):
        learner = learner_of("cql", battle, trunk="gru")
        learner.observe(battle.statistics())
        batch = batch_of(learner, battle, 6)
        fields = {name: value[:, order] for name, value in vars(batch).items() if value is not None}
        learner.update(type(batch)(**fields))
        states.append(learner.state_dict())
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, atol=1e-6, rtol=1e-4, msg=name)
