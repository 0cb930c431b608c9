"""HTTP/3 as aioquic speaks it, for the scripts beside this one."""

import asyncio

from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated, StreamReset


class Client(QuicConnectionProtocol):
    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        self.http, self.answers, self.ended = H3Connection(self._quic), {}, None

    def quic_event_received(self, event):
        if isinstance(event, ConnectionTerminated):
            self.ended = event
            for waiter, *_ in self.answers.values():
                waiter.done() or waiter.set_result(None)
        if isinstance(event, StreamReset) and event.stream_id in self.answers:
            waiter = self.answers[event.stream_id][0]
            waiter.done() or waiter.set_result(None)
        for found in self.http.handle_event(event):
            waiter, headers, body = self.answers[found.stream_id]
            if isinstance(found, HeadersReceived):
                headers.extend(found.headers)
            if isinstance(found, DataReceived):
                body.extend(found.data)
            if found.stream_ended:
                waiter.done() or waiter.set_result(True)

    def begin(self, method, path, headers=(), body=None):
        stream = self._quic.get_next_available_stream_id()
        self.answers[stream] = (asyncio.get_running_loop().create_future(), [], bytearray())
        fields = [(b":method", method.encode()), (b":scheme", b"https"), (b":authority", b"localhost"), (b":path", path.encode())]
        self.http.send_headers(stream, fields + list(headers), end_stream=body is None)
        if body is not None:
            self.http.send_data(stream, body, end_stream=True)
        self.transmit()
        return stream

    async def answer(self, stream):
        waiter, headers, body = self.answers[stream]
        done = await asyncio.wait_for(waiter, 60)
        assert done, f"stream {stream} was not answered: {self.ended}"
        return int(dict(headers)[b":status"]), dict(headers), bytes(body)

    async def ask(self, *what, **more):
        return await self.answer(self.begin(*what, **more))


def configuration(certificate):
    made = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, server_name="localhost")
    made.load_verify_locations(certificate)
    return made
