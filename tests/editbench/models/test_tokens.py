import json
import unicodedata
from pathlib import Path

import pytest
import torch
import transformers as hf
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from editbench.errors import ModelError, RequestError
from editbench.models.editable import EditableModel
from editbench.models.tokens import Tokens

KINDS = [
    "byte_level", "byte_level_trimmed", "bos", "bos_eos", "eos", "unigram_always", "unigram_first",
    "metaspace_bpe",
]  # fmt: skip
NAMES = [
    "Zoë Brandt",
    "北京",
    "👩‍🚀 Valentina",
    "Ame\u0301lie",
    "Danielle Darrieux",
    "O'Neill",
    "Q",
]
TEMPLATES = [
    "{} is", "The mother tongue of {} is", "We all know {}", "{}'s tongue is", '("{}", 1)', "{}"
]  # fmt: skip


@pytest.fixture(scope="module")
def kinds(tokenizers: dict[str, hf.PreTrainedTokenizerFast]) -> dict[str, Tokens]:
    return {kind: Tokens(tokenizers[kind]) for kind in KINDS}


@pytest.fixture(scope="module")
def gpt2(gpt2_tokenizer: hf.PreTrainedTokenizerBase) -> Tokens:
    return Tokens(gpt2_tokenizer)


@pytest.fixture(scope="module", params=[*KINDS, "stories", "gpt2"])
def tokens(request: pytest.FixtureRequest) -> Tokens:
    if request.param == "stories":
        stories: EditableModel = request.getfixturevalue("stories")
        return stories.tokens
    if request.param == "gpt2":
        return request.getfixturevalue("gpt2")
    return request.getfixturevalue("kinds")[request.param]


