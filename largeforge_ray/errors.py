"""The one error tree. Every message names the value, the rule it breaks and the fix.

Each class is also a built-in type, so callers that know nothing of this package can still
catch the right thing, and each survives pickling, because errors cross Ray processes.
"""

from __future__ import annotations


class ForgeError(Exception):
    """Base of every error that is reported to a user as one message without a stack trace."""


class ConfigError(ForgeError, ValueError):
    """A manifest or option is wrong: found before anything starts."""


class DataError(ForgeError, ValueError):
    """A row or file of the user's data is malformed."""


class ModelError(ForgeError, ValueError):
    """Weights cannot be located, are refused, or do not fit what is asked of them."""


class StoreError(ForgeError, OSError):
    """The store cannot be read or written."""


class CorruptArtifactError(StoreError):
    """An artifact's bytes differ from what its record says."""


class ResourceError(ForgeError, RuntimeError):
    """The plan asks for more memory, CPUs, GPUs or ports than there are."""


class StageError(ForgeError, RuntimeError):
    """A stage ran and could not produce its artifact."""


class GateError(StageError):
    """A promotion gate decided against the candidate, or could not be evaluated."""


class BudgetError(StageError):
    """A stage stops because what it asks for next might cost more than its cap leaves."""
