"""The doctor's two programs, run for real: a library that imports may still not compute."""

from __future__ import annotations

import pytest

from largeforge_ray.flow.doctor import TORCH_PROGRAM, VLLM_PROGRAM, check_start


@pytest.mark.parametrize(("name", "program"), [("torch", TORCH_PROGRAM), ("vllm", VLLM_PROGRAM)])
def test_torch_and_vllm_compute(name: str, program: str) -> None:
    check = check_start(name, program)
    assert check.ok, check
    assert check.found.endswith("computes")
