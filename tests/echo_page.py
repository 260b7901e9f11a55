"""The page over a model that says what it is asked: real page, real gradio, real engine objects; only the model is replaced.

So a test decides what an answer holds.
"""

import contextlib
import socket
import threading
import time

import uvicorn

import ptuning
from ptuning.edges.http.app import create_app
from ptuning.edges.web.dispatcher import PathDispatcher
from ptuning.edges.web.page_app import create_page_app, end_heartbeats
from ptuning.engine.engine import Engine
from ptuning.engine.request import Generation, Request
from ptuning.serving.chat_service import Asked, ChatService
from ptuning.serving.prefix_store import PrefixStore


class EchoService(ChatService):
    """Answers with the question, in pieces of a few characters."""

    def ask(self, question, listener=None):
        """As of the real one."""
        generation = Generation(Request([1], stream=True), listener=listener)
        threading.Thread(target=self._say, args=(generation, question.query), daemon=True).start()
        return Asked([generation], self.store.get(question.model), 1, 0)

    @staticmethod
    def _say(generation, text):
        generation.mark_first_token()
        for place in range(0, len(text), 20):
            time.sleep(0.002)
            generation.tell(text[place : place + 20])
        generation.finish("stop")


@contextlib.contextmanager
def echo_page(report_root):
    """Its address, while it is there."""
    engine = Engine(ptuning.load_model("tiny-chatglm", device="cpu"), ptuning.load_tokenizer("tiny-chatglm"), max_rows=1)
    service = EchoService(engine, PrefixStore(engine, "tiny-chatglm"))
    api = create_app(service)
    page = create_page_app(service, api.state.metrics, report_root=report_root)
    opened = socket.socket()
    opened.bind(("127.0.0.1", 0))
    opened.listen()  # so that a client may come before the thread does
    config = uvicorn.Config(PathDispatcher(api, page), log_config=None, timeout_graceful_shutdown=3)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{opened.getsockname()[1]}"
    finally:
        end_heartbeats(page)
        server.should_exit = True
        thread.join(10)
        opened.close()
