"""Real gloo processes: every rank's gradient is that of one process on the whole batch, and no rank is left waiting."""

import contextlib
import datetime
import io
import os
import runpy
import signal
import tempfile
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import distributed_strategies  # noqa: F401  its cases are run too
from distributed_cases import CASES, case
from processes import METHOD, start_ranks
from rareloss import SmoothAPLoss
from rareloss.distributed import gather_rows, sum_over_ranks, world_size

EXAMPLE = Path(__file__).parents[1] / "examples" / "ddp_torchrun.py"


@case
def rank_that_is_killed_ends_the_others(rank: int, ranks: int) -> None:
    """Kill a rank; the last case, as that rank says nothing any more."""
    if ranks == 1:
        return
    loss = SmoothAPLoss(1, process_group=dist.new_group(timeout=datetime.timedelta(seconds=20)))
    logits, targets = torch.randn(12), torch.arange(12) % 3 == 0
    loss(logits, targets)
    if rank == ranks - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(RuntimeError):
        loss(logits, targets)


def run_rank(rank: int, ranks: int, folder: str) -> None:
    """Run every case on this rank; after a failure the ranks may be out of step, so it is the last."""
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    # Made before the process group exists: whether to gather is decided at every call.
    early = SmoothAPLoss(1, queue_size=0)
    early(torch.randn(12), torch.arange(12) % 3 == 0)
    dist.init_process_group(
        "gloo",
        init_method=(Path(folder) / "meeting").as_uri(),
        rank=rank,
        world_size=ranks,
        timeout=datetime.timedelta(seconds=120),
    )
    said = dict.fromkeys(CASES, "not run: an earlier case failed\n")
    try:
        assert early.diagnose(torch.randn(12), torch.arange(12) % 3 == 0)["rows_pool"].item() == 12 * ranks
        for name, function in CASES.items():
            said[name] = ""
            torch.save(said, Path(folder) / f"said_{rank}.pt")  # before the case, as one of them kills a rank
            try:
                function(rank, ranks)
            except BaseException:
                said[name] = f"rank {rank}:\n{traceback.format_exc()}"
                raise
    except Exception:
        pass
    finally:
        torch.save(said, Path(folder) / f"said_{rank}.pt")
        dist.destroy_process_group()


@pytest.fixture(scope="module", params=[1, 2, 3])
def outcome(request: pytest.FixtureRequest) -> dict[str, list[str]]:
    """Start so many processes once, and return what each case said on each rank."""
    ranks: int = request.param
    with tempfile.TemporaryDirectory() as folder:
        started = start_ranks(run_rank, args=(ranks, folder), nprocs=ranks, join=False)
        for process in started.processes:
            process.join()
        by_rank = [torch.load(Path(folder) / f"said_{rank}.pt") for rank in range(ranks)]
    return {name: [said[name] for said in by_rank] for name in CASES}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_case_holds_on_every_rank(outcome: dict[str, list[str]], name: str) -> None:
    said = "".join(outcome[name])
    if said:
        pytest.fail(said, pytrace=False)


def test_without_a_process_group_there_is_one_rank() -> None:
    rows = torch.randn(3, 2, requires_grad=True)
    assert world_size() == 1
    assert torch.equal(gather_rows(rows), rows)
    gather_rows(rows).sum().backward()
    assert torch.equal(rows.grad, torch.ones(3, 2))
    assert sum_over_ranks(torch.tensor(2.5)).item() == 2.5


def run_example() -> str:
    """Run the example as its command would, and return what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    return printed.getvalue()


@pytest.mark.slow
def test_example_under_torchrun_has_the_gradient_of_one_process() -> None:
    # What torchrun does with its arguments, but for an import of torch in each process.
    options: dict[str, Any] = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "start_method": METHOD}
    said = elastic_launch(LaunchConfig(1, 1, 2, run_id="example", max_restarts=0, **options), run_example)()
    assert "2 ranks" in said[0]
    assert "cross-entropy" in said[0]
