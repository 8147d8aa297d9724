"""A model on this machine: static embeddings, which need neither a network nor a GPU.

Models of this kind (model2vec) look up a vector for each token and take their mean: a tenth of a millisecond a text, a
few dozen megabytes, and most of what a small transformer sees of meaning. A model is a folder, or a name on the
Hugging Face hub, from where it is downloaded once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from kernel.errors import BadSettings
from memory.embedders.nearness import UNRELATED, measured
from memory.embedders.port import Nearness
from memory.errors import EmbedderUnavailable

if TYPE_CHECKING:
    from model2vec import StaticModel

PREFIX = "local:"


class LocalEmbedder:
    """Embeds with the model at `place`: a folder, or a name such as `minishlab/potion-multilingual-128M`.

    The model's name in what is stored is the last part of `place`: another model in the same folder must have another
    name. It is loaded by the first call.

    Raises:
        BadSettings: the package is not installed, or the folder holds no model.
    """

    local = True

    def __init__(self, place: str) -> None:
        if find_spec("model2vec") is None:
            raise BadSettings(
                f"LONGHAUL_EMBEDDING_MODEL is {PREFIX}{place}, but the package model2vec is not installed",
                suggestions=("install longhaul[local]",),
            )
        folder = Path(place).expanduser()
        if folder.is_absolute() and not (folder / "config.json").is_file():
            raise BadSettings(
                f"LONGHAUL_EMBEDDING_MODEL: there is no model in {folder}",
                suggestions=("name a folder that model2vec has written, with a config.json",),
            )
        self.model = f"{PREFIX}{folder.name}"
        self.dimensions = 0
        self.nearness = Nearness(floor=0.0, weight=1.0)
        self._place = str(folder) if folder.is_absolute() else place
        self._loaded: StaticModel | None = None
        self._loading = asyncio.Lock()

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        model = self._loaded or await self._load()
        return await asyncio.to_thread(_vectors, model, texts)

    async def aclose(self) -> None:
        """Holds nothing open."""

    async def _load(self) -> StaticModel:
        async with self._loading:
            if self._loaded is None:
                try:
                    model = await asyncio.to_thread(_model, self._place)
                except Exception as error:  # of the package, of its files, of the hub
                    why = f"{type(error).__name__}: {str(error)[:300]}"
                    raise EmbedderUnavailable(
                        f"the embedding model {self._place} can't be loaded: {why}",
                        suggestions=("check LONGHAUL_EMBEDDING_MODEL", "download the model and name its folder"),
                    ) from error
                vectors = await asyncio.to_thread(_vectors, model, UNRELATED)
                self.nearness, self.dimensions = measured(vectors), len(vectors[0])
                self._loaded = model
        return self._loaded


def _model(place: str) -> StaticModel:
    from model2vec import StaticModel

    return StaticModel.from_pretrained(place)


def _vectors(model: StaticModel, texts: Sequence[str]) -> list[list[float]]:
    """One unit vector for each text; the zero vector for one without known tokens."""
    if not texts:
        return []
    import numpy as np

    found = np.asarray(model.encode([*texts], use_multiprocessing=False), dtype=np.float32)
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    unit: list[list[float]] = (found / np.where(lengths > 0, lengths, 1.0)).tolist()
    return unit
