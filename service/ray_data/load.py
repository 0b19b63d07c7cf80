"""The load of a data set: every row is embedded and stored where it is read, and the driver keeps the account."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.data import Dataset

from embedder import Kind
from service.bulk import LoadReport
from service.bulk.field_mapping import FieldOptions
from service.bulk.line_index import IndexFullError, Standing
from service.operations import Chunking
from service.ray_data.actor_pool import ActorPool
from service.ray_data.collection_load import CollectionLoad
from service.ray_data.ingest_actor import IngestActor
from service.ray_data.model_source import model_source
from service.ray_data.options import DEFAULT_LOAD_ID, load_options
from service.ray_data.outcome import REJECTS_BLOCK_MAX_ROWS, Outcome, failure_of, rejects_table
from service.ray_data.stored_rows import StoredRows
from service.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadResult:
    """The result of a load.

    Attributes:
        report: the counts, the failure and whether the alias was set.
        rejects: the rejected rows: `code`, `message`, `chunk` and the `row` as JSON; and those that another row
            replaced, with the id of their `point`.
    """

    report: LoadReport
    rejects: Dataset


def load(
    ds: Dataset,
    collection: str,
    *,
    alias: str | None = None,
    vectors: Sequence[Kind] = (),
    chunk: Chunking | None = None,
    pool_colbert: bool = False,
    text_key: str | None = None,
    insert_only: bool = False,
    allow_rejected: bool = False,
    allow_lost: bool = False,
    defer_index: bool = False,
    load_id: str = DEFAULT_LOAD_ID,
    fields: FieldOptions = FieldOptions(),  # noqa: B008 - it is frozen
    pool: ActorPool = ActorPool(),  # noqa: B008 - likewise
    settings: Settings | None = None,
    say: Callable[[str], None] = log.info,
) -> LoadResult:
    """Load a data set into a collection: embed its rows and store them as points. Blocks until all is done.

    A load that was interrupted, or whose driver, machines or actors were killed, is finished by the same call. Points
    have the ids of the first run; with `insert_only` those that exist are not embedded again.

    Args:
        ds: the data set, with the columns `text` and, optionally, `id` and `payload`; all others are in the payload.
        collection: name of the collection; created if it does not exist.
        alias: alias to set to the collection when it is complete and indexed; derived ids belong to it.
        vectors: kinds of vectors to store; empty for those of the collection.
        chunk: chunking of each text; None for one point per text.
        pool_colbert: whether ColBERT rows that Qdrant does not take are pooled instead of refused.
        text_key: payload key of the text; None for that of the collection.
        insert_only: keep existing points unchanged, and do not embed them.
        allow_rejected: set the alias even if rows were rejected.
        allow_lost: set the alias even if rows were replaced by others of the same id or, with `insert_only`, differ
            from points that were kept.
        defer_index: defer the HNSW graph even if the collection has points.
        load_id: name of this load among others into the collection; the next run of the same load has the same.
        fields: the columns of id, text and payload if they have other names.
        pool: the actors, each with a model of its own.
        settings: the settings of every actor; None reads them from the environment of the driver.
        say: prints a message; by default it is logged.

    Returns:
        The report, and the rejected rows. A failure while rows are stored is the report's `failure`.

    Raises:
        WorkerError: an option or a setting is wrong, or the store cannot be used.
    """
    chosen = settings or Settings.from_environment()
    options = load_options(
        collection,
        alias=alias,
        vectors=vectors,
        chunk=chunk,
        pool_colbert=pool_colbert,
        text_key=text_key,
        insert_only=insert_only,
        allow_rejected=allow_rejected,
        allow_lost=allow_lost,
        defer_index=defer_index,
        load_id=load_id,
        fields=fields,
    )
    collection_load = CollectionLoad(chosen, model_source(chosen), options, say, max_length=chosen.passage_max_length)
    try:
        collection_load.begin()
        outcomes = ds.map_batches(
            IngestActor,
            fn_constructor_args=(chosen, options.request, fields),
            **pool.arguments,
        )
        with StoredRows(keeps=insert_only) as stored_rows:
            account = _Account(stored_rows, say, lambda: collection_load.lost)
            account.read(outcomes)
            standing = account.standing()
            report = collection_load.end(account.total, standing)
            return LoadResult(report, account.rejects(named_lost=report.lost > 0))
    finally:
        collection_load.close()


class _Account:
    """Adds up the outcomes of all batches in the driver.

    Args:
        stored_rows: takes the stored rows.
        say: prints a message.
        lost: why the load must not go on; None if it may.

    Attributes:
        total: counts of all rows, without the rows.
    """

    def __init__(self, stored_rows: StoredRows, say: Callable[[str], None], lost: Callable[[], str | None]) -> None:
        self._stored_rows = stored_rows
        self._say = say
        self._lost = lost
        self.total = Outcome()
        self._rejects: list[Any] = []
        self._refs: list[Any] = []

    def read(self, outcomes: Dataset) -> None:
        """Read the outcomes as they come. A failure ends the execution of the data set."""
        try:
            for table in outcomes.iter_batches(batch_size=None, batch_format="pyarrow"):
                outcome = Outcome.of_table(table)
                self.total.count(outcome)
                self._stored_rows.add(outcome.stored_rows)
                self._rejects += outcome.rejects
                if len(self._rejects) >= REJECTS_BLOCK_MAX_ROWS:
                    self._flush()
                self.total.failure = self.total.failure or self._lost()
                if self.total.failure is not None:
                    return
                self._say(f"points: {self.total.points}, rejected: {self.total.rejected}")
        except ray.exceptions.RayError as error:
            self.total.failure = failure_of(error)
        except IndexFullError as error:
            self.total.failure = str(error)

    def _flush(self) -> None:
        self._refs.append(ray.put(rejects_table(self._rejects)))
        self._rejects = []

    def standing(self) -> Standing:
        """How the stored rows stand to the points of the collection. A failure becomes that of the load."""
        try:
            return self._stored_rows.standing()
        except IndexFullError as error:
            self.total.failure = self.total.failure or str(error)
            return Standing()

    def rejects(self, *, named_lost: bool) -> Dataset:
        """The rejected rows.

        Args:
            named_lost: add the rows that others have replaced.
        """
        self._flush()
        if named_lost:
            self._refs += [ray.put(table) for table in self._stored_rows.lost()]
        return ray.data.from_arrow_refs(self._refs)
