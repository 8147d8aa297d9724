"""Which embedders a process uses: what the settings name, else the offline one."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import SecretStr

from kernel.errors import BadSettings
from kernel.settings import Settings
from memory.embedders.lexical import LexicalEmbedder
from memory.embedders.local import PREFIX, LocalEmbedder
from memory.embedders.port import Embedder

_OFFLINE = "lexical"


def choose_embedder(settings: Settings) -> Embedder:
    """The embedder that the settings name. The caller closes it.

    Raises:
        BadSettings: an endpoint without a model, a model without an endpoint, or a local one that is not there.
    """
    return _embedder(
        settings.embedding_model, settings.embedding_base_url, settings.embedding_api_key, "LONGHAUL_EMBEDDING"
    )


def previous_embedders(settings: Settings) -> Mapping[str, Embedder]:
    """Embedders by the names of their models that questions to older vectors are embedded with, while those are
    replaced: the offline one, and the one that the settings name as the previous. The caller closes them.

    Raises:
        BadSettings: as `choose_embedder`, of the previous one.
    """
    lexical = LexicalEmbedder()
    found: dict[str, Embedder] = {lexical.model: lexical}
    if settings.embedding_previous_model is not None:
        # By default at the same endpoint, with the same key: mostly only the model changes.
        elsewhere = settings.embedding_previous_base_url
        previous = _embedder(
            settings.embedding_previous_model,
            elsewhere
            or (None if _needs_no_endpoint(settings.embedding_previous_model) else settings.embedding_base_url),
            settings.embedding_previous_api_key if elsewhere else settings.embedding_api_key,
            "LONGHAUL_EMBEDDING_PREVIOUS",
        )
        found[previous.model] = previous
    return found


def _embedder(model: str, base_url: str | None, api_key: SecretStr, prefix: str) -> Embedder:
    if base_url is None:
        if model == _OFFLINE:
            return LexicalEmbedder()
        if model.startswith(PREFIX):
            return LocalEmbedder(model.removeprefix(PREFIX))
        raise BadSettings(
            f"{prefix}_MODEL is {model!r}, but no endpoint is named that has it",
            suggestions=(f"set {prefix}_BASE_URL, such as https://api.openai.com/v1",),
        )
    if _needs_no_endpoint(model):
        raise BadSettings(
            f"{prefix}_BASE_URL is set, but no model is named that it could have",
            suggestions=(f"set {prefix}_MODEL, such as text-embedding-3-small",),
        )
    # Imported here: whoever needs no endpoint needs no HTTP client.
    from memory.embedders.openai import OpenAIEmbedder

    return OpenAIEmbedder(base_url=base_url, api_key=api_key, model=model)


def _needs_no_endpoint(model: str) -> bool:
    return model == _OFFLINE or model.startswith(PREFIX)
