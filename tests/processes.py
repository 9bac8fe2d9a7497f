"""Start ranks, as ``torch.multiprocessing.spawn`` does, from one process that has imported what all of them need."""

import multiprocessing
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from torch.multiprocessing.spawn import start_processes

USED = ["pytest", "rareloss", "torch._dynamo", "torch.distributed.checkpoint", "torch.distributed.fsdp", "torchmetrics"]

# Each spawned process imports torch anew, for seconds; a fork of one that runs no thread is had at once.
multiprocessing.set_forkserver_preload(USED)
METHOD = "forkserver" if sys.platform == "linux" else "spawn"
start_ranks: Callable[..., Any] = partial(start_processes, start_method=METHOD)
