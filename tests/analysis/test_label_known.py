"""Labels that are read back from a run's boxes are those that were written."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.config import LabelConfig
from analysis.label.fit import labels, vocabulary_of, write
from analysis.label.indexed import Indexed
from analysis.label.known import Known


@pytest.fixture(scope="module")
def views(town, ids):
    """A token; a pair; a word in texts of law; silence; numbers and what the embedding holds to be like " dog"."""

    def fires(tokens: np.ndarray) -> list[np.ndarray]:
        of = (tokens == ids[" of"]) & (np.roll(tokens, 1) == ids[" University"])
        law = np.isin(tokens, [ids[" court"], ids[" judge"]])
        near_law = np.convolve(law, np.ones(21), "same") > 0
        animals = np.isin(tokens, [ids[" dog"], ids[" cat"], ids[" man"]])
        return [tokens == ids[" town"], of, (tokens == ids[" saw"]) & near_law, tokens < 0, animals]

    return town(fires)


@pytest.mark.parametrize("with_kinds", [False, True])
def test_a_rule_that_is_read_back_predicts_what_it_did(views, tmp_path, ids, with_kinds):
    fit, _, test = views
    table = np.random.default_rng(0).normal(size=(len(fit.strings), 8))
    table[[ids[word] for word in (" dog", " cat", " man")]] = [1] * 8
    vocabulary = vocabulary_of(fit, table if with_kinds else None)
    families = ("kind", "context", "topic", "combination") if with_kinds else LabelConfig().families
    records = labels(*views, LabelConfig(resamples=5, families=families), vocabulary)
    write(records, tmp_path, vocabulary.kinds)
    latents = {"neighbours": [[1], [0], [], [], []], "promoted_tokens": [[ids[" dog"]], [], [], [], []]}
    pq.write_table(pa.table(latents), tmp_path / "latents.parquet")
    known = Known.of(tmp_path, tmp_path, fit)
    assert known.statuses == [record.status for record in records]
    assert known.statuses[3] == "silent"
    assert known.sentences == [record.text for record in records]
    assert known.others == [record.other_latent for record in records]
    assert (known.neighbours[0], known.promoted[0], known.promoted[1]) == ([1], [" dog"], [])
    assert set(known.rules) == {record.latent for record in records if record.scores}
    assert len(known.rules) >= 3
    indexed = Indexed(test, known.vocabulary)
    for latent, rule in known.rules.items():
        assert len(rule.predict(indexed)[0]) == records[latent].scores.n_predicted
    if with_kinds:
        assert "kind" in {part.family for rule in known.rules.values() for part in rule.parts}
        for level, kinds in vocabulary.kinds.of.items():
            assert known.vocabulary.kinds.of[level].tolist() == kinds.tolist()
        assert known.vocabulary.kinds.counts.tolist() == vocabulary.kinds.counts.tolist()
