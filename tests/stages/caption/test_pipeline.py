"""The caption stage in a pipeline on Ray, asking a server over HTTP: made once, then its dead letters alone again."""

from __future__ import annotations

import base64
import collections
import hashlib
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from cluster.folder import Folder
from pipelines import cli
from pipelines.full import STAGES
from tests.stages.caption.test_stage import GOOD
from tests.stages.ingest.pictures import png

NUM_PICTURES = 12
HARD, ENDLESS = (1, 4, 9), 6


class Server(BaseHTTPRequestHandler):
    """Answers as a thinking model does; of some pictures it says nothing of use until it was asked three times."""

    asked: collections.Counter[str] = collections.Counter()
    hard: set[str] = set()
    endless: set[str] = set()

    def do_GET(self) -> None:
        self._send({"data": [{"id": "qwen"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        url = body["messages"][0]["content"][0]["image_url"]["url"]
        picture = _name(base64.b64decode(url.partition(",")[2]))
        self.asked[picture] += 1
        text, reason = f"A circle, so color.</think>\n```json\n{json.dumps(GOOD)}\n```", "stop"
        if picture in self.endless or picture in self.hard and self.asked[picture] < 3:
            text, reason = f"It could be {json.dumps(GOOD)}, or", "length"
        choice = {"message": {"content": text}, "finish_reason": reason}
        self._send({"choices": [choice], "usage": {"prompt_tokens": 70, "completion_tokens": 30}})

    def _send(self, value: dict) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_dead_letters_are_asked_about_again_on_a_finished_root(local_ray, server, tmp_path, capsys):
    (tmp_path / "pictures").mkdir()
    for index in range(NUM_PICTURES):
        (tmp_path / "pictures" / f"{index:02}.png").write_bytes(png(index))
    Server.hard, Server.endless = {_name(png(index)) for index in HARD}, {_name(png(ENDLESS))}
    (tmp_path / "p.yaml").write_text(
        f"_targets: [caption]\ningest: {{source: {tmp_path / 'pictures'}, num_workers: 1}}\n"
        f"caption: {{engine: {{model: qwen, endpoint: {server!r}}}, edit_types: [color], num_offered: 1, shard_size: 5,"
        " temperatures: [0.0, 0.7]}\n"
    )
    root = Folder(tmp_path / "root")

    def call(*more: str) -> tuple[dict, Folder]:
        arguments = ("--profile", "p", "--root", root.url, *more)
        assert cli.main(STAGES, arguments, profiles=tmp_path, tracked=False) == 0, capsys.readouterr().out
        stages = root.read_json("runs/latest.json")["stages"]
        return stages, Folder(stages["caption"]["artifact"])

    stages, first = call()
    assert stages["caption"]["status"] == "ran" and stages["caption"]["rows"] == NUM_PICTURES - len(HARD) - 1
    letters = rows(first, "dead_letters")
    assert {(row["outcome"], row["reason"], row["attempts"]) for row in letters} == {("truncated", "cut_off", 2)}
    before = Server.asked.copy()
    stages, second = call("--set", "caption.retries=1")
    assert stages["ingest"]["status"] == "cached" and stages["caption"]["rows"] == NUM_PICTURES - 1
    again = Server.asked - before  # the others aren't paid for twice; the retry has the last temperature alone
    assert again == dict.fromkeys(Server.hard | Server.endless, 1)
    good = {row["sample_id"]: row for row in rows(second, "tuples")}
    assert {row["sample_id"]: row for row in rows(first, "tuples")}.items() <= good.items()
    assert {good[row["sample_id"]]["attempts"] for row in letters if row["sample_id"] in good} == {3}
    assert [row["attempts"] for row in rows(second, "dead_letters")] == [3] and first.exists("manifest.json")
    assert call("--set", "caption.retries=1")[0]["caption"]["status"] == "cached"


def rows(folder: Folder, table: str) -> list[dict]:
    names = [name for name in folder.list(".parquet", recursive=True) if name.startswith(f"{table}/")]
    return [row for name in names for row in folder.read_table(name).to_pylist()]


def _name(data: bytes) -> str:
    """Of a picture, by its pixels."""
    with Image.open(io.BytesIO(data)) as image:
        return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()
