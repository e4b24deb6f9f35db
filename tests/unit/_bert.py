"""A BERT of two layers with a vocabulary of a few words: a real sentence encoder in milliseconds."""

from __future__ import annotations

from functools import cache
from pathlib import Path

SUBJECTS = {
    "orders": ["ship", "lamps", "stools", "mugs", "customer", "city", "order"],
    "sums": ["add", "numbers", "total", "plus", "minus", "equals", "sum"],
    "seas": ["waves", "tide", "coral", "reef", "sail", "harbour", "salt"],
}


@cache
def tiny_bert(root: Path) -> Path:
    """A folder as transformers writes it; words of one subject lie near each other."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(w for s in SUBJECTS.values() for w in s)]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.1,
    )
    model = transformers.BertModel(config)
    with torch.no_grad():
        places = model.embeddings.word_embeddings.weight
        for i, subject in enumerate(SUBJECTS.values()):
            for word in subject:
                places[words.index(word), 3 * i : 3 * i + 3] += 2.0
    folder = root / "bert"
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
