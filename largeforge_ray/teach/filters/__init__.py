"""Filters of teacher answers, each a pure function of the texts.

accept = build_filters(stage.filters, [ContaminationIndex(texts, n=8)])   # for the farm's tasks
answer, refused = accept(prompt, answer)        # the answer perhaps scrubbed; a Verdict if it does not stay

near = NearDuplicates(threshold=0.8, ngram=3)   # where all rows come by
kept = [text for text in texts if not near.seen(text)]
"""

from __future__ import annotations

from largeforge_ray.teach.filters.build import build_filters
from largeforge_ray.teach.filters.contamination import ContaminationIndex
from largeforge_ray.teach.filters.duplicates import NearDuplicates

__all__ = ["ContaminationIndex", "NearDuplicates", "build_filters"]
