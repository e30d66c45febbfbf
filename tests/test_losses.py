import pytest
import torch

from ccn_kernels.functional import l2_softmax_loss


@pytest.mark.parametrize("delta", [0.0, 0.01])
@pytest.mark.parametrize("smoothing", [0.0, 1 / 9])
def test_equation_1(delta, smoothing):
    features, weight, bias = torch.randn(7, 5).double(), torch.randn(10, 5).double(), torch.randn(10).double()
    target, alpha = torch.randint(0, 10, (7,)), 3.0
    features[0] = 0
    norm = features.square().sum(1, keepdim=True).sqrt()
    unit = torch.where(norm == 0, 0.0, features / torch.where(norm == 0, 1.0, norm + delta))
    logits = alpha * unit @ weight.T + bias
    log_probability = logits - logits.exp().sum(1, keepdim=True).log()
    wanted = torch.full((7, 10), smoothing / 10).double()
    wanted[torch.arange(7), target] += 1 - smoothing
    expected = -(wanted * log_probability).sum(1).mean()
    found = l2_softmax_loss(features, weight, bias, target, alpha, delta=delta, label_smoothing=smoothing)
    torch.testing.assert_close(found, expected)


def test_the_paper_s_smoothing_gives_the_true_class_nine_tenths():
    # equal logits but for the true class, so that only its target probability matters
    features, weight = torch.ones(1, 1).double(), torch.zeros(10, 1).double()
    weight[3] = 1
    log_z = torch.tensor(9 + torch.e).double().log()
    found = l2_softmax_loss(features, weight, None, torch.tensor([3]), 1.0, label_smoothing=1 / 9)
    torch.testing.assert_close(found, log_z - 0.9)


def test_leading_axes_and_a_learnable_radius():
    features = torch.randn(2, 3, 5).double().requires_grad_()
    weight, alpha = torch.randn(4, 5).double().requires_grad_(), torch.tensor(2.0).double().requires_grad_()
    target = torch.randint(0, 4, (2, 3))
    assert torch.autograd.gradcheck(lambda f, w, a: l2_softmax_loss(f, w, None, target, a), (features, weight, alpha))
