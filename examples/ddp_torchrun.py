"""Several ranks, ragged batches, 2 % positives: a ranking loss under DDP, and proof that its gradient is one process's.

Each rank holds other rows, and not equally many. The ranking loss ranks the rows of all ranks together; its gradient is
compared with that of a single process in float64 on the whole batch, before a short training on each of two losses.

Run: torchrun --nproc-per-node 2 examples/ddp_torchrun.py  (or python examples/ddp_torchrun.py: one rank)
"""

import copy
import os

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rareloss import SigmoidFocalLoss, SmoothAPLoss, distributed, metrics


def draw(rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return features ``[rows, 4]`` and labels ``[rows]``; half of the positives lie where a line cannot reach."""
    label = torch.rand(rows, generator=generator) < 0.02
    hidden = torch.rand(rows, generator=generator) < 0.5
    features = torch.randn(rows, 4, generator=generator)
    features[label & ~hidden] += torch.tensor([3.0, 0.0, 0.0, 0.0])
    features[label & hidden] += torch.tensor([-1.0, 2.0, 0.0, 0.0])
    return features, label.long()


def gradient(model: nn.Module) -> Tensor:
    """Return the gradients of all parameters in one row."""
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


def error_against_one_process(rank: int, ranks: int) -> float:
    """Return the relative difference between DDP's gradient and that of one float64 process, over ragged ranks."""
    # Every rank draws the whole batch, so that each can also play the single process; it trains on its share alone.
    features, label = draw(2_000, torch.Generator().manual_seed(1))
    start, stop = (2_000 * r * (r + 1) // (ranks * (ranks + 1)) for r in (rank, rank + 1))
    torch.manual_seed(0)
    scorer = nn.Linear(4, 1)
    alone = copy.deepcopy(scorer).double()
    model = DistributedDataParallel(scorer)
    SmoothAPLoss(num_classes=1)(model(features[start:stop]), label[start:stop]).backward()
    SmoothAPLoss(num_classes=1, gather_distributed=False).double()(alone(features.double()), label).backward()
    return float((gradient(model) - gradient(alone)).norm() / gradient(alone).norm())


def train(loss: nn.Module, rank: int, steps: int = 80) -> float:
    """Train a linear scorer and return its average precision on held-out rows, those of all ranks together."""
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Linear(4, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    generator = torch.Generator().manual_seed(100 + rank)  # every rank has rows of its own
    for _ in range(steps):
        features, label = draw(128 + 64 * rank, generator)
        optimizer.zero_grad()
        loss(model(features)[:, 0], label).backward()
        optimizer.step()
    features, label = draw(20_000, generator)
    with torch.no_grad():
        scores = distributed.gather_rows(model(features)[:, 0])
    return float(metrics.average_precision(scores, distributed.gather_rows(label) == 1).value)


def main() -> None:
    """Compare the gradients, then the losses."""
    if "RANK" in os.environ:  # torchrun says who meets where
        dist.init_process_group("gloo")
    else:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    error = error_against_one_process(rank, ranks)
    if not error < 1e-5:
        raise SystemExit(f"the gradient of {ranks} ranks is not that of one process: relative error {error:.1e}")
    reached = {
        "cross-entropy": train(SigmoidFocalLoss(alpha=None, gamma=0.0), rank),
        "Smooth-AP": train(SmoothAPLoss(num_classes=1, queue_size=4_096), rank),
    }
    if rank == 0:
        print(f"{ranks} ranks: the gradient equals that of one float64 process, relative error {error:.1e}")
        for name, value in reached.items():
            print(f"  average precision on held-out rows, {name:<14}{value:.3f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
