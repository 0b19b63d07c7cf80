"""Long runs of blanks are found in steps, as in one."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder import Cancelled, blanks
from embedder.blanks import SPACE, LongBlanks
from embedder.cancellation import Cancellation

BLANK = " \n\t\u200b"
WHOLE = re.compile(rf"(?=[{BLANK}]{{0,8}}{SPACE})[{BLANK}]{{9,}}")
TEXTS = st.lists(st.sampled_from(["a", "é", "\x1c", *BLANK, " " * 7, "\u200b" * 8, "\n" * 30]), max_size=40).map(
    "".join
)


@given(text=TEXTS, step=st.integers(1, 30))
def test_runs_are_those_of_the_whole_text(text: str, step: int) -> None:
    """Wherever a step ends, a run is found once and whole."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blanks, "STEP_CHARACTERS", step)
        found = [run.span() for run in LongBlanks(BLANK).runs(text)]
    assert found == [run.span() for run in WHOLE.finditer(text)]


@given(text=TEXTS, step=st.integers(1, 30), most=st.integers(0, 60))
def test_a_shortened_text_is_read_as_the_whole(text: str, step: int, most: int) -> None:
    """What is read of a text is the same as if all of it was shortened, and so is whether more is visible."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blanks, "STEP_CHARACTERS", step)
        shortened = LongBlanks(BLANK).shortened(text, most)
    whole = WHOLE.sub(" ", text)
    assert shortened[:most] == whole[:most]
    assert (len(shortened) > most) == (len(whole) > most)
    assert bool(re.search(r"\S", shortened[most:])) == bool(re.search(r"\S", whole[most:]))


def test_no_more_is_shortened_than_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a text of megabytes a few steps are looked at, and none after its caller has gone."""
    steps: list[int] = []
    runs = LongBlanks(BLANK)

    class Recording:
        def sub(self, space: str, part: str) -> str:
            steps.append(len(part))
            return WHOLE.sub(space, part)

    monkeypatch.setattr(runs, "_run", Recording())
    text: Any = "word" * 1_000_000
    assert len(runs.shortened(text, 200_000)) == 2 * blanks.STEP_CHARACTERS + 1
    assert steps == [blanks.STEP_CHARACTERS] * 2
    with Cancellation() as cancellation:
        cancellation.cancel()
        with pytest.raises(Cancelled):
            runs.shortened(text, 1)


def test_without_blank_characters_no_run_is_long() -> None:
    """A tokenizer that has tokens for white space keeps all of it."""
    text = "a" + " " * 50 + "b"
    assert list(LongBlanks("").runs(text)) == []
    assert LongBlanks("").shortened(text, 100) == text
