"""Only a damaged file is reported as damaged: another download cures neither a full disk nor a defect."""

from __future__ import annotations

import builtins
import errno
import os
import random
import resource
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch

from embedder import ConfigurationError
from embedder.checkpoint import EncoderConfig, find_checkpoint
from embedder.checkpoint.damage import readable
from embedder.checkpoint.tensorfile import TensorFile, load_state
from embedder.checkpoint.weights import Weights, read_head
from embedder.engines.flagembedding import FlagEmbeddingEngine
from embedder.tokenizer import Tokenizer
from tests.embedder.checkpoints import as_bin

Read = Callable[[Path], object]

READERS: dict[str, Read] = {
    "config.json": EncoderConfig.read,
    "tokenizer.json": Tokenizer,
    "tokenizer_config.json": Tokenizer,
    "model.safetensors": Weights.open,
    "sparse_linear.pt": lambda checkpoint: read_head(checkpoint, "sparse_linear"),
}
"""What reads each file of a checkpoint."""

CAUSES = [
    MemoryError(),
    ImportError("no kernel"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    torch.OutOfMemoryError("CUDA out of memory"),
    ZeroDivisionError(),
]
"""What no download cures."""


@contextmanager
def no_file_handles() -> Iterator[None]:
    """Make every open inside the context fail with EMFILE."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        highest = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 2, hard))
        try:
            while True:
                stack.enter_context(Path("/dev/null").open("rb"))
        except OSError:
            yield


# --- what is said ---------------------------------------------------------------------------------------------------


def test_what_the_reader_names_is_damage() -> None:
    """The error names the file without its folder, says what to do, and chains the library's exception."""
    damaged = pytest.raises(ConfigurationError, match=r"^MODEL_ID: a\.bin is damaged .*\(EOFError\); fetch it again$")
    with damaged as caught, readable("a.bin", EOFError):
        raise EOFError
    assert isinstance(caught.value.__cause__, EOFError)


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: type(cause).__name__)
def test_everything_else_keeps_its_type(cause: Exception) -> None:
    """A lack of memory, a missing package, a failing device and a defect are raised unchanged."""
    with pytest.raises(type(cause)) as caught, readable("a.bin", EOFError, ValueError):
        raise cause
    assert caught.value is cause


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EACCES, errno.ENOSPC, errno.EIO])
def test_a_refusal_of_the_system_says_what_it_is(code: int) -> None:
    """The message has the operating system's reason without the path, and does not say "damaged"."""
    with pytest.raises(ConfigurationError) as caught, readable("a.bin", EOFError):
        raise OSError(code, os.strerror(code), "/secret/a.bin")
    assert str(caught.value) == f"MODEL_ID: a.bin cannot be read: {os.strerror(code)} ({errno.errorcode[code]})"
    assert isinstance(caught.value.__cause__, OSError)


# --- every reader ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts its file handles in /proc")
@pytest.mark.parametrize("name", READERS)
def test_a_lack_of_file_handles_is_reported(small_checkpoint: Path, name: str) -> None:
    """Whatever the file, the error says "Too many open files"."""
    READERS[name](small_checkpoint)  # imports the libraries of the reader
    with no_file_handles(), pytest.raises(ConfigurationError, match=r"cannot be read: Too many open files \(EMFILE\)$"):
        READERS[name](small_checkpoint)


