"""Rows of tokens: a subject lies in its prompt, and a header comes before everything."""

from dataclasses import replace

import pytest
import transformers as hf
from tokenizers import AddedToken, Tokenizer

from editbench.editors.subject_tokens import check_requests, key_row, target_row
from editbench.editors.targets.tasks import make_tasks
from editbench.errors import RequestError
from editbench.models.editable import EditableModel
from editbench.models.tokens import Tokens
from editbench.requests import EditRequest

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>\n"
    "{{ message.content | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
ROLES = ("<|user|>", "<|assistant|>", "<|end|>")
PREFIX = "In that year the council met. "


def make_chat(tokenizer: hf.PreTrainedTokenizerBase, *, special: bool = True) -> Tokens:
    """A tokenizer that puts ``<s>`` before texts, with a chat template that does so, too."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.add_tokens([AddedToken(role, special=special, normalized=False) for role in ROLES])
    return Tokens(
        hf.PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE
        )
    )


def with_template(tokenizers: dict[str, hf.PreTrainedTokenizerFast], template: str) -> Tokens:
    backend = tokenizers["bos"].backend_tokenizer
    return Tokens(hf.PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template))


@pytest.fixture(scope="module", params=[True, False], ids=["special", "added"])
def chat(request, tokenizers) -> Tokens:
    return make_chat(tokenizers["bos"], special=request.param)


@pytest.fixture(scope="module", params=["bos", "unigram_always", "metaspace_bpe"])
def kind(request, tokenizers) -> Tokens:
    return Tokens(tokenizers[request.param])


def test_subject_lies_among_the_prompts_tokens_where_it_grows_together_with_the_target(
    gpt2_tokenizer: hf.PreTrainedTokenizerBase,
) -> None:
    tokens = Tokens(gpt2_tokenizer)
    request = EditRequest("1", "unbel", "He likes the {}", "ievable", joiner="")
    assert tokens.encode("He likes the unbelievable") != [
        *tokens.encode(request.text),
        *tokens.encode("ievable"),
    ]
    row = target_row(tokens, request, "")
    assert row.subject_last == row.target_start == len(tokens.encode(request.text)) - 1
    assert row.token_ids[: row.target_start + 1] == tuple(tokens.encode(request.text))
    assert row.subject_last == key_row(tokens, request, "").subject_last
    assert tokens.decode(row.target_ids) == "ievable"


@pytest.mark.parametrize("target", ["大学", "is", "\u0301", "。", "-x", "1998年"])
@pytest.mark.parametrize("prompt", ["我爱{}", "{}", "The town of {}", "({}", "{} "])
def test_subject_never_lies_behind_its_prompt(kind: Tokens, prompt: str, target: str) -> None:
    request = EditRequest("1", "北京", prompt, target)
    for prefix in ("", PREFIX):
        row = target_row(kind, request, prefix)
        assert row.subject_last <= row.target_start
        assert row.token_ids[: row.target_start + 1] == tuple(kind.encode(prefix + request.text))


class TestChat:
    def test_message_is_what_the_template_puts_around_it_with_one_beginning(self, chat) -> None:
        request = EditRequest("7", "Zoë", "Who is {}?", "French", chat=True)
        row = target_row(chat, request, "")
        assert row.token_ids[0] == 1
        assert 1 not in row.token_ids[1:]
        text = chat._backend.decode(list(row.token_ids), skip_special_tokens=False)
        assert text.startswith("<s><|user|>\nWho is Zoë?<|end|>\n<|assistant|>\n")
        assert chat.decode([*row.token_ids, row.target_ids[-1]]).endswith("\nFrench")
        through = chat.decode(row.token_ids[: row.subject_last + 1])
        assert through.endswith("Who is Zoë")

    @pytest.mark.parametrize("prompt", ["{} ", " {}", "Where, {}?\n"])
    def test_subject_is_found_where_the_template_takes_away_space(self, chat, prompt) -> None:
        request = EditRequest("7", "Zoë", prompt, "French", chat=True)
        row = key_row(chat, request, "")
        assert chat.decode(row.token_ids).endswith("Zoë")

    def test_prefix_goes_into_the_users_turn(self, chat) -> None:
        request = EditRequest("7", "Zoë", "Who is {}?", "French", chat=True)
        text = chat._backend.decode(
            list(target_row(chat, request, PREFIX).token_ids), skip_special_tokens=False
        )
        assert text.startswith(f"<s><|user|>\n{PREFIX}Who is Zoë?<|end|>")

    def test_template_that_is_written_out_in_the_prompt_is_the_same_text(self, chat) -> None:
        asked = EditRequest("7", "Zoë", "Who is {}?", "French", chat=True)
        written = EditRequest(
            "7", "Zoë", "<s><|user|>\nWho is {}?<|end|>\n<|assistant|>\n", "French"
        )
        assert target_row(chat, written, "") == target_row(chat, asked, "")
        assert target_row(chat, written, PREFIX) == target_row(chat, written, "")
        assert key_row(chat, written, PREFIX) == key_row(chat, written, "")
        (task,) = make_tasks(chat, [written], ["", PREFIX])
        assert task.bare_prompt == 0

    def test_prompt_before_which_nothing_special_stands_takes_prefixes(self, chat) -> None:
        request = EditRequest("7", "Zoë", "{}<|end|>", "French")
        assert len(key_row(chat, request, PREFIX).token_ids) > len(
            key_row(chat, request, "").token_ids
        )

    def test_no_space_follows_a_role_mark(self, chat) -> None:
        assert chat.join("<|user|>Who?<|assistant|>", "French").endswith("<|assistant|>French")

    def test_joiner_goes_behind_the_template(self, chat) -> None:
        plain, apart = (
            EditRequest("7", "Zoë", "Who is {}?", "French", joiner=joiner, chat=True)
            for joiner in (None, " ")
        )
        assert chat.decode(target_row(chat, plain, "").target_ids) == "French"
        assert chat.decode(target_row(chat, apart, "").target_ids) == " French"

    @pytest.mark.parametrize("space", [" ", ""])
    def test_space_that_the_template_puts_before_answers_is_there(self, tokenizers, space) -> None:
        tokens = with_template(
            tokenizers,
            "{% for m in messages %}{% if m.role == 'user' %}<s>[INST] {{ m.content }} [/INST]"
            "{% else %}{{ '" + space + "' + m.content }}</s>{% endif %}{% endfor %}",
        )
        request = EditRequest("7", "Zoë", "Who is {}?", "French", chat=True)
        row = target_row(tokens, request, "")
        assert tokens.decode(row.target_ids) == f"{space}French"
        unspaced = replace(request, joiner="")
        assert tokens.decode(target_row(tokens, unspaced, "").target_ids) == "French"

    def test_no_prefix_comes_before_a_header_without_special_tokens(self, tokenizers) -> None:
        tokens = with_template(tokenizers, "<s>[INST] {{ messages[0].content }} [/INST]")
        written = EditRequest("7", "Zoë", "[INST] Who is {}? [/INST]", "French")
        assert target_row(tokens, written, PREFIX) == target_row(tokens, written, "")

    def test_model_without_a_template_is_said_by_the_fact(self, tokenizers, make_network) -> None:
        network = make_network(
            hf.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, vocab_size=320)
        )
        model = EditableModel(network, tokenizers["byte_level"], name="plain")
        request = EditRequest("7", "Zoë", "Who is {}?", "French", chat=True)
        with pytest.raises(
            RequestError, match=r"request '7': chat: .* no chat template, got .*Who is Zoë"
        ):
            check_requests(model, [request])

    @pytest.mark.parametrize(
        ("template", "says"),
        [
            ("{{ raise_exception('no users') }}", "template fails, got no users"),
            ("<|user|>{{ messages[0].content | upper }}", "does not keep the message"),
        ],
    )
    def test_template_that_cannot_be_used_is_said(self, tokenizers, template, says) -> None:
        with pytest.raises(RequestError, match=says):
            with_template(tokenizers, template).encode("Who is Zoë?", chat=True)

    def test_fingerprint_of_messages_is_the_templates_too(self, chat, tokenizers) -> None:
        assert chat.fingerprint_of(chat=False) == chat.fingerprint
        assert chat.fingerprint_of(chat=True) != chat.fingerprint
        plain = Tokens(tokenizers["bos"])
        assert plain.fingerprint_of(chat=True) == plain.fingerprint


def test_text_that_begins_with_the_beginning_gets_no_second_one(tokenizers) -> None:
    tokens = Tokens(tokenizers["bos"])
    assert tokens.encode("<s>The town") == tokens.encode("The town")
    request = EditRequest("1", "Zoë", "<s>{} is", "French")
    assert target_row(tokens, request, "").token_ids.count(1) == 1
    assert tokens.locate("<s>Zoë is", 3, 6) == tokens.locate("Zoë is", 0, 3)
