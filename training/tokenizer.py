"""A small Unigram tokenizer with the special tokens of XLM-RoBERTa's."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

BOS_ID = 0
PAD_ID = 1
EOS_ID = 2
UNK_ID = 3
SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
"""The first four have XLM-RoBERTa's ids; its mask token comes last in the vocabulary instead."""


def train_tokenizer(texts: Iterable[str], vocab: int) -> Tokenizer:
    """Train a Unigram model (Kudo 2018) on lower-cased NFKC text, words and punctuation marks apart.

    Two runs on the same text agree on the set of tokens, but neither on the last digits of their scores nor,
    therefore, on all ids: for a run that repeats bit for bit, reuse a tokenizer.

    Args:
        texts: The training text.
        vocab: Tokens wanted, the special ones included; little text may yield fewer.
    """
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab,
        unk_token=SPECIAL_TOKENS[UNK_ID],
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", BOS_ID), ("</s>", EOS_ID)],
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path, max_tokens: int) -> None:
    """Write ``tokenizer.json`` and a ``tokenizer_config.json`` that transformers 4 and 5 both read.

    Args:
        tokenizer: What :func:`train_tokenizer` returned.
        directory: An existing directory.
        max_tokens: Longest text the model takes, special tokens included.
    """
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
    config = {
        "backend": "tokenizers",
        "bos_token": "<s>",
        "cls_token": "<s>",
        "eos_token": "</s>",
        "mask_token": "<mask>",
        "model_max_length": max_tokens,
        "pad_token": "<pad>",
        "sep_token": "</s>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
    }
    text = json.dumps(config, indent=2) + "\n"
    (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")
