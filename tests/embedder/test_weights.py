"""Weights load as they were saved, in the requested type, and their file leaves the memory."""

from __future__ import annotations

import errno
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import embedder
from embedder.checkpoint.weights import Weights, shaped
from embedder.errors import ConfigurationError

Kind = Literal["safetensors", "bin", "legacy"]
State = dict[str, Tensor]

ROOT = Path(embedder.__file__).parents[1]
TYPES = [torch.float32, torch.float16, torch.bfloat16]
STATE: State = {
    "embeddings.word_embeddings.weight": torch.randn(37, 8, generator=torch.Generator().manual_seed(1)),
    "a.weight": torch.arange(24.0).reshape(3, 8) / 7,
    "b.weight": -torch.arange(24.0).reshape(3, 8) / 7,
    "b.bias": torch.tensor([0.1, -0.2, 0.3]),
}


def saved(folder: Path, state: State, kind: Kind = "safetensors") -> Path:
    """Save a checkpoint folder that holds only these weights."""
    folder.mkdir(exist_ok=True)
    if kind == "safetensors":
        save_file(state, folder / "model.safetensors")
    else:
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=kind == "bin")
    return folder


def copies(cache: Path) -> list[Path]:
    """Return the converted files in a cache."""
    return sorted(cache.glob("*.safetensors"))


def read_all(weights: Weights, state: State, dtype: torch.dtype = torch.float32) -> State:
    """Read every weight of the state."""
    return {name: weights.read(name, *tensor.shape, dtype=dtype) for name, tensor in state.items()}


def assert_equal(actual: State, expected: State) -> None:
    """Assert that names, types and all bits are equal."""
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype
        assert torch.equal(actual[name], tensor), name


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """The folder for this test's converted files."""
    return tmp_path / "cache"


