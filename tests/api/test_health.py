"""What watchers see: information, health, readiness, metrics."""

from __future__ import annotations

import re

import httpx
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from kernel.postgres import open_pool
from kernel.settings import Settings
from tests.api.checks import ok
from tests.api.conftest import Apart
from tests.api.serving import serving
from tests.conftest import MakeDatabase
from tests.kernel.writing import worker


async def samples(client: httpx.AsyncClient) -> dict[str, float]:
    """What /metrics shows now, by name and labels."""
    answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        sample.name + "".join(f" {name}={value}" for name, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


async def test_the_root_says_what_this_is(nobody: httpx.AsyncClient) -> None:
    info = ok(await nobody.get("/"))
    assert info["name"] == "longhaul"
    assert [workflow["name"] for workflow in info["workflows"]] == ["agent_chat", "echo"]
    assert re.match(r"\d+\.\d+", info["version"])


async def test_health_is_the_process_and_ready_is_what_it_needs(nobody: httpx.AsyncClient) -> None:
    assert ok(await nobody.get("/health")) == {"status": "ok"}
    checks = {"postgres": "ok", "schema": "ok", "redis": "ok"}
    assert ok(await nobody.get("/ready")) == {"status": "ready", "checks": checks, "workers": 0}
    head = await nobody.head("/ready")
    assert (head.status_code, head.content) == (200, b"")


async def test_ready_counts_the_workers_that_were_seen_lately(apart: Apart) -> None:
    for number in (1, 2):
        await worker(apart.database, f"host:{number}").beat(host="host", pid=number, slots=5, running=0, figures={})
    assert ok(await apart.client.get("/ready"))["workers"] == 2
    await apart.database.execute("UPDATE workers SET seen_at = now() - interval '16 seconds' WHERE pid = 2")
    assert ok(await apart.client.get("/ready"))["workers"] == 1


async def test_a_schema_that_is_not_up_to_date_is_not_ready(make_database: MakeDatabase, settings: Settings) -> None:
    database_url = await make_database()
    pool = await open_pool(database_url, size=2, name="tests")
    own = settings.model_copy(update={"database_url": SecretStr(database_url)})
    async with serving(own) as url, httpx.AsyncClient(base_url=url) as client:
        await pool.execute("DELETE FROM schema_migrations WHERE name = '0001_spine.sql'")
        assert "0001_spine.sql" in ok(await client.get("/ready"), 503)["checks"]["schema"]
        await pool.execute("INSERT INTO schema_migrations (name, checksum) VALUES ('0001_spine.sql', 'edited')")
        assert "edited" in ok(await client.get("/ready"), 503)["checks"]["schema"]
        await pool.execute("DROP TABLE schema_migrations")
        assert ok(await client.get("/ready"), 503)["checks"]["schema"].startswith("no schema")
        assert ok(await client.get("/health")) == {"status": "ok"}
    await pool.close()


async def test_a_schema_of_the_next_release_leaves_this_one_ready(apart: Apart) -> None:
    await apart.database.execute("INSERT INTO schema_migrations (name, checksum) VALUES ('9999_future.sql', 'x')")
    assert ok(await apart.client.get("/ready"))["checks"]["schema"] == "ok"


async def test_requests_are_counted_by_the_templates_of_their_paths(client: httpx.AsyncClient) -> None:
    run = ok(await client.post("/v1/runs", json={"input": "a"}), 202)
    before = await samples(client)
    ok(await client.get(f"/v1/runs/{run['id']}"))
    await client.get("/no/such/path")
    await client.request("TRACE", "/v1/runs")
    after = await samples(client)

    def more(name: str) -> float:
        return after.get(name, 0) - before.get(name, 0)

    assert more("longhaul_http_requests_total method=GET route=/v1/runs/{run_id} status=200") == 1
    assert more("longhaul_http_request_seconds_count method=GET route=/v1/runs/{run_id}") == 1
    assert more("longhaul_http_requests_total method=GET route=unknown status=404") == 1
    assert more("longhaul_http_requests_total method=other route=/v1/runs status=405") == 1
    assert not any(run["id"] in name for name in after)


async def test_metrics_show_runs_queue_and_workers_of_the_whole_deployment(apart: Apart) -> None:
    runs = [ok(await apart.client.post("/v1/runs", json={"input": "a"}), 202) for _ in range(3)]
    ok(await apart.client.post(f"/v1/sessions/{runs[2]['session_id']}/runs", json={"input": "b"}), 202)
    ok(await apart.client.post(f"/v1/runs/{runs[0]['id']}/cancel"))
    leases = worker(apart.database)
    await leases.claim(1)
    histogram = {"buckets": [0.1, 1.0], "counts": [2, 1, 1], "sum": 7.5}
    figures = {"claimed": 4, "lost": 0, "pickup": histogram, "journal": {"commits": 9, "events": 30, "seconds": 0.5}}
    await leases.beat(host="host", pid=1, slots=20, running=1, figures=figures)
    shown = await samples(apart.client)
    assert shown["longhaul_runs_unfinished status=queued"] == 2
    assert shown["longhaul_runs_unfinished status=running"] == 1
    assert shown["longhaul_runs_unfinished status=waiting"] == 0
    assert shown["longhaul_runs_recent status=cancelled"] == 1
    assert shown["longhaul_queue_depth"] == 1
    assert 0 <= shown["longhaul_queue_oldest_seconds"] < 60
    assert (shown["longhaul_workers"], shown["longhaul_slots"], shown["longhaul_slots_busy"]) == (1, 20, 1)
    assert shown["longhaul_worker_claims_total worker=host:1"] == 4
    assert shown["longhaul_journal_flushes_total worker=host:1"] == 9
    assert shown["longhaul_pickup_seconds_bucket le=0.1 worker=host:1"] == 2
    assert shown["longhaul_pickup_seconds_bucket le=+Inf worker=host:1"] == 4
    assert shown["longhaul_pickup_seconds_sum worker=host:1"] == 7.5
    assert shown["longhaul_streams"] == 0
