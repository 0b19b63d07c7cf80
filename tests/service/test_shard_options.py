"""Shards of one load that were cut, embedded or read differently are never completed as one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from embedder import InvalidRequest
from qdrant_sink.loading import LoadContent, LoadRecord, changes_of, records_of
from service.bulk import BulkLoad, LoadReport
from service.bulk.line import Line
from service.operations import LoadRequest, Operations
from service.operations.finish import Finish
from service.transports.cli.arguments import ARGUMENTS
from service.transports.cli.bulk import load_options
from service.transports.cli.finish import finished
from service.wire.fields import Limits
from tests.command_line import bulk_options
from tests.service.test_bulk_together import opened, operations
from tests.sink.grpc_double import GrpcDouble

pytestmark = pytest.mark.usefixtures("signals")

LINES = tuple(Line(number, f"text {number}", f"id-{number}", {"n": number}) for number in range(1, 9))
CHUNKS = ("--chunk-tokens", "64")


@pytest.fixture
def core(double: GrpcDouble) -> Iterator[Operations]:
    """Operations over the double."""
    core = operations(opened(double.port))
    yield core
    core.close()


def run(
    core: Operations, shard: str, *options: str, alias: str = "live", said: Callable[[str], None] = lambda _text: None
) -> LoadReport:
    """Load a shard of the lines into `notes`."""
    chosen = bulk_options("--collection", "notes", "--alias", alias, "--shard", shard, "--load-id", "v2", *options)
    checked = load_options(chosen, Limits(max_texts=1000, max_length=512))
    return BulkLoad(core, checked, None, said).run(LINES)


def failure(core: Operations, shard: str, *options: str, alias: str = "live") -> str:
    """The failure of a shard that stores nothing, in the words of the command."""
    report = run(core, shard, *options, alias=alias)
    assert (report.status, report.stored) == (2, 0)
    return ARGUMENTS["bulk"].message(str(report.failure))


def finish(core: Operations) -> tuple[LoadReport, list[str]]:
    """Finish `notes`; returns the report and what was said."""
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.transports.cli.finish.say", said.append)
        report = finished(Finish(core.settings, core._store.opened()), "notes", "live", ())
    return report, said


def rewrite(core: Operations, shard: str, change: Callable[[LoadContent], LoadContent | None]) -> None:
    """Change what the record of a shard says of its content."""
    store = core._store.opened()
    records: dict[str, LoadRecord | None] = {
        holder: replace(record, content=change(record.content))
        for holder, record in records_of(store.metadata("notes")).items()
        if str(record.shard) == shard and record.content is not None
    }
    assert records
    store.update_metadata("notes", changes_of(records))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--chunk-tokens", "32"], "--chunk-tokens 64 (here 32), --chunk-overlap 8 (here 4)"),
        ([*CHUNKS, "--chunk-overlap", "0"], "--chunk-overlap 8 (here 0)"),
        ([*CHUNKS, "--text-key", "body"], "--text-key 'text' (here 'body')"),
        ([*CHUNKS, "--vectors", "sparse"], "vectors dense,sparse,colbert (here sparse)"),
        ([*CHUNKS, "--colbert-pooling", "mean"], "--colbert-pooling 'none' (here 'mean')"),
        ([*CHUNKS, "--text-field", "a", "--text-field", "b"], "--text-field none (here 'a, b')"),
        ([*CHUNKS, "--encoding", "latin-1"], "--encoding none (here 'iso8859-1')"),
    ],
)
def test_a_shard_with_other_options_is_refused_at_its_start(core: Operations, options: list[str], told: str) -> None:
    """Before anything is embedded it names the shard, the option, both values and the way out."""
    assert run(core, "1/2", *CHUNKS).status == 0
    assert failure(core, "2/2", *options) == (
        f"--load-id must be of a load of the same options: shard 1/2 of load 'v2' was begun with {told}; run all "
        "shards with the same options, or begin anew, the first shard with --drop-load v2/2, and all of them without "
        "--insert-only"
    )
    assert run(core, "2/2", *CHUNKS).status == 0
    assert finish(core)[0].alias is True


def test_derived_ids_of_another_alias_are_another_load(core: Operations) -> None:
    """Ids of one input would not meet, although both shards count the same lines."""
    run(core, "1/2")
    assert "--alias 'live' (here 'other')" in failure(core, "2/2", alias="other")


def test_options_that_change_no_point_may_differ(core: Operations) -> None:
    """All kinds by name are those of the collection, and rejections, kept points and the graph are of one shard."""
    run(core, "1/2")
    options = ("--vectors", "colbert,sparse,dense", "--text-key", "text", "--insert-only", "--allow-rejected")
    assert run(core, "2/2", *options, "--defer-index").status == 0
    report, said = finish(core)
    assert report.alias is True
    assert said == ["load 'v2': 2 shards, 8 lines, 8 points"]


def test_an_encoding_may_be_named_in_two_ways(core: Operations) -> None:
    """Names of one encoding of Python are one option."""
    run(core, "1/2", "--encoding", "UTF8")
    assert run(core, "2/2", "--encoding", "utf-8").status == 0


def test_an_option_that_is_no_unicode_is_recorded_all_the_same(core: Operations) -> None:
    """Arguments of a program can be any bytes, which a server would not take in a record."""
    assert run(core, "1/2", "--payload-fields", "a\udcff").status == 0
    assert "--payload-fields 'sha256:" in failure(core, "2/2", "--payload-fields", "a\udcfe")


def test_points_that_were_stored_anew_are_kept(core: Operations) -> None:
    """Once a run with other options has stored the points of an earlier one, missing ones can follow with these."""
    run(core, "1/2", "--chunk-tokens", "64")
    assert run(core, "1/2", "--chunk-tokens", "32").status == 0
    assert run(core, "1/2", "--chunk-tokens", "32", "--insert-only").status == 0
    assert "--chunk-tokens 32 (here 64)" in failure(core, "1/2", "--chunk-tokens", "64", "--insert-only")


def test_a_finish_refuses_shards_of_other_options(core: Operations, double: GrpcDouble) -> None:
    """Records that were written meanwhile are compared too, and the shard of the wrong options can be put right."""
    for shard in ("1/3", "2/3", "3/3"):
        run(core, shard, *CHUNKS)
    rewrite(core, "3/3", lambda content: replace(content, chunk_tokens=32, chunk_overlap=4))
    report, said = finish(core)
    assert (report.status, double.aliases) == (2, {})
    told = "--chunk-tokens 64 by shards 1/3, 2/3, 32 by shard 3/3; --chunk-overlap 8 by shards 1/3, 2/3, 4 by shard 3/3"
    rule = "the shards were not loaded with the same options"
    way = "run those of the wrong options again, with the same and without --insert-only"
    assert said == [f"load 'v2' in 3 shards: {rule} ({told}); {way}"]
    assert "--insert-only must be false, because the points that load 'v2:3-of-3'" in failure(
        core, "3/3", *CHUNKS, "--insert-only"
    )
    assert run(core, "3/3", *CHUNKS).status == 0
    assert finish(core)[0].alias is True


def test_shards_of_an_earlier_release_are_finished_with_a_warning(core: Operations) -> None:
    """Their records say no options, so the operator is told that nothing could be compared."""
    for shard in ("1/2", "2/2"):
        run(core, shard)
    rewrite(core, "2/2", lambda _content: None)
    report, said = finish(core)
    assert (report.alias, report.status) == (True, 0)
    assert said[-1] == (
        "load 'v2': shard 2/2 did not record the options that decide what points contain, so these were not compared; "
        "make sure that all shards had the same"
    )


def test_a_run_does_not_keep_points_that_were_cut_differently(core: Operations) -> None:
    """After an interruption --insert-only needs the same options; without it all points are stored anew."""

    def interrupted(content: LoadContent, *, keeps: bool) -> None:
        async def begun() -> None:
            request = LoadRequest("notes", "whole", content=content, keeps=keeps)
            load = await core.loads.load(request, lambda _text: None)
            assert await load.begin(asyncio.Event())
            await load.stop()

        asyncio.run(begun())

    first, second = LoadContent(chunk_tokens=64, chunk_overlap=8), LoadContent(chunk_tokens=32, chunk_overlap=4)
    interrupted(first, keeps=False)
    interrupted(replace(first, input=(("format", "csv"),), colbert_pooling="mean"), keeps=True)
    with pytest.raises(InvalidRequest, match=r"insertOnly must be false, .* chunk.maxTokens 64 \(here 32\)"):
        interrupted(second, keeps=True)
    interrupted(second, keeps=False)
    with pytest.raises(InvalidRequest, match=r"chunk.maxTokens 64 \(here 32\)"):
        interrupted(second, keeps=True)  # the last run may have left points of the first


def test_a_shard_of_a_finished_load_is_told_that_searches_see_it(core: Operations) -> None:
    """The alias leads to the collection already, so nothing waits for a finish."""
    first: list[str] = []
    run(core, "1/1", said=first.append)
    assert finish(core)[0].alias is True
    later: list[str] = []
    run(core, "1/1", said=later.append)
    assert later[0].startswith("the alias 'live' leads to 'notes' already, so searches see the points of this shard")
    assert not any("already" in text for text in first)
