"""The black-box audit: reference implementations, honest wording, every kind of bad file refused, no torch."""

import json
import pickle
import subprocess
import sys
import tracemalloc
from itertools import permutations

import numpy as np
import pytest

from efface.auditing import representations
from efface.auditing.criteria import Criteria
from efface.auditing.embeddings import agreement, verdict
from efface.auditing.embeddings.arrays import (
    EmbeddingPair,
    EmbeddingSet,
    check_embeddings,
    match_embeddings,
    read_embeddings,
)
from efface.auditing.formatting import format_number
from efface.data import array_files
from efface.errors import EffaceError
from efface.reporting.embeddings_page import draw_alignment_maps
from efface.reporting.figures.heatmap import heatmap
from efface.runs.audit_embeddings import audit_embeddings
from tests.reference import blackbox as reference
from tests.reference.probes import alignment_matrix


def embedded(n=40, views=4, d=16, memory=0.0, seed=0, center=0):
    """Views that agree more, the more the model remembers; ``center`` seeds the items themselves."""
    items = np.random.default_rng(1000 + center).normal(size=(n, 1, d))
    noise = np.random.default_rng(seed).normal(size=(n, views, d))
    z = (items + (1.3 - memory) * noise).astype(np.float32)
    return EmbeddingSet(z, np.arange(n).astype(str), False)


def pair(n=40, before=0.0, after=0.0, center=0, **more):
    return EmbeddingPair(
        embedded(n, memory=before, seed=1 + center, center=center, **more),
        embedded(n, memory=after, seed=2 + center, center=center, **more),
    )


def by_name(judged):
    return {one.name: one for one in judged.findings}


def test_numbers_equal_the_reference_implementation():
    p = pair(6, before=0.5, views=4, d=5)
    before, after = p.before.z.tolist(), p.after.z.tolist()
    am = alignment_matrix(before)
    assert agreement.view_agreement(p.before.z) == pytest.approx([am[i][i] for i in range(6)], abs=1e-6)
    off = [am[i][j] for i in range(6) for j in range(6) if i != j]
    assert agreement.cross_item_similarity(p.before.z) == pytest.approx(np.mean(off), abs=1e-6)
    found = by_name(verdict.judge_embedding_pairs(p))
    assert found["blackbox.forget_score"].value == pytest.approx(reference.forget_score(before, after), abs=1e-6)
    orders = np.array(list(permutations(range(6))))
    seen, drawn = agreement.pairing_statistic(p.before.z, p.after.z, orders)
    assert seen == pytest.approx(reference.paired_change(before, after, range(6)), abs=1e-6)
    assert drawn[100] == pytest.approx(reference.paired_change(before, after, orders[100].tolist()), abs=1e-6)
    assert (drawn >= seen - 1e-12).mean() == pytest.approx(reference.exact_p(before, after))


def test_the_sampled_p_is_near_the_exact_one_and_never_zero():
    p = pair(5, before=0.12, views=2, d=4)
    exact = reference.exact_p(p.before.z.tolist(), p.after.z.tolist())
    assert agreement.pairing_test(p.before.z, p.after.z)[1] == pytest.approx(exact, abs=0.05)
    strong = pair(60, before=1.2)
    assert agreement.pairing_test(strong.before.z, strong.after.z)[1] == 1 / (agreement.DRAWS + 1)


def test_random_pairings_of_unrelated_models_are_not_rejected_too_often():
    rng = np.random.default_rng(3)
    ps = [agreement.pairing_test(*(rng.normal(size=(12, 2, 6)) for _ in range(2)), seed=s)[1] for s in range(60)]
    assert np.mean(np.array(ps) <= 0.1) < 0.25


def test_a_view_is_never_compared_with_itself():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(200, 2, 64)).astype(np.float32)
    assert abs(agreement.view_agreement(z).mean()) < 0.05


def test_without_control_there_is_no_removed():
    judged = verdict.judge_embedding_pairs(pair(before=0.9))
    assert judged.word == "inconclusive" and judged.exit_code == 4
    assert "damaged or replaced" in judged.sentence
    assert any("--control" in limit for limit in judged.limits)


