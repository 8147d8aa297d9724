"""What a window needs of the agent that it tells the model about: `orchestrator.context.RunContext` is one."""

from __future__ import annotations

from typing import Any, Protocol

from kernel.agent_config import ModelChoice
from kernel.prices import Prices
from kernel.runlog import RunLog
from orchestrator.budget import Budget
from orchestrator.kit import Kit
from orchestrator.middleware.layers import Layers
from orchestrator.models.factory import Models
from orchestrator.tools.tool import Vault
from orchestrator.transcript import Transcript


class Acting(Protocol):
    """Who asks: its tools and its model."""

    @property
    def kit(self) -> Kit: ...
    @property
    def model(self) -> ModelChoice: ...


class Asker(Protocol):
    """An agent of a run, with what a summary on the way is made and accounted for with."""

    @property
    def actor(self) -> Acting: ...
    @property
    def path(self) -> str: ...
    @property
    def log(self) -> RunLog: ...
    @property
    def budget(self) -> Budget: ...
    @property
    def transcript(self) -> Transcript: ...
    @property
    def models(self) -> Models: ...
    @property
    def vault(self) -> Vault: ...
    @property
    def prices(self) -> Prices: ...
    @property
    def layers(self) -> Layers | None: ...
    def named(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Event fields with the path of a sub-agent."""
        ...
