import pytest
import torch

from offmarl.learners.softmax import FEW, log_softmax, logsumexp, softmax


@pytest.mark.parametrize("shape", [(3,), (1, 1), (7, 3), (2, 3, 5, 11), (4, FEW), (4, FEW + 1)])
def test_it_is_pytorchs(shape):
    values = torch.randn(shape) * 10
    torch.testing.assert_close(softmax(values), torch.softmax(values, -1))
    torch.testing.assert_close(log_softmax(values), torch.log_softmax(values, -1))
    torch.testing.assert_close(logsumexp(values), torch.logsumexp(values, -1))


def test_gradients_go_through_it():
    values = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(softmax, values)
    assert torch.autograd.gradcheck(log_softmax, values)
    assert torch.autograd.gradcheck(logsumexp, values)
