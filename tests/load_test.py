"""Ten thousand requests, one in twenty of them bad: none is lost, and each is answered rightly."""

import collections
import concurrent.futures
import io
import itertools
import sys
import threading

import numpy as np
import psutil
import pytest
from PIL import Image

from deit_tf import inference
from export import samples
from serving.client import GrpcClient, RestClient
from serving.server import ServerError

REQUESTS, CONCURRENCY, EVERY = 10_000, 16, 20
MEBIBYTE = 2**20


def _bad_requests(jpeg, bomb):
    """{kind: (signature, value, what the server says of it)}."""
    dot = io.BytesIO()
    Image.new("RGB", (2, 2)).save(dot, "PNG")
    unknown = "neither JPEG, PNG nor WebP"
    return {
        "truncated": ("serving_default", [jpeg[: len(jpeg) // 2]], "Invalid JPEG data"),
        "empty": ("serving_default", [b""], unknown),
        "text": ("serving_default", [b"no image at all " * 64], unknown),
        "bomb": ("serving_default", [bomb], "too many pixels"),
        "type": ("pixels", np.zeros((1, 64, 64, 3), np.float32), "uint8"),
        "rank": ("pixels", np.zeros((1, 64, 64), np.uint8), "64, 3)"),
        "signature": ("nothing", [jpeg], 'Serving signature key "nothing" not found.'),
        "size": ("serving_default", [dot.getvalue()] * 1025, "maximum input batch size 1024"),
    }


class _Memory(threading.Thread):
    """The resident memory of a process, MiB, every half a second."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.process, self.sampled, self.over = psutil.Process(pid), [], threading.Event()

    def run(self):
        while not self.over.wait(0.5):
            self.sampled.append(self.process.memory_info().rss / MEBIBYTE)


@pytest.mark.slow
def test_ten_thousand_requests(artefacts, standin, bomb, capsys):
    run, server = artefacts("micro", "run"), standin("micro")
    images, found = samples.encoded(run, 36), inference.open_run(run)
    pixels = samples.pixels(images, found.manifest)
    expected = np.asarray(found.answer(pixels)["probabilities"])
    bad = _bad_requests(images[0], bomb)
    kinds = itertools.cycle(bad)
    asked = [next(kinds) if i % EVERY == EVERY - 1 else i % len(images) for i in range(REQUESTS)]
    facts = {"name": "micro", "timeout": 120.0}
    with GrpcClient(server.grpc, **facts) as grpc, RestClient(server.rest, **facts) as rest:
        clients = grpc, rest

        def ask(place):
            """What is wrong with an answer; "" for a right one, and for the right error."""
            what = asked[place]
            # Kinds of bad requests come round with an even period, so whole rounds take turns.
            client = clients[(place + place // (EVERY * len(bad))) % 2]
            if what in bad:
                signature, value, says = bad[what]
                try:
                    client.call(signature, value)
                except ServerError as error:
                    one_line = says in error.message and "\n" not in str(error)
                    wanted = ("INVALID_ARGUMENT", "FAILED_PRECONDITION")
                    return "" if one_line and error.code in wanted else str(error)
                return "a bad request was answered"
            by_pixels = place % 3 == 0
            value = pixels[what : what + 1] if by_pixels else [images[what]]
            answered = client.call("pixels" if by_pixels else "serving_default", value)
            off = np.abs(answered["probabilities"][0] - expected[what]).max()
            return "" if off <= 1e-5 else f"an answer is {off} off"

        for place in range(0, 400):  # until every arena of the server has its size
            assert ask(place) == ""
        memory = _Memory(server.pid)
        memory.start()
        with concurrent.futures.ThreadPoolExecutor(CONCURRENCY) as pool:
            wrong = list(pool.map(ask, range(REQUESTS)))
        memory.over.set()
        memory.join()
    assert len(wrong) == REQUESTS
    assert collections.Counter(wrong) == {"": REQUESTS}
    quarter = max(1, len(memory.sampled) // 4)
    before, after = max(memory.sampled[:quarter]), max(memory.sampled)
    with capsys.disabled():
        kept = " ".join(f"{one:.0f}" for one in memory.sampled[:: max(1, quarter // 4)])
        sys.stdout.write(f"\n{REQUESTS} requests; the server's memory, MiB: {kept}\n")
    assert after - before <= 150  # a bomb that was decoded would be 1144 by itself
