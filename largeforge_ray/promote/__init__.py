"""What stands between an adapter and live traffic: preflight, gate, probe.

from largeforge_ray.promote import check_adapter, decide_gate, gate_evidence, judge_logits

check_adapter(folder, max_lora_rank=16)               # can the engine load it at all
evidence = gate_evidence(rows, "tuned", "base", gate) # what the outcomes say of the two
decide_gate(gate, evidence)                           # is it better, beyond noise
judge_logits(reference, base, adapted)                # does the engine compute what was trained
"""

from __future__ import annotations

from largeforge_ray.promote.gate import GateDecision, decide_gate, gate_evidence
from largeforge_ray.promote.preflight import check_adapter, check_settings, why_not_servable
from largeforge_ray.promote.probe import ProbeResult, judge_logits

__all__ = [
    "GateDecision",
    "ProbeResult",
    "check_adapter",
    "check_settings",
    "decide_gate",
    "gate_evidence",
    "judge_logits",
    "why_not_servable",
]
