"""The data sink: it stores rows that have vectors already, and finishes the collection."""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet
import ray
from ray.data import Dataset, Datasink
from ray.data.block import BlockAccessor

from service.bulk import LoadReport
from service.bulk.field_mapping import FieldOptions
from service.bulk.line_index import IndexFullError, Standing
from service.bulk.line_ingest import line_ingest
from service.bulk.rejections import REJECTIONS_PRINTED_MAX
from service.operations import VectorOperations, VectorSource
from service.ray_data.batch_ingest import BatchIngest
from service.ray_data.collection_load import CollectionLoad
from service.ray_data.options import DEFAULT_LOAD_ID, load_options
from service.ray_data.outcome import Outcome, failure_of, rejects_table
from service.ray_data.stored_rows import RowAccount, SharedRows
from service.ray_data.vector_rows import VectorRows
from service.settings import Settings

log = logging.getLogger(__name__)

_OPENED: Final[dict[bytes, VectorOperations]] = {}
"""The store of this process by settings and source, since a process writes the blocks of many tasks."""


class StoringFailedError(Exception):
    """Rows could not be stored. The message says why; stored rows stay."""


class QdrantDatasink(Datasink[Outcome]):  # type: ignore[misc,unused-ignore]
    """Stores rows with vectors as points of a collection: `embedded.write_datasink(QdrantDatasink("notes", source))`.

    The columns are those of `embed_dataset`, or of your own: `text`, `id`, `payload`, `dense`, `sparse_indices` and
    `sparse_values`, `colbert`; all others are in the payload.

    Args:
        collection: name of the collection; created if it does not exist.
        source: what the vectors are; `model_source()` for those of `embed_dataset`.
        alias: alias to set to the collection when it is complete and indexed; derived ids belong to it.
        text_key: payload key of the text; None for that of the collection.
        insert_only: keep existing points unchanged.
        allow_rejected: set the alias even if rows were rejected.
        allow_lost: set the alias even if rows were replaced by others of the same id or, with `insert_only`, differ
            from points that were kept.
        defer_index: defer the HNSW graph even if the collection has points.
        load_id: name of this load among others into the collection; the next run of the same load has the same.
        rejects: folder or URL that all machines reach, for rejected and replaced rows in Parquet; it must be empty.
            None prints the first ones.
        fields: the columns of id, text and payload if they have other names.
        settings: the settings of the store; None reads them from the environment of the driver.
        say: prints a message; by default it is logged.

    Attributes:
        report: what became of all rows; None before the end.
    """

    def __init__(
        self,
        collection: str,
        source: VectorSource,
        *,
        alias: str | None = None,
        text_key: str | None = None,
        insert_only: bool = False,
        allow_rejected: bool = False,
        allow_lost: bool = False,
        defer_index: bool = False,
        load_id: str = DEFAULT_LOAD_ID,
        rejects: str | None = None,
        fields: FieldOptions = FieldOptions(),  # noqa: B008 - it is frozen
        settings: Settings | None = None,
        say: Callable[[str], None] = log.info,
    ) -> None:
        self._settings = settings or Settings.from_environment()
        self._source = source
        self._options = load_options(
            collection,
            alias=alias,
            text_key=text_key,
            insert_only=insert_only,
            allow_rejected=allow_rejected,
            allow_lost=allow_lost,
            defer_index=defer_index,
            load_id=load_id,
            fields=fields,
        )
        self._rejects = rejects
        self._rows = VectorRows(source, fields)
        self._say = say
        self._load: CollectionLoad | None = None
        self._stored_rows: RowAccount | None = None
        self.report: LoadReport | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What a task needs: not the driver's connection."""
        return {**self.__dict__, "_load": None, "_say": None, "report": None}

    def on_write_start(self, schema: Any = None) -> None:  # noqa: ARG002 - Ray passes it
        """Prepare the collection. Called in the driver.

        Raises:
            StoringFailedError: the folder of rejects has files.
            WorkerError: the settings, the collection or the store do not allow the load.
        """
        if self._rejects is not None:
            system, folder = pyarrow.fs.FileSystem.from_uri(self._rejects)
            system.create_dir(folder)
            if system.get_file_info(pyarrow.fs.FileSelector(folder)):
                raise StoringFailedError("the folder of rejects must be empty; name another one")
        self._load = CollectionLoad(self._settings, self._source, self._options, self._say)
        self._load.begin()
        self._stored_rows = SharedRows(keeps=self._options.request.insert_only)

    def write(self, blocks: Iterable[Any], ctx: Any) -> Outcome:
        """Store blocks. Called in a task.

        Raises:
            StoringFailedError: the store fails. What is stored stays.
        """
        outcome = asyncio.run(self._store(blocks))
        if outcome.failure is not None:
            raise StoringFailedError(outcome.failure)
        if self._rejects is not None and outcome.rejects:
            system, folder = pyarrow.fs.FileSystem.from_uri(self._rejects)
            path = f"{folder}/rejects-{ctx.task_idx:06d}.parquet"  # a task that is repeated writes the same file
            pyarrow.parquet.write_table(rejects_table(outcome.rejects), path, filesystem=system)
            outcome.rejects = []
        outcome.rejects = outcome.rejects[:REJECTIONS_PRINTED_MAX]
        if self._stored_rows is not None:
            self._stored_rows.add(outcome.stored_rows, ctx.task_idx)
            outcome.stored_rows = []
        return outcome

    async def _store(self, blocks: Iterable[Any]) -> Outcome:
        ingest = BatchIngest(line_ingest(self._opened()), self._options.request)
        total = Outcome()
        for block in blocks:
            outcome = await ingest(self._rows.documents(BlockAccessor.for_block(block).to_arrow()))
            total.count(outcome)
            total.rejects += outcome.rejects
            total.stored_rows += outcome.stored_rows
            if total.failure is not None:
                break
        return total

    def _opened(self) -> VectorOperations:
        key = pickle.dumps((self._settings, self._source))
        if key not in _OPENED:
            _OPENED[key] = VectorOperations(self._settings, self._source)
        return _OPENED[key]

    def on_write_complete(self, write_result: Any) -> None:
        """Build the graph and set the alias. Called in the driver.

        Raises:
            StoringFailedError: that fails. All rows are stored or rejected.
        """
        total = Outcome()
        for outcome in write_result.write_returns:
            total.count(outcome)
            total.rejects += outcome.rejects
        for rejected in total.rejects[:REJECTIONS_PRINTED_MAX]:
            self._say(f"rejected: {rejected['message']}")
        if self._load is None:  # a data set without a row
            self.on_write_start()
        load, stored_rows = self._load, self._stored_rows
        if load is None or stored_rows is None:
            return
        try:
            try:
                standing = stored_rows.standing()
            except (IndexFullError, ray.exceptions.RayError) as error:
                total.failure, standing = str(getattr(error, "cause", error)), Standing()
            self.report = load.end(total, standing)
            if self.report.lost:
                self._name(stored_rows.lost())
        finally:
            self._close()
        if self.report.failure is not None:
            raise StoringFailedError(self.report.failure)

    def _name(self, lost: Iterator[pa.Table]) -> None:
        """Write rows that others have replaced to the folder of rejects, or print the first ones."""
        if self._rejects is None:
            for row in next(lost).slice(0, REJECTIONS_PRINTED_MAX).to_pylist():
                self._say(f"point {row['point']}: {row['message']}")
            return
        system, folder = pyarrow.fs.FileSystem.from_uri(self._rejects)
        for number, table in enumerate(lost):
            pyarrow.parquet.write_table(table, f"{folder}/lost-{number:06d}.parquet", filesystem=system)

    def _close(self) -> None:
        load, self._load = self._load, None
        stored_rows, self._stored_rows = self._stored_rows, None
        if load is not None:
            load.close()
        if stored_rows is not None:
            stored_rows.close()

    def on_write_failed(self, error: Exception) -> None:
        """Release the store. Called in the driver; Ray raises the error."""
        if self._load is not None:
            cause = getattr(error, "cause", error)
            failure = str(cause) if isinstance(cause, StoringFailedError) else failure_of(error)
            self.report = self._load.end(Outcome(failure=failure), Standing())
        self._close()

    def rejects(self) -> Dataset:
        """The rows in the folder of rejects: `code`, `message`, `chunk` and the `row` as JSON, or its `point`."""
        if self._rejects is None or not self.report or not (self.report.rejected or self.report.lost):
            return ray.data.from_arrow(rejects_table(()))
        return ray.data.read_parquet(self._rejects)
