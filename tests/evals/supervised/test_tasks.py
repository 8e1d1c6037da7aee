"""The four tasks: what their prompts are, and that a counterfactual changes what it should only."""

from __future__ import annotations

import random
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.errors import ConfigError, ModelError
from saelab.evals.supervised.tasks import (
    SPLIT_BUCKETS,
    SPLITS,
    TASKS,
    CrossSectionTemplate,
    FrameWriter,
    Prompt,
    Role,
    Task,
    counterfactual_pairs,
    in_split,
    load_task,
    logit_difference,
    most_likely_of,
    padded_tokens,
    positions_of,
    probability_difference,
)


class WordTokenizer:
    """Words with their space are tokens; digits stand alone or in pairs."""

    bos_id: int | None = 1

    def __init__(self, digits=1, kept=None, name="word-model"):
        self.name = name
        self._pattern = re.compile(rf"\s?\d{{1,{digits}}}|\s?[^\W\d]+|\s?[^\w\s]")
        self._ids: dict[str, int] = {}
        self._kept = kept

    def tokenize(self, texts):
        return [
            [id_ for word in self._pattern.findall(text) for id_ in self._of(word)]
            for text in texts
        ]

    def _of(self, word):
        pieces = [word] if self._kept is None or self._kept(word) else list(word)
        return [self._ids.setdefault(piece, len(self._ids) + 10) for piece in pieces]

    def text(self, ids):
        words = {id_: word for word, id_ in self._ids.items()}
        return "".join(words.get(id_, "") for id_ in ids)


@pytest.fixture(scope="module")
def tokenizer():
    return WordTokenizer()


@pytest.fixture(scope="module", params=sorted(TASKS))
def task(request, tokenizer):
    return load_task(request.param, tokenizer)


def test_every_split_has_prompts_that_agree_with_their_labels(task):
    for split in SPLITS:
        prompts = task.sample(60, split, 0)
        assert len(prompts) == 60
        for prompt in prompts:
            assert prompt.tokens[0] == 1
            assert prompt.positions["end"] == len(prompt.tokens) - 1
            assert set(prompt.positions) == set(task.positions)
            assert set(prompt.labels) == set(task.attributes)
            assert all(prompt.labels[name] in values for name, values in task.attributes.items())
            assert all(0 < place < len(prompt.tokens) for place in prompt.positions.values())
            assert set(prompt.correct) | set(prompt.incorrect) <= set(task.answer_tokens)
            assert not set(prompt.correct) & set(prompt.incorrect)
    assert task.sample(20, "train", 3) == task.sample(20, "train", 3)
    assert task.sample(20, "train", 3) != task.sample(20, "train", 4)
    seen = {prompt.meta["frame"] for split in SPLITS[:3] for prompt in task.sample(60, split, 0)}
    assert seen.isdisjoint(prompt.meta["frame"] for prompt in task.sample(60, "unseen_frame", 0))


def test_splits_share_no_text(task):
    texts = {split: {p.tokens for p in task.sample(150, split, 0)} for split in SPLITS}
    assert not texts["train"] & (texts["validation"] | texts["test"] | texts["unseen_frame"])
    assert not texts["validation"] & texts["test"]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_counterfactual_changes_the_edited_attributes_only(task, data):
    split = data.draw(st.sampled_from(SPLITS))
    edit = data.draw(st.sampled_from([*task.edits, *((name,) for name in task.attributes)]))
    prompt = task.sample(1, split, data.draw(st.integers(0, 10**6)))[0]
    draw = random.Random(data.draw(st.integers(0, 10**6)))
    target = task.counterfactual(prompt, dict.fromkeys(edit), draw)
    assert target is not None
    changed = {name for name in task.attributes if target.labels[name] != prompt.labels[name]}
    allowed = {*edit, *(fine for fine, coarse in task.nested.items() if coarse in edit)}
    assert set(edit) <= changed <= allowed
    assert target.meta == prompt.meta
    # The same prompt can be written from its labels: nothing else was changed.
    back = task.counterfactual(target, {name: prompt.labels[name] for name in changed}, draw)
    assert back == prompt


