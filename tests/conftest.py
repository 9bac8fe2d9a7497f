"""Fixed seeds, one thread, and hypothesis without a clock or a memory."""

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("ci", derandomize=True, deadline=None, database=None, max_examples=30)
settings.load_profile("ci")

if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 7):
    # What docs/native.md tells users of such a torch: else the warm-up's schedule breaks a graph.
    import torch._dynamo

    torch._dynamo.config.capture_dynamic_output_shape_ops = True


@pytest.fixture(autouse=True)
def seed() -> None:
    """Give every test the same random numbers, in whatever order tests run."""
    torch.manual_seed(0)
