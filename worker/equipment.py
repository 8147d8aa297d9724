"""What the agents of this worker can be given: its tools, its skills, and the makers of tools that callers define.

Made once per process from the settings. What needs an optional package, a program or a configured service is left out
where that is missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from importlib.util import find_spec
from typing import Any

from kernel.errors import BadSettings
from kernel.files import Files
from kernel.postgres import Pool
from kernel.settings import Settings
from memory.port import Memory
from orchestrator.data.files import FileQueries
from orchestrator.data.postgres import PostgresSources
from orchestrator.egress import EgressClient
from orchestrator.egress.gate import Gate
from orchestrator.egress.resolver import SystemResolver
from orchestrator.host import PluginHost
from orchestrator.kit import Maker, Outfitter
from orchestrator.mcp.connections import McpConnections
from orchestrator.sandbox.bubblewrap import Bubblewrap
from orchestrator.sandbox.session_files import SessionFiles
from orchestrator.search.choose import choose_engine
from orchestrator.skills.builtin import builtin_skills
from orchestrator.skills.folders import load_folders
from orchestrator.skills.records import OrgSkills
from orchestrator.skills.registry import SkillRegistry
from orchestrator.tools.ask_user import AskUser
from orchestrator.tools.client import make_client_tools
from orchestrator.tools.cpython import CPythonTool
from orchestrator.tools.defined_http import LONGEST_CALL, HttpTools
from orchestrator.tools.file_changes import DeleteFile, EditFile, MoveFile, WriteFile
from orchestrator.tools.files import ListFiles, ReadFile
from orchestrator.tools.http_fetch import HttpFetch
from orchestrator.tools.http_send import HttpPost, HttpPut
from orchestrator.tools.memory import Forget, Recall, Remember
from orchestrator.tools.notes import Note, Notes
from orchestrator.tools.open_result import OpenResult
from orchestrator.tools.python import PythonTool
from orchestrator.tools.query_files import QueryFiles
from orchestrator.tools.query_source import ListSources, QuerySource
from orchestrator.tools.read_page import ReadPage
from orchestrator.tools.tool import Tool
from orchestrator.tools.toolbox import Toolbox
from orchestrator.tools.web_search import WebSearch
from worker.plugins import plugged_skills, plugged_tools


def equip(settings: Settings, db: Pool, memory: Memory, stack: AsyncExitStack, host: PluginHost) -> Outfitter:
    """The outfitter of a worker; `stack` closes what it holds.

    Raises:
        BadSettings: something that is configured can't be used.
    """
    egress = host.egress
    files = Files.from_settings(settings, db) if settings.files_url else None
    general, code = _tools(settings, db, memory, egress), _code_tools(settings, SessionFiles(files) if files else None)
    of_files = _file_tools(files) if files else ()
    built_in = [*code, *general, *of_files, *_source_tools(settings, db, stack)]
    toolbox = Toolbox([*built_in, *plugged_tools(host, [tool.name for tool in built_in])])
    stack.push_async_callback(toolbox.aclose)
    mcp = McpConnections(settings.mcp_servers, allow=settings.egress_allow)
    stack.push_async_callback(mcp.aclose)
    patient = EgressClient(allow=settings.egress_allow, timeout=LONGEST_CALL)
    stack.push_async_callback(patient.aclose)
    return Outfitter(toolbox, _registry(settings, db, toolbox, host), _makers(settings, patient, mcp))


def _tools(settings: Settings, db: Pool, memory: Memory, egress: EgressClient) -> Iterator[Tool[Any]]:
    yield HttpFetch(egress)
    yield HttpPost(egress)
    yield HttpPut(egress)
    yield ReadPage(egress)
    if (engine := choose_engine(settings)) is not None:
        yield WebSearch(engine)
    yield Remember(memory)
    yield Recall(memory)
    yield Forget(memory)
    yield AskUser()
    yield OpenResult(db)
    yield Note(db)
    yield Notes(db)


def _code_tools(settings: Settings, files: SessionFiles | None) -> Iterator[Tool[Any]]:
    yield PythonTool(files=files)
    if settings.cpython:
        if (missing := Bubblewrap.missing()) is not None:
            raise BadSettings(f"LONGHAUL_CPYTHON: {missing}")
        yield CPythonTool(Bubblewrap(), files)


def _file_tools(files: Files) -> Iterator[Tool[Any]]:
    """Those that work on the files of a session."""
    yield ListFiles(files)
    yield ReadFile(files)
    yield WriteFile(files)
    yield EditFile(files)
    yield MoveFile(files)
    yield DeleteFile(files)
    if find_spec("duckdb") is not None:
        yield QueryFiles(FileQueries(files))


def _source_tools(settings: Settings, db: Pool, stack: AsyncExitStack) -> Iterator[Tool[Any]]:
    """Those that ask databases, which need the extra `data`."""
    if find_spec("sqlglot") is not None:
        resolver = SystemResolver()
        stack.callback(resolver.close)
        postgres = PostgresSources(Gate(settings.egress_allow), resolver)
        yield ListSources(db, postgres)
        yield QuerySource(db, postgres)


def _registry(settings: Settings, db: Pool, toolbox: Toolbox, host: PluginHost) -> SkillRegistry:
    """The skills that agents may name: built in, of plug-ins, of folders; those of an org come before all of them."""
    built_in, missing = builtin_skills(toolbox.names)
    folders = load_folders(settings.skills_dir, toolbox.names) if settings.skills_dir else ()
    skills = [*built_in, *plugged_skills(host, [skill.name for skill in (*built_in, *folders)]), *folders]
    return SkillRegistry(skills, missing=missing, of_orgs=OrgSkills(db, toolbox.names))


def _makers(settings: Settings, egress: EgressClient, mcp: McpConnections) -> Mapping[str, Maker]:
    return {"http": HttpTools(egress), "client": make_client_tools, "mcp": mcp.make}
