"""Settings: the environment, read once at boot into one frozen object.

`load_settings` reports everything that is wrong at once. No other module reads the environment.
The standard names (`DATABASE_URL`, `REDIS_URL`, `OPENAI_BASE_URL`, `OPENAI_API_KEY`, `LLM_MODEL`) have no prefix;
all others start with `LONGHAUL_`.
"""

from __future__ import annotations

import json
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from kernel.errors import BadSettings
from kernel.mcp_servers import McpServerSettings, ServerName
from kernel.prices import Prices
from kernel.sealing import parse_keys

_LONGEST_KEPT: Final = 100 * 366 * 86_400.0


def _plain(name: str) -> AliasChoices:
    return AliasChoices(name)


class Settings(BaseSettings):
    """Everything that can be configured. Times are in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(env_prefix="LONGHAUL_", frozen=True, extra="ignore")

    # stores
    database_url: SecretStr = Field(validation_alias=_plain("DATABASE_URL"))
    redis_url: SecretStr = Field(validation_alias=_plain("REDIS_URL"))
    database_pool: int = Field(10, ge=2, le=200, description="connections to Postgres per process")

    # the model endpoint
    openai_base_url: str = Field("https://api.openai.com/v1", validation_alias=_plain("OPENAI_BASE_URL"))
    openai_api_key: SecretStr = Field(SecretStr(""), validation_alias=_plain("OPENAI_API_KEY"))
    llm_model: str = Field("gpt-4o-mini", min_length=1, validation_alias=_plain("LLM_MODEL"))
    model_connect_timeout: float = Field(5.0, gt=0, le=60)
    model_idle_timeout: float = Field(60.0, gt=0, le=3600, description="longest silence within an answer")
    model_retries: int = Field(2, ge=0, le=10, description="further tries before the first token")

    prices: str = Field(
        "", max_length=65_536, description="of models, per million tokens: JSON, or the path of a JSON or TOML file"
    )

    # embeddings: the offline lexical embedder unless an endpoint or a local model is named
    embedding_base_url: str | None = None
    embedding_api_key: SecretStr = SecretStr("")
    embedding_model: str = Field("lexical", description="of the endpoint, or local:FOLDER, or lexical")
    embedding_previous_model: str | None = Field(None, description="while memories are embedded anew: the model before")
    embedding_previous_base_url: str | None = Field(None, description="where that is, if not at the same endpoint")
    embedding_previous_api_key: SecretStr = SecretStr("")

    # a reranker of what recall found; none unless an endpoint is named
    rerank_base_url: str | None = None
    rerank_api_key: SecretStr = SecretStr("")
    rerank_model: str = ""

    # memories that a model finds in conversations
    extract: bool = Field(False, description="whether to look for them, of agents that do not say")
    extraction_model: str = Field("", max_length=200, description="at the model endpoint; else each agent's own model")

    # the HTTP edge
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535, validation_alias=AliasChoices("LONGHAUL_PORT", "PORT"))
    secret_key: SecretStr = Field(description="signs stream tokens; the same on every API process")
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    max_body_bytes: int = Field(1_048_576, ge=1024, le=64 * 1_048_576)
    stream_token_ttl: int = Field(300, ge=10, le=86_400)
    heartbeat_interval: float = Field(15.0, ge=0.1, le=300)
    write_timeout: float = Field(20.0, ge=1, le=300, description="until a client that reads nothing is given up")

    # JWT bearer tokens of your own identity provider; off unless a key is set
    jwt_key: SecretStr = Field(SecretStr(""), description="HMAC secret or PEM public key")
    jwt_algorithm: Literal["HS256", "RS256", "ES256", "EdDSA"] = "HS256"
    jwt_audience: str = "longhaul"

    # the worker
    slots: int = Field(20, ge=1, le=500, description="runs executed at once by one worker")
    lease_seconds: float = Field(10.0, ge=1, le=600)
    lease_renew_seconds: float = Field(3.0, ge=0.2, le=200)
    grace_seconds: float = Field(
        2.0, ge=0, le=3600, description="after SIGTERM, for runs to finish their step before they are handed back"
    )
    effect_grace_seconds: float = Field(
        20.0, ge=0, le=3600, description="beyond that, for calls that must not be made twice"
    )
    egress_allow: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="host:port pairs that tools may reach although they are private addresses"
    )

    # secrets
    sealing_keys: SecretStr = Field(
        SecretStr(""), description="id:key pairs by commas, keys of 32 bytes in base64url; the first one seals"
    )

    mcp_servers: Annotated[dict[ServerName, McpServerSettings], NoDecode] = Field(
        {}, description="MCP servers that agents may use by name, as a JSON object; see `kernel.mcp_servers`"
    )

    # skills and web search
    skills_dir: str | None = Field(None, description="folder whose sub-folders are skills with a SKILL.md each")
    search_engine: Literal["none", "searxng", "brave", "tavily", "exa", "ddgs"] = "none"
    search_url: str | None = Field(
        None,
        max_length=2_048,
        validate_default=True,
        description="where SearXNG is; for the others, a gateway instead of their own address",
    )
    search_key: SecretStr = Field(SecretStr(""), validate_default=True, description="for brave, tavily and exa")

    # plug-ins and middleware
    tools: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="package.module:Class of further tools that a worker loads"
    )
    memory: str = Field("postgres", min_length=1, description="the memory backend: postgres, or a plug-in's name")
    middleware: Annotated[tuple[str, ...], NoDecode] = Field((), description="by name, the outermost first")
    input_most: int = Field(100_000, ge=1, description="characters of input that `validation` lets through")
    input_deny: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="texts that `validation` refuses in an input, whatever their case"
    )
    rate_runs_org: int = Field(0, ge=0, description="runs that `rate_limit` lets an org start in a minute; 0: any")
    rate_runs_user: int = Field(0, ge=0, description="the same for each user of an org")
    rate_tool_calls_org: int = Field(0, ge=0, description="tool calls of an org in a minute; 0: any")
    cache_seconds: float = Field(300.0, gt=0, le=30 * 86_400.0, description="how long `cache` keeps an answer")

    # retention: how long things are kept; 0 is for ever
    retain_chunks: float = Field(
        900.0, ge=0, le=_LONGEST_KEPT, description="chunks and checkpoints, after the end of their run"
    )
    retain_events: float = Field(
        30 * 86_400.0, ge=0, le=_LONGEST_KEPT, description="events, after the end of their run"
    )
    retain_sessions: float = Field(0.0, ge=0, le=_LONGEST_KEPT, description="sessions in which nothing happens")
    retain_audit: float = Field(366 * 86_400.0, ge=0, le=_LONGEST_KEPT, description="entries of the audit log")

    # the working windows of sessions
    window_ttl: int = Field(
        3_600, ge=0, le=30 * 86_400, description="that Redis keeps a session's window unused; 0: it keeps none"
    )

    # code that agents write
    cpython: bool = Field(False, description="the tool cpython, which needs bubblewrap")

    # files of sessions: the place of their bytes, the same for every process, and quotas
    files_url: str = Field("", description="file:///directory or s3://bucket/prefix; without one there are no files")
    files_s3_endpoint: str = Field("", description="URL of an S3 server that is not Amazon's")
    files_s3_region: str = "us-east-1"
    files_s3_access_key: SecretStr = SecretStr("")
    files_s3_secret_key: SecretStr = SecretStr("")
    files_max_bytes: int = Field(32 * 1_048_576, ge=1, le=1_073_741_824, description="of one file")
    files_session_bytes: int = Field(256 * 1_048_576, ge=1, le=2**40, description="of all files of a session")
    files_per_session: int = Field(1_000, ge=1, le=100_000)

    # documents of the knowledge base, whose bytes lie with the files
    documents_max_bytes: int = Field(32 * 1_048_576, ge=1, le=268_435_456, description="of one document")
    documents_org_bytes: int = Field(10 * 1_073_741_824, ge=1, le=2**44, description="of all documents of an org")
    documents_per_org: int = Field(10_000, ge=1, le=1_000_000)

    # logs
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"

    @field_validator("cors_origins", "egress_allow", "tools", "middleware", "input_deny", mode="before")
    @classmethod
    def _comma_separated(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("mcp_servers", mode="before")
    @classmethod
    def _json(cls, value: object) -> object:
        if isinstance(value, str):
            try:
                return json.loads(value) if value.strip() else {}
            except ValueError:
                raise ValueError("is not valid JSON") from None
        return value

    @field_validator("search_url")
    @classmethod
    def _address_of_the_engine(cls, value: str | None, info: ValidationInfo) -> str | None:
        engine = info.data.get("search_engine")
        if value is None:
            if engine == "searxng":
                raise ValueError("is needed for searxng, such as http://searxng:8080")
            return None
        parts = urlsplit(value)
        if engine == "ddgs":
            raise ValueError("is of no use to ddgs, which has addresses of its own")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise ValueError("must be an http or https address without a password or query")
        return value

    @field_validator("search_key")
    @classmethod
    def _key_of_the_engine(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        key = value.get_secret_value().strip()
        if (engine := info.data.get("search_engine")) in ("brave", "tavily", "exa") and not key:
            raise ValueError(f"is needed for {engine}")
        if not key.isascii() or not key.isprintable():
            raise ValueError("holds characters that no key has")
        return SecretStr(key)

    @field_validator("prices")
    @classmethod
    def _price_table(cls, value: str) -> str:
        Prices.read(value)
        return value

    @field_validator("secret_key")
    @classmethod
    def _long_enough(cls, value: SecretStr) -> SecretStr:
        if len(value.get_secret_value()) < 32:
            raise ValueError("needs at least 32 characters, e.g. the output of: openssl rand -hex 32")
        return value

    @field_validator("sealing_keys")
    @classmethod
    def _keys(cls, value: SecretStr) -> SecretStr:
        parse_keys(value.get_secret_value())
        return value

    @field_validator("database_url")
    @classmethod
    def _postgres(cls, value: SecretStr) -> SecretStr:
        if not value.get_secret_value().startswith(("postgres://", "postgresql://")):
            raise ValueError("must start with postgresql://")
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, value: SecretStr) -> SecretStr:
        if not value.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must start with redis://, rediss:// or unix://")
        return value

    @field_validator("files_url")
    @classmethod
    def _place_of_files(cls, value: str) -> str:
        if value and not value.startswith("file:///") and not (value.startswith("s3://") and len(value) > 5):
            raise ValueError("must start with file:/// or s3://bucket")
        return value

    @field_validator("files_s3_endpoint")
    @classmethod
    def _http(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("must start with https:// or http://")
        return value

    @field_validator("lease_renew_seconds")
    @classmethod
    def _renewed_in_time(cls, value: float, info: object) -> float:
        lease = getattr(info, "data", {}).get("lease_seconds", 10.0)
        if value * 2 > lease:
            raise ValueError("must be at most half of LONGHAUL_LEASE_SECONDS, so that one lost renewal is survived")
        return value


def load_settings() -> Settings:
    """The settings of this process.

    Raises:
        BadSettings: names every variable that is missing or wrong.
    """
    try:
        return Settings()  # type: ignore[call-arg]  # fields come from the environment
    except ValidationError as error:
        lines = [
            f"  {_variable(problem['loc'])}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_input=False)
        ]
        raise BadSettings("The environment is not complete:\n" + "\n".join(lines)) from None


def _variable(location: tuple[int | str, ...]) -> str:
    name = str(location[0]) if location else "settings"
    return name if name.isupper() else f"LONGHAUL_{name.upper()}"