def test_ioi_frames_and_roles(tokenizer):
    task = load_task("ioi", tokenizer)
    for prompt in task.sample(200, "train", 1):
        at = prompt.positions
        word = {name: tokenizer.text([prompt.tokens[place]]).strip() for name, place in at.items()}
        assert word["io"] == prompt.labels["io"]
        assert word["s1"] == word["s2"] == prompt.labels["s"]
        assert prompt.labels["io"] != prompt.labels["s"]
        assert (at["first"], at["second"]) == (3, 5)
        assert (at["io"] < at["s1"]) == (prompt.labels["pos"] == "ABB")
        assert word["end"] == "to"
        assert at["s1+1"] == at["s1"] + 1
        assert tokenizer.text(prompt.correct).strip() == prompt.labels["io"]
        assert tokenizer.text(prompt.incorrect).strip() == prompt.labels["s"]


def test_ioi_edits_are_never_no_ops(tokenizer):
    task = load_task("ioi", tokenizer)
    base = {p.labels[name] for p in task.sample(400, "test", 0) for name in ("io", "s")}
    rows, targets = counterfactual_pairs(task, task.sample(400, "test", 0), ("io", "s"), 0)
    assert len(rows) == 400
    assert base.isdisjoint({t.labels[name] for t in targets for name in ("io", "s")})
    # Every quarter of the names has both genders.
    genders = task.groups["io"]["gender"]
    quarter = len(task.attributes["io"]) // 4
    for start in range(0, 4 * quarter, quarter):
        assert len({genders[name] for name in task.attributes["io"][start : start + quarter]}) == 2


def test_ioi_parametrisations(tokenizer):
    task = load_task("ioi", tokenizer)
    labels = {"io": "Mary", "s": "John", "pos": "BAB"}
    read = {
        name: {key: value(labels) for key, value in task.parametrisation(name).items()}
        for name in ("independent", "coupled", "names")
    }
    assert read["independent"] == labels
    assert read["coupled"] == {"io,pos": "Mary BAB", "s,pos": "John BAB"}
    assert read["names"] == {"first": "John", "second": "Mary", "third": "John"}
    with pytest.raises(ConfigError, match="no parametrisation 'x'"):
        task.parametrisation("x")


@pytest.mark.parametrize("digits", [1, 2])
def test_greater_than_answers(digits):
    tokenizer = WordTokenizer(digits)
    task = load_task("greater_than", tokenizer)
    assert ("year" in task.attributes) == (digits == 2)
    for prompt in task.sample(100, "train", 0):
        labels = prompt.labels
        year = labels["year"] if digits == 2 else labels["tens"] + labels["ones"]
        answers = [
            sorted(tokenizer.text([id_]) for id_ in side)
            for side in (prompt.correct, prompt.incorrect)
        ]
        if digits == 2:
            years = [f"{number:02d}" for number in range(100)]
            assert answers == [[y for y in years if y > year], [y for y in years if y <= year]]
        else:
            # Years of the same ten may be later or earlier: except where all of it is earlier.
            tens = "0123456789"
            own = [year[0]] if year[1] == "9" else []
            assert answers == [
                [t for t in tens if t > year[0]],
                sorted([t for t in tens if t < year[0]] + own),
            ]


def test_agreement_answers_follow_the_subject_not_the_attractor(tokenizer):
    task = load_task("subject_verb_agreement", tokenizer)
    for prompt in task.sample(100, "train", 0):
        subject = tokenizer.text([prompt.tokens[prompt.positions["subject"]]]).strip()
        assert (subject == prompt.labels["noun"]) == (prompt.labels["number"] == "singular")
        right = tokenizer.text(prompt.correct).strip()
        assert (right == prompt.meta["verb"]) == (prompt.labels["number"] == "singular")


def test_pronouns_follow_the_name(tokenizer):
    task = load_task("gendered_pronoun", tokenizer)
    prompt = task.sample(1, "train", 0)[0]
    draw = random.Random(0)
    same = task.counterfactual(prompt, {"name": None}, draw)
    other = task.counterfactual(prompt, {"gender": None}, draw)
    assert same is not None
    assert other is not None
    assert same.correct == prompt.correct
    assert other.correct == prompt.incorrect
    with pytest.raises(ConfigError, match="give one or the other"):
        task.counterfactual(
            prompt, {"gender": other.labels["gender"], "name": same.labels["name"]}, draw
        )


def test_splits_are_of_combinations_whatever_their_order():
    for a, b in [("x", "y"), ("Mary", "John")]:
        splits = [split for split in SPLIT_BUCKETS if in_split(split, a, b)]
        assert splits == [split for split in SPLIT_BUCKETS if in_split(split, b, a)]
        assert splits in (["train"], ["validation"], ["test", "unseen_frame"])


