"""All skills that an agent may name: those of the deployment, and those of its org, which come first."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

from kernel.errors import BadSettings
from orchestrator.skills.open_skill import library
from orchestrator.skills.records import OrgSkills
from orchestrator.skills.skill import Skill, UnknownSkill


class SkillRegistry:
    """Finds skills.

    Args:
        skills: of the deployment; names must differ.
        missing: skills that this deployment could have, and what to configure for them.
        of_orgs: where orgs keep their own; None if they can't.

    Raises:
        BadSettings: two skills of one name.
    """

    def __init__(
        self,
        skills: Iterable[Skill] = (),
        *,
        missing: Mapping[str, str] | None = None,
        of_orgs: OrgSkills | None = None,
    ) -> None:
        self._skills: dict[str, Skill] = {}
        for skill in skills:
            if skill.name in self._skills:
                raise BadSettings(
                    f"Two skills are named {skill.name!r}.",
                    suggestions=(
                        "rename the folder, or uninstall the plug-in, that takes a name that is there already",
                    ),
                )
            self._skills[skill.name] = skill
        self._missing = {name: hint for name, hint in (missing or {}).items() if name not in self._skills}
        self._of_orgs = of_orgs

    @property
    def names(self) -> tuple[str, ...]:
        """The skills of the deployment, in the order they were given."""
        return tuple(self._skills)

    async def find(self, org_id: str, run_id: str, names: Sequence[str]) -> list[Skill]:
        """See `Skills.find`."""
        if not names:
            return []
        own = await self._of_orgs.find(org_id, run_id, names) if self._of_orgs is not None else {}
        known = {**self._skills, **own}
        if unknown := [name for name in names if name not in known]:
            raise UnknownSkill(
                f"There is no skill {_quoted(unknown)} for this agent.", suggestions=self._suggestions(unknown)
            )
        found = [known[name] for name in names]
        opener = library(found)
        return found if opener is None else [*found, opener]

    def _suggestions(self, unknown: Sequence[str]) -> list[str]:
        lines = [f"{name}: {self._missing[name]}" for name in unknown if name in self._missing]
        others = [name for name in unknown if name not in self._missing]
        near = {name: difflib.get_close_matches(name, self._skills, n=1) for name in others}
        lines += [f"{name}: did you mean {found[0]}?" for name, found in near.items() if found]
        lines.append(f"skills of this deployment: {', '.join(self._skills) or 'none'}")
        if others:
            lines.append("skills of your org: GET /v1/skills; a run has those that were there when it was made")
        return lines


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