@pytest.fixture
def unpickled_paths(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Record the paths that `torch.load` reads."""
    real: Callable[..., Any] = torch.load
    paths: list[Path] = []

    def load(path: Path, **options: Any) -> Any:
        paths.append(path)
        return real(path, **options)

    monkeypatch.setattr(torch, "load", load)
    return paths


# --- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["safetensors", "bin", "legacy"])
@pytest.mark.parametrize("stored", TYPES, ids=str)
@pytest.mark.parametrize("wanted", TYPES, ids=str)
def test_weights_are_those_that_were_saved(
    tmp_path: Path, cache: Path, kind: Kind, stored: torch.dtype, wanted: torch.dtype
) -> None:
    """Whatever the format and type of the file, the weights are torch's own conversion of what was saved."""
    state = {name: tensor.to(stored) for name, tensor in STATE.items()}
    weights = Weights.open(saved(tmp_path / "model", state, kind), cache=cache)
    assert weights.names == STATE.keys()
    assert_equal(read_all(weights, state, wanted), {name: tensor.to(wanted) for name, tensor in state.items()})


@pytest.mark.parametrize("elements", [1, 7, 8, 9, 16, 36 * 8, 37 * 8, 10_000])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_slices_are_seamless(tmp_path: Path, cache: Path, kind: Kind, elements: int) -> None:
    """A weight larger than one mapped slice loads without lost, repeated or moved rows."""
    folder = saved(tmp_path / "model", STATE, kind)
    assert_equal(read_all(Weights.open(folder, cache=cache, slice_elements=elements), STATE), STATE)
    direct = Weights.open(folder, cache=tmp_path / "model" / "pytorch_model.bin", slice_elements=elements)
    assert_equal(read_all(direct, STATE), STATE)


@pytest.mark.parametrize("elements", [8, 16, 10_000])
def test_fused_rows_follow_each_other(tmp_path: Path, elements: int) -> None:
    """Query, key and value become one weight in the given order."""
    weights = Weights.open(saved(tmp_path / "model", STATE), slice_elements=elements)
    fused = weights.read_rows(["b.weight", "a.weight"], 3, 8, dtype=torch.bfloat16)
    assert torch.equal(fused, torch.cat([STATE["b.weight"], STATE["a.weight"]]).bfloat16())
    assert torch.equal(weights.read_rows(["b.bias"] * 2, 3, dtype=torch.float32), STATE["b.bias"].repeat(2))


def test_only_the_weights_of_an_encoder_count(tmp_path: Path, cache: Path) -> None:
    """A model saved with a head on top loads: its prefix is dropped and unused weights are ignored."""
    extra = {"pooler.dense.weight", "lm_head.bias", "embeddings.position_ids"}
    state = {f"roberta.{name}": torch.ones(2) for name in ("one.bias", *extra)}
    for kind in ("safetensors", "bin"):
        weights = Weights.open(saved(tmp_path / kind, state, kind), cache=cache)
        assert weights.names == {"one.bias"}
        assert torch.equal(weights.read("one.bias", 2, dtype=torch.float32), torch.ones(2))


@pytest.mark.parametrize("kind", ["safetensors", "bin", "legacy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_was_read_outlives_the_file(tmp_path: Path, cache: Path, kind: Kind, dtype: torch.dtype) -> None:
    """Overwriting the files after loading changes no weight."""
    folder = saved(tmp_path / "model", STATE, kind)
    loaded = read_all(Weights.open(folder, cache=cache), STATE, dtype)
    for path in (*folder.iterdir(), *copies(cache)):
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.write(b"\xff" * size)
    assert_equal(loaded, {name: tensor.to(dtype) for name, tensor in STATE.items()})


def test_a_missing_weight_is_named(tmp_path: Path) -> None:
    """A missing weight is refused by its name, alone or within a fused one."""
    weights = Weights.open(saved(tmp_path / "model", STATE))
    for names in (["c.weight"], ["a.weight", "c.weight"]):
        with pytest.raises(ConfigurationError, match=r"^MODEL_ID: the checkpoint lacks the weight c\.weight$"):
            weights.read_rows(names, 3, 8, dtype=torch.float32)


@pytest.mark.parametrize("shape", [(8, 3), (3,), (24,), (3, 9), (3, 8, 1)])
def test_another_shape_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """A weight that does not fit config.json is refused with both shapes, even where the sizes agree."""
    weights = Weights.open(saved(tmp_path / "model", STATE))
    message = f"MODEL_ID: the weight a.weight has shape [3, 8], config.json implies {list(shape)}"
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        weights.read("a.weight", *shape, dtype=torch.float32)
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        shaped(STATE["a.weight"], "a.weight", *shape)


@pytest.mark.parametrize(
    ("stored", "code"),
    [
        (torch.int8, "I8"),
        (torch.uint8, "U8"),
        (torch.int64, "I64"),
        (torch.bool, "BOOL"),
        (torch.float8_e4m3fn, "F8_E4M3"),
        (torch.float8_e5m2, "F8_E5M2"),
    ],
    ids=str,
)
def test_quantised_weights_are_refused(tmp_path: Path, stored: torch.dtype, code: str) -> None:
    """A weight that needs a scale is refused with its type and the fix, read or mapped."""
    weights = Weights.open(saved(tmp_path / "model", STATE | {"a.weight": STATE["a.weight"].to(stored)}))
    message = (
        f"^MODEL_ID: the weight a.weight is stored as {code}, supported are F64, F32, F16, BF16; use the checkpoint"
    )
    with pytest.raises(ConfigurationError, match=message):
        weights.read_rows(["b.weight", "a.weight"], 3, 8, dtype=torch.float32)
    with pytest.raises(ConfigurationError, match=message):
        weights.mapped("a.weight", 3, 8)
    assert torch.equal(weights.read("b.weight", 3, 8, dtype=torch.float32), STATE["b.weight"])


@pytest.mark.parametrize(
    ("kind", "stored"), [("bin", torch.int8), ("legacy", torch.int8), ("bin", torch.float8_e4m3fn)], ids=str
)
def test_quantised_weights_of_a_bin_are_refused(tmp_path: Path, cache: Path, kind: Kind, stored: torch.dtype) -> None:
    """A `pytorch_model.bin` with quantised weights is refused, whether or not it can be converted."""
    folder = saved(tmp_path / "model", STATE | {"a.weight": STATE["a.weight"].to(stored)}, kind)
    for cache_folder in (cache, folder / "pytorch_model.bin" / "below"):
        with pytest.raises(ConfigurationError, match=r"lacks the weight a\.weight"):
            Weights.open(folder, cache=cache_folder).read("a.weight", 3, 8, dtype=torch.float32)


def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    """A checkpoint that is replaced while it loads is refused, as weights of two files must not be mixed."""
    folder = saved(tmp_path / "model", STATE)
    weights = Weights.open(folder, slice_elements=8)
    saved(folder, {name: tensor.half() for name, tensor in STATE.items()})
    with pytest.raises(ConfigurationError, match=r"model\.safetensors changed while it was read"):
        read_all(weights, STATE)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_weights_go_to_the_gpu(tmp_path: Path) -> None:
    """Weights on a GPU equal the saved ones."""
    weights = Weights.open(saved(tmp_path / "model", STATE), slice_elements=16)
    for dtype in TYPES:
        for name, tensor in STATE.items():
            loaded = weights.read(name, *tensor.shape, dtype=dtype, device="cuda:0")
            assert loaded.is_cuda
            assert torch.equal(loaded.cpu(), tensor.to(dtype))


_PEAK = """
import sys
from pathlib import Path
import torch
from embedder.checkpoint.weights import Weights

def kilobytes(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key + ":"))

torch.ones(1).bfloat16()
import safetensors
before = kilobytes("VmRSS")
weights = Weights.open(Path(sys.argv[1]), cache=Path(sys.argv[2]), slice_elements=2**22)
kept = [weights.read(name, 24_000, 1024, dtype=torch.bfloat16) for name in sorted(weights.names)]
print((kilobytes("VmHWM") - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to ask for the peak")
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_loading_takes_little_more_than_what_is_kept(tmp_path: Path, cache: Path, kind: Kind) -> None:
    """Loading a float32 file as bfloat16 peaks near half of its size, conversion included."""
    state = {"a.weight": torch.ones(24_000, 1024), "b.weight": torch.ones(24_000, 1024)}
    folder = saved(tmp_path / "model", state, kind)
    peak = subprocess.run(
        [sys.executable, "-c", _PEAK, folder, cache], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert int(peak.stdout) < 0.75 * sum(tensor.nbytes for tensor in state.values())


# --- conversion -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bin", "legacy"])
def test_a_bin_is_converted_once(
    tmp_path: Path, cache: Path, unpickled_paths: list[Path], kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    """The first start converts the file and logs the time; the second reads the copy and unpickles nothing."""
    folder = saved(tmp_path / "model", STATE, kind)
    with caplog.at_level(logging.INFO):
        assert_equal(read_all(Weights.open(folder, cache=cache), STATE), STATE)
    assert re.search(r"converted pytorch_model\.bin in \d+\.\d s", caplog.text)
    assert unpickled_paths
    unpickled_paths.clear()
    assert_equal(read_all(Weights.open(folder, cache=cache), STATE), STATE)
    assert not unpickled_paths


def test_safetensors_need_no_cache(tmp_path: Path, cache: Path) -> None:
    """A checkpoint with `model.safetensors` is read in place, even beside a `.bin`."""
    folder = saved(tmp_path / "model", {"a.weight": torch.ones(1)}, "bin")
    saved(folder, STATE)
    assert_equal(read_all(Weights.open(folder, cache=cache), STATE), STATE)
    assert not cache.exists()


def test_the_copy_is_plain_safetensors(tmp_path: Path, cache: Path) -> None:
    """Converted files keep mixed, tied, transposed, empty and scalar tensors and their types."""
    base = torch.arange(15.0).reshape(3, 5)
    state = {
        "half": torch.ones(3).half(),
        "base": base,
        "tied": base,
        "part": base[1:, 2:],
        "turned": base.T,
        "brain": torch.ones(5, 1).bfloat16(),
        "double": torch.ones(2).double(),
        "empty": torch.ones(0, 4),
        "scalar": torch.tensor(2.5),
    }
    Weights.open(saved(tmp_path / "model", state | {"counter": torch.tensor(3)}, "bin"), cache=cache)
    (copy,) = copies(cache)
    assert_equal(load_file(copy), state)


def test_a_changed_source_is_converted_anew(tmp_path: Path, cache: Path) -> None:
    """A changed source is detected even with equal size and time, and the old copy is replaced."""
    folder = saved(tmp_path / "model", STATE, "bin")
    Weights.open(folder, cache=cache)
    times = (folder / "pytorch_model.bin").stat()
    changed = STATE | {"b.bias": STATE["b.bias"] + 1}
    saved(folder, changed, "bin")
    os.utime(folder / "pytorch_model.bin", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert_equal(read_all(Weights.open(folder, cache=cache), STATE), changed)
    assert len(copies(cache)) == 1


def test_checkpoints_share_a_cache(tmp_path: Path, cache: Path) -> None:
    """Two models in one cache have one copy each."""
    first = saved(tmp_path / "first", STATE, "bin")
    second = saved(tmp_path / "second", {"b.bias": torch.ones(3)}, "bin")
    for _ in range(2):
        assert_equal(read_all(Weights.open(first, cache=cache), STATE), STATE)
        assert torch.equal(Weights.open(second, cache=cache).read("b.bias", 3, dtype=torch.float32), torch.ones(3))
    assert len(copies(cache)) == 2


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_a_damaged_copy_is_made_anew(tmp_path: Path, cache: Path, size: int) -> None:
    """A truncated copy is converted again."""
    folder = saved(tmp_path / "model", STATE, "bin")
    Weights.open(folder, cache=cache)
    (copy,) = copies(cache)
    os.truncate(copy, size % copy.stat().st_size)
    assert_equal(read_all(Weights.open(folder, cache=cache), STATE), STATE)


def test_what_a_killed_conversion_left_is_removed(tmp_path: Path, cache: Path) -> None:
    """Files of interrupted conversions are removed."""
    folder = saved(tmp_path / "model", STATE, "bin")
    Weights.open(folder, cache=cache)
    (copy,) = copies(cache)
    copy.rename(copy.with_suffix(".0123.part"))
    Weights.open(folder, cache=cache)
    assert copies(cache) == [copy]
    assert not list(cache.glob("*.part"))


def test_many_may_start_at_once(tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If several workers start together, one converts and all load the same weights."""
    folder = saved(tmp_path / "model", STATE, "bin")

    def load(_: int) -> State:
        return read_all(Weights.open(folder, cache=cache), STATE)

    with caplog.at_level(logging.INFO), ThreadPoolExecutor(8) as threads:
        for loaded in threads.map(load, range(16)):
            assert_equal(loaded, STATE)
    assert caplog.text.count("converted pytorch_model.bin in") == 1


def test_the_cache_is_where_the_user_keeps_caches(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is under `XDG_CACHE_HOME`, or under `~/.cache` if it is unset."""
    folder = saved(tmp_path / "model", STATE, "bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    Weights.open(folder)
    assert copies(cache / "bge-m3-qdrant")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    Weights.open(folder)
    assert copies(tmp_path / "home" / ".cache" / "bge-m3-qdrant")


def _homeless() -> Path:
    raise RuntimeError("Could not determine home directory.")


def _full(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("kind", ["bin", "legacy"])
@pytest.mark.parametrize("obstacle", ["not a folder", "no home", "disk full"])
def test_a_cache_that_cannot_be_written_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: Kind, obstacle: str
) -> None:
    """If the cache is not writable, the `.bin` is read directly, with one warning without paths."""
    folder = saved(tmp_path / "model", STATE, kind)
    cache: Path | None = tmp_path / "cache"
    if obstacle == "not a folder":
        cache = folder / "pytorch_model.bin" / "below"
    elif obstacle == "no home":
        cache = None
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "home", _homeless)
    else:
        monkeypatch.setattr(os, "fsync", _full)
    with caplog.at_level(logging.WARNING):
        assert_equal(read_all(Weights.open(folder, cache=cache, slice_elements=8), STATE), STATE)
    (warning,) = caplog.messages
    reason = {"not a folder": "Not a directory", "no home": "no home directory", "disk full": "No space left on device"}
    assert f"({reason[obstacle]})" in warning
    assert str(tmp_path) not in warning
    assert not list(tmp_path.glob("cache/*.part"))
    assert not copies(tmp_path / "cache")


@pytest.mark.parametrize("state", [{"a.weight": [1.0]}, {"a.weight": None}, [torch.ones(2)], {1: torch.ones(2)}, 7])
def test_a_pickle_of_something_else_is_refused(
    tmp_path: Path, cache: Path, state: object, caplog: pytest.LogCaptureFixture
) -> None:
    """A pickle without a state dict is refused by file name, without a copy or a warning."""
    folder = saved(tmp_path / "model", state, "bin")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"^MODEL_ID: pytorch_model\.bin is damaged") as caught:
        Weights.open(folder, cache=cache)
    assert str(tmp_path) not in str(caught.value)
    assert not copies(cache)
    assert not list(cache.glob("*.part"))
    assert not caplog.records


def test_a_mapped_weight_is_the_weight(tmp_path: Path) -> None:
    """A mapped weight keeps its values and type after the reader is closed or the file replaced."""
    exact = torch.arange(24, dtype=torch.float16).reshape(6, 4)
    path = tmp_path / "model.safetensors"
    save_file({"roberta.embeddings.word_embeddings.weight": exact}, path)
    mapped = Weights.open(tmp_path).mapped("embeddings.word_embeddings.weight", 6, 4)
    (tmp_path / "other").write_bytes(b"something else")
    (tmp_path / "other").replace(path)
    assert torch.equal(mapped, exact)


def test_a_mapped_weight_of_another_shape_is_refused(tmp_path: Path) -> None:
    """A table that contradicts config.json is refused before use."""
    save_file({"roberta.embeddings.word_embeddings.weight": torch.zeros(6, 4)}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigurationError, match=r"shape \[6, 4\], config.json implies \[7, 4\]"):
        Weights.open(tmp_path).mapped("embeddings.word_embeddings.weight", 7, 4)
