import torch

from offmarl.streams import stream


def test_a_stream_depends_on_seed_and_name_alone():
    first = torch.rand(4, generator=stream(3, "learner", 0))
    assert torch.equal(first, torch.rand(4, generator=stream(3, "learner", 0)))
    for other in (stream(4, "learner", 0), stream(3, "learner", 1), stream(3, "sampling", 0)):
        assert not torch.equal(first, torch.rand(4, generator=other))
