"""A hub of one's own: the few answers of huggingface.co that a download asks for, from folders on disk."""

import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit


class HubServer:
    """Serves ``repositories``: name -> revision -> folder. ``requests`` holds every (method, path) that was asked for.

    Used as a context manager; ``url`` is what HF_ENDPOINT wants.
    """

    def __init__(self, repositories):
        self.repositories = repositories
        self.requests = []
        outer = self

        class Handler(_Handler):
            hub = outer

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()

    def fetched(self):
        """Names of the files whose bytes were sent."""
        sent = [path.split("/resolve/")[1] for method, path in self.requests if method == "GET" and "/resolve/" in path]
        return {path.split("/", 1)[1] for path in sent}

    def find(self, repository, revision):
        """(folder, commit) of a revision, which may be the commit itself; None where there is no such thing."""
        for name, folder in self.repositories.get(repository, {}).items():
            commit = hashlib.sha1(f"{repository}@{name}".encode()).hexdigest()
            if revision in (name, commit):
                return Path(folder), commit
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body):
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.requests.append((self.command, path))
        if path.startswith("api/models/"):
            return self.describe(path.removeprefix("api/models/"), with_body)
        repository, _, rest = path.partition("/resolve/")
        revision, _, file = rest.partition("/")
        found = self.hub.find(repository, revision)
        if found is None:
            return self.refuse("RepoNotFound" if repository not in self.hub.repositories else "RevisionNotFound")
        folder, commit = found
        if not (folder / file).is_file():
            return self.refuse("EntryNotFound", commit)
        body = (folder / file).read_bytes()
        headers = {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        return self.send(200, body, headers, with_body)

    def describe(self, path, with_body):
        repository, revision, kind = path, "main", "info"
        for word, which in (("/revision/", "info"), ("/tree/", "tree")):
            if word in path:
                repository, revision = path.split(word)
                kind = which
        revision, _, inside = revision.partition("/")
        found = self.hub.find(repository, revision)
        if found is None:
            return self.refuse("RepoNotFound" if repository not in self.hub.repositories else "RevisionNotFound")
        folder, commit = found
        if inside:
            return self.refuse("EntryNotFound", commit)  # no repository here has folders that anybody asks for
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        if kind == "tree":
            answer = [
                {
                    "type": "file", "path": file.relative_to(folder).as_posix(), "size": file.stat().st_size,
                    "oid": hashlib.sha1(file.read_bytes()).hexdigest(),
                }
                for file in files
            ]
        else:
            siblings = [{"rfilename": file.relative_to(folder).as_posix()} for file in files]
            answer = {"id": repository, "modelId": repository, "sha": commit, "private": False, "siblings": siblings}
        return self.send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"}, with_body)

    def refuse(self, code, commit=None):
        headers = {"X-Error-Code": code, "X-Error-Message": code}
        self.send(404, b"{}", headers | ({"X-Repo-Commit": commit} if commit else {}), self.command == "GET")

    def send(self, status, body, headers, with_body):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)
