"""Compile the native kernel: into a wheel, or beside its sources for an editable install.

``pip install`` runs this as a hook of hatchling; ``python hatch_build.py`` compiles beside the sources without an
install. Where there is no compiler the wheel is a pure one, and rareloss computes everything with torch. The
environment variable RARELOSS_PURE chooses: 1 compiles nothing, 0 makes it an error if compiling fails. CXX names the
compiler and CXXFLAGS adds to its flags.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run as a command, hatchling is not needed
    BuildHookInterface = object

_FOLDER = Path("src", "rareloss", "ops", "native")
_FLAGS = (
    *("-O3", "-std=gnu++17", "-shared", "-fvisibility=hidden"),
    # Infinities and NaN keep their meaning: no -ffast-math. Nobody reads errno or floating-point flags.
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
)
# One library for each instruction set; library.py chooses among them at run time.
_VARIANTS = {
    "x86_64": {
        "v2": ("-march=x86-64-v2",),
        "v3": ("-march=x86-64-v3", "-mprefer-vector-width=256"),
        "v4": ("-march=x86-64-v4", "-mprefer-vector-width=512"),
    },
    "arm64": {"arm64": ()},
}
_MACHINES = {"amd64": "x86_64", "x64": "x86_64", "aarch64": "arm64"}
_OLDEST_MACOS = "11.0"
_STRIP = ("-Wl,-s",) if sys.platform == "linux" else ()


def machine() -> str:
    """Name the machine that is compiled for: ``x86_64``, ``arm64`` or another one, which has no variants."""
    host = os.environ.get("ARCHFLAGS", "").split()[-1:] or [platform.machine()]  # set by cibuildwheel on macOS
    name = host[0].lower()
    return _MACHINES.get(name, name)


def platform_tag() -> str:
    """Name the platform as a wheel's tag does."""
    if sys.platform == "darwin":
        major = os.environ.get("MACOSX_DEPLOYMENT_TARGET", _OLDEST_MACOS).split(".")[0]
        return f"macosx_{major}_0_{machine()}"
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")


def compile_kernel(sources: Path, target: Path, *flags: str, only: str | None = None) -> list[Path]:
    """Compile ``sources/kernel.cpp`` into a library for each variant of this machine.

    Args:
        sources: the folder of the C++ sources.
        target: the folder that the libraries are written to.
        flags: further flags, after the usual ones.
        only: the one variant that is wanted; all by default.

    Returns:
        the libraries.

    Raises:
        RuntimeError: there is no compiler, no variant for this machine, or the compiler failed.
    """
    variants = {name: own for name, own in _VARIANTS.get(machine(), {}).items() if only in (None, name)}
    if not variants:
        raise RuntimeError(f"the native kernel has no variant for {machine()}")
    command = [*_compiler(), *_FLAGS, *_platform_flags(), *flags, *shlex.split(os.environ.get("CXXFLAGS", ""))]
    ending = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
    with tempfile.TemporaryDirectory() as scratch:  # a process may have the old one loaded: never write into it
        compiled = {name: Path(scratch, f"_kernel_{name}{ending}") for name in variants}
        running = [
            subprocess.Popen([*command, *variants[name], str(sources / "kernel.cpp"), "-o", str(library)])
            for name, library in compiled.items()
        ]
        ended = [process.wait() for process in running]
        if any(ended):
            raise RuntimeError(f"the compiler failed: {shlex.join(command)}")
        libraries = [target / library.name for library in compiled.values()]
        for library, path in zip(compiled.values(), libraries, strict=True):
            path.unlink(missing_ok=True)
            shutil.move(library, path)
    return libraries


def _compiler() -> list[str]:
    usual = ["clang++"] if sys.platform == "win32" else ["c++", "g++", "clang++"]
    named = shlex.split(os.environ.get("CXX", ""))
    command = named if named else next(([name] for name in usual if shutil.which(name)), [])
    if not command or shutil.which(command[0]) is None:
        raise RuntimeError(f"there is no C++ compiler; looked for {' '.join(named[:1] or usual)}")
    return command


def _platform_flags() -> tuple[str, ...]:
    if sys.platform == "win32":
        return ()
    if sys.platform == "darwin":
        oldest = os.environ.get("MACOSX_DEPLOYMENT_TARGET", _OLDEST_MACOS)
        return "-fPIC", "-pthread", "-arch", machine(), f"-mmacosx-version-min={oldest}"
    return "-fPIC", "-pthread", "-Wno-psabi"


class CustomBuildHook(BuildHookInterface):  # type: ignore[misc, unused-ignore]
    """Put the libraries into a wheel, or beside the sources where those are what will be imported."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile before the files of the wheel are collected."""
        wanted = os.environ.get("RARELOSS_PURE", "")
        if wanted == "1":
            return
        sources = Path(self.root) / _FOLDER
        self._scratch = tempfile.mkdtemp()
        try:
            libraries = compile_kernel(sources, sources if version == "editable" else Path(self._scratch), *_STRIP)
        except (RuntimeError, OSError) as error:
            if wanted == "0":
                raise
            self.app.display_warning(f"rareloss is built without its native kernel: {error}")
            return
        if version != "editable":
            inside = _FOLDER.relative_to("src").as_posix()
            build_data["force_include"].update({str(path): f"{inside}/{path.name}" for path in libraries})
            # One wheel serves every Python and every torch: the libraries know of neither.
            build_data.update(pure_python=False, tag=f"py3-none-{platform_tag()}")

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was compiled, once the wheel has it."""
        if hasattr(self, "_scratch"):
            shutil.rmtree(self._scratch, ignore_errors=True)


if __name__ == "__main__":
    here = Path(__file__).resolve().parent / _FOLDER
    print(*compile_kernel(here, here, *sys.argv[1:]), sep="\n")
