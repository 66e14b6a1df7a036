"""Frames without padding against the padded ones."""

import torch
from episodes import batch_of, learner_of

from offmarl.learners.packing import PackedFrames, packed, places

S, B, T = 2, 4, 5
COUNTS = [4, 4, 3, 1, 1]


def there() -> torch.Tensor:
    """[B, T]: which windows have a frame."""
    return torch.arange(B).unsqueeze(1) < torch.tensor(COUNTS)


def test_what_is_there_is_packed_step_by_step_and_returns_to_its_place():
    values = torch.randn(S, B, T, 3)
    rows = packed(values, COUNTS)
    assert torch.equal(rows, values.transpose(1, 2)[:, there().T])
    frames = PackedFrames(rows.flatten(2), COUNTS, B)
    expected = values * there().view(1, B, T, 1)
    assert torch.equal(frames.padded(rows), expected)
    assert torch.equal(packed(values, [B] * T), values.transpose(1, 2).flatten(1, 2))
    assert places([B] * T, B, values.device) is None


def test_steps_are_cut_out_of_frames():
    values = torch.randn(S, B, T, 3)
    frames = PackedFrames(packed(values, COUNTS).flatten(2), COUNTS, B)
    for steps in (slice(None, -1), slice(1, None), slice(-1, None), slice(1, 3)):
        part = frames[steps]
        assert torch.equal(part.rows, packed(values[:, :, steps], COUNTS[steps])), steps
        assert torch.equal(part.padded(part.rows), (values * there().view(1, B, T, 1))[:, :, steps]), steps
    agents = PackedFrames(torch.randn(S, 3 * sum(COUNTS), 2), COUNTS, B)  # three agents in one network
    assert agents.row_counts == [12, 12, 9, 3, 3]
    assert torch.equal(agents[2:].rows, agents.rows[:, 24:])


def test_present_counts_windows_up_to_the_last_that_goes_on(battle):
    batch = batch_of(learner_of("bc", battle, (0, 1), trunk="gru"), battle, 6)
    length = batch.valid.sum(2)
    assert (length.diff(dim=1) <= 0).all()  # the longest first
    assert batch.present == [6, *((length.unsqueeze(2) > torch.arange(batch.steps)).sum(1).amax(0).tolist())]
    backwards = type(batch)(**{**vars(batch), "valid": batch.valid.flip(1)})
    shortest = int(length.flip(1)[:, 0].min())
    assert backwards.present[: shortest + 1] == [6] * (shortest + 1)
    taken = backwards.valid.bool().any(0)
    for t, count in enumerate(backwards.present[1:]):
        assert not taken[count:, t:].any()
        assert taken[count - 1, t:].any()


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
