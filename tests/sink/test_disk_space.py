"""A full disk refuses writes and leaves reads, instead of ending the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qdrant_sink.edge import DiskSpace, EdgeStore
from qdrant_sink.edge.disk_space import OPEN_MAX_BYTES, OPERATION_MAX_BYTES, WRITE_FACTOR
from qdrant_sink.errors import StoreUnavailable
from qdrant_sink.points import Point
from qdrant_sink.schema import PayloadIndex
from qdrant_sink.searching import run
from tests.sink.samples import SCHEMA, draft, search_by
from tests.sink.writing import write

ROOT = Path(__file__).parents[2]
RESERVE_BYTES = 100_000_000


class Disk:
    """The free space of a disk, which a test sets."""

    def __init__(self) -> None:
        self.free: int | None = 10**12

    def __call__(self, _path: Path) -> int | None:
        """Return the free bytes."""
        return self.free

    def fill(self) -> None:
        """Leave the reserve and nothing else."""
        self.free = RESERVE_BYTES


@pytest.fixture
def disk() -> Disk:
    """A disk with space."""
    return Disk()


@pytest.fixture
def store(tmp_path: Path, disk: Disk) -> Iterator[EdgeStore]:
    """A store with a collection of 20 points on the disk."""
    store = EdgeStore(tmp_path / "edge", space=DiskSpace(RESERVE_BYTES, disk))
    store.ensure("docs", SCHEMA)
    assert write(store, "docs", [draft(i) for i in range(20)], SCHEMA).stored == 20
    yield store
    store.close()


def _point(number: int) -> Point:
    vectors = draft(number).vectors
    return Point(number, {"n": number}, vectors.dense, vectors.sparse, vectors.colbert)


def test_a_full_disk_refuses_writes_and_reads_go_on(store: EdgeStore, disk: Disk) -> None:
    """Points are refused with the free space, the reserve and the setting; everything that is stored can be read."""
    disk.fill()
    with pytest.raises(StoreUnavailable) as caught:
        store.upsert("docs", [_point(100)])
    assert caught.value.message.startswith("disk full: the disk of QDRANT_PATH has 100 MB free")
    assert "beyond the reserve of 100 MB (QDRANT_PATH_RESERVE_MB)" in caught.value.message
    assert caught.value.retryable
    assert store.count("docs") == 20
    assert len(store.fetch("docs", [1, 2], True, ("dense",))) == 2
    [[hit]] = run(store, "docs", [search_by(dense=draft(7).vectors.dense, using=("dense",), limit=1)])
    assert hit.id == 7


def test_writes_go_on_when_there_is_space_again(store: EdgeStore, disk: Disk) -> None:
    """After a refusal nothing that was acknowledged is lost, nothing that was refused is stored, and writes go on."""
    disk.fill()
    assert write(store, "docs", [draft(i) for i in range(20, 40)], SCHEMA).stored == 0
    assert store.count("docs") == 20
    disk.free = 10**12
    assert write(store, "docs", [draft(i) for i in range(20, 40)], SCHEMA).stored == 20
    assert store.count("docs") == 40


@pytest.mark.parametrize(
    "operation",
    [
        lambda store: store.upsert("docs", [_point(100)]),
        lambda store: store.update_vectors("docs", [_point(1)]),
        lambda store: store.set_payload("docs", [1], "n", 2),
        lambda store: store.delete("docs", ids=[1]),
        lambda store: store.ensure("other", SCHEMA),
        lambda store: store.ensure_index("docs", "n", PayloadIndex("integer")),
        lambda store: store.add_vectors("docs", SCHEMA, ("dense",)),
        lambda store: store.optimize("docs"),
    ],
)
def test_every_operation_that_writes_needs_space(
    store: EdgeStore, disk: Disk, operation: Callable[[EdgeStore], object]
) -> None:
    """No kind of write begins on a full disk, an optimisation and the creation of an index included."""
    disk.fill()
    with pytest.raises(StoreUnavailable, match="disk full"):
        operation(store)
    assert store.collections() == ["docs"]
    assert store.count("docs") == 20
    disk.free = 10**12
    operation(store)


def test_the_space_that_is_needed_grows_with_the_points(store: EdgeStore, disk: Disk) -> None:
    """A disk that has space for one point and not for a thousand takes the one."""
    points = [_point(number) for number in range(1000)]
    disk.free = RESERVE_BYTES + OPERATION_MAX_BYTES + WRITE_FACTOR * points[0].nbytes
    with pytest.raises(StoreUnavailable, match="disk full"):
        store.upsert("docs", points)
    store.upsert("docs", points[:1])


def test_concurrent_writes_are_added_up(tmp_path: Path, disk: Disk) -> None:
    """Two writes cannot both take the last free space, and space that is given back can be taken again."""
    space = DiskSpace(RESERVE_BYTES, disk)
    disk.free = RESERVE_BYTES + 1000
    with space.write(tmp_path, "write", 600):
        with pytest.raises(StoreUnavailable), space.write(tmp_path, "write", 600):
            pass
        with space.write(tmp_path, "write", 400):
            pass
    with space.write(tmp_path, "write", 1000):
        pass


def test_a_collection_is_not_opened_without_the_space_for_it(tmp_path: Path, store: EdgeStore, disk: Disk) -> None:
    """A restart on a disk that is full refuses the collection with the reason, and opens it when there is space."""
    store.close()
    disk.free = OPEN_MAX_BYTES - 1
    reopened = EdgeStore(tmp_path / "edge", space=DiskSpace(RESERVE_BYTES, disk))
    with pytest.raises(StoreUnavailable, match=r"disk full: .* the opening of a collection may need"):
        reopened.count("docs")
    disk.free = 10**9  # tmp_path may be in memory, where opening takes more
    assert reopened.count("docs") == 20
    reopened.close()


def test_a_file_system_that_does_not_say_its_size_takes_everything(store: EdgeStore, disk: Disk) -> None:
    """Some network volumes report no sizes; they are not mistaken for full ones."""
    disk.free = None
    store.upsert("docs", [_point(100)])
    assert store.count("docs") == 21


SIZE_MB = 560
"""Size of the file system that is filled. What is tested needs more than twice the reserve."""

FILL = """
import os, signal, sys
from qdrant_sink.edge import DiskSpace, EdgeStore
from qdrant_sink.errors import StoreUnavailable
from qdrant_sink.points import Point
from tests.sink.samples import sample_vectors, schema_for

