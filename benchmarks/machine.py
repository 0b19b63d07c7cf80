"""The hardware and the versions that stand beside every figure."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8", "asimd")
_LIBRARIES = ("torch", "FlagEmbedding", "transformers", "tokenizers", "m3serve", "numpy")


def hardware() -> dict[str, str]:
    """The properties of this machine, by name; unknown ones are left out. Needs no torch."""
    import psutil

    cpuinfo = _text("/proc/cpuinfo")
    flags = set(_field(cpuinfo, "flags").split()) | set(_field(cpuinfo, "Features").split())
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    found = {
        "CPU": _cpu(cpuinfo),
        "cores": f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()}",
        "CPU flags": " ".join(flag for flag in _FLAGS if flag in flags),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "OS": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "load at start": "" if load is None else f"{load:.1f}",
    }
    return {name: value for name, value in found.items() if value}


def versions(*more: str) -> dict[str, str]:
    """The versions of the libraries that compute, and of `more`, in this process. Imports torch."""
    import torch

    found = {}
    for library in (*_LIBRARIES, *more):
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    found["torch"] = str(torch.__version__)
    onednn = re.search(r"(?:oneDNN|MKL-DNN) v([\d.]+)", str(torch.__config__.show()))
    if onednn:
        found["oneDNN"] = onednn[1]
    if torch.version.cuda:
        found["CUDA"] = torch.version.cuda
    return found


def driver() -> str:
    """The version of NVIDIA's driver; empty if unknown."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return "" if answer.returncode else answer.stdout.partition("\n")[0].strip()


def device_name(device: str) -> str:
    """`cpu`, or the accelerator's name."""
    if device == "cpu":
        return device
    import torch

    return f"{device} ({torch.cuda.get_device_name(device)})"


def _cpu(cpuinfo: str) -> str:
    name = _field(cpuinfo, "model name") or platform.processor() or platform.machine()
    ids = [_field(cpuinfo, key) for key in ("cpu family", "model", "stepping")]
    return f"{name} (family {ids[0]}, model {ids[1]}, stepping {ids[2]})" if all(ids) else name


def _field(text: str, name: str) -> str:
    found = re.search(rf"^{name}\s*:\s*(.*)$", text, re.MULTILINE)
    return found[1].strip() if found else ""


def _text(path: str) -> str:
    return Path(path).read_text(encoding="utf-8") if Path(path).is_file() else ""
