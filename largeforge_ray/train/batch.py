"""Sequences as tensors, and the model's log-probabilities of what is to be learned.

B rows of a tensor, T positions, N learned tokens, S sequences, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Tensor = Any


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one sequence, and which of them are learned."""

    ids: list[int]
    learn: list[bool]


@dataclass(frozen=True, slots=True)
class Batch:
    """``at_N`` are places in the flattened positions whose logits predict ``targets_N``.

    Packed, ``borders`` are where sequences begin and the last one ends, and there is no mask.
    """

    input_ids_BT: Tensor
    position_ids_BT: Tensor | None
    borders: Tensor | None
    attention_mask_BT: Tensor | None
    at_N: Tensor
    targets_N: Tensor
    sequence_N: Tensor
    last_S: Tensor
    sequences: int

    def to(self, device: Any) -> Batch:
        values = (getattr(self, f) for f in self.__slots__)
        return Batch(*(v.to(device) if hasattr(v, "to") else v for v in values))

    def inputs(self) -> dict[str, Tensor]:
        """Keyword arguments of the model's forward pass."""
        shared = {"input_ids": self.input_ids_BT, "use_cache": False}
        if self.borders is None:
            return shared | {"attention_mask": self.attention_mask_BT}
        return shared | {"position_ids": self.position_ids_BT, "cu_seq_lens_q": self.borders}


def collate(sequences: Sequence[Encoded], *, packed: bool, pad_id: int = 0) -> Batch:
    """Lay sequences end to end in one row (``packed``) or each in a row of its own, padded on the right."""
    import torch

    longest = max(len(s.ids) for s in sequences)
    starts, at, targets, owner = [], [], [], []
    offset = 0
    for number, s in enumerate(sequences):
        starts.append(offset)
        for place in range(1, len(s.ids)):
            if s.learn[place]:
                at.append(offset + place - 1)
                targets.append(s.ids[place])
                owner.append(number)
        offset += len(s.ids) if packed else longest
    if packed:
        rows = [[i for s in sequences for i in s.ids]]
        positions = torch.tensor([[p for s in sequences for p in range(len(s.ids))]])
        mask, borders = None, torch.tensor([*starts, offset])
    else:
        rows = [s.ids + [pad_id] * (longest - len(s.ids)) for s in sequences]
        positions, borders = None, None
        mask = torch.tensor([[1] * len(s.ids) + [0] * (longest - len(s.ids)) for s in sequences])
    return Batch(
        input_ids_BT=torch.tensor(rows),
        position_ids_BT=positions,
        borders=borders,
        attention_mask_BT=mask,
        at_N=torch.tensor(at, dtype=torch.long),
        targets_N=torch.tensor(targets, dtype=torch.long),
        sequence_N=torch.tensor(owner, dtype=torch.long),
        last_S=torch.tensor([b + len(s.ids) - 1 for b, s in zip(starts, sequences, strict=True)]),
        sequences=len(sequences),
    )


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-probabilities of the learned tokens, by token and by sequence."""

    logps_N: Tensor
    sequence_N: Tensor
    sequences: int

    def sums_S(self) -> Tensor:
        return self.logps_N.new_zeros(self.sequences).index_add(0, self.sequence_N, self.logps_N)

    def counts_S(self) -> Tensor:
        import torch

        return torch.bincount(self.sequence_N, minlength=self.sequences)

    def means_S(self) -> Tensor:
        return self.sums_S() / self.counts_S()


def learned_logits(model: Any, batch: Batch) -> Tensor:
    """One forward pass: the logits that predict the learned tokens, ``(N, V)``."""
    if batch.borders is not None:
        # The head is the largest layer of a small model; it runs where something is learned only.
        return model(**batch.inputs(), logits_to_keep=batch.at_N).logits[0]
    return model(**batch.inputs()).logits.flatten(0, 1)[batch.at_N]


def score(model: Any, batch: Batch) -> Scores:
    """One forward pass, and what it says of the learned tokens."""
    import torch.nn.functional as F

    logits_NV = learned_logits(model, batch)
    logps_N = -F.cross_entropy(logits_NV.float(), batch.targets_N, reduction="none")
    return Scores(logps_N, batch.sequence_N, batch.sequences)


def check_packing(model: Any, vocabulary: int) -> float:
    """How much a sequence's mean log-probability depends on the one packed before it.

    It is 0 up to rounding, or the model mixes positions in a way that is not attention and cannot pack.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randint(0, vocabulary, (n,), generator=generator).tolist() for n in (24, 24))
    device = next(model.parameters()).device
    alone = Encoded(second, [True] * 24)
    with torch.no_grad():
        together = score(model, collate([Encoded(first, [True] * 24), alone], packed=True).to(device))
        apart = score(model, collate([alone], packed=True).to(device))
    return float((together.means_S()[1] - apart.means_S()[0]).abs())
