"""`/v1/skills`: an org's own skills and their versions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Annotated, Any, Final

import orjson
from pydantic import AwareDatetime, Field

from api.endpoint import Answer, Call, Endpoint, NoQuery
from api.paging import PageQuery, bad_cursor, page, read_cursor
from api.problems import invalid
from api.values import Body, View
from kernel import skills
from kernel.errors import Conflict
from kernel.ids import is_id
from kernel.postgres import Pool
from kernel.skill_config import (
    LONGEST_FILE,
    MAIN_FILE,
    MOST_FILES,
    AllowedTools,
    Compatibility,
    Description,
    License,
    References,
    SkillConfig,
    SkillInstructions,
    SkillMetadata,
    is_file_path,
)
from kernel.skills import SkillRecord, SkillSummary
from kernel.tool_definitions import Slug, ToolEntries


class SkillPatch(Body):
    """Fields of a skill to be replaced; what is left out stays. The name can't change: agents name skills."""

    description: Description = Field(default="")
    instructions: SkillInstructions = ""
    tools: ToolEntries = Field(default=[])
    allowed_tools: AllowedTools = Field(default=[])
    license: License | None = None
    compatibility: Compatibility | None = None
    metadata: SkillMetadata = Field(default={})
    references: References = Field(default={})


class SkillImport(Body):
    """A skill as a folder in the Agent Skills format."""

    files: dict[Annotated[str, Field(min_length=1, max_length=200)], Annotated[str, Field(max_length=LONGEST_FILE)]] = (
        Field(
            min_length=1,
            max_length=MOST_FILES + 1,
            description="texts by their paths in the folder; SKILL.md must be among them",
            json_schema_extra={"required": [MAIN_FILE]},
        )
    )
    tools: ToolEntries = Field(default=[])
    update: bool = Field(default=False, description="if the org has this skill, make a new version of it")


class SkillView(SkillConfig):
    """A skill at one of its versions."""

    id: str
    version: int
    created_at: AwareDatetime
    updated_at: AwareDatetime


class SkillSummaryView(View):
    """A skill without its texts."""

    id: str
    name: Slug
    version: int
    description: str
    tools: list[str] = Field(description="their names")
    references: list[str] = Field(description="paths of its texts")
    created_at: AwareDatetime
    updated_at: AwareDatetime


class SkillPage(View):
    """Skills."""

    data: list[SkillSummaryView]
    next_cursor: str | None


_ONE: Final = "/v1/skills/{skill_id}"