@pytest.mark.parametrize("turned", [False, True])
def test_unchanged_embeddings_forgot_nothing_even_turned(turned):
    seen = embedded()
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(16, 16)))[0] if turned else np.eye(16)
    after = EmbeddingSet((3 * seen.z @ turn).astype(np.float32), seen.keys, False)
    judged = verdict.judge_embedding_pairs(EmbeddingPair(seen, after))
    assert judged.word == "residue" and judged.exit_code == 3


def test_with_control_the_words_follow_the_truth():
    control = pair(1200, center=5)
    cases = {"removed": 0.0, "residue": 0.25, "over-forgotten": -0.35}
    for word, after in cases.items():
        judged = verdict.judge_embedding_pairs(pair(1200, before=0.3, after=after, center=1), control)
        assert judged.word == word, (word, judged.sentence)
    found = by_name(judged)
    gap = found["blackbox.forget_score"].value - found["blackbox.control_score"].value
    assert found["blackbox.forget_minus_control"].value == pytest.approx(gap)
    blind = verdict.judge_embedding_pairs(pair(1200, center=1), control)
    assert blind.word == "inconclusive"


def test_a_model_damaged_for_everybody_is_no_forgetting():
    judged = verdict.judge_embedding_pairs(
        pair(300, before=0.5, after=-0.5), pair(300, before=0.5, after=-0.5, center=5)
    )
    found = by_name(judged)
    assert found["blackbox.forget_score"].value > 0.1
    low, high = found["blackbox.forget_minus_control"].interval
    assert low < 0 < high
    assert found["blackbox.forget_minus_control"].details["permutation_p"] > 0.05
    assert judged.word == "inconclusive"


def test_a_collapsed_model_is_not_praised():
    forget, control = pair(400, before=0.4, center=1), pair(400, center=5)
    for p in (forget, control):
        p.after.z[:] = p.after.z[:1, :1]
    assert verdict.judge_embedding_pairs(forget, control).word != "removed"


def test_resolution_can_be_set():
    control = pair(300, center=5)
    wide = verdict.judge_embedding_pairs(pair(300, before=0.5, center=1), control, Criteria(delta=0.1))
    narrow = verdict.judge_embedding_pairs(pair(300, before=0.5, center=1), control, Criteria(delta=0.01))
    assert (wide.word, narrow.word) == ("removed", "inconclusive")


# ---- files ----


def test_two_shapes_hold_the_same_and_views_are_consecutive(tmp_path):
    z = embedded(5, views=3).z
    np.save(tmp_path / "flat.npy", z.reshape(15, -1))
    np.save(tmp_path / "cube.npy", z.astype(np.float64))
    flat, cube = (
        read_embeddings(tmp_path / f"{name}.npy", views)["forget"].z for name, views in (("flat", 3), ("cube", None))
    )
    assert np.array_equal(flat, z) and np.array_equal(cube, z)


def test_keys_match_rows_in_any_order(tmp_path):
    z, keys = embedded(5).z, np.array(["e", "b", "a", "d", "c"])
    np.savez(tmp_path / "a.npz", forget=z, forget_keys=keys)
    np.savez(tmp_path / "b.npz", forget=z[::-1], forget_keys=keys[::-1])
    a, b = (read_embeddings(tmp_path / f"{name}.npz")["forget"] for name in "ab")
    assert np.array_equal(match_embeddings(a, b, "forget").after.z, z)
    stranger = EmbeddingSet(b.z, np.array(["e", "b", "a", "d", "x"]), True)
    with pytest.raises(EffaceError, match="in before but not in after"):
        match_embeddings(a, stranger, "forget")
    with pytest.raises(EffaceError, match="Only one of the two files names"):
        match_embeddings(a, embedded(5), "forget")


