"""One-vs-rest log-odds: the score by which class indices are ranked."""

import torch
from torch import Tensor

from rareloss import checks

__all__ = ["log_odds"]


def log_odds(logits: Tensor) -> Tensor:
    r"""Turn class logits into one-vs-rest log-odds.

    .. math:: o_c = z_c - \log \sum_{k \ne c} e^{z_k} = \log \frac{p_c}{1 - p_c}

    Softmax leaves each row a free offset, so the raw :math:`z_c` of different rows do not compare; log-odds do.

    Args:
        logits: ``[..., C]``, C of at least 2; float.

    Returns:
        ``[..., C]``, in float32 at least.

    Raises:
        TypeError: ``logits`` are not floats.
        ValueError: there is no class dimension, or it holds fewer than 2 classes.

    Example:
        >>> log_odds(torch.tensor([2.0, 0.5]))
        tensor([ 1.5000, -1.5000])
    """
    checks.floating("logits", logits)
    if logits.ndim < 1 or logits.shape[-1] < 2:
        raise ValueError(f"logits must have shape [..., C] with C of at least 2, got {tuple(logits.shape)}")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_p = logits.log_softmax(-1)
    # For all but the top class p is at most 1/2 and log(1 - p) is exact; for the top class 1 - p may round to 0, so the
    # others are summed.
    top = torch.zeros_like(log_p, dtype=torch.bool).scatter_(-1, logits.argmax(-1, keepdim=True), True)
    others = log_p.masked_fill(top, -torch.inf).logsumexp(-1, keepdim=True)
    log_rest = torch.where(top, others, torch.log1p(-log_p.masked_fill(top, -1.0).exp()))
    return log_p - log_rest
