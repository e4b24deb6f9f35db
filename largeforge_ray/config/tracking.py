"""Where the numbers of a running training go beside the run's own events. Secrets are the environment's."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from largeforge_ray.config.base import Strict


class Mlflow(Strict):
    """An MLflow server or database. Its own variables, such as MLFLOW_TRACKING_TOKEN, hold what is secret."""

    uri: str = Field(min_length=1, description="http(s):// of a server, or sqlite:/// of a file.")
    experiment: str = Field("largeforge", min_length=1)

    @field_validator("uri")
    @classmethod
    def _holds_no_secret(cls, uri: str) -> str:
        # The manifest is kept with every run.
        if "://" in uri and "@" in uri.partition("://")[2].partition("/")[0]:
            raise ValueError(
                "uri names a user or password before '@', and a manifest is kept with its runs; "
                "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment"
            )
        return uri


class Wandb(Strict):
    """Weights & Biases; WANDB_API_KEY holds the key, WANDB_BASE_URL the server if it is one's own."""

    project: str = Field("largeforge", min_length=1)
    mode: Literal["online", "offline"] = Field("online", description="offline writes files to sync later.")


class Tracking(Strict):
    """Trackers beside the TensorBoard files and Ray's metrics, which are always written."""

    mlflow: Mlflow | None = None
    wandb: Wandb | None = None
