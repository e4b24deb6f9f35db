"""What serves: one OpenAI-compatible address in front of many experts.

    from serve_apps import ForgeArgs, start, stop

    url = start(ForgeArgs(store="./forge", router="live"))      # on a connected Ray
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    client.chat.completions.create(model="auto", messages=[...])
    stop(keep_serve=False)

or `serve run serve_apps.forge:build_app store=./forge router=live`, or serve_apps/configs/quickstart.yaml.
"""

from __future__ import annotations

from serve_apps.forge import ForgeArgs, build_app
from serve_apps.launch import start, stop

__all__ = ["ForgeArgs", "build_app", "start", "stop"]
