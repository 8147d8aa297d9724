"""The one way out: every HTTP request that a tool makes to the outside goes through `EgressClient`."""

from orchestrator.egress.client import EgressClient, EgressResponse, Follow
from orchestrator.egress.errors import EgressError, EgressFailed, EgressRefused
from orchestrator.egress.resolver import Resolve

__all__ = ["EgressClient", "EgressError", "EgressFailed", "EgressRefused", "EgressResponse", "Follow", "Resolve"]
