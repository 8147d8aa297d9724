"""What a version of an agent fixes: its instructions, model, tools, skills, sub-agents, approvals and limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import AfterValidator, Discriminator, Field, Tag, field_validator, model_validator

from kernel.approval_policy import ApprovalPolicy
from kernel.json_schema import AnySchema
from kernel.tool_definitions import Definition, SecretName, Slug, ToolEntries

MAX_NESTING: Final = 3
"""Levels of sub-agents below an agent."""

DEFAULT_TOOLS: Final = ("python", "http_fetch", "remember", "recall")

Name = Annotated[str, Field(min_length=1, max_length=200)]
Instructions = Annotated[str, Field(max_length=32_000)]
ModelName = Annotated[str, Field(min_length=1, max_length=200)]


class ModelChoice(Definition):
    """Which model answers, and how. What is left out is the deployment's choice."""

    name: ModelName | None = None
    provider: Slug | None = Field(default=None, description="a plug-in; else the endpoint is OpenAI-compatible")
    base_url: str | None = Field(
        default=None, pattern=r"^https?://", max_length=2_048, description="another OpenAI-compatible endpoint"
    )
    api_key: SecretName | None = Field(default=None, description="the secret that holds the key for base_url")
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000, description="longest answer, in tokens")
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    seed: int | None = Field(default=None, ge=0, le=2**31 - 1)
    idle_timeout_seconds: float | None = Field(default=None, gt=0, le=3_600, description="longest silence in an answer")
    fallbacks: list[ModelName] | None = Field(
        default=None, max_length=8, description="models of the same endpoint, asked in order when the first fails"
    )

    @model_validator(mode="after")
    def _key_for_an_address(self) -> ModelChoice:
        if self.api_key is not None and self.base_url is None:
            raise ValueError("api_key needs base_url: the deployment's own endpoint has its own key")
        if self.provider is not None and self.base_url is not None:
            raise ValueError("base_url and provider can't be used together: a provider has its own address")
        return self


class MemoryConfig(Definition):
    """What is recalled before the first step, and whether a conversation is read for memories after its turns."""

    recall: bool = True
    limit: int = Field(default=5, ge=1, le=20)
    extract: bool | None = Field(
        default=None, description="whether a model looks for memories in each turn; null: as the deployment has it"
    )


class ContextConfig(Definition):
    """What of a conversation the model is told. Tokens are estimated, on the high side."""

    max_tokens: int = Field(
        default=100_000, ge=500, le=2_000_000, description="of everything that one call of the model is told"
    )
    keep_recent: int = Field(
        default=40, ge=2, le=1_000, description="messages of the conversation that are told word for word"
    )
    result_tokens: int = Field(
        default=8_000, ge=100, le=1_000_000, description="a longer result of a tool is told once, then referred to"
    )
    summarize: bool = Field(default=True, description="whether a model sums up what is told no more")
    summary_model: ModelName | None = Field(default=None, description="which one; else the agent's own")


class SubAgentLimits(Definition):
    """What one task of a sub-agent may use, of what its parent has left."""

    max_steps: int | None = Field(default=None, ge=1, le=100)
    max_tool_calls: int | None = Field(default=None, ge=0, le=500)
    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000_000)
    max_cost: float | None = Field(default=None, ge=0, le=1_000_000)
    max_seconds: float | None = Field(default=None, gt=0, le=86_400)


class AgentLimits(Definition):
    """What one run may use, which its own budget can lower and never raise; and how many may run.

    `timeout_seconds` is hard: the run expires. At the other limits the agent answers with what it has (`stop`), or the
    run waits until somebody raises them (`ask`).
    """

    max_steps: int = Field(default=25, ge=1, le=100)
    max_tool_calls: int = Field(default=50, ge=1, le=500)
    max_depth: int = Field(default=2, ge=0, le=4, description="levels of delegation")
    max_parallel_agents: int = Field(default=8, ge=1, le=32, description="tasks delegated at once by one agent")
    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000_000)
    max_cost: float | None = Field(default=None, ge=0, le=1_000_000, description="in the price table's currency")
    max_seconds: float | None = Field(default=None, gt=0, le=86_400, description="of work, without time spent waiting")
    timeout_seconds: int = Field(default=3600, ge=1, le=86_400)
    on_limit: Literal["stop", "ask"] = "stop"
    max_running: int | None = Field(
        default=None, ge=1, le=10_000, description="runs of the agent, at whatever version, that may run at once"
    )


