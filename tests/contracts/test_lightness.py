"""Nothing happens at import: the heavy libraries load when a function needs them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.contracts._tree import PACKAGES, ROOMS, ROOT, imports, name, report, sources

HEAVY = {
    *("torch", "ray", "vllm", "transformers", "trl", "peft", "accelerate", "datasets", "pyarrow", "fsspec"),
    *("s3fs", "bitsandbytes", "deepspeed", "gguf", "llmcompressor", "tensorboard", "mlflow", "wandb"),
}


@pytest.mark.parametrize("package", PACKAGES)
def test_heavy_libraries_are_imported_inside_functions(package: str) -> None:
    # A Serve deployment is a decorated class, so its decorator has to be there when the module is read.
    heavy = HEAVY - {"ray"} if package == "serve_apps" else HEAVY
    report(
        [
            f"{name(path)}:{found.line}: {found.target} at module level; import it where it is used"
            for path in sources(package)
            for found in imports(path)
            if found.at_module_level and found.target.split(".")[0] in heavy
        ]
    )


def _library() -> list[str]:
    rooms = [room for room in ROOMS if (ROOT / "largeforge_ray" / room / "__init__.py").exists()]
    return ["largeforge_ray", *(f"largeforge_ray.{room}" for room in rooms)]


@pytest.mark.parametrize(
    "modules", [["largeforge_ray.config"], ["train_jobs.cli"], _library()], ids=lambda m: m[0]
)
def test_a_fresh_interpreter_stays_light(modules: list[str]) -> None:
    code = f"import sys, {', '.join(modules)}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [], f"importing {', '.join(modules)} loads heavy libraries"
    assert result.stderr == ""
