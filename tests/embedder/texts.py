"""Texts that implementations disagree about."""

from __future__ import annotations

TEXTS: dict[str, str] = {
    "empty": "",
    "blank": " \t\n ",
    "no-break space": "\u00a0\u2003",
    "one token": "library",
    "a sentence": "A fast library for parsing and validating configuration files.",
    "upper case": "THE PACKAGE Contains Header FILES",
    "repeats": "data data data data data data data data",
    "punctuation": "...!!!???---***///",
    "emoji": "ship it \U0001f680\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f1e9\U0001f1ea",
    "chinese": "\u5411\u91cf\u6570\u636e\u5e93\u652f\u6301\u7a00\u758f\u548c\u7a20\u5bc6\u68c0\u7d22\u3002",
    "japanese": "\u30d9\u30af\u30c8\u30eb\u691c\u7d22\u306f\u901f\u3044\u3067\u3059",
    "korean": "\ubca1\ud130 \uac80\uc0c9 \ub77c\uc774\ube0c\ub7ec\ub9ac",
    "right to left": "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 hello \u202eabc\u202c",
    "combining marks": "e\u0301\u0323 n\u0303o\u0308 z\u0351\u0352\u0353\u0354\u0355\u0356 \u0e01\u0e34\u0e49",
    "compatibility forms": "\ufb01le \u2460 \uff21\uff22\uff23 \u00bd \u1e9e",
    "literal <s>": "<s>",
    "literal </s>": "the end </s> is not the end",
    "literal <mask>": "the <mask> of the package",
    "literal <pad>": "<pad><pad> left <pad> right <pad>",
    "literal <unk>": "an <unk> word",
    "all literals": "<s></s><mask><pad><unk> <s> </s> <mask> <pad> <unk>",
    "nul": "a\x00b\x00\x00 c",
    "control characters": "\x01\x02\x7f\x85\u2028\ufeff end",
    "unassigned": "\U000e0001\U0010ffff\ue000\ufffe",
    "long word": "x" * 3000,
    "many words": "the package provides data files and a library for the tools " * 60,
}

LONGER_THAN_512 = ("many words",)
"""Names of the texts that every tokenizer of these tests truncates at 512 tokens."""