class _Actor(Definition):
    description: str = Field(default="", max_length=2_000)
    instructions: Instructions = ""
    model: ModelChoice | None = None
    tools: ToolEntries = Field(default=list(DEFAULT_TOOLS))
    skills: list[Slug] = Field(default=[], max_length=32, json_schema_extra={"uniqueItems": True})
    approvals: dict[str, ApprovalPolicy] = Field(
        default={}, max_length=64, description="by the name of a tool as the model sees it, or * for all others"
    )
    sub_agents: SubAgents = Field(default=[])

    @field_validator("skills")
    @classmethod
    def _each_skill_once(cls, skills: list[str]) -> list[str]:
        if len(set(skills)) != len(skills):
            raise ValueError("a skill may be named only once")
        return skills


class SubAgentConfig(_Actor):
    """Someone to delegate to: sees only the task it is given."""

    name: Slug
    limits: SubAgentLimits | None = None


class SubAgentRef(Definition):
    """Another agent of the org as a sub-agent. Without `version` it is the newest when this configuration is saved."""

    name: Slug
    agent_id: str = Field(pattern=r"^agt_[0-9a-f]{32}$")
    version: int | None = Field(default=None, ge=1)
    description: str = Field(default="", max_length=2_000, description="instead of the agent's own")
    limits: SubAgentLimits | None = None


def _kind(value: Any) -> str:
    named = "agent_id" in value if isinstance(value, dict) else isinstance(value, SubAgentRef)
    return "<reference>" if named else "<here>"


def _each_name_once(sub_agents: list[Any]) -> list[Any]:
    names = [sub_agent.name for sub_agent in sub_agents]
    if len(set(names)) != len(names):
        raise ValueError("sub-agents of one level need different names")
    return sub_agents


SubAgent: TypeAlias = SubAgentConfig | SubAgentRef
SubAgents: TypeAlias = Annotated[
    list[
        Annotated[
            Annotated[SubAgentConfig, Tag("<here>")] | Annotated[SubAgentRef, Tag("<reference>")],
            Discriminator(_kind),
        ]
    ],
    AfterValidator(_each_name_once),
    Field(max_length=16, description="names are unique among siblings; at most 3 levels"),
]


class AgentConfig(_Actor):
    """Everything that a version of an agent fixes."""

    name: Name
    memory: MemoryConfig = MemoryConfig()
    context: ContextConfig = ContextConfig()
    limits: AgentLimits = AgentLimits()
    response_schema: AnySchema | None = Field(default=None, description="what the final answer must be, as JSON")

    @model_validator(mode="after")
    def _not_too_deep(self) -> AgentConfig:
        level, depth = self.sub_agents, 0
        while level:
            depth += 1
            if depth > MAX_NESTING:
                raise ValueError(f"sub-agents may be nested at most {MAX_NESTING} levels deep")
            level = [below for one in level if isinstance(one, SubAgentConfig) for below in one.sub_agents]
        return self


# What the release before this one can't read is left out of what is stored wherever it says nothing.
_LATER: Final[Mapping[str, Any]] = {"skills": [], "approvals": {}, "response_schema": None, "limits": None}
_LATER_LIMITS: Final[Mapping[str, Any]] = {
    "max_running": None,
    "max_parallel_agents": 8,
    "max_cost": None,
    "max_seconds": None,
    "on_limit": "stop",
}
_LATER_CHOICES: Final[Mapping[str, Any]] = dict.fromkeys(
    ("provider", "base_url", "api_key", "top_p", "reasoning_effort", "seed", "idle_timeout_seconds", "fallbacks")
)


def stored(config: AgentConfig) -> dict[str, Any]:
    """The configuration as it is kept."""
    document = config.model_dump()
    _trim(document["limits"], _LATER_LIMITS)
    _trim(document, {"context": ContextConfig().model_dump()})
    _trim(document["memory"], {"extract": None})
    _trim_actor(document)
    return document


def _trim_actor(actor: dict[str, Any]) -> None:
    _trim(actor, _LATER)
    if actor.get("model") is not None:
        _trim(actor["model"], _LATER_CHOICES)
    for sub_agent in actor.get("sub_agents", ()):
        _trim_actor(sub_agent)


def _trim(document: dict[str, Any], silent: Mapping[str, Any]) -> None:
    for name, default in silent.items():
        if name in document and document[name] == default:
            del document[name]
