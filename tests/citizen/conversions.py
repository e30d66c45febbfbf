"""What a converted network of a library must do: models take a batch by keywords, and return loss and logits."""

import copy

import torch

from ccn_kernels.convert import param_groups


def logits(model, batch):
    with torch.no_grad():
        return model.eval()(**batch).logits


def step(model, batch):
    """One step of training: the loss before it, and the parameters that had a gradient."""
    torch.manual_seed(0)
    model.train()
    optimizer = torch.optim.AdamW(param_groups(model, 0.01), lr=1e-3)
    loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def computes_and_trains(plain, compact, batch):
    """In evaluation something else than the plain network, and finite; in training a gradient for all that had one."""
    output = logits(compact, batch)
    assert output.isfinite().all()
    assert not torch.allclose(output, logits(plain, batch))
    plain, compact = copy.deepcopy(plain), copy.deepcopy(compact)
    _, wanted = step(plain, batch)
    loss, gradients = step(compact, batch)
    assert 0 < loss < 10
    assert gradients.keys() == wanted.keys() | {f"{layer}.alpha" for layer in compact.ccn_report.converted}
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert logits(compact, batch).isfinite().all()


def takes_states(plain, compact, batch):
    """Its own state, and the plain network's strictly: a network of other weights then computes alike."""
    other = copy.deepcopy(compact)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
    assert not torch.allclose(logits(other, batch), logits(compact, batch))
    other.load_state_dict(compact.state_dict())
    assert torch.equal(logits(other, batch), logits(compact, batch))
    with torch.no_grad():
        for key, parameter in other.named_parameters():
            parameter.mul_(1 if key.endswith("alpha") else 0)
    other.load_state_dict(plain.state_dict(), strict=True)
    assert torch.equal(logits(other, batch), logits(compact, batch))
