"""A program that speaks MCP over stdio just far enough to be let in, and then does what its calls ask for.

`python tests/mcp_servers/rude.py [SECONDS BEFORE IT ANSWERS AT ALL]`. It knows only the protocol of 2025-11-25.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

TOOLS = ["garbage", "flood", "endless", "broken", "silent", "deaf", "chatty", "child", "wrong_shape"]


def say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def answer(asked: dict[str, Any], result: Any) -> None:
    say({"jsonrpc": "2.0", "id": asked["id"], "result": result})


def text(words: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": words}]}


def call(asked: dict[str, Any]) -> None:
    name = asked["params"]["name"]
    if name == "garbage":
        sys.stdout.write("this is no JSON\n\n{}\n[1]\n")
        answer(asked, text("after some garbage"))
    elif name == "flood":
        answer(asked, text("x" * 100_000_000))
    elif name == "endless":
        sys.stdout.write(f'{{"jsonrpc":"2.0","id":{asked["id"]},"result":"')
        while True:
            sys.stdout.write("x" * 1_000_000)
    elif name == "broken":
        sys.stdout.write(f'{{"jsonrpc":"2.0","id":{asked["id"]},"result":{{oh no\n')
        sys.stdout.flush()
    elif name == "deaf":
        time.sleep(600)
    elif name == "chatty":
        for number in range(5_000):
            sys.stderr.write(f"line {number} " + "y" * 2_000 + "\n")
        answer(asked, text("said a lot"))
    elif name == "child":
        child = subprocess.Popen(["sleep", "600"])
        answer(asked, text(str(child.pid)))
    elif name == "wrong_shape":
        answer(asked, {"content": "not a list"})


def main() -> None:
    time.sleep(float(sys.argv[1]) if len(sys.argv) > 1 else 0)
    for line in sys.stdin:
        asked = json.loads(line)
        method = asked.get("method")
        if method == "initialize":
            info = {"name": "rude", "version": "1"}
            answer(asked, {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": info})
        elif method == "tools/list":
            schema = {"type": "object", "properties": {}}
            answer(asked, {"tools": [{"name": name, "inputSchema": schema} for name in TOOLS]})
        elif method == "tools/call":
            call(asked)
        elif "id" in asked:
            say({"jsonrpc": "2.0", "id": asked["id"], "error": {"code": -32601, "message": "what?"}})


if __name__ == "__main__":
    if "PID_FILE" in os.environ:
        with open(os.environ["PID_FILE"], "w") as file:
            file.write(str(os.getpid()))
    main()