@pytest.mark.parametrize("name", READERS)
def test_a_file_that_is_cut_off_anywhere_is_damaged(small_checkpoint: Path, name: str) -> None:
    """An incomplete download is reported as damaged wherever it stopped."""
    path = small_checkpoint / name
    content = path.read_bytes().rstrip()
    draw = random.Random(0)
    for end in [0, 1, len(content) - 1, *(draw.randrange(len(content)) for _ in range(5))]:
        path.write_bytes(content[:end])
        with pytest.raises(ConfigurationError, match=rf"^MODEL_ID: {name} is damaged"):
            READERS[name](small_checkpoint)


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch warns about invalid pickles
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("mapped", [False, True])
def test_a_file_of_torch_is_read_or_damaged(tmp_path: Path, legacy: bool, mapped: bool) -> None:
    """A file with altered bytes either loads or is reported as damaged: torch has a dozen errors for it."""
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.ones(3, 5), "b": torch.ones(2)}, path, _use_new_zipfile_serialization=not legacy)
    content = path.read_bytes()
    draw = random.Random(1)
    damaged = 0
    for _ in range(80):
        altered = bytearray(content)
        for _ in range(draw.choice((1, 3, 20))):
            altered[draw.randrange(len(content))] = draw.randrange(256)
        path.write_bytes(altered[: draw.choice((len(content), draw.randrange(len(content))))])
        try:
            load_state(path, mapped=mapped and not legacy)
        except ConfigurationError as error:
            assert str(error).startswith("MODEL_ID: pytorch_model.bin is damaged")  # noqa: PT017 - it need not be raised
            damaged += 1
    assert damaged > 20


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: type(cause).__name__)
def test_what_torch_lacks_is_not_damage(
    small_checkpoint: Path, cause: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If torch cannot load a head or a `.bin` for another reason, its own error is raised."""
    as_bin(small_checkpoint)

    def failing(*_: object, **__: object) -> None:
        raise cause

    monkeypatch.setattr(torch, "load", failing)
    for read in (READERS["sparse_linear.pt"], lambda checkpoint: TensorFile(checkpoint / "pytorch_model.bin")):
        with pytest.raises(type(cause)) as caught:
            read(small_checkpoint)
        assert caught.value is cause


# --- FlagEmbedding --------------------------------------------------------------------------------------------------


def flagembedding(checkpoint: Path) -> FlagEmbeddingEngine:
    """Load the FlagEmbedding engine of a checkpoint."""
    return FlagEmbeddingEngine.load(checkpoint, device="cpu", dtype="float32", dropped_ids=frozenset())


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "sparse_linear.pt", "colbert_linear.pt"])
def test_a_damaged_file_is_named_before_the_library_loads(small_checkpoint: Path, name: str) -> None:
    """`ENGINE=flagembedding` names the damaged file, as the packed engine does."""
    path = small_checkpoint / name
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConfigurationError, match=rf"^MODEL_ID: {name} is damaged"):
        flagembedding(small_checkpoint)


@pytest.mark.parametrize("cause", [*CAUSES, OSError(errno.ENOSPC, "full")], ids=lambda cause: type(cause).__name__)
def test_what_the_library_lacks_is_not_damage(
    small_checkpoint: Path, cause: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory, package, device errors and defects of the library are not reported as a damaged checkpoint."""

    def failing(*_: object, **__: object) -> None:
        raise cause

    monkeypatch.setattr("FlagEmbedding.BGEM3FlagModel", failing)
    with pytest.raises(type(cause)) as caught:
        flagembedding(small_checkpoint)
    assert caught.value is cause


# --- the hub --------------------------------------------------------------------------------------------------------


def downloading(error: Exception, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Download a model from the hub while the client fails with this error."""

    def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", failing)
    monkeypatch.setattr("embedder.checkpoint.find.hub_failure", lambda _: None)
    return find_checkpoint("me/tuned", platform_cache=Path("/nowhere"))


@pytest.mark.parametrize(
    "name",
    [
        "ConnectionResetError",
        "TimeoutError",
        "OfflineModeIsEnabled",
        "LocalEntryNotFoundError",
        "HFValidationError",
    ],
)
def test_a_hub_that_cannot_be_asked_is_a_matter_of_name_and_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the network or the hub fails, the error says what to check."""
    from huggingface_hub import errors

    error: type[Exception] = getattr(builtins, name, None) or getattr(errors, name)
    with pytest.raises(ConfigurationError, match=r"could not be downloaded .*HF_TOKEN, HF_HUB_OFFLINE and the network"):
        downloading(error("refused"), monkeypatch)


def test_a_cache_without_room_is_a_matter_of_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is not reported as a network failure."""
    with pytest.raises(ConfigurationError) as caught:
        downloading(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/secret/path"), monkeypatch)
    assert "cannot be kept in the hub's cache: No space left on device (ENOSPC)" in str(caught.value)
    assert "network" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: type(cause).__name__)
def test_a_defect_of_the_client_is_not_the_network(cause: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure of neither the network nor the disk keeps its type."""
    with pytest.raises(type(cause)) as caught:
        downloading(cause, monkeypatch)
    assert caught.value is cause
