"""Training under autocast, as tests of every device do it."""

import torch
import torch.nn.functional as F


def train(model, x, target, dtype, steps=8):
    """Losses of SGD steps with a gradient scaler, which skips none; gradients are in the parameters' own dtype."""
    device = x.device.type
    scaler, optimizer = torch.amp.GradScaler(device), torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.autocast(device, dtype=dtype):
            y = model(x)
            losses.append(F.cross_entropy(y, target))
        scaler.scale(losses[-1]).backward()
        assert (y.dtype, model[0].weight.grad.dtype) == (dtype, torch.float32)
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 2.0**16
    return losses
