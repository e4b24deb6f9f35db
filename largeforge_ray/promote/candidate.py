"""An adapter artifact as the expert it could become, or the reason why not."""

from __future__ import annotations

from largeforge_ray.data import read_rows
from largeforge_ray.errors import ConfigError, ModelError, StoreError
from largeforge_ray.promote.preflight import check_adapter
from largeforge_ray.routing.experts import Expert, Price, Router, Territory
from largeforge_ray.routing.territory import first_distinct, last_user, territory_keywords
from largeforge_ray.store import Artifact, Store


def candidate(
    store: Store, reference: str, router: Router, *, name: str | None, price: Price | None
) -> Expert:
    """The expert that an adapter artifact makes beside the experts of ``router``.

    ``reference`` is the artifact's key, the beginning of it, or its name. The expert takes the artifact's
    name if it gets none, and its territory from the prompts the adapter was trained on.

    Raises:
        StoreError: no artifact fits. ConfigError: it is no adapter, or of a model that is not served.
        ModelError: the engine could not load it.
    """
    artifact = store.get(reference)
    if artifact.kind != "adapter":
        raise ConfigError(
            f"artifact {artifact.key[:16]} is of kind {artifact.kind}; an expert is made of an adapter"
        )
    host = next(
        (e for e in router.experts if e.model_key in artifact.parents and e.engine.max_lora_rank), None
    )
    if host is None:
        served = ", ".join(sorted({e.model_key[:16] for e in router.experts}))
        raise ConfigError(
            f"adapter {artifact.key[:16]} was made of {', '.join(k[:16] for k in artifact.parents)}, none of "
            f"which is a model served here ({served}); serve its model, or train it on one of these"
        )
    folder = store.fetch(artifact)
    check_adapter(folder, max_lora_rank=int(host.engine.max_lora_rank or 0))
    if not (folder / "probe.json").exists():
        raise ModelError(
            f"adapter {artifact.key[:16]} has no probe.json to compare the engine with; "
            "train it with probe: true"
        )
    prompts = training_prompts(store, artifact)
    return Expert(
        name=name or artifact.name,
        state="proposed",
        model_key=host.model_key,
        engine=host.engine,
        adapter_key=artifact.key,
        price=price or host.price,
        territory=Territory(tuple(prompts), territory_keywords(prompts)),
    )


def training_prompts(store: Store, artifact: Artifact) -> list[str]:
    """The first distinct prompts of the rows an adapter was trained on; none if they are no longer there."""
    for key in artifact.parents:
        try:
            rows = store.find("dataset", key)
        except StoreError:
            continue
        if rows is not None:
            asked = (last_user(row["messages"]) for row in read_rows(store.fetch(rows), "train"))
            return first_distinct(asked)
    return []
