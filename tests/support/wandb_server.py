"""A stand-in for the W&B server: takes what the real client sends and keeps it, so that tests can read it."""

from __future__ import annotations

import gzip
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

KEY = "secret0key0" * 4


class WandbServer(ThreadingHTTPServer):
    """runs: id -> what UpsertBucket said of it. history: id -> logged rows. summary: id -> its last. requests: paths.

    artifacts: name -> its run, its type and its files. views: id -> a workspace or report that was saved.
    """

    daemon_threads = True

    def __init__(self, delay_seconds: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.delay_seconds = delay_seconds
        self.deleted: set[str] = set()  # ids that are refused, as W&B refuses those of deleted runs
        self.runs: dict[str, dict[str, Any]] = {}
        self.history: dict[str, dict[int, dict[str, Any]]] = {}
        self.summary: dict[str, dict[str, Any]] = {}
        self.artifacts: dict[str, dict[str, Any]] = {}
        self.views: dict[str, dict[str, Any]] = {}
        self.project = "proj"  # that is there
        self.finished: set[str] = set()
        self.requests: list[str] = []
        self.thread = threading.Thread(target=self.serve_forever, daemon=True)
        self.thread.start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that was killed

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        self.thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: WandbServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _answer(self, value: Any, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self._answer({})

    def do_PUT(self) -> None:
        body, (_, kind, *rest) = self._body(), self.path.split("/", 3)
        if kind == "artifact":
            self.server.artifacts[rest[0]]["files"][rest[1]] = body.decode()
        self._answer({})

    def do_POST(self) -> None:
        server, body = self.server, self._body()
        server.requests.append(self.path)
        time.sleep(server.delay_seconds)
        if self.path.startswith("/graphql"):
            request = json.loads(body)
            asked = str((request.get("variables") or {}).get("name"))
            if "upsertBucket" in request["query"] and asked in server.deleted:
                said = f"run team/p/{asked} was previously created and deleted; try a new run name"
                self._answer({"errors": [{"message": said}]}, status=409)
                return
            self._answer({"data": self._graphql(request["query"], request.get("variables") or {})})
        elif self.path.endswith("/file_stream"):
            run = self.path.split("/")[-2]
            message = json.loads(body)
            part = message.get("files", {}).get("wandb-history.jsonl", {"offset": 0, "content": []})
            rows = server.history.setdefault(run, {})
            for i, line in enumerate(part["content"]):
                rows[part["offset"] + i] = json.loads(line)
            for line in message.get("files", {}).get("wandb-summary.json", {}).get("content", []):
                server.summary[run] = json.loads(line)
            if message.get("complete"):
                server.finished.add(run)
            self._answer({})
        else:
            self._answer({})

    def _graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "upsertBucket" in query:
            run = variables.get("name") or variables.get("id")
            self.server.runs.setdefault(run, {}).update({k: v for k, v in variables.items() if v is not None})
            project = {"id": "p", "name": variables.get("project"), "entity": {"id": "e", "name": "team"}}
            bucket = {"id": run, "name": run, "displayName": run, "historyLineCount": 0, "project": project}
            return {"upsertBucket": {"bucket": {**bucket, "sweepName": None}, "inserted": True}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.server.url}/upload"} for name in variables.get("files", [])]
            run = variables.get("run")
            return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": files}}
        if "mutation CreateArtifact " in query:
            told = variables["input"]
            name = told["artifactCollectionName"]
            self.server.artifacts[name] = {"run": told["runName"], "type": told["artifactTypeName"], "files": {}}
            return {"createArtifact": {"artifact": {"id": name, "state": "PENDING", "artifactSequence": {"id": "s"}}}}
        if "createArtifactManifest" in query:
            file = {"id": "f", "uploadUrl": f"{self.server.url}/upload", "uploadHeaders": []}
            return {"createArtifactManifest": {"artifactManifest": {"id": "m", "file": file}}}
        if "createArtifactFiles" in query:
            nodes = [
                {"uploadUrl": f"{self.server.url}/artifact/{one['artifactID']}/{one['name']}", "uploadHeaders": []}
                | {"storagePath": one["name"], "artifact": {"id": one["artifactID"]}}
                for one in variables["input"]["artifactFiles"]
            ]
            return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}
        if "commitArtifact" in query:
            return {"commitArtifact": {"artifact": {"id": variables["artifactID"], "digest": "d"}}}
        if "upsertView" in query:
            views = self.server.views
            key = variables.get("id") or f"view{len(views)}"
            views[key] = {**variables, "id": key}
            project = {"id": "p", "name": variables["projectName"], "entityName": variables["entityName"]}
            told = {name: variables.get(name) for name in ("type", "name", "displayName", "description", "spec")}
            now = "2026-01-01T00:00:00"
            view = {**told, "id": key, "project": project, "updatedAt": now, "createdAt": now}
            return {"upsertView": {"view": view, "inserted": True}}
        if "ProjectInternalId" in query:
            return {"project": {"id": "p", "internalId": "cA=="}}
        if "models" in query:
            page = {"endCursor": None, "hasNextPage": False}
            node = {"id": "p", "name": self.server.project, "entityName": "team", "user": None}
            node |= {"createdAt": "2026-01-01", "isBenchmark": False}
            return {"models": {"edges": [{"node": node, "cursor": "c"}], "pageInfo": page}}
        viewer = {"id": "u", "entity": "team", "username": "u", "flags": "{}", "teams": {"edges": []}}
        info = {"cliVersionInfo": {}, "latestLocalVersionInfo": None, "features": []}
        return {
            "viewer": viewer,
            "serverInfo": info,
            "model": {"bucket": None},
            "project": None,
            "entity": None,
        }


@pytest.fixture
def wandb_server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A running stand-in, with the client's environment pointing to it. `indirect` parameter: delay in seconds."""
    server = WandbServer(getattr(request, "param", 0.0))
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    yield server
    server.stop()
