"""Plays a recording as a live server, at its own pace.

    python3 scripts/bench/player.py RECORDING PORT [--log LOG] [--ranks N] [--from SECONDS]

RECORDING is a folder with `metrics.txt.gz`, `loads.jsonl.gz` and, for LOG, `server.stamped.log.gz`. GET /metrics,
/v1/loads, /server_info and /health are answered on every local address, so that one player stands for hundreds of
servers (http://127.0.1.1:PORT, http://127.0.1.2:PORT, ...). Every answer is made ready before the first request,
so that playing costs the machine little. After its end the recording begins again. Lines of the recorded log are
appended to LOG when they are due. With --ranks the server has N DP ranks, each like the recording's first.
"""
import argparse
import asyncio
import bisect
import gzip
import json
import pathlib
import time


def answer(body, kind, status="200 OK"):
    head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def widened(load, ranks):
    return [dict(load, dp_rank=rank) for rank in range(ranks)]


def of_first_rank(page, ranks):
    """The first rank's lines of a page, for each of so many ranks."""
    mine = [line for line in page.splitlines() if 'dp_rank="0"' in line and not line.startswith("#")]
    return "".join(line.replace('dp_rank="0"', f'dp_rank="{rank}"') + "\n" for line in mine for rank in range(ranks))


class Recording:
    """What there is to play, each list with the times beside it."""

    def __init__(self, folder, with_log, ranks, skip):
        with gzip.open(folder / "loads.jsonl.gz", "rt") as file:
            loads = [json.loads(line) for line in file]
        with gzip.open(folder / "metrics.txt.gz", "rt") as file:
            pages = [page.split("\n", 1) for page in file.read().split("#@ ")[1:]]
        if ranks:
            loads = [dict(load, body=dict(load["body"], loads=widened(load["body"]["loads"][0], ranks))) for load in loads[:: len(loads) // 20]]
            pages = [(at, of_first_rank(page, ranks)) for at, page in pages[:: len(pages) // 20]]
        self.begin = loads[0]["t"] + skip
        self.end = loads[-1]["t"]
        self.load_times = [load["t"] for load in loads]
        self.loads = [answer(json.dumps(load["body"]).encode(), "application/json") for load in loads]
        self.page_times = [float(at) for at, _ in pages]
        self.pages = [answer(page.encode(), "text/plain; version=0.0.4") for _, page in pages]
        self.lines = []
        if with_log:
            with gzip.open(folder / "server.stamped.log.gz", "rb") as file:
                stamped = [line.split(b"\t", 1) for line in file]
            self.lines = [(float(at), line) for at, line in stamped if self.begin <= float(at) < self.end]
        ranks = max(len(load["body"]["loads"]) for load in loads)
        info = dict(version="0.5.16", dp_size=ranks, tp_size=1, pp_size=1)
        self.info = answer(json.dumps(info).encode(), "application/json")
        self.healthy = answer(b"", "text/plain")
        self.missing = answer(b"{}", "application/json", "404 Not Found")
        self.started = time.monotonic()

    def now(self):
        """The time in the recording."""
        return self.begin + (time.monotonic() - self.started) % (self.end - self.begin)

    def answer_to(self, path):
        if path == "/metrics":
            return self.pages[max(0, bisect.bisect(self.page_times, self.now()) - 1)]
        if path == "/v1/loads":
            return self.loads[max(0, bisect.bisect(self.load_times, self.now()) - 1)]
        if path in ("/server_info", "/get_server_info"):
            return self.info
        return self.healthy if path.startswith("/health") else self.missing


class Connection(asyncio.Protocol):
    def __init__(self, recording):
        self.recording, self.pending = recording, b""

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        *requests, self.pending = (self.pending + data).split(b"\r\n\r\n")
        for request in requests:
            path = request.split(b" ", 2)[1].decode("latin-1").split("?")[0]
            self.transport.write(self.recording.answer_to(path))


async def write_log(recording, path):
    with open(path, "ab", buffering=0) as log:
        while True:
            lap = time.monotonic()
            for at, line in recording.lines:
                rest = lap + at - recording.begin - time.monotonic()
                if rest > 0:
                    await asyncio.sleep(rest)
                log.write(line)


async def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=pathlib.Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--log", type=pathlib.Path)
    parser.add_argument("--ranks", type=int, default=0)
    parser.add_argument("--from", dest="skip", type=float, default=0, help="where in the recording to begin")
    options = parser.parse_args()
    recording = Recording(options.recording, options.log is not None, options.ranks, options.skip)
    loop = asyncio.get_running_loop()
    await loop.create_server(lambda: Connection(recording), "0.0.0.0", options.port, backlog=4096)
    recording.started = time.monotonic()
    await (write_log(recording, options.log) if options.log else asyncio.Event().wait())


if __name__ == "__main__":
    asyncio.run(main())