class Skills:
    """The endpoints of skills."""

    def __init__(self, db: Pool) -> None:
        self._db = db

    def endpoints(self) -> Iterator[Endpoint[Any, Any]]:
        tag = "skills"
        yield Endpoint(
            method="POST",
            path="/v1/skills",
            handler=self.create,
            tag=tag,
            summary="Create a skill",
            description="Agents of the org name it in `skills`. It comes before one of the deployment with this name.",
            scope="write",
            body=SkillConfig,
            response=SkillView,
            status=201,
            problems=(409,),
            location=_ONE.replace("skill_id", "id"),
            idempotent=True,
        )
        yield Endpoint(
            method="POST",
            path="/v1/skills/import",
            handler=self.import_,
            tag=tag,
            summary="Create a skill from SKILL.md and its files",
            description="Hyphens in the name become underscores: `pdf-forms` is `pdf_forms` to agents.",
            scope="write",
            body=SkillImport,
            response=SkillView,
            status=201,
            problems=(409,),
            location=_ONE.replace("skill_id", "id"),
            idempotent=True,
        )
        yield Endpoint(
            method="GET",
            path="/v1/skills",
            handler=self.list,
            tag=tag,
            summary="List the org's skills, newest first",
            scope="read",
            query=PageQuery,
            response=SkillPage,
        )
        yield Endpoint(
            method="GET",
            path=_ONE,
            handler=self.get,
            tag=tag,
            summary="Get a skill at its newest version",
            scope="read",
            response=SkillView,
        )
        yield Endpoint(
            method="PATCH",
            path=_ONE,
            handler=self.update,
            tag=tag,
            summary="Change a skill",
            description="Makes a new version unless nothing changes. Runs that are there already keep the version that "
            "was the newest when they were made.",
            scope="write",
            body=SkillPatch,
            response=SkillView,
        )
        yield Endpoint(
            method="DELETE",
            path=_ONE,
            handler=self.delete,
            tag=tag,
            summary="Delete a skill",
            description="Runs that are there already keep it. Agents that name it fail from then on.",
            scope="write",
            status=204,
        )
        yield Endpoint(
            method="GET",
            path=f"{_ONE}/versions",
            handler=self.list_versions,
            tag=tag,
            summary="List a skill's versions, newest first",
            scope="read",
            query=PageQuery,
            response=SkillPage,
        )
        yield Endpoint(
            method="GET",
            path=f"{_ONE}/versions/{{version}}",
            handler=self.get_version,
            tag=tag,
            summary="Get one version of a skill",
            scope="read",
            response=SkillView,
        )

    async def create(self, call: Call[SkillConfig, NoQuery]) -> Answer:
        return Answer(_shown(await skills.create_skill(call.db, call.org_id, call.body)))

    async def import_(self, call: Call[SkillImport, NoQuery]) -> Answer:
        config = await asyncio.to_thread(_imported, call.body)
        try:
            return Answer(_shown(await skills.create_skill(call.db, call.org_id, config)))
        except Conflict:
            found = await skills.find_skill(call.db, call.org_id, config.name) if call.body.update else None
            if found is None:
                raise
        changes = config.model_dump(exclude={"name"})
        return Answer(_shown(await skills.update_skill(call.db, call.org_id, found, changes)))

    async def list(self, call: Call[None, PageQuery]) -> Answer:
        cursor = read_cursor(call.query.cursor, str)
        if cursor is not None and not is_id("skl", cursor[0]):
            raise bad_cursor()
        limit = call.query.limit
        found = await skills.list_skills(call.db, call.org_id, before=cursor[0] if cursor else None, limit=limit + 1)
        return Answer(page(found, limit, show=_summary, key=lambda skill: (skill.id,)))

    async def get(self, call: Call[None, NoQuery]) -> Answer:
        return Answer(_shown(await skills.get_skill(call.db, call.org_id, call.path["skill_id"])))

    async def update(self, call: Call[SkillPatch, NoQuery]) -> Answer:
        changes = call.body.model_dump(exclude_unset=True)
        if not changes:
            raise invalid(("body", "must name at least one field to change"))
        return Answer(_shown(await skills.update_skill(self._db, call.org_id, call.path["skill_id"], changes)))

    async def delete(self, call: Call[None, NoQuery]) -> Answer:
        await skills.delete_skill(call.db, call.org_id, call.path["skill_id"])
        return Answer()

    async def list_versions(self, call: Call[None, PageQuery]) -> Answer:
        cursor = read_cursor(call.query.cursor, int)
        limit = call.query.limit
        found = await skills.list_versions(
            call.db,
            call.org_id,
            call.path["skill_id"],
            before=cursor[0] if cursor else None,
            limit=limit + 1,
        )
        return Answer(page(found, limit, show=_summary, key=lambda skill: (skill.version,)))

    async def get_version(self, call: Call[None, NoQuery]) -> Answer:
        skill = await skills.get_version(call.db, call.org_id, call.path["skill_id"], int(call.path["version"]))
        return Answer(_shown(skill))


def _imported(given: SkillImport) -> SkillConfig:
    from kernel.skill_format import BadSkillFile, read_skill  # brings YAML, which nothing else here needs

    if MAIN_FILE not in given.files:
        raise invalid((f"files.{MAIN_FILE}", "is missing"))
    bad = [path for path in given.files if path != MAIN_FILE and not is_file_path(path)]
    if bad:
        raise invalid(*((f"files.{path}", "is not a path within a skill's folder") for path in bad[:20]))
    try:
        skill = read_skill(given.files[MAIN_FILE])
    except BadSkillFile as error:
        raise invalid(*((f"files.{MAIN_FILE}", problem) for problem in error.problems[:20])) from None
    return SkillConfig(
        name=skill.slug,
        description=skill.description,
        instructions=skill.body,
        tools=given.tools,
        allowed_tools=list(skill.allowed_tools),
        license=skill.license,
        compatibility=skill.compatibility,
        metadata=dict(skill.metadata),
        references={path: text for path, text in given.files.items() if path != MAIN_FILE},
    )


def _shown(skill: SkillRecord) -> dict[str, Any]:
    return {
        "id": skill.id,
        "version": skill.version,
        **skill.parsed().model_dump(),
        "created_at": skill.created_at,
        "updated_at": skill.updated_at,
    }


def _summary(skill: SkillSummary) -> dict[str, Any]:
    return {
        "id": skill.id,
        "name": skill.name,
        "version": skill.version,
        "description": skill.description,
        "tools": [tool if isinstance(tool, str) else tool["name"] for tool in orjson.loads(skill.tools)],
        "references": list(skill.paths),
        "created_at": skill.created_at,
        "updated_at": skill.updated_at,
    }