def plain(text: str) -> str:
    """What survives tokenization by NFKC and by stripping the first space."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def can_spell(tokens: Tokens, text: str) -> bool:
    """Whether the vocabulary has every character of a text."""
    return plain(tokens.decode(tokens.encode(text))) == plain(text)


def decode_all(tokens: Tokens, ids: list[int]) -> str:
    """The text, unknown characters included; an accent may have been a token of its own."""
    return unicodedata.normalize("NFC", tokens._backend.decode(ids, skip_special_tokens=False))


class TestEncode:
    @pytest.mark.parametrize(
        ("kind", "first"), [("byte_level", None), ("bos", 1), ("bos_eos", 1), ("eos", None)]
    )
    def test_begins_as_the_tokenizer_does_and_never_ends_a_sequence(
        self, tokenizers, kind, first
    ) -> None:
        ids = Tokens(tokenizers[kind]).encode("The mother tongue")
        assert (ids[0] == 1) == (first == 1)
        assert 2 not in ids
        assert ids == [
            token for token in tokenizers[kind]("The mother tongue").input_ids if token != 2
        ]

    def test_of_no_text_is_the_opening_alone(self, tokenizers) -> None:
        assert Tokens(tokenizers["bos"]).encode("") == [1]
        assert Tokens(tokenizers["byte_level"]).encode("") == []

    def test_finds_the_opening_of_a_vocabulary_without_latin_letters(self) -> None:
        chinese = Tokenizer(models.BPE(vocab={"<s>": 0, "北": 1, "京": 2}, merges=[]))
        chinese.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
        tokens = Tokens(hf.PreTrainedTokenizerFast(tokenizer_object=chinese))
        assert tokens.encode("北京") == [0, 1, 2]
        nothing = Tokenizer(models.BPE(vocab={}, merges=[]))
        with pytest.raises(ModelError, match="got an empty vocabulary"):
            Tokens(hf.PreTrainedTokenizerFast(tokenizer_object=nothing))

    def test_hears_no_truncation_and_no_padding_setting(self, tokenizers) -> None:
        tokenizer = hf.PreTrainedTokenizerFast(
            tokenizer_object=tokenizers["bos"].backend_tokenizer, model_max_length=4
        )
        tokenizer.backend_tokenizer.enable_truncation(4)
        tokenizer.backend_tokenizer.enable_padding(length=50)
        try:
            assert len(Tokens(tokenizer).encode("The mother tongue of Danielle")) not in (4, 50)
            assert tokenizer.backend_tokenizer.truncation is not None
        finally:
            tokenizers["bos"].backend_tokenizer.no_truncation()
            tokenizers["bos"].backend_tokenizer.no_padding()

    def test_hears_a_gpt2_tokenizer_that_was_asked_for_bos(self, gpt2_tokenizer, shared) -> None:
        folder = shared / "data" / "gpt2-tokenizer"
        asked = hf.GPT2TokenizerFast(
            vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), add_bos_token=True
        )
        assert Tokens(asked).encode("Paris") == asked("Paris").input_ids
        assert Tokens(gpt2_tokenizer).encode("Paris") == gpt2_tokenizer("Paris").input_ids


class TestLocate:
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("template", TEMPLATES)
    def test_token_completes_the_subject_and_not_before(
        self, tokens: Tokens, template: str, name: str
    ) -> None:
        text = template.format(name)
        assert can_spell(tokens, text)
        start = template.index("{}")
        ids = tokens.encode(text)
        index = tokens.locate(text, start, start + len(name))
        through = plain(tokens.decode(ids[: index + 1]))
        assert through.startswith(plain(text[:start] + name))
        assert not plain(tokens.decode(ids[:index])).startswith(plain(text[:start] + name))

    def test_is_the_last_of_the_tokens_that_share_a_character(self, stories, tokenizers) -> None:
        for tokens in (stories.tokens, Tokens(tokenizers["byte_level"])):
            ids = tokens.encode("Yo 🜚 is")
            index = tokens.locate("Yo 🜚 is", 3, 4)
            assert tokens.decode(ids[: index + 1]) == "Yo 🜚"
            assert "\ufffd" in tokens.decode(ids[:index])

    def test_equals_the_reference_index_on_the_golden_models(self, shared) -> None:
        for golden in ("gpt2", "gptj"):
            folder = shared / "reference" / "golden" / golden
            tokens = Tokens(hf.AutoTokenizer.from_pretrained(folder / "model"))
            requests = {
                record["case_id"]: record["requested_rewrite"]
                for record in json.loads((folder / "requests.json").read_text())
            }
            for record in json.loads((folder / "tokens.json").read_text()):
                request = requests[record["case_id"]]
                start = request["prompt"].index("{}")
                text = request["prompt"].format(request["subject"])
                found = tokens.locate(text, start, start + len(request["subject"]))
                assert found == record["lookup_idx"][0]

    def test_white_space_around_the_subject_does_not_count(self, tokens: Tokens) -> None:
        text = "The town of Danielle is"
        assert tokens.locate(text, 11, 21) == tokens.locate(text, 12, 20)

    def test_refuses_a_span_without_characters(self, tokens: Tokens) -> None:
        for start, end in ((3, 4), (2, 2), (0, 99), (-1, 2)):
            with pytest.raises(RequestError, match="no visible character"):
                tokens.locate("The town", start, end)

    def test_refuses_a_subject_that_has_no_token(self, tokenizers) -> None:
        bare = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
        bare.pre_tokenizer = pre_tokenizers.Whitespace()
        tokens = Tokens(hf.PreTrainedTokenizerFast(tokenizer_object=bare))
        assert tokens.locate("a bb a", 2, 4) == 2
        with pytest.raises(RequestError, match="no token for 'xx'"):
            tokens.locate("a xx a", 2, 4)

    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        before=st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8),
        subject=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8),
        after=st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8),
    )
    @example(before="", subject="\u0301", after="")
    def test_bytes_through_the_token_hold_the_subject(
        self, kinds, before: str, subject: str, after: str
    ) -> None:
        if not subject.strip():
            return
        text = f"{before}{subject}{after}"
        visible = f"{before}{subject.rstrip()}"
        for kind in ("byte_level", "byte_level_trimmed", "bos"):
            tokens = kinds[kind]
            ids = tokens.encode(text)
            index = tokens.locate(text, len(before), len(before) + len(subject))
            assert tokens.decode(ids[: index + 1]).startswith(visible)
            assert not tokens.decode(ids[:index]).startswith(visible)


class TestEncodeContinuation:
    @pytest.mark.parametrize(
        "prompt", ["The mother tongue of Zoë is", "北京 is in", "Is it (or not):"]
    )
    @pytest.mark.parametrize("target", ["French", "São Paulo", "北京", "the old mill."])
    def test_for_byte_level_bpe_equals_the_parts_apart(
        self, tokenizers, kinds, gpt2_tokenizer, gpt2, prompt: str, target: str
    ) -> None:
        for tokenizer, tokens in (
            (tokenizers["byte_level"], kinds["byte_level"]),
            (tokenizers["bos"], kinds["bos"]),
            (gpt2_tokenizer, gpt2),
        ):
            alone = tokenizer(f" {target}", add_special_tokens=False).input_ids
            assert tokens.encode_continuation(prompt, target) == (tokens.encode(prompt), alone)
            assert tokens.encode_continuation(prompt, f" {target}") == (
                tokens.encode(prompt),
                alone,
            )

    @pytest.mark.parametrize(
        "prompt", ["The town of", "The town of ", "The town:\n", 'Say "', "北京"]
    )
    @pytest.mark.parametrize("target", ["French", " French", ".", "'s", "北京", "\nZoë", "🜚"])
    def test_parts_make_up_the_whole(self, tokens: Tokens, prompt: str, target: str) -> None:
        whole = tokens.encode(tokens.join(prompt, target))
        ids, continuation = tokens.encode_continuation(prompt, target)
        assert ids == tokens.encode(prompt)
        assert tokens.decode(ids + continuation) == tokens.decode(whole)
        if whole[: len(ids)] == ids:
            assert ids + continuation == whole
        assert continuation
        assert 1 not in continuation
        assert 2 not in continuation

    def test_space_at_the_end_of_a_prompt_stays_there(self, tokens: Tokens) -> None:
        ids, continuation = tokens.encode_continuation("The town of ", "Danielle")
        assert ids == tokens.encode("The town of ")
        assert tokens.decode(ids + continuation) == "The town of Danielle"

    def test_spaces_at_the_end_of_a_prompt_stay_there(self, gpt2: Tokens) -> None:
        ids, continuation = gpt2.encode_continuation("A town  ", "Paris")
        assert gpt2.decode(ids) == "A town  "
        assert gpt2.decode(continuation) == "Paris"

    def test_newline_stays_with_the_prompt(self, gpt2: Tokens) -> None:
        ids, continuation = gpt2.encode_continuation("Q: where?\nA:\n", "Paris")
        assert gpt2.decode(ids).endswith("A:\n")
        assert gpt2.decode(continuation) == "Paris"

    def test_prompt_keeps_its_tokens_where_its_end_grows_together(self, gpt2: Tokens) -> None:
        whole = gpt2.encode("He likes the unbelievable")
        prompt = gpt2.encode("He likes the unbel")
        assert whole[: len(prompt)] != prompt
        ids, continuation = gpt2.encode_continuation("He likes the unbel", "ievable", joiner="")
        assert ids == prompt
        assert gpt2.decode(ids + continuation) == "He likes the unbelievable"

    def test_refuses_what_has_no_token(self, tokenizers) -> None:
        tokens = Tokens(tokenizers["byte_level"])
        for continuation in ("", "  "):
            with pytest.raises(RequestError, match=r"no token is left .* got ' *'"):
                tokens.encode_continuation("The town", continuation)
        with pytest.raises(RequestError, match="no token precedes it"):
            tokens.encode_continuation("", "Paris")
        assert Tokens(tokenizers["bos"]).encode_continuation("", "Paris")[0] == [1]

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        prompt=st.text(st.sampled_from("aZë北🜚 .(\"'\ń"), min_size=1, max_size=8),
        target=st.text(st.sampled_from("aZë北🜚 .(\"'\ń"), min_size=1, max_size=8),
    )
    def test_parts_make_up_the_whole_whatever_they_are(
        self, kinds, prompt: str, target: str
    ) -> None:
        if not target.strip() or not prompt.strip():
            return
        for kind, tokens in kinds.items():
            try:
                ids, continuation = tokens.encode_continuation(prompt, target)
            except RequestError:
                assert kind != "bos"
                continue
            whole = tokens.encode(tokens.join(prompt, target))
            assert ids == tokens.encode(prompt)
            assert decode_all(tokens, ids + continuation) == decode_all(tokens, whole)
            if kind == "bos":
                assert tokens.decode(continuation).endswith(target[-1])


class TestJoin:
    @pytest.mark.parametrize(
        ("prompt", "continuation", "joined"),
        [
            ("He is", "French", "He is French"),
            ("He is", " French", "He is French"),
            ("He is ", "French", "He is French"),
            ("He is ", " French", "He is French"),
            ("He is:\n", "French", "He is:\nFrench"),
            ("He is", "\nFrench", "He is\nFrench"),
            ("He is (", "French", "He is (French"),
            ("He said “", "French", "He said “French"),
            ('He said "', "French", 'He said "French'),
            ('"', "French", '"French'),
            ('("', "French", '("French'),
            ('He said "no"', "twice", 'He said "no" twice'),
            ("the boys'", "school", "the boys' school"),
            ("He runs", ".NET", "He runs .NET"),
            ("He is", ".", "He is."),
            ("He is", ", then", "He is, then"),
            ("(He is", ")", "(He is)"),
            ("He likes", "...Baby", "He likes ...Baby"),
            ("中国的首都是", "北京", "中国的首都是北京"),
            ("首都：", "北京", "首都：北京"),
            ("ประเทศ", "ไทย", "ประเทศไทย"),
            ("The capital of China is", "北京", "The capital of China is 北京"),
            (
                "The language of 北京 is spoken in 北京",
                "by",
                "The language of 北京 is spoken in 北京 by",
            ),
            ("대한민국의 수도는", "서울", "대한민국의 수도는 서울"),
            ("", "French", "French"),
            ("¿", "Dónde", "¿Dónde"),
        ],
    )
    def test_adds_the_space_that_belongs(
        self, kinds, prompt: str, continuation: str, joined: str
    ) -> None:
        assert kinds["byte_level"].join(prompt, continuation) == joined


def of_pieces(kind: str) -> Tokens:
    """A tokenizer of a kind that has 在中国 as one token, and foobar, beside their parts."""
    whole = [
        "<unk>",
        "出生",
        "在",
        "中国",
        "在中国",
        "foo",
        "foobar",
        "▁",
        "Ġ",
        "中",
        "国",
        "b",
        "a",
        "r",
        "f",
        "o",
    ]
    parts = [
        *whole,
        "出",
        "生",
        "▁出生",
        "▁foo",
        "▁foobar",
        "bar",
        "▁中国",
        "▁bar",
        "fo",
        "ba",
        "▁fo",
        "▁f",
    ]
    if kind == "wordpiece":
        pieces = [*parts, "##中国", "##在", "##bar", "出生在", "出生在中国"]
        made = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="<unk>"))
        made.decoder = decoders.WordPiece(cleanup=False)
    elif kind == "unigram":
        scores = [(piece, -1.0 if len(piece) > 2 else -2.0) for piece in parts]
        made = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=False))
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        made.decoder = decoders.Metaspace(prepend_scheme="always")
    else:
        merges = [
            ("出", "生"),
            ("中", "国"),
            ("在", "中国"),
            ("b", "a"),
            ("ba", "r"),
            ("f", "o"),
            ("fo", "o"),
        ]
        merges += [("foo", "bar"), ("▁", "f"), ("▁f", "o"), ("▁fo", "o"), ("▁foo", "bar")]
        made = Tokenizer(models.BPE({p: i for i, p in enumerate(parts)}, merges, unk_token="<unk>"))
        if kind == "metaspace":
            made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
            made.decoder = decoders.Metaspace(prepend_scheme="always")
        elif kind == "prepended":  # as in Llama 2: the mark is put there by a normalizer
            made.normalizer = normalizers.Sequence(
                [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
            )
            made.decoder = decoders.Sequence(
                [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
            )
    return Tokens(hf.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>"))


class TestGrowingTogether:
    @pytest.mark.parametrize(
        "kind", ["wordpiece", "unigram", "metaspace", "prepended", "without a decoder"]
    )
    @pytest.mark.parametrize(("prompt", "target"), [("出生在", "中国"), ("foo", "bar")])
    def test_target_follows_the_prompts_own_tokens(self, kind, prompt, target) -> None:
        tokens = of_pieces(kind)
        whole = tokens.encode(prompt + target)
        prompt_ids = tokens.encode(prompt)
        assert whole[: len(prompt_ids)] != prompt_ids
        ids, following = tokens.encode_continuation(prompt, target, joiner="")
        assert ids == prompt_ids
        spelled = decode_all(tokens, ids + following)
        assert spelled.replace(" ", "") == prompt + target
        if kind != "without a decoder":
            assert spelled == prompt + target

    def test_what_cannot_follow_is_said(self) -> None:
        tokens = of_pieces("wordpiece")
        with pytest.raises(RequestError, match=r"no tokens that can follow .* 'foo', got '☃'"):
            tokens.encode_continuation("foo", "☃", joiner="")

    def test_joiner_is_put_between_as_it_is(self, gpt2: Tokens) -> None:
        for joiner in ("", " ", "\n\n", " → "):
            ids, following = gpt2.encode_continuation("He is", "French", joiner=joiner)
            assert ids == gpt2.encode("He is")
            assert gpt2.decode(following) == f"{joiner}French"


class TestPad:
    def test_lays_out_both_sides(self, tokenizers) -> None:
        tokens = Tokens(tokenizers["byte_level"])
        ids, mask, positions = tokens.pad([[5, 6, 7], [8]], "right")
        assert ids.tolist() == [[5, 6, 7], [8, tokens.pad_id, tokens.pad_id]]
        assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
        assert positions[0].tolist() == [0, 1, 2]
        ids, mask, positions = tokens.pad([[5, 6, 7], [8]], "left")
        assert ids.tolist() == [[5, 6, 7], [tokens.pad_id, tokens.pad_id, 8]]
        assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
        assert positions.tolist() == [[0, 1, 2], [0, 0, 0]]
        assert {part.dtype for part in (ids, mask, positions)} == {torch.int64}

    def test_padding_side_of_the_tokenizer_is_not_heard(self, tokenizers) -> None:
        tokenizer = hf.PreTrainedTokenizerFast(
            tokenizer_object=tokenizers["bos"].backend_tokenizer, padding_side="left"
        )
        assert Tokens(tokenizer).pad([[5, 6], [7]], "right")[0].tolist()[1][0] == 7
        assert Tokens(tokenizer).fingerprint == Tokens(tokenizers["bos"]).fingerprint


class TestIdentity:
    def test_fingerprint_survives_saving_and_tells_tokenizers_apart(
        self, tokenizers, tmp_path
    ) -> None:
        tokenizers["bos"].save_pretrained(tmp_path)
        again = hf.AutoTokenizer.from_pretrained(tmp_path)
        assert Tokens(again).fingerprint == Tokens(tokenizers["bos"]).fingerprint
        assert len({Tokens(tokenizers[kind]).fingerprint for kind in KINDS}) == len(KINDS)

    def test_copies_the_tokenizer(self, tokenizers) -> None:
        tokens = Tokens(tokenizers["bos"])
        before = tokens.vocab_size, tokens.encode("new word")
        tokenizer = hf.PreTrainedTokenizerFast(
            tokenizer_object=tokenizers["byte_level_trimmed"].backend_tokenizer
        )
        copied = Tokens(tokenizer)
        size = copied.vocab_size
        tokenizer.add_tokens(["new word"])
        assert copied.vocab_size == size
        assert (tokens.vocab_size, tokens.encode("new word")) == before

    def test_refuses_a_slow_tokenizer(self, tmp_path) -> None:
        (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\n[PAD]\n[MASK]\na\n")
        slow = hf.CTRLTokenizer if hasattr(hf, "CTRLTokenizer") else None
        assert slow is not None
        (tmp_path / "vocab.json").write_text('{"a": 0, "<unk>": 1}')
        (tmp_path / "merges.txt").write_text("#version\n")
        tokenizer = slow(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
        with pytest.raises(ModelError, match="need a fast tokenizer, got CTRLTokenizer"):
            Tokens(tokenizer)


def test_real_prompts_have_the_tokens_that_the_reference_gives_them(
    gpt2: Tokens, gpt2_tokenizer: hf.PreTrainedTokenizerBase, shared: Path
) -> None:
    """CounterFact with GPT-2's vocabulary, prefix and subject tokenized apart as it does."""

    def count(text: str) -> int:
        return len(gpt2_tokenizer(text, add_special_tokens=False).input_ids)

    records = json.loads((shared / "data" / "counterfact" / "requests-21919.json").read_text())
    for record in records[::40]:
        subject, target = record["subject"], record["target_new"]
        before = record["prompt"].partition("{}")[0]
        text = record["prompt"].format(subject)
        of_reference = count(before[:-1]) + count(f" {subject}") if before else count(subject)
        assert gpt2.locate(text, len(before), len(before) + len(subject)) == of_reference - 1
        assert gpt2.encode_continuation(text, target) == (
            gpt2_tokenizer(text).input_ids,
            gpt2_tokenizer(f" {target}").input_ids,
        )
