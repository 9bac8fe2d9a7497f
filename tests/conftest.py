"""Fixed seeds, one thread, and hypothesis without a clock or a memory."""

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("ci", derandomize=True, deadline=None, database=None, max_examples=30)
settings.load_profile("ci")


@pytest.fixture(autouse=True)
def seed() -> None:
    """Give every test the same random numbers, in whatever order tests run."""
    torch.manual_seed(0)
