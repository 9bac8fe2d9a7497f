"""Start ranks, as ``torch.multiprocessing.spawn`` does, from one process that has imported what all of them need."""

import multiprocessing
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from torch.multiprocessing.spawn import start_processes

# Each spawned rank imports torch anew, for seconds; a fork of a process that runs no thread is had at once.
METHOD = "forkserver" if sys.platform == "linux" else "spawn"
USED = ["pytest", "rareloss", "torch._dynamo", "torch.distributed.checkpoint", "torch.distributed.fsdp", "torchmetrics"]

start_ranks: Callable[..., Any] = partial(start_processes, start_method=METHOD)
multiprocessing.set_forkserver_preload(USED)
