"""The skills of a deployment, by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from orchestrator.skills.skill import Skill, UnknownSkill


class SkillRegistry:
    """Finds skills.

    Raises:
        ValueError: two skills of one name.
    """

    def __init__(self, skills: Iterable[Skill] = ()) -> None:
        self._skills: dict[str, Skill] = {}
        for skill in skills:
            if skill.name in self._skills:
                raise ValueError(f"two skills are named {skill.name!r}")
            self._skills[skill.name] = skill

    async def find(self, org_id: str, names: Sequence[str]) -> list[Skill]:
        """See `Skills.find`."""
        if missing := [name for name in names if name not in self._skills]:
            raise UnknownSkill(
                f"no such skills: {', '.join(missing)}",
                suggestions=(f"use one of: {', '.join(self._skills) or 'none'}",),
            )
        return [self._skills[name] for name in names]
