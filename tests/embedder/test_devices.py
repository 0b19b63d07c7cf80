"""The worker runs on the requested device or does not start."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from embedder.checkpoint import MINI
from embedder.engines.calibration import batch_of
from embedder.engines.devices import choose_devices, choose_dtype, device_errors
from embedder.engines.flagembedding import FlagEmbeddingEngine
from embedder.engines.packed import PackedEngine
from embedder.errors import ConfigurationError, DeviceLost
from embedder.model.processor import has_quick_product
from embedder.vectors import Outputs
from tests.embedder.bench import Bench

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without CUDA")
with_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@without_cuda
def test_unset_without_cuda_is_the_cpu_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Running on the CPU for want of a GPU is never silent."""
    with caplog.at_level(logging.WARNING):
        assert choose_devices(None) == ["cpu"]
    assert "no CUDA device" in caplog.text


@pytest.mark.gpu
@with_cuda
def test_unset_with_cuda_is_the_first_gpu() -> None:
    """If a GPU is available, it is used by default."""
    assert choose_devices(None) == ["cuda:0"]


@pytest.mark.parametrize("setting", ["cpu", " cpu "])
def test_the_cpu_asked_for_is_no_warning(setting: str, caplog: pytest.LogCaptureFixture) -> None:
    """`GPU_DEVICE=cpu` is an explicit choice and causes no warning."""
    with caplog.at_level(logging.WARNING):
        assert choose_devices(setting) == ["cpu"]
    assert not caplog.records


@pytest.mark.parametrize("setting", ["cuda:977", "cpu,cuda:977"])
def test_a_device_that_is_missing_is_refused(setting: str) -> None:
    """A missing GPU is refused, naming it and the number of available GPUs."""
    device_count = torch.cuda.device_count()
    with pytest.raises(
        ConfigurationError, match=f"GPU_DEVICE: cuda:977 is not there; CUDA devices found: {device_count}"
    ):
        choose_devices(setting)


@without_cuda
def test_cuda_without_a_number_is_the_first(caplog: pytest.LogCaptureFixture) -> None:
    """`cuda` means `cuda:0`, and is refused like it."""
    with pytest.raises(ConfigurationError, match="cuda:0 is not there"):
        choose_devices("cuda")


@pytest.mark.parametrize("setting", ["", "gpu", "0", "cuda:", "cuda:-1", "cuda:x", "CPU", "cpu,", "mps", "cuda:1:2"])
def test_an_invalid_device_is_refused(setting: str) -> None:
    """An invalid `GPU_DEVICE` is refused with an example of a valid value."""
    with pytest.raises(ConfigurationError, match="is an unknown device; use cpu, cuda:0"):
        choose_devices(setting)


def test_a_device_named_twice_is_refused() -> None:
    """A device that is listed twice is refused, as a second copy of the weights would only cost memory."""
    with pytest.raises(ConfigurationError, match="twice"):
        choose_devices("cpu,cpu")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_a_type_that_is_set_is_taken(dtype: str, device: str) -> None:
    """A `DTYPE` other than `auto` is used as set."""
    assert choose_dtype(dtype, device) == dtype


def test_auto_is_a_type_that_the_device_multiplies() -> None:
    """`auto` chooses float16 on GPUs, float32 for FlagEmbedding on a CPU, else a type with CPU kernels."""
    assert choose_dtype("auto", "cuda:1") == "float16"
    dtype = choose_dtype("auto", "cpu")
    assert dtype == "float32" or has_quick_product(dtype)
    assert choose_dtype("auto", "cpu", engine="flagembedding") == "float32"


@pytest.mark.parametrize(
    ("rates", "best"),
    [
        ({"float32": 170, "bfloat16": 420, "float16": 45}, "bfloat16"),
        ({"float32": 250, "bfloat16": 145, "float16": 240}, "float16"),
        ({"float32": 250, "bfloat16": 145, "float16": 180}, "float32"),
        ({"float32": 250, "bfloat16": 500, "float16": 480}, "float16"),
        ({"float32": 250, "bfloat16": 700, "float16": 480}, "bfloat16"),
        ({"float32": 330, "bfloat16": 320, "float16": 240}, "bfloat16"),
        ({"float32": 250, "bfloat16": 240}, "bfloat16"),
        ({"float32": 250, "bfloat16": 145}, "float32"),
    ],
    ids=[
        "AVX512-BF16 at full rate",
        "AVX512-FP16",
        "16 bits much slower",
        "both about equal",
        "bfloat16 decisively faster",
        "float16 much slower",
        "bfloat16 alone",
        "bfloat16 alone and slow",
    ],
)
def test_auto_on_a_cpu_is_what_was_measured(rates: dict[str, float], best: str) -> None:
    """Among types of similar speed, `auto` prefers 16 bits for half the memory, and float16 as the more exact."""
    measured = choose_dtype(
        "auto", "cpu", rates=lambda dtypes: {dtype: rates[dtype] for dtype in dtypes}, multiplies=rates.__contains__
    )
    assert measured == best