def test_a_tokenizer_without_whole_names_is_refused():
    few = WordTokenizer(kept=lambda word: word.strip() not in {"Mary"} and len(word) < 5)
    with pytest.raises(ConfigError, match=r"task ioi: only \d+ of its \d+ female names are single"):
        load_task("ioi", few)
    with pytest.raises(ConfigError, match=r"subject_verb_agreement: only \d+ of its \d+ nouns"):
        load_task("subject_verb_agreement", few)
    with pytest.raises(ConfigError, match="neither by digits nor by pairs"):
        load_task("greater_than", WordTokenizer(digits=4))
    with pytest.raises(ConfigError, match="no task 'iio': did you mean 'ioi'"):
        load_task("iio", WordTokenizer())


def test_a_tokenizer_that_joins_words_is_refused():
    class Joining(WordTokenizer):
        def tokenize(self, texts):
            found = super().tokenize(texts)
            return [[*ids[:2], 5] if len(ids) > 2 else ids for ids in found]

    with pytest.raises(ConfigError, match="joins words of 'a b c' across spaces"):
        FrameWriter(Joining()).check("a {slot} c", {"slot": "b"})


def test_bad_requests_are_refused(tokenizer):
    task = load_task("ioi", tokenizer)
    with pytest.raises(ConfigError, match="split 'dev' is unknown"):
        task.sample(1, "dev", 0)
    prompts = task.sample(2, "train", 0)
    with pytest.raises(ConfigError, match="no attribute 'object' to edit"):
        counterfactual_pairs(task, prompts, ("object",), 0)
    with pytest.raises(ConfigError, match="no position 's3'"):
        positions_of(prompts, "s3")


def test_a_task_that_does_not_fit_together_lists_every_problem():
    with pytest.raises(ConfigError) as caught:
        Task(
            name="t",
            title="",
            attributes={"a": ()},
            positions=("end",),
            answer_tokens=(),
            sample=lambda n, split, seed: [],
            counterfactual=lambda prompt, changes, draw: None,
            edits=(("b",),),
            roles=(Role(name="r", edit=("c",), position="x", n_heads=1),),
            cross_sections=(
                CrossSectionTemplate(name="s", roles=("q",), parts=(("z", "y"),), edits=()),
            ),
        )
    text = str(caught.value)
    for part in ("'a' has no values", "'b'", "'c'", "position 'x'", "position 'y'", "role 'q'"):
        assert part in text


def test_metrics_of_answers():
    logits = torch.tensor([[0.0, 1.0, 2.0, 4.0], [3.0, 0.0, 0.0, 0.0]])
    prompts = [
        Prompt(tokens=(1, 2), labels={}, positions={"end": 1}, correct=(3, 2), incorrect=(0,)),
        Prompt(tokens=(1,), labels={}, positions={"end": 0}, correct=(1,), incorrect=(0, 2)),
    ]
    torch.testing.assert_close(logit_difference(logits, prompts), torch.tensor([3.0, -1.5]))
    p = logits.softmax(-1)
    expected = torch.stack([p[0, 2] + p[0, 3] - p[0, 0], p[1, 1] - p[1, 0] - p[1, 2]])
    torch.testing.assert_close(probability_difference(logits, prompts), expected)
    assert most_likely_of(logits, (1, 2)).tolist() == [2, 1]
    assert padded_tokens(prompts).tolist() == [[1, 2], [1, 1]]


@pytest.mark.model
def test_ioi_words_of_the_embedded_model():
    from saelab.model.language_model import load_language_model

    try:
        model = load_language_model("smollm2-135m", device="cpu")
    except ModelError as error:
        pytest.skip(str(error))
    task = load_task("ioi", model)
    assert len(task.attributes["io"]) == 100
    prompts = [p for split in SPLITS for p in task.sample(50, split, 0)]
    for prompt in prompts:
        words = model.token_strings(prompt.tokens)
        assert (prompt.positions["first"], prompt.positions["second"]) == (3, 5)
        assert words[prompt.positions["io"]] == f" {prompt.labels['io']}"
        assert words[prompt.positions["s2"]] == f" {prompt.labels['s']}"
        assert model.token_strings(prompt.correct) == [f" {prompt.labels['io']}"]
        whole = model.tokenize(["".join(words[1:])])[0]
        assert [model.bos_id, *whole] == list(prompt.tokens)
