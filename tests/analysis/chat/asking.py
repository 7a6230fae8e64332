"""The program that a test kills: questions 0 to 9, one after the other, and the answers in a file.

python -m tests.analysis.chat.asking URL CACHE OUT
"""

import sys
from dataclasses import asdict
from pathlib import Path

from analysis.chat.cache import opened
from analysis.chat.client import Client
from analysis.chat.cost import Prices
from analysis.chat.endpoint import Endpoint
from analysis.chat.request import Message, Reply, Request
from sae.files import write_json

if __name__ == "__main__":
    url, cache, out = sys.argv[1:]
    endpoint = Endpoint(url, "m", {}, key="sk-secret", concurrency=1)
    with opened(Path(cache)) as known:
        client = Client(endpoint, known, Prices(1.0, 1.0), max_cost=10.0)
        replies = client.ask([Request((Message("user", f"question {i}"),)) for i in range(10)])
        said = [reply.text for reply in replies if isinstance(reply, Reply)]
    write_json(Path(out), {"said": said, "usage": asdict(client.usage)})
