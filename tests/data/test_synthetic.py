import hashlib
import itertools
import math
from collections import defaultdict

import numpy as np
import pytest

from scaling.data import synthetic
from scaling.data.sources import open_source
from scaling.data.synthetic import best_loss, entropy_rate, parse_synthetic, stationary, transitions
from scaling.errors import InputError


def text_of(spec):
    return [text for _, text in open_source(spec).documents]


def test_golden_text():
    """A change here changes the text of every run on such a source. Do not."""
    (first, *_) = texts = text_of("synthetic:tokens=1e5")
    assert first[:40] == b'XG,&6W.NS;1QXYDF6.3G.NU_"2MQRJ$Z@P=B>9QA'
    assert hashlib.sha256(b"".join(texts)).hexdigest()[:16] == "aebf0dab8d3e18c3"


def test_tokens_documents_and_characters_are_as_asked():
    spec = "synthetic:tokens=1e5,vocab=20,length=300,seed=3"
    texts = text_of(spec)
    assert {len(text) for text in texts} == {300}
    assert 0 <= len(texts) * 301 - 1e5 < 301
    assert set(b"".join(texts)) == set(range(0x20, 0x20 + 20))
    assert len(set(texts)) == len(texts)
    assert texts != text_of(spec.replace("seed=3", "seed=4"))


def test_the_text_does_not_depend_on_how_many_documents_follow(monkeypatch):
    monkeypatch.setattr(synthetic, "PART_BYTES", 5000)
    few, many = text_of("synthetic:tokens=2e4"), text_of("synthetic:tokens=5e4")
    assert len(open_source("synthetic:tokens=2e4").parts) == 4
    assert many[: len(few)] == few


def test_rows_are_zipf_over_permutations():
    spec = parse_synthetic("synthetic:vocab=30,exponent=1.3")
    P_VxV = transitions(spec)
    zipf_V = np.arange(1, 31) ** -1.3
    np.testing.assert_allclose(-np.sort(-P_VxV, axis=1), np.tile(zipf_V / zipf_V.sum(), (30, 1)), atol=2**-32)
    assert len({tuple(row) for row in P_VxV.argsort(axis=1)}) == 30


def test_stationary_distribution_against_brute_force():
    spec = parse_synthetic("synthetic:vocab=12,exponent=1.5,seed=1")
    p_V = stationary(spec)
    brute_V = np.full(12, 1 / 12) @ np.linalg.matrix_power(transitions(spec), 1000)
    np.testing.assert_allclose(p_V, brute_V, rtol=1e-12)
    assert np.ptp(p_V) > 0.01  # so that the test could fail


def test_entropy_rate_of_known_chains():
    assert entropy_rate("synthetic:vocab=8,exponent=0") == pytest.approx(math.log(8), rel=1e-9)
    p, q = 2 / 3, 1 / 3  # two characters with weights 1 and 1/2
    assert entropy_rate("synthetic:vocab=2,length=200") == pytest.approx(-p * math.log(p) - q * math.log(q), rel=1e-8)


def test_an_n_gram_estimate_approaches_the_entropy_rate():
    spec = "synthetic:tokens=1e6,vocab=32"
    text_DxL = np.array([np.frombuffer(text, np.uint8) for text in text_of(spec)]).astype(int) - 0x20
    pairs_VxV = np.bincount((text_DxL[:, :-1] * 32 + text_DxL[:, 1:]).ravel(), minlength=32 * 32).reshape(32, 32)
    N, P_VxV = pairs_VxV.sum(), pairs_VxV / pairs_VxV.sum(axis=1, keepdims=True)
    estimate = -(pairs_VxV * np.log(P_VxV)).sum() / N
    true_VxV = transitions(parse_synthetic(spec))
    h = entropy_rate(spec)
    # The estimate is low by 32 x 31 / 2N (Miller 1955), 0.0005; it varies by the deviation of one surprise over root N.
    error = math.sqrt((pairs_VxV / N * (np.log(true_VxV) + h) ** 2).sum() / N)
    assert error < 0.0015
    assert estimate + 32 * 31 / (2 * N) == pytest.approx(h, abs=4 * error)
    start_V = np.bincount(text_DxL[:, 0], minlength=32) / len(text_DxL)
    assert np.abs(start_V - stationary(parse_synthetic(spec))).max() < 4 * math.sqrt(0.25 / len(text_DxL))


def loss_by_enumeration(P_VxV, p_V, d, L):
    """The perfect predictor's loss by Bayes' rule over every window there is: all phases, all characters."""
    V, END, period = len(p_V), len(p_V), d + 1
    joint = defaultdict(float)
    phases = range(0, period, math.gcd(L, period))
    for phase in phases:
        kinds = [(phase + j) % period == d for j in range(L + 1)]
        for window in itertools.product(*([END] if end else range(V) for end in kinds)):
            q = 1 / len(phases)
            for previous, token in zip((END, *window), window, strict=False):
                if token != END:
                    q *= p_V[token] if previous == END else P_VxV[previous, token]
            joint[window] += q
    loss = 0.0
    prefixes = [defaultdict(float) for _ in range(L + 2)]
    for window, q in joint.items():
        for j in range(L + 2):
            prefixes[j][window[:j]] += q
    for window, q in joint.items():
        loss -= q * math.log(prefixes[L + 1][window] / prefixes[1][window[:1]])
    return loss / L


@pytest.mark.parametrize(("V", "d", "L"), [(2, 3, 5), (2, 3, 2), (2, 3, 4), (3, 5, 3), (3, 4, 5), (2, 1, 3), (2, 9, 4)])
def test_best_loss_against_enumeration(V, d, L):
    name = f"synthetic:vocab={V},exponent=1.7,length={d},seed=2"
    spec = parse_synthetic(name)
    assert best_loss(name, L) == pytest.approx(loss_by_enumeration(transitions(spec), stationary(spec), d, L), rel=1e-9)


def test_best_loss_is_close_to_the_entropy_rate_for_long_documents():
    assert best_loss("synthetic:length=1000", 64) == pytest.approx(entropy_rate("synthetic:"), abs=0.01)


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ("vocabs=3", r"unknown key 'vocabs' .did you mean vocab\?"),
        ("vocab=many", "'vocab=many' is not NAME=NUMBER"),
        ("vocab", "'vocab' is not NAME=NUMBER"),
        ("vocab=96", "vocab=96 is outside 2 to 95"),
        ("vocab=2.5", "vocab=2.5 is not of type int"),
        ("tokens=0", "must be positive"),
        ("exponent=-1", "outside 0 to 8"),
        ("exponent=nan", "not finite"),
        ("tokens=inf", "tokens=inf is not"),
        ("seed=-1", "negative"),
        ("length=8,tokens=1e6", "pairs would be equal .*ask for a larger length"),
    ],
)
def test_a_wrong_spec_is_refused(spec, fault):
    with pytest.raises(InputError, match=fault):
        open_source(f"synthetic:{spec}")


def test_the_odds_of_equal_documents_against_enumeration():
    spec = parse_synthetic("synthetic:length=5,vocab=3,exponent=1.2,seed=4")
    P_VxV, p_V = transitions(spec), stationary(spec)
    texts = itertools.product(range(3), repeat=5)
    odds = [p_V[text[0]] * math.prod(P_VxV[pair] for pair in itertools.pairwise(text)) for text in texts]
    assert sum(odds) == pytest.approx(1)
    assert synthetic._equal_probability(spec) == pytest.approx(sum(q**2 for q in odds), rel=1e-9)
