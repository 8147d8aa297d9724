"""A run's own choice of model on top of its agent's.

Where a model is and what belongs to that place go together: a run that names another address or provider brings its
own key, and never has the agent's sent there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from kernel.agent_config import ModelChoice

_OF_THE_PLACE: Final[Mapping[str, Any]] = dict.fromkeys(("provider", "base_url", "api_key", "fallbacks"))


def merged(agent: ModelChoice | None, asked: Mapping[str, Any] | str | None) -> ModelChoice:
    """The agent's choice with what the caller asked for on top. None in `asked` means: as the agent has it."""
    base = agent or ModelChoice()
    if asked is None:
        return base
    given = {"name": asked} if isinstance(asked, str) else asked
    changes = {name: value for name, value in given.items() if value is not None}
    if "base_url" in changes or "provider" in changes:
        changes = {**_OF_THE_PLACE, **changes}
    return base.model_copy(update=changes)
