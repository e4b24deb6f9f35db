"""What a teacher's stored probabilities cost a training step, beside fine-tuning and beside the teacher.

python -m benchmarks.distill_ratios --store ./forge          # after a run: the store holds the model

The teacher is the model that is trained; a larger one would be dearer to have in memory.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks._case import Case, make_rows
from benchmarks._pairs import in_turn, record, refuse_busy

COMMAND = "python -m benchmarks.distill_ratios"
KEPT = 32


def teach(rows: list[dict[str, Any]], model: str, network: Any) -> list[dict[str, Any]]:
    """The rows with what ``network`` keeps of their answers, through the token that ends the turn."""
    import torch
    import transformers

    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(model)
    made = []
    for row in rows:
        *prompt, answer = row["messages"]
        asked = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        said = [*tokenizer(answer["content"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            logits_TV = network(input_ids=torch.tensor([asked + said]), use_cache=False).logits[0]
        top = logits_TV[len(asked) - 1 : -1].float().log_softmax(1).topk(KEPT)
        tail_T = torch.log1p(-top.values.double().exp().sum(1)).clamp(min=-30)
        signals = (top.indices.flatten(), top.values.flatten().half(), tail_T.half())
        names = ("topk_ids", "topk_logprobs", "tail_logprob")
        made.append(row | {"token_ids": said} | {n: s.numpy() for n, s in zip(names, signals, strict=True)})
    return made


def beside_the_teacher(case: Case, teacher: Any) -> None:
    """Let the case's steps ask ``teacher`` instead of reading: the same K and the same loss."""
    import torch

    from largeforge_ray.data.rows import SIGNALS
    from largeforge_ray.train.batch import learned_logits
    from largeforge_ray.train.objective import Known

    objective = case.course.lane.objective
    plain = objective.loss

    def loss(output: Any, known: Known) -> Any:
        with torch.no_grad():
            logits_NV = learned_logits(teacher, output[1]).float()
            top = logits_NV.topk(KEPT)
            total_N = logits_NV.logsumexp(1)
            inside_N = top.values.logsumexp(1) - total_N
        logps_NK, tail_N = top.values - total_N[:, None], torch.log1p(-inside_N.exp())
        columns = zip(SIGNALS[1:], (top.indices, logps_NK, tail_N), strict=True)
        return plain(output, Known(signals=dict(columns)))

    objective.loss = loss


def measure(model: str, folder: Path, pairs: int) -> None:
    from largeforge_ray.train.bench import load_base

    rows = make_rows("chat", 8, sigma=0.5)
    tuned = Case(model, folder, "sft", rows)
    teacher = load_base(tuned.stage, model, tuned.bench.device)
    taught = teach(rows, model, teacher)
    hard = Case(model, folder, {"name": "distill", "alpha": 1.0}, taught)
    equal = abs(hard.loss() - tuned.loss()) <= 0.01 * tuned.loss()
    stored = Case(model, folder, "distill", taught)
    for name, options in (
        ("D1", {}),
        ("D1-temperature", {"temperature": 2.0}),
        ("D1-jsd", {"divergence": "jsd"}),
    ):
        record(
            name,
            f"seconds of a step, soft labels {options or ''} / sft on the same tokens",
            in_turn(Case(model, folder, {"name": "distill"} | options, taught).step, tuned.step, pairs),
            equal=equal,
            goal="<= 1.10",
            command=COMMAND,
        )
    both = Case(model, folder, "distill", taught)
    beside_the_teacher(both, teacher)
    record(
        "D2",
        "seconds of a step, teacher in memory / stored probabilities",
        in_turn(both.step, stored.step, pairs),
        equal=abs(both.loss() - stored.loss()) <= 0.01 * stored.loss(),
        goal="> 1",
        command=COMMAND,
    )
    ours = float(sum(p.numel() * p.element_size() for p in stored.bench.model.parameters()))
    theirs = ours + sum(p.numel() * p.element_size() for p in teacher.parameters())
    record(
        "D2-bytes",
        "bytes of parameters, stored probabilities / teacher in memory",
        [[ours, theirs]],
        equal=True,
        goal="<= 0.52",
        command=COMMAND,
    )


def main() -> None:
    from largeforge_ray.store import open_store

    parser = argparse.ArgumentParser(description="Ratios of distillation steps.")
    parser.add_argument("--store", default="./forge", help="a store that holds a base model")
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    refuse_busy()
    store = open_store(options.store)
    with tempfile.TemporaryDirectory() as folder:
        measure(str(store.fetch(store.get("base"))), Path(folder), options.pairs)


if __name__ == "__main__":
    main()
