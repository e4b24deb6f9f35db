"""The teacher farm: prompts in, checked rows out, each made once.

from largeforge_ray.teach import run_farm, teach_work, teacher_row

run_farm(items, expand=partial(teach_work, ...), to_row=teacher_row, engine=engine, journal=journal)
for row in journal.rows(): ...
"""

from __future__ import annotations

from largeforge_ray.teach.pipeline import Work, run_farm
from largeforge_ray.teach.prompts import teach_work
from largeforge_ray.teach.rows import teacher_row
from largeforge_ray.teach.verify import verify

__all__ = ["Work", "run_farm", "teach_work", "teacher_row", "verify"]
