"""Describe what was measured on, without naming the machine."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from benchmarks.speed import peers

__all__ = ["describe", "kernel", "now"]


def describe(device: str) -> dict[str, object]:
    """Describe processor, threads and versions."""
    description: dict[str, object] = {
        "device": device,
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "rareloss": version("rareloss"),
        "kernel": kernel(),
        "peers": peers.versions(),
    }
    if device == "cuda":
        description["gpu"] = torch.cuda.get_device_name()
        description["cuda"] = torch.version.cuda
    return description


def kernel() -> str:
    """Describe what the losses run on: the native kernel and its variant, or torch alone and why."""
    try:
        from rareloss.ops import native
    except ImportError:
        return "torch alone"
    return str(native.why())


def now() -> str:
    """Return date and minute, UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M")


def _processor() -> str:
    # A virtual machine may hide the model's name, so its family and what it can do stand beside.
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines) if value}
    flags = fields.get("flags", "").split()
    best = next((name for name in ("avx512f", "avx2", "avx") if name in flags), "no AVX")
    family = f"family {fields.get('cpu family')}, model {fields.get('model')}"
    return f"{fields.get('model name', platform.machine())} ({family}, {fields.get('cache size')} cache, {best})"
