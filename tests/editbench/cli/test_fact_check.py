"""``edit --check`` and ``--side-by-side``: what the model says; facts about one subject."""

import json
import re
from ast import literal_eval

import pytest
import torch

from editbench.edits.weight_edit import WeightEdit
from editbench.testing import tiny_model


@pytest.fixture
def edit(invoke, model_folder, tmp_path):
    def call(facts, *options, editor="unedited"):
        (tmp_path / "facts.jsonl").write_text("\n".join(map(json.dumps, facts)))
        named = ["--model", model_folder, "--facts", "facts.jsonl", "--out", "e.safetensors"]
        return invoke("edit", *named, "--editor", editor, "--quiet", *options)

    return call


def greedy(prompt, n_tokens, model=None):
    model = model or tiny_model()
    ids = torch.tensor([model.tokens.encode(prompt)])
    with torch.no_grad():
        for _ in range(n_tokens):
            ids = torch.cat([ids, model.model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return model.tokens.decode(ids[0].tolist())


FACTS = [
    {"subject": f"Ana {name}", "prompt": "{} works as a", "target": "poet", "case_id": name}
    for name in "ABCDEFGHIJKL"
]


def test_the_first_that_failed_are_listed_with_what_the_model_says(edit):
    result = edit(FACTS, "--check")
    assert result.exit_code == 0, result.output
    assert "is the target for 0 of 12 facts; before the edit, for 0." in result.stdout
    form = r"^  Not (\w): after (.+) it says (.+) instead of 'poet'\.$"
    listed = re.findall(form, result.stdout, re.M)
    assert [case_id for case_id, *_ in listed] == list("ABCDEFGHIJ")
    assert "  Nor 2 more.\n" in result.stdout
    for _, shown_prompt, shown in listed:
        prompt, said = literal_eval(shown_prompt), literal_eval(shown)
        own = " ".join(greedy(prompt, 8)[len(prompt) :].split())
        assert said == (own if len(own) <= 60 else f"{own[:60]}…")


def test_what_the_model_says_is_not_listed(edit):
    said = greedy("Ana A works as a", 1)[len("Ana A works as a") :].strip()
    if not said:
        pytest.skip("the random model says a blank")
    result = edit([{**FACTS[0], "target": said}], "--check")
    assert "is the target for 1 of 1 facts; before the edit, for 1." in result.stdout
    assert "it says" not in result.stdout


def test_several_facts_about_one_subject_get_a_hint(edit, memit_options):
    facts = [{**FACTS[0], "case_id": "1"}, {**FACTS[0], "prompt": "{} lives in", "case_id": "2"}]
    hint = "2 facts are about 'Ana A'. Facts about one subject come out better with --set memit.sha"
    options = [*memit_options, "--no-cache"]
    assert hint in edit(facts, *options, editor="memit").stdout
    shared = edit(facts, *options, "--set", "memit.share_subjects=true", editor="memit")
    assert "share_subjects" not in shared.stdout
    assert "share_subjects" not in edit(facts[:1], *options, editor="memit").stdout


def test_side_by_side_shows_what_a_user_gets_before_and_after(edit, memit_options, tmp_path):
    facts = [
        {
            **FACTS[i],
            "paraphrases": [f"The work of Ana {'AB'[i]} is"],
            "neighbors": [{"prompt": "Ana Z works as a", "target": "cook"}],
        }
        for i in range(2)
    ]
    result = edit(facts, *memit_options, "--no-cache", "--side-by-side", editor="memit")
    assert result.exit_code == 0, result.output
    rows = re.findall(r"^│(.+?)│(.+?)│(.+?)│(.+?)│$", result.stdout, re.M)
    said = {prompt.strip(): (before.strip(), after.strip()) for _, prompt, before, after in rows}
    prompts = {f"Ana {name} works as a" for name in "ABZ"}
    assert set(said) == prompts | {f"The work of Ana {name} is" for name in "AB"}
    kinds = [kind.strip() for kind, *_ in rows]
    assert kinds == 2 * ["fact", "paraphrase", "neighbor"]
    model = tiny_model()
    with WeightEdit.load(tmp_path / "e.safetensors").applied(model):
        for prompt, (_, after) in said.items():
            assert after == first_line(greedy(prompt, 8, model)[len(prompt) :])
    for prompt, (before, _) in said.items():
        assert before == first_line(greedy(prompt, 8)[len(prompt) :])
    n_right = sum(said[prompt][1].startswith("poet") for prompt in prompts - {"Ana Z works as a"})
    assert f"facts with the expected text: 0 of 2 before, {n_right} after\n" in result.stdout
    n_same = 2 * (said["Ana Z works as a"][0] == said["Ana Z works as a"][1])
    assert re.search(
        rf"^neighbors with .* 2 before, \d after; {n_same} unchanged$", result.stdout, re.M
    )


def test_side_by_side_writes_as_much_as_is_expected(edit, memit_options):
    """A neighbor's text is longer than what is written otherwise, and is what the model says."""
    said = greedy("Ana Z works as a", 20)[len("Ana Z works as a") :].partition("\n")[0]
    facts = [{**FACTS[0], "neighbors": [{"prompt": "Ana Z works as a", "target": said.strip()}]}]
    result = edit(facts, *memit_options, "--no-cache", "--side-by-side", editor="memit")
    assert "neighbors with the expected text: 1 of 1 before" in result.stdout


def first_line(text):
    return text.rstrip("\ufffd").strip().partition("\n")[0].strip()


def about_ana(n):
    prompts = ("lives in", "works as a", "likes", "knows", "sees", "hears")
    return [
        {**FACTS[0], "prompt": f"{{}} {prompt}", "case_id": str(i)}
        for i, prompt in enumerate(prompts[:n])
    ]


def test_more_facts_than_one_offset_says_are_named_before_the_work(edit, memit_options):
    options = [*memit_options, "--no-cache", "--set", "memit.share_subjects=true", "--plan"]
    many = "facts about 'Ana A' are many for one subject"
    assert f"5 {many}" in edit(about_ana(5), *options, editor="memit").stdout
    assert many not in edit(about_ana(4), *options, editor="memit").stdout
    assert many not in edit(about_ana(5), "--check").stdout  # 'unedited' has no offsets


def test_long_answers_are_named_before_the_work(edit, memit_options):
    model, options = tiny_model(), [*memit_options, "--no-cache", "--plan"]
    words = ["poet", *5 * ["who", "sings"]]
    lengths = {
        n: len(model.tokens.encode_continuation("Ana A works as a", " ".join(words[:n]))[1])
        for n in range(1, len(words) + 1)
    }
    longest = max(n for n, length in lengths.items() if length <= 8)
    facts = [{**FACTS[0], "target": " ".join(words[:longest])}, FACTS[1]]
    assert "tokens, the longest" not in edit(facts, *options, editor="memit").stdout
    facts[0]["target"] = " ".join(words[: longest + 1])
    said = (
        f"1 of 2 facts have answers of more than 8 tokens, the longest {lengths[longest + 1]} (A)"
    )
    assert said in edit(facts, *options, editor="memit").stdout


def test_a_run_says_it_once_and_only_where_many_share_a_subject(
    invoke, model_folder, memit_options, tmp_path
):
    def run(facts):
        (tmp_path / "facts.jsonl").write_text("\n".join(map(json.dumps, facts)))
        named = ["--model", model_folder, "--dataset", "facts=facts.jsonl", "--plan"]
        seeds = ["--seed", "0", "--seed", "1", "--metrics", "accuracy"]
        result = invoke("run", *named, *seeds, *memit_options, "--no-cache")
        assert result.exit_code == 0, result.output
        return result.stdout.count("memit.share_subjects=true")

    assert run([*about_ana(2), *FACTS[1:4]]) == 1  # 2 of 5
    assert run([*about_ana(2), *FACTS[1:9]]) == 0  # 2 of 10


def test_what_was_measured_stands_in_the_card_of_the_model(
    edit, invoke, model_folder, memit_options, tmp_path
):
    neighbors = [{"prompt": "Ana Z works as a", "target": "cook"}]
    facts = [{**FACTS[0], "neighbors": neighbors}, FACTS[1]]
    options = [*memit_options, "--no-cache"]

    def card(*more):
        said = edit(facts, *options, *more, editor="memit").stdout
        out = f"served{len(more)}"
        applied = invoke("apply", "--model", model_folder, "--edit", "e.safetensors", "--out", out)
        assert applied.exit_code == 0, applied.output
        text = (tmp_path / out / "README.md").read_text()
        return said, text[text.index("## Scores") : text.index("## How it was checked")]

    _, plain = card()
    assert re.search(r"with the target for \d of 2 facts; as written here, for \d\.", plain)
    assert "Nothing else was measured: not what it says to other wordings" in plain
    said, measured = card("--check", "--side-by-side")
    lines = re.findall(r"^- (.+)$", measured, re.M)
    assert lines[1].startswith("The model's own continuation is the target for ")
    assert lines[1] in said
    assert re.fullmatch(r"neighbors with .* \d before, \d after; \d unchanged", lines[3])
    assert lines[-1] == "Nothing else was measured."