schema = schema_for(256, 256)
guarded = sys.argv[2] == "guarded"
store = EdgeStore(sys.argv[1], space=DiskSpace() if guarded else DiskSpace(free=lambda path: None))
stored = store.count("docs") if store.collection_of("docs") else 0
vectors = sample_vectors(1, rows=100, size=256)
try:
    store.ensure("docs", schema)
    while True:
        numbers = range(stored, stored + 20)
        store.upsert("docs", [Point(i, {"n": i}, vectors.dense, vectors.sparse, vectors.colbert) for i in numbers])
        stored += 20
except StoreUnavailable as error:
    assert error.message.startswith("disk full"), error.message
assert store.count("docs") == stored
assert len(store.fetch("docs", [0, stored - 1], True, ("colbert",))) == 2
print(stored, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def _in_memory(script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script in a name space in which it may mount a file system of its own."""
    return subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script],  # noqa: S607 - of the system
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.slow
def test_a_real_full_disk_ends_no_process(tmp_path: Path) -> None:
    """A full file system refuses writes, also after a kill; without the guard the process dies of SIGBUS."""
    mount = f"mount -t tmpfs -o size={SIZE_MB}m tmpfs {tmp_path}"
    try:
        permitted = _in_memory(mount).returncode == 0
    except FileNotFoundError:
        permitted = False
    if not permitted:
        pytest.skip("mounting a file system in a name space of its own is not permitted here")
    (tmp_path.parent / "fill.py").write_text(textwrap.dedent(FILL))
    fill = f"{sys.executable} {tmp_path.parent / 'fill.py'} {tmp_path}/edge"
    unguarded = _in_memory(f"{mount} && {fill} unguarded")
    assert unguarded.returncode in (-signal.SIGBUS, 128 + signal.SIGBUS), unguarded.stderr
    for _ in range(4):
        done = _in_memory(f"{mount} && {{ {fill} guarded; echo $?; {fill} guarded; echo $?; }}")
        assert not done.stderr.count("Traceback"), done.stderr
        first, killed, second, killed_again = done.stdout.split()
        assert killed == killed_again == str(128 + signal.SIGKILL), done.stderr
        assert int(second) >= int(first) > 100
