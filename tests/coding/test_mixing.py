"""The arithmetic under the coder: tables far from ties, the same numbers on every machine."""

from __future__ import annotations

import base64
from decimal import Decimal, localcontext

import numpy as np

from tests.coding.models import chain
from tests.conftest import seed
from xdeploy.coding.file import same, unpack
from xdeploy.coding.mixing import ONE, TOP, UNIT, Mixer, squash_table, stretch_table
from xdeploy.coding.stream import Decoder, Encoder
from xdeploy.compress.model import CompressedModel, QuantisedWeight


def test_tables_are_far_from_ties() -> None:
    """No value stands within 1e-9 of where rounding would tip, while a correct libm is good to 1e-11 there."""
    x = np.arange(-TOP, TOP + 1) / UNIT
    p = np.clip(np.arange(ONE + 1.0), 0.5, ONE - 0.5)
    for exact in (ONE / (1.0 + np.exp(-x)), UNIT * np.log(p / (ONE - p))):
        assert np.abs(exact - np.floor(exact) - 0.5).min() > 1e-9


def test_tables_hold_what_they_say() -> None:
    with localcontext() as context:
        context.prec = 40
        for k in (0, 1, 1000, TOP, TOP + 1, 3000, 2 * TOP):
            assert squash_table()[k] == round(Decimal(ONE) / (1 + (-Decimal(k - TOP) / UNIT).exp()))
        for k in (30, 100, 20_000, ONE // 2, ONE - 100):
            assert stretch_table()[k] == round(UNIT * (Decimal(k) / (ONE - k)).ln())
    assert (squash_table() > 0).all()
    assert (squash_table() < ONE).all()


def test_decoder_follows_encoder() -> None:
    """Every probability is the same on both sides, though the decoder learns from what it decodes."""
    rng = np.random.default_rng(seed())
    blocks = [(rng.random(50) < p).astype(np.uint8) for p in rng.random(60)]
    contexts = [np.stack([3 + np.arange(50) % 7, 10 + rng.integers(0, 20, 50)]) for _ in blocks]
    encoder, one = Encoder(), Mixer(3, 40, 1, 2)
    for b, c in zip(blocks, contexts, strict=True):
        one.code(encoder, 0, np.zeros(50, np.int64), c, b)
    decoder, two = Decoder(encoder.finish()), Mixer(3, 40, 1, 2)
    for b, c in zip(blocks, contexts, strict=True):
        assert (two.code(decoder, 0, np.zeros(50, np.int64), c, None) == b).all()
    assert all((getattr(one, k) == getattr(two, k)).all() for k in ("n", "n1", "weights"))
    decoder.finish()


def test_files_of_version_1_stay_readable() -> None:
    """A file that was written once; where it reads differently, layout, arithmetic or range coder have changed."""
    model = unpack(base64.b64decode(VERSION_1)).model
    assert same(model, _model())
    assert np.array_equal(model.weights["features.0"].codes.reshape(-1)[:9], [-6, -3, 0, 3, 6, -2, -1, 2, 5])


def _model() -> CompressedModel:
    """Weights by rule, some rows empty: adaptive, static and constant layers."""
    k = np.arange(16 * 8 * 9)
    codes = ((3 * k) % 13 - 6) * ((k // 72) % 3 != 1) + (k == 5) * 2
    conv = QuantisedWeight(
        "int4", np.clip(codes, -7, 7).astype(np.int8).reshape(16, 8, 3, 3), None,
        np.float32(0.5) + np.arange(16, dtype=np.float32) / 64, (100 * np.arange(16) - 700).astype(np.int32),
    )  # fmt: skip
    book = QuantisedWeight(
        "c2s8", (np.arange(64) % 4).astype(np.int8).reshape(4, 16, 1, 1), np.array([-9, 0, 4, 100], np.int8),
        np.full(4, 0.25, np.float32), np.zeros(4, np.int32),
    )  # fmt: skip
    return chain(conv, book)


VERSION_1 = (
    "WERDARQCAADCw0stbAAAAACrhtJKufkpqSB3QiQrgO6z0AFCoM5KINsEwo420DMFk0YgSik5EeS+w3uUgKqcPcJBFIbr4cFrgMwxBKmFecxC"
    "x0THBNl3QH+A4xfuR5yxC493WEpAindEsMC8YmgGtoeYIILGiREwTmJrAQ7Qb2+4F3D2+OcXEBfy8xchXAD3I7sI9rxP8J1Ir4wE0C+gX47s"
    "5xcdxsoiqmx7hwDb8hrW//UQWmuttRY0itmQroYmK5ZGIx1tIh5qWCnbHI/nh4j4myxlEfzhCf3SvmQs+U2KDkEDMgzSMCjYzD5zTUSTq5H0"
    "KRchPK/KaYbW/dRnVBn5BheEA92JnOkqsWTgmK6NZmOfj2jqEa86kbitonXuf5nADXW0B35D7/0zt6gHUznbEY94p1f0LGAfIiT3lfmhBzTw"
    "NmQ7v68Z5kUytebmZxUaFVliKn0f7LK+XwrI+bTi+wPM0BQdAPoG0HTaiDub7M7bLjdsTADlmGM5pbjDQHoxwtzvqWBqEhsAXeTreWdqCvaD"
    "0IvoSJFvDNk2lBRN1ADtMATW7Q5AkVJ4zlIxqU9uCjh/oXFxhqiDwenY6UfgIFx/JI+fwitQLtAxKX60uA3sNTyaRFNG+FxnfG2lOfqpXsMq"
    "Gj/dqzu41mIcUtmfYRX51UdFLTT/NCQkJCQkJCQkkH0kJEWPX1QhQfbxbk+4NczURA34cRyvxQSmxg=="
)
