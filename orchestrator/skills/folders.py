"""Skills that the operator put into folders, in the open Agent Skills format.

All of them are read once, when the worker starts: what an agent is told can't change under it, and no path that a model
names ever reaches the file system. All that is wrong in any of them is said at once.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from kernel.errors import BadSettings
from kernel.skill_config import LONGEST_FILE, MAIN_FILE
from kernel.skill_format import BadSkillFile, read_skill
from orchestrator.skills.skill import Skill

_MOST_FOLDERS: Final = 500
_MOST_FILES: Final = 1_000
_MOST_BYTES: Final = 8 * 1_048_576


def load_folders(root: str | Path, tools: Collection[str] = ()) -> list[Skill]:
    """The skills in the sub-folders of `root`, by their names. Names that begin with a dot, and files, are left alone.

    Of a skill's `allowed-tools` those among `tools` come with it.

    Raises:
        BadSettings: `root` is no folder, or at least one sub-folder is no skill; names each of them and why.
    """
    top = Path(root)
    try:
        with os.scandir(top) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    except OSError as error:
        raise BadSettings(f"LONGHAUL_SKILLS_DIR: {top} can't be read: {error.strerror}") from None
    if len(names) > _MOST_FOLDERS:
        raise BadSettings(f"LONGHAUL_SKILLS_DIR: {top} holds more than {_MOST_FOLDERS} folders")
    skills, problems = [], []
    for name in names:
        try:
            skills.append(_load(top.resolve(), top / name, tools))
        except BadSkillFile as error:
            problems += [f"  {top / name}: {problem}" for problem in error.problems]
        except OSError as error:
            problems.append(f"  {top / name}: can't be read: {error.strerror}")
    if problems:
        raise BadSettings("Skills can't be used as they are:\n" + "\n".join(problems))
    return skills


class FolderDocument:
    """The texts of a folder, as they were when the worker started."""

    def __init__(self, instructions: str, files: Mapping[str, str]) -> None:
        self._instructions = instructions
        self._files = dict(files)

    @property
    def paths(self) -> Sequence[str]:
        return tuple(self._files)

    async def read(self, path: str | None) -> str | None:
        return self._instructions if path is None else self._files.get(path)


def _load(top: Path, folder: Path, tools: Collection[str]) -> Skill:
    inside = folder.resolve()
    if not inside.is_relative_to(top):
        raise BadSkillFile([f"leads out of {top}"])
    files: dict[str, str] = {}
    size = 0
    for count, path in enumerate(_walk(inside, folder), 1):
        if count > _MOST_FILES:
            raise BadSkillFile([f"holds more than {_MOST_FILES} files"])
        if (text := _text(path)) is not None:
            size += len(text)
            if size > _MOST_BYTES:
                raise BadSkillFile([f"holds more than {_MOST_BYTES} bytes of text"])
            files[path.relative_to(folder).as_posix()] = text
    main = files.pop(MAIN_FILE, None)
    if main is None:
        raise BadSkillFile([f"has no {MAIN_FILE}, or one that is no text of at most {LONGEST_FILE} bytes"])
    skill = read_skill(main)
    if skill.name != folder.name:
        raise BadSkillFile([f"name: {skill.name!r} must be the name of the folder"])
    return Skill(
        name=skill.slug,
        description=skill.description,
        tools=[name for name in skill.allowed_tools if name in tools],
        document=FolderDocument(skill.body, files),
        compatibility=skill.compatibility,
    )


def _walk(inside: Path, folder: Path) -> Iterator[Path]:
    """The files of a skill, sorted. A link may only lead to something within the same folder."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in [*folders, *sorted(name for name in names if not name.startswith("."))]:
            path = Path(place) / name
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                raise BadSkillFile([f"{path.relative_to(folder)} leads out of the folder"])
            if name not in folders:
                yield path


def _text(path: Path) -> str | None:
    """The file's text; None for what a model can't read: binary, too long, no regular file."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > LONGEST_FILE:
        return None
    with path.open("rb") as file:
        data = file.read(LONGEST_FILE + 1)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return None if "\x00" in text or len(data) > LONGEST_FILE else text
