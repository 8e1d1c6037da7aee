"""A session of a running dashboard without a browser: Streamlit's own messages over its socket."""

from __future__ import annotations

import time

from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.sync.client import connect
from websockets.typing import Subprotocol


def visit(server: str, page: str, query: str, limit: float) -> tuple[float, list[str]]:
    """Open a page as a new reader.

    Returns:
        Seconds until the script had finished, and the HTML blocks it drew.
    """
    address = server.replace("http", "ws", 1) + "/_stcore/stream"
    with connect(
        address, subprotocols=[Subprotocol("streamlit")], origin=server, max_size=None
    ) as socket:
        request = BackMsg()
        request.rerun_script.query_string = query
        request.rerun_script.page_name = page
        start = time.monotonic()
        socket.send(request.SerializeToString())
        drawn: list[str] = []
        while True:
            message = ForwardMsg()
            message.ParseFromString(socket.recv(timeout=limit))
            kind = message.WhichOneof("type")
            if kind == "delta" and message.delta.new_element.WhichOneof("type") == "html":
                drawn.append(message.delta.new_element.html.body)
            if kind == "script_finished":
                return time.monotonic() - start, drawn