def broken(tmp_path, name):
    path, good = tmp_path / "bad.npy", embedded(6).z
    if name == "pickled":
        np.save(path, np.array([good, None], dtype=object), allow_pickle=True)
    elif name == "plain pickle":
        path.write_bytes(pickle.dumps(good))
    elif name == "truncated":
        np.save(path, good)
        path.write_bytes(path.read_bytes()[:-40])
    elif name == "empty":
        path.write_bytes(b"")
    elif name == "missing":
        pass
    elif name == "nan":
        good[2, 1, 0] = np.nan
        np.save(path, good)
    elif name == "overflow":
        np.save(path, good.astype(np.float64) * 1e300)
    elif name == "zeros":
        good[2, 1] = 0
        np.save(path, good)
    elif name == "one view":
        np.save(path, good[:, :1])
    elif name == "flat":
        np.save(path, good[:, 0])
    elif name == "words":
        np.save(path, np.array(["a", "b"]))
    elif name == "fewer":
        np.save(path, good[:5])
    elif name == "complex":
        np.save(path, good.astype(np.complex64))
    elif name == "four":
        np.save(path, good[None])
    return path


BAD = {
    "pickled": "cannot be read as an array", "plain pickle": "cannot be read as an array",
    "truncated": "cannot be read as an array", "empty": "cannot be read as an array", "missing": "There is no file",
    "nan": "not finite",
    "overflow": "not finite", "zeros": "all zeros", "one view": "1 view", "flat": "one view of each",
    "words": "not numbers", "fewer": "do not match", "complex": "not numbers", "four": "has the shape",
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_with_a_reason(tmp_path, name):
    np.save(tmp_path / "good.npy", embedded(6).z)
    for order in (1, -1):
        files = [tmp_path / "good.npy", broken(tmp_path, name)][::order]
        with pytest.raises(EffaceError, match=BAD[name]) as caught:
            audit_embeddings(files, None, tmp_path / "out")
        assert caught.value.exit_code == 2
        assert not (tmp_path / "out").exists()


def test_views_must_fit():
    z = embedded(6, views=4).z
    with pytest.raises(EffaceError, match="no multiple of 5"):
        check_embeddings(z.reshape(24, -1), 5, "x")
    with pytest.raises(EffaceError, match="--views says 3"):
        check_embeddings(z, 3, "x")
    with pytest.raises(EffaceError, match="same number"):
        verdict.judge_embedding_pairs(pair(20), pair(20, views=2))


def test_control_given_twice_or_overlapping_is_refused(tmp_path):
    z, keys = embedded(6).z, np.array(list("abcdef"))
    np.savez(tmp_path / "x.npz", forget=z, control=z, forget_keys=keys, control_keys=keys)
    np.save(tmp_path / "c.npy", z)
    x, c = tmp_path / "x.npz", tmp_path / "c.npy"
    with pytest.raises(EffaceError, match="both forgotten and control"):
        audit_embeddings([x, x], None, tmp_path / "out")
    with pytest.raises(EffaceError, match="two sets of control"):
        audit_embeddings([x, x], [c, c], tmp_path / "out")


# ---- the page and the verb ----


def test_the_page_is_self_contained_and_says_the_numbers(tmp_path):
    p, control = pair(60, before=0.8), pair(60, center=5)
    files = {"b": p.before, "a": p.after, "cb": control.before, "ca": control.after}
    for name, seen in files.items():
        np.save(tmp_path / f"{name}.npy", seen.z)
    b, a, cb, ca = (tmp_path / f"{name}.npy" for name in files)
    judged = audit_embeddings([b, a], [cb, ca], tmp_path / "out")
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "<script" not in page and 'src="' not in page and "http://" not in page.replace("http://www.w3.org", "")
    assert page.count('<svg class="plot"') >= 7 and "Beyond the line" in page
    assert "The maps and the means below them use 40 of 60 items and 40 of 60 never-trained items;" in page
    about = json.loads((tmp_path / "out/audit.json").read_text(encoding="utf-8"))
    assert about["created"] not in page and f"{about['created'][:10]} {about['created'][11:16]} UTC" in page
    assert about["word"] == judged.word and len(about["files"]) == 4
    stored = json.loads((tmp_path / "out/findings.json").read_text(encoding="utf-8"))
    assert {one["name"]: one["value"] for one in stored} == {f.name: f.value for f in judged.findings}
    with pytest.raises(EffaceError, match="exists already"):
        audit_embeddings([b, a], None, tmp_path / "out")


def test_under_the_maps_stand_the_findings_by_their_names_where_every_item_is_drawn():
    parts = {"forget": pair(30, before=-0.8), "control": pair(30, center=5)}
    judged = verdict.judge_embedding_pairs(parts["forget"], parts["control"])
    at = {one.name.removeprefix("blackbox."): one for one in judged.findings}
    drawn = draw_alignment_maps(parts)
    before, after, change = (plot.note for plot in drawn.plots)
    assert before.startswith(f"own pairs {format_number(at['own_pairs'].original)}, never-trained ")
    assert after.startswith(f"own pairs {format_number(at['own_pairs'].value)}, never-trained ")
    score, control = format_number(at["forget_score"].value), format_number(at["control_score"].value)
    assert change == f"forget score {score}, control score {control}" and "\u2212" in score
    assert "Drawn, and averaged" not in drawn.caption and "-0" not in judged.sentence


def test_the_size_of_the_parts_changes_nothing(monkeypatch):
    z = pair(60, 1.0, 0.4)
    x, y = z.before.z[:, 0], z.after.z[:, 1]

    def measured():
        return np.array(
            [
                *agreement.view_agreement(z.before.z),
                agreement.cross_item_similarity(z.before.z),
                representations.effective_rank(x),
                representations.linear_cka(x, y),
                float(representations.is_collapsed(x)),
            ]
        )

    whole = measured()
    monkeypatch.setattr(array_files, "PART_BYTES", 2000)
    assert len(list(array_files.row_chunks(z.before.z))) > 5
    assert np.allclose(measured(), whole, rtol=1e-12)
    assert (array_files.take_rows(x, np.array([50, 3, 17])) == x[[3, 17, 50]]).all()


def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(array_files, "PART_BYTES", 2**18)
    peaks = []
    for items in (10_000, 40_000):
        for name, seed in (("before", 0), ("after", 1)):
            np.save(
                tmp_path / f"{name}.npy", np.random.default_rng(seed).normal(size=(items, 2, 64)).astype(np.float32)
            )
        tracemalloc.start()
        files = [read_embeddings(tmp_path / f"{name}.npy")["forget"] for name in ("before", "after")]
        together = match_embeddings(*files, "forget")
        agreement.cross_item_similarity(together.before.z)
        agreement.unchanged(together)
        representations.effective_rank(together.after.z[:, 0])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    grown, file = peaks[1] - peaks[0], 30_000 * 2 * 64 * 4
    assert grown < file / 2, peaks  # names and one number per item, and never the embeddings


def test_a_heat_map_tells_its_signs_and_its_diagonal():
    values = np.array([[1.0, -1.0], [0.0, 1.0]])
    drawn = str(heatmap("x", "t", values, 1.0, divide=1))
    assert drawn.count('heat warm" fill-opacity="1"') == 1 and drawn.count('heat cold" fill-opacity="1"') == 1
    assert "mean of the diagonal 1.000, elsewhere \u22120.500" in drawn
    assert "heat" not in str(heatmap("x", "t", np.zeros((2, 2)), 0.0)).replace("heatmap", "")


CODE = """
import sys, time
sys.argv = ["efface", "audit", "--embeddings", *sys.argv[1:3], "--out", sys.argv[3], "--json", "--quiet"]
from efface.cli import main
try:
    main()
except SystemExit as end:
    assert not {"torch", "torchvision", "timm", "sklearn"} & set(sys.modules), "slow imports"
    raise
"""


def test_the_verb_needs_no_torch_and_is_quick(tmp_path):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(5000, 2, 128)).astype(np.float32)
    np.save(tmp_path / "b.npy", z + z.mean(axis=1, keepdims=True))
    np.save(tmp_path / "a.npy", z)
    command = [sys.executable, "-c", CODE, *(str(tmp_path / name) for name in ("b.npy", "a.npy", "out"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 4, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["findings"]["blackbox.forget_score"] > 0.2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Nothing was said about what to audit"),
        (["run", "--views", "3"], "cannot be used with a run"),
        (["run", "--embeddings", "a.npy", "b.npy"], "judged without a run"),
        (["--embeddings", "a.npy", "b.npy", "--set", "watch.views=3"], "without these settings"),
        (["--embeddings", "a.npy", "b.npy"], "There is no file a.npy"),
    ],
)
def test_wrong_use_is_exit_code_2(arguments, said):
    done = subprocess.run(
        [sys.executable, "-m", "efface", "audit", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2 and said in done.stderr
