"""Token-level targets: flag the 1 % of tokens that open a rare pattern, with room to review the top 1 %.

Logits are ``[B, T, 1]``, targets ``[B, T]``; padding is -100 and never enters a ranking, a threshold or the queue. The
model is a small network on a window of three tokens. Recall in the top 1 % is what counts, so that is the loss.

Run: python examples/token_targets.py
"""

import torch
from torch import Tensor, nn

from rareloss import LossWarmupWrapper, Objective, SigmoidFocalLoss

OBJECTIVE = Objective.parse("recall@top=1%")
VOCABULARY, LENGTH, PADDING, STEPS, BATCH = 40, 32, -100, 500, 64


def draw(sequences: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return tokens ``[B, T]`` (0 is padding) and targets ``[B, T]``: is this token the start of a marked triple?"""
    tokens = torch.randint(1, VOCABULARY, (sequences, LENGTH), generator=generator)
    first, second, third = tokens, tokens.roll(-1, 1), tokens.roll(-2, 1)
    risk = (first % 5 == 0).float() + (second % 4 == 1).float() + ((first + third) % 6 == 2).float()
    chance = torch.sigmoid(5.0 * (risk - 3.0))
    target = (torch.rand(chance.shape, generator=generator) < chance).long()
    lengths = torch.randint(LENGTH // 2, LENGTH + 1, (sequences, 1), generator=generator)
    # The last two tokens of a sequence see no whole triple.
    unknown = torch.arange(LENGTH) >= lengths - 2
    return tokens.masked_fill(torch.arange(LENGTH) >= lengths, 0), target.masked_fill(unknown, PADDING)


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


def train(loss: nn.Module, seed: int) -> Tagger:
    """Return a tagger trained on ``loss``; the seed sets initialisation and sequences, alike for every loss."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    tokens, target = draw(1_000, generator)
    model = Tagger()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        batch = torch.randint(len(tokens), (BATCH,), generator=generator)
        optimizer.zero_grad()
        loss(model(tokens[batch]), target[batch]).backward()
        optimizer.step()
        schedule.step()
    return model


def cross_entropy() -> nn.Module:
    """Return cross-entropy that leaves out padding: focal loss with gamma 0."""
    return SigmoidFocalLoss(alpha=None, gamma=0.0)


def main() -> None:
    """Compare recall in the top 1 % of held-out tokens, three seeds."""
    tokens, target = draw(2_000, torch.Generator().manual_seed(999))
    known = target != PADDING
    truth = target[known]
    cap = OBJECTIVE.cap(truth)
    print(f"{truth.double().mean():.2%} of {len(truth):,} tokens are positive: {OBJECTIVE.name} is at most {cap:.3f}")
    values: dict[str, list[Tensor]] = {}
    for seed in range(3):
        losses = {
            "cross-entropy": cross_entropy(),
            "recall after warm-up": LossWarmupWrapper(
                cross_entropy(), OBJECTIVE.loss(num_classes=1), warmup_steps=STEPS // 2, blend_steps=50
            ),
        }
        for name, loss in losses.items():
            model = train(loss, seed)
            with torch.no_grad():
                scores = model(tokens)[known]
            values.setdefault(name, []).append(OBJECTIVE.metric(scores, truth).value.squeeze())
    for name, by_seed in values.items():
        print(f"  {name:<26}", *(f"{value:.3f}" for value in by_seed), f"  mean {torch.stack(by_seed).mean():.3f}")


if __name__ == "__main__":
    main()
