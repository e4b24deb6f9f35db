"""What an expert may say about speculative decoding (Leviathan et al. 2023, arXiv:2211.17192).

Something cheap drafts tokens and the model verifies them in one step, so the answers stay the model's own.
Fields have the names they have in vLLM.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, model_validator

from largeforge_ray.config.base import Strict


class Ngram(Strict):
    """Drafts what followed the last tokens where they stood before, in prompt or answer (Saxena 2023)."""

    kind: Literal["ngram"]
    num_speculative_tokens: int = Field(4, ge=1, description="Drafted a step, at most.")
    prompt_lookup_min: int = Field(2, ge=1, description="Fewest last tokens that must have stood before.")
    prompt_lookup_max: int = Field(4, ge=1, description="Most last tokens that are looked up.")

    @model_validator(mode="after")
    def _window_is_given_in_order(self) -> Ngram:
        if self.prompt_lookup_min > self.prompt_lookup_max:
            raise ValueError(
                f"prompt_lookup_min {self.prompt_lookup_min} and prompt_lookup_max {self.prompt_lookup_max} "
                "break the rule prompt_lookup_min <= prompt_lookup_max"
            )
        return self


class Suffix(Strict):
    """Drafts from a tree of the suffixes of prompt and earlier answers (Oliaro 2024, arXiv:2411.04975)."""

    kind: Literal["suffix"]
    num_speculative_tokens: int = Field(24, ge=1, description="Drafted a step, at most.")
    suffix_decoding_max_tree_depth: int = Field(24, ge=1)
    suffix_decoding_max_spec_factor: float = Field(1.0, ge=0.0, description="Drafted for a matched token.")
    suffix_decoding_min_token_prob: float = Field(0.1, ge=0.0, le=1.0)


class Draft(Strict):
    """A smaller model with the same vocabulary drafts, such as a distilled student of the expert's base."""

    kind: Literal["draft"]
    model: str = Field(min_length=1, description="A model artifact's name or key, or a source as of a model.")
    num_speculative_tokens: int = Field(3, ge=1, description="Drafted a step.")


class Eagle(Strict):
    """A head that reads the model's hidden states drafts (Li et al., arXiv:2401.15077, 2503.01840)."""

    kind: Literal["eagle", "eagle3"]
    model: str = Field(min_length=1, description="The head: an artifact's name or key, or a source.")
    num_speculative_tokens: int = Field(3, ge=1, description="Drafted a step.")


class Mtp(Strict):
    """The model's own layers for multi-token prediction draft (Gloeckle et al. 2024, arXiv:2404.19737)."""

    kind: Literal["mtp"]
    num_speculative_tokens: int = Field(1, ge=1, description="Drafted a step.")


Speculation = Annotated[Ngram | Suffix | Draft | Eagle | Mtp, Field(discriminator="kind")]


def parse_speculation(value: Any) -> Speculation:
    """The config in a value read from JSON or YAML. Raises pydantic's ``ValidationError``."""
    made: Speculation = TypeAdapter(Speculation).validate_python(value)
    return made
