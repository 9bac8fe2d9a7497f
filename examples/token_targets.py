"""Token-level targets: flag the 1 % of tokens that open a rare pattern, with room to review the top 1 %.

Logits are ``[B, T, 1]``, targets ``[B, T]``; padding is -100 and never enters a ranking, a threshold or the queue. The
model is a small network on a window of three tokens. Recall in the top 1 % is what counts, so that is the loss; the
true probabilities show how much of it can be had. The network can express the rules, so do not expect a winner.

Run: python examples/token_targets.py
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from rareloss import LossWarmupWrapper, Objective, SigmoidFocalLoss

OBJECTIVE = Objective.parse("recall@top=1%")
LEARNING_RATES = (1e-2, 3e-2)
VOCABULARY, LENGTH, PADDING, STEPS, BATCH = 40, 32, -100, 500, 64


class Sequences(NamedTuple):
    """Tokens ``[B, T]`` (0 is padding), targets ``[B, T]``, and the log-odds ``[B, T]`` they were drawn with."""

    tokens: Tensor
    target: Tensor
    truth: Tensor


def draw(sequences: int, seed: int) -> Sequences:
    """Draw sequences; a token is the more often positive the more of three rules it and its two successors meet."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, VOCABULARY, (sequences, LENGTH), generator=generator)
    first, second, third = tokens, tokens.roll(-1, 1), tokens.roll(-2, 1)
    risk = (first % 5 == 0).float() + (second % 4 == 1).float() + ((first + third) % 6 == 2).float()
    truth = 4.0 * (risk - 2.75)
    target = (torch.rand(truth.shape, generator=generator) < truth.sigmoid()).long()
    lengths = torch.randint(LENGTH // 2, LENGTH + 1, (sequences, 1), generator=generator)
    # The last two tokens of a sequence see no whole triple.
    unknown = torch.arange(LENGTH) >= lengths - 2
    tokens = tokens.masked_fill(torch.arange(LENGTH) >= lengths, 0)
    return Sequences(tokens, target.masked_fill(unknown, PADDING), truth)


class Tagger(nn.Module):
    """Score each token from itself and the two that follow."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 16, padding_idx=0)
        self.score = nn.Sequential(nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute logits ``[B, T, 1]``."""
        embedded = self.embed(tokens)
        return self.score(torch.cat([embedded, embedded.roll(-1, 1), embedded.roll(-2, 1)], dim=-1))


def train(loss: nn.Module, rate: float, rows: Sequences, seed: int) -> Tagger:
    """Return a tagger trained on ``loss``; the seed sets initialisation and batches, alike for every loss."""
    torch.manual_seed(seed)
    model = Tagger()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        batch = torch.randint(len(rows.tokens), (BATCH,))
        optimizer.zero_grad()
        loss(model(rows.tokens[batch]), rows.target[batch]).backward()
        optimizer.step()
        schedule.step()
    return model


def losses() -> dict[str, nn.Module]:
    """Return what is compared, fresh: a loss that remembers rows must not see those of another run."""
    # Without weights and with gamma 0, focal loss is cross-entropy, here one that leaves out padding.
    cross_entropy = SigmoidFocalLoss(alpha=None, gamma=0.0)
    ranking = OBJECTIVE.loss(num_classes=1, queue_size=2_048)
    switched = LossWarmupWrapper(cross_entropy, ranking, warmup_steps=STEPS - STEPS // 5)
    return {
        "cross-entropy": cross_entropy,
        "recall after warm-up": switched,
    }


def judge(model: Tagger, rows: Sequences) -> float:
    """Return the recall in the top 1 % of the tokens that are not padding."""
    known = rows.target != PADDING
    with torch.no_grad():
        return OBJECTIVE.metric(model(rows.tokens)[known], rows.target[known]).value.item()


def main() -> None:
    """Compare on held-out sequences, two seeds; each loss gets its learning rate on validation."""
    held_out = draw(3_000, seed=999)
    known = held_out.target != PADDING
    truth = held_out.target[known]
    reachable = OBJECTIVE.metric(held_out.truth[known], truth).value
    print(f"{truth.double().mean():.2%} of {len(truth):,} tokens are positive; {OBJECTIVE.name}, two seeds")
    print(f"  {'the true probabilities':<26}{reachable:.3f}")
    values: dict[str, list[float]] = {}
    for seed in range(2):
        rows, validation = draw(1_000, seed), draw(1_000, 100 + seed)
        for name in losses():
            models = [train(losses()[name], rate, rows, seed) for rate in LEARNING_RATES]
            chosen = max(models, key=lambda model: judge(model, validation))
            values.setdefault(name, []).append(judge(chosen, held_out))
    for name, by_seed in values.items():
        print(f"  {name:<26}" + "  ".join(f"{value:.3f}" for value in by_seed) + f"   mean {sum(by_seed) / 2:.3f}")


if __name__ == "__main__":
    main()
