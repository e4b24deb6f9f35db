"""The base of every schema, and of every stage.

A field that names another stage is declared with ``Ref``; everything that follows references
(order, cycles, keys) reads them through ``StageBase.references``.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,39}$")]
Ref = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,39}(\.(train|test))?$")]


PARTS = {"prompts": "train", "data": "train", "items": "test"}
"""The part of a dataset that a reference means when it names none: nothing trains on what it is tested on."""


def default_part(field: str) -> str | None:
    """The part that a reference field of this path means by itself; None of what is no dataset."""
    # What must not be trained on is what is tested on.
    return "test" if field.startswith("filters.") else PARTS.get(field)


def by_name(value: Any) -> Any:
    """``refusal`` for ``{name: refusal}``, before it is checked."""
    return {"name": value} if isinstance(value, str) else value


def as_list(value: Any) -> Any:
    """``latin`` for ``[latin]``, before it is checked."""
    return [value] if isinstance(value, str) else value


class Strict(BaseModel):
    """A frozen schema that refuses unknown keys and silent conversions ("3" is not 3)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Split(Strict):
    """Held-out share, chosen by each row's content hash: adding rows moves none of the others. 0 holds none
    out."""

    test: float = Field(0.2, ge=0.0, lt=1.0)


class StageBase(Strict):
    """What every stage has. ``references`` maps a field path to the stage it names."""

    makes: ClassVar[str]
    uses_model: ClassVar[bool] = True
    name: Name

    @property
    def artifact_kind(self) -> str:
        """What kind of artifact the stage makes."""
        return self.makes

    @property
    def reads_base(self) -> bool:
        """Whether the manifest's model decides the result, beside what the references name."""
        return self.uses_model

    def references(self) -> dict[str, str]:
        raise TypeError(f"{type(self).__name__} does not say which stages it reads")

    def settings(self) -> dict[str, Any]:
        """What decides the result, and so goes into the key: everything but names."""
        return self.model_dump(mode="json", exclude={"name", *(f.split(".")[0] for f in self.references())})


def _of_a_node(resources: dict[str, float]) -> dict[str, float]:
    for name, amount in resources.items():
        if name in ("CPU", "GPU", "memory", "object_store_memory"):
            raise ValueError(
                f"'{name}' is held by every process as it needs it; name a resource that you gave your nodes "
                "(ray start --resources)"
            )
        if amount <= 0 or (amount > 1 and amount % 1):
            raise ValueError(
                f"{name}: {amount:g} breaks Ray's rule for amounts: above 0, and whole from 1 on; "
                "write 0.5, 1 or 2"
            )
    return resources


NamedResources = Annotated[dict[str, float], AfterValidator(_of_a_node)]


class OnCluster(StageBase):
    """What a stage whose processes take room in the cluster says of it; nothing that it makes depends on
    this."""

    resources: NamedResources = Field(
        {}, description="Named resources of nodes that each process asks for beside its CPU or GPU."
    )
    priority: int = Field(
        0,
        ge=-1000,
        le=1000,
        description="Work of a lower one makes room for it, and all of it for what is served.",
    )

    PLACED: ClassVar[frozenset[str]] = frozenset({"resources", "priority"})
