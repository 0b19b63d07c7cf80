"""BGE-M3's own tokenizer, with its 250 002 entries: ids, truncation, offsets and chunks agree with the library."""

from __future__ import annotations

import unicodedata
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import semantra_multilingual  # type: ignore[import-untyped,unused-ignore]
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from embedder.chunking import Chunker
from embedder.tokenizer import Tokenizer
from tests.embedder.texts import TEXTS

CHECKPOINT = Path(semantra_multilingual.get_asset_dir())
LIMITS = (3, 16, 128, 512, 8192)
SCRIPTS = {
    "arabic": "قواعد البيانات المتجهة تبحث عن أقرب الجيران، وتعيد النصوص الأكثر تشابها. ",
    "hebrew": "מסד נתונים וקטורי מוצא את השכנים הקרובים ביותר; הוא מחזיר טקסטים דומים. ",
    "hindi": "सदिश डेटाबेस निकटतम पड़ोसियों को खोजता है। यह समान पाठ लौटाता है। ",
    "bengali": "ভেক্টর ডাটাবেস নিকটতম প্রতিবেশী খুঁজে বের করে। ",
    "tamil": "திசையன் தரவுத்தளம் அருகிலுள்ள அண்டை வீட்டாரைக் கண்டறிகிறது. ",
    "thai": "ฐานข้อมูลเวกเตอร์ค้นหาเพื่อนบ้านที่ใกล้ที่สุดและส่งคืนข้อความที่คล้ายกัน",
    "chinese": "向量数据库支持稀疏和稠密检索。它返回最相似的文本,并按得分排序!",
    "japanese": "ベクトルデータベースは、最も近い隣人を検索します。「似た文章」を返します。",
    "korean": "벡터 데이터베이스는 가장 가까운 이웃을 찾아 비슷한 글을 돌려줍니다. ",
    "russian": "Векторная база данных находит ближайших соседей; она возвращает похожие тексты. ",
    "greek": "Η διανυσματική βάση δεδομένων βρίσκει τους πλησιέστερους γείτονες. ",
    "georgian": "ვექტორული მონაცემთა ბაზა პოულობს უახლოეს მეზობლებს. ",
    "amharic": "የቬክተር ዳታቤዝ በጣም ቅርብ የሆኑትን ጎረቤቶች ያገኛል። ",
    "vietnamese": "Cơ sở dữ liệu véc-tơ tìm những láng giềng gần nhất, rồi trả về văn bản tương tự. ",
    "german": "Die Vektordatenbank findet die nächsten Nachbarn; Übermaß, Straße, „Anführung“. ",
    "decomposed": unicodedata.normalize("NFD", "Cơ sở dữ liệu nächster Žižkov čeština. "),
    "full width": "ＢＧＥ－Ｍ３　ｖｅｃｔｏｒｓ　１２３，４５６。",
    "mathematics": "𝔅𝔊𝔈 ∑ᵢ xᵢ² ≥ ‖x‖₂ ⇒ ½ ℵ₀ ㎏ № ™ ﬁ ﬄ ① Ⅳ ",
    "emoji": "🚀👨‍👩‍👧‍👦🇩🇪 1️⃣ 👍🏽 ❤️‍🔥 ",
    "unknown": "\ue000𐎀𐎁 𓀀𓀁 \U000f0000 ",
    "invisible": "zero\u200bwidth\u200djoin\u00adsoft\ufeffmark\u2028line\u3000wide\u00a0no-break ",
    "code": "def f(x: int) -> dict[str, Any]:\n\treturn {'a': x ** 2}  # naïve\r\n",
    "literals": "<s> </s> <pad> <mask> <unk> [CLS] ▁▁ ",
}
EVERY_TEXT = {**TEXTS, **SCRIPTS, **{f"long {name}": text * 400 for name, text in SCRIPTS.items()}}
CASES = [
    (name, limit)
    for name in EVERY_TEXT
    for limit in LIMITS
    if name != "long word" or limit not in (16, 128)  # a repeated pattern is divided elsewhere; see `Tokenizer.encode`
]


@cache
def library() -> Library:
    """The library's own tokenizer of the same file."""
    return Library.from_file(str(CHECKPOINT / "tokenizer.json"))


@cache
def tokenizer() -> Tokenizer:
    """The project's tokenizer."""
    return Tokenizer(CHECKPOINT)


def ids_of(text: str, limit: int) -> tuple[list[int], bool]:
    """The library's ids of a text within a limit, and whether the text is cut."""
    ids = library().encode(text).ids
    return (ids, False) if len(ids) <= limit else ([*ids[: limit - 1], ids[-1]], True)


def test_a_known_text_has_the_known_ids() -> None:
    """The example of the model's own documentation has the ids that the model was trained with."""
    [encoded] = tokenizer().encode(["What is BGE M3?"], 512)
    assert encoded.ids.tolist() == [0, 4865, 83, 335, 11679, 276, 363, 32, 2]
    assert tokenizer().vocabulary_size == 250_002
    assert tokenizer().dropped_ids == {0, 1, 2, 3}


@pytest.mark.parametrize(("name", "limit"), CASES)
def test_ids_are_those_of_the_library_at_every_limit(name: str, limit: int) -> None:
    """Whatever the script, a text has the library's ids, is cut where the library cuts it, and says so."""
    [encoded] = tokenizer().encode([EVERY_TEXT[name]], limit)
    assert (encoded.ids.tolist(), encoded.truncated) == ids_of(EVERY_TEXT[name], limit)


@given(st.lists(st.sampled_from(sorted(SCRIPTS.values())) | st.text(max_size=30), max_size=20), st.sampled_from(LIMITS))
@settings(max_examples=60, deadline=None)
def test_mixed_scripts_have_the_ids_of_the_library(parts: list[str], limit: int) -> None:
    """Any mixture of scripts and arbitrary characters has the library's ids, whole and cut."""
    text = "".join(parts)
    [encoded] = tokenizer().encode([text], limit)
    assert (encoded.ids.tolist(), encoded.truncated) == ids_of(text, limit)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_token_stands_for_its_own_characters(name: str) -> None:
    """The span of a token is the library's, without the white space around it."""
    text = SCRIPTS[name]
    encoding = library().encode(text)
    [placed] = tokenizer().place([text], 8192)
    assert placed.ids.tolist() == encoding.ids
    for index, (piece, (start, end)) in enumerate(zip(encoding.tokens, encoding.offsets, strict=True)):
        span = placed.span(index)
        if (piece in ("<s>", "</s>") and start == end) or piece == "▁" or not text[start:end].strip():
            assert span is None
        else:
            assert span is not None
            assert text[slice(*span)] == text[start:end].strip()


@pytest.mark.parametrize("max_tokens", [32, 200, 512])
@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_is_cut_into_chunks_that_fit(name: str, max_tokens: int) -> None:
    """A long document of any script becomes chunks within the limit that together hold all of its characters."""
    text = SCRIPTS[name] * 60
    chunks = Chunker(tokenizer()).split(text, max_tokens=max_tokens, overlap=max_tokens // 8)
    lengths = [len(library().encode(text[chunk.start : chunk.end]).ids) for chunk in chunks]
    assert max(lengths) <= max_tokens
    covered = np.zeros(len(text), dtype=bool)
    for chunk in chunks:
        covered[chunk.start : chunk.end] = True
    assert not "".join(np.array(list(text))[~covered]).strip()
    if sum(lengths) > 4 * max_tokens:
        assert np.mean(lengths[:-1]) > max_tokens / 2  # the chunks are filled
