"""The teacher farm: prompts in, checked rows out, each made once.

from largeforge_ray.teach import AnswerRecipe, run_farm

recipe = AnswerRecipe(teacher, teacher_key, sampling, samples=4)
run_farm(items, recipe, engines=[engine], journal=journal, total=800, on_batch=print)
for row in journal.rows(): ...
"""

from __future__ import annotations

from largeforge_ray.teach.pipeline import run_farm
from largeforge_ray.teach.recipe import AnswerRecipe
from largeforge_ray.teach.rows import read_teacher_rows
from largeforge_ray.teach.verify import verify
from largeforge_ray.teach.work import Recipe, Work

__all__ = ["AnswerRecipe", "Recipe", "Work", "read_teacher_rows", "run_farm", "verify"]
