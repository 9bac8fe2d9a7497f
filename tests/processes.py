"""Start ranks, as ``torch.multiprocessing.spawn`` does, from one process that has imported what all of them need."""

import multiprocessing
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.multiprocessing.spawn import start_processes

# Torch 2.6 has fully_shard on a GPU alone: a stream of the CPU takes no events yet.
SHARDS_ON_CPU = hasattr(torch.cpu.current_stream(), "record_event")

USED = ["pytest", "rareloss", "torch._dynamo", "torch.distributed.checkpoint", "torch.distributed.fsdp", "torchmetrics"]

# Each spawned process imports torch anew, for seconds; a fork of one that runs no thread is had at once.
multiprocessing.set_forkserver_preload(USED)
METHOD = "forkserver" if sys.platform == "linux" else "spawn"
start_ranks: Callable[..., Any] = partial(start_processes, start_method=METHOD)
