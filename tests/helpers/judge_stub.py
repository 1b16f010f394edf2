"""A loopback server that speaks as an OpenAI-compatible endpoint does, or as it is told."""

import json
import math
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from typing import Any


class Stub(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server: Any = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.seen.append((self.path, dict(self.headers), body))
            number = len(server.seen)
            server.now += 1
            server.most = max(server.most, server.now)
        with suppress(OSError):  # whoever asked has left
            server.reply(self, body, number)

    def say(self, text: object, status: int = 200, **headers: str) -> None:
        server: Any = self.server
        with server.lock:  # before the last byte: whoever has it may ask again at once
            server.now -= 1
        payload = text.encode() if isinstance(text, str) else json.dumps(text).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: Any) -> None:
        pass


Reply = Callable[[Stub, dict[str, Any], int], None]


def completion(content: object, logprobs: object = None) -> dict[str, Any]:
    return {
        "choices": [{"message": {"role": "assistant", "content": content}, "logprobs": logprobs}]
    }


def token(text: str, p: float, *others: tuple[str, float]) -> dict[str, Any]:
    top = [{"token": t, "logprob": math.log(q)} for t, q in ((text, p), *others)]
    return {"token": text, "logprob": math.log(p), "top_logprobs": top}
