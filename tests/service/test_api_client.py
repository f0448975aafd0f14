"""securemodel.edge's client and two real fronts over HTTPS: what it adds up is the model's result."""

from __future__ import annotations

import hashlib
import ssl
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from securemodel.edge import Client
from securemodel.edge.errors import Refused
from securemodel.service.app import make_app
from securemodel.service.connections import Limits
from securemodel.service.settings import Settings
from tests.service.certificate import certificate
from tests.service.front import SERVICE, WEIGHTS, Desk, Keys
from tests.service.test_api_server import Running


def test_the_client_adds_up_what_two_fronts_answer(tmp_path: Path) -> None:
    files = certificate(tmp_path)
    fingerprint = hashlib.sha256(ssl.PEM_cert_to_DER_cert(files[0].read_text())).hexdigest()
    service: dict[str, Any] = {**SERVICE, "keys": True, "dealer": "dealer", "trust": []}
    started: list[Running] = []
    try:
        for rank in range(2):
            made = Settings("lines", rank, lambda: service, keys=Keys())
            app = make_app(Desk(), made)
            started.append(Running(app, files, Limits(), "uvloop"))
        parties = [
            {
                **party,
                "url": f"https://localhost:{at.server.port}",
                "certificate": fingerprint,
                "ca": None,
                "hpke": None,
            }
            for party, at in zip(SERVICE["parties"], started, strict=True)
        ]
        service["parties"] = parties
        client = Client(service, key=Keys.lines)
        x = np.random.default_rng(0).uniform(-1, 1, (20, 4))
        result = client.infer("line", x)
        np.testing.assert_allclose(result, x @ WEIGHTS, rtol=0, atol=1e-3)
        with pytest.raises(Refused, match="key"):
            Client(service, key=Keys.others).infer("line", x)
    finally:
        for at in started:
            at.end()