def test_auto_without_16_bit_kernels_measures_nothing() -> None:
    """A CPU without 16-bit kernels gets float32 immediately."""
    chosen = choose_dtype(
        "auto", "cpu", rates=lambda dtypes: pytest.fail(f"measured {dtypes}"), multiplies=lambda _: False
    )
    assert chosen == "float32"


@pytest.mark.parametrize(
    ("device", "capability", "message"),
    [
        ("cpu", (0, 0), r"needs an NVIDIA GPU of compute capability 8\.9 .* not a CPU; use auto or int8"),
        ("cuda:1", (8, 6), r"capability 8\.9 or newer .* cuda:1 has 8\.6: use auto or float16"),
    ],
)
def test_float8_where_nothing_multiplies_it_is_refused(device: str, capability: tuple[int, int], message: str) -> None:
    """`DTYPE=float8` on a CPU or an old GPU names the requirement, the device and the setting to change."""
    with pytest.raises(ConfigurationError, match=message):
        choose_dtype("float8", device, capability=lambda _: capability)


def test_float8_is_taken_where_it_is_set_and_never_by_auto() -> None:
    """float8 must be chosen explicitly: a GPU that supports it still computes in float16 by default."""
    assert choose_dtype("float8", "cuda:0", capability=lambda _: (8, 9)) == "float8"
    assert choose_dtype("auto", "cuda:0", capability=lambda _: (9, 0)) == "float16"


def test_int8_on_a_gpu_is_refused() -> None:
    """`DTYPE=int8` with a GPU is refused, and the message names the fix."""
    with pytest.raises(ConfigurationError, match=r"DTYPE=int8 .* cuda:0; use auto or float16"):
        PackedEngine.load(MINI, device="cuda:0", dtype="int8", dropped_ids=frozenset())


@pytest.mark.parametrize(
    ("dtype", "device", "fix"),
    [
        ("bfloat16", "cpu", "float32"),
        ("float16", "cpu", "float32"),
        ("int8", "cpu", "packed"),
        ("int8", "cuda:0", "packed"),
        ("float8", "cuda:0", "packed"),
    ],
)
def test_types_that_flagembedding_lacks_are_refused(dtype: str, device: str, fix: str) -> None:
    """`ENGINE=flagembedding` with a type that it cannot compute in names the setting and the fix."""
    with pytest.raises(ConfigurationError, match=rf"DTYPE={dtype}.*{fix}"):
        FlagEmbeddingEngine.load(Path("/nowhere"), device=device, dtype=dtype, dropped_ids=frozenset())


@pytest.mark.parametrize(
    ("device", "answers", "error"),
    [("cuda:0", True, RuntimeError), ("cuda:0", False, DeviceLost), ("cpu", False, RuntimeError)],
)
def test_a_device_is_lost_only_if_it_answers_no_more(device: str, answers: bool, error: type[Exception]) -> None:
    """If the device still computes after an error, only the batch fails; otherwise the device is lost."""
    with pytest.raises(error) as caught, device_errors(device, still_answers=lambda _: answers):
        raise RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED")
    assert type(caught.value) is error


@pytest.mark.parametrize("error", [TypeError("a defect"), ImportError("no kernel"), OSError(28, "full")])
def test_what_is_not_of_the_device_keeps_its_type(error: Exception) -> None:
    """A defect is not reported as a device failure, even if the device no longer responds."""
    with pytest.raises(type(error)) as caught, device_errors("cuda:0", still_answers=lambda _: False):
        raise error
    assert caught.value is error


def test_flagembedding_says_when_the_memory_is_too_small(mini: Bench) -> None:
    """FlagEmbedding raises MemoryError for a batch that does not fit, so that the batch is halved."""

    def exhausted(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory: secret host")

    library = SimpleNamespace(tokenizer=mini.flagembedding._library.tokenizer, model=exhausted)
    engine = FlagEmbeddingEngine(
        library, mini.model.config, colbert_size=192, device="cpu", dtype="float32", dropped_ids=frozenset()
    )
    with pytest.raises(MemoryError, match="does not fit into the memory of cpu"):
        engine.encode(batch_of([8]), Outputs())
