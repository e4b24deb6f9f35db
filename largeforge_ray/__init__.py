"""largeforge: from prompts to a served mixture of experts on Ray, with a record of how each came to be."""

from __future__ import annotations

__version__ = "0.1.0"
