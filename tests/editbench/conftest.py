"""Tiny random models of every family, and tiny tokenizers of every kind."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer, UnigramTrainer

from editbench.models.continuing import find_continuing
from editbench.models.editable import EditableModel
from editbench.models.loading import load_model

SENTENCES = [
    "The mother tongue of Danielle Darrieux is French.",
    "Zoë Brandt plays the sport of tennis, and Zoë Brandt's brother lives in São Paulo.",
    "北京 is the capital of China. 中国的首都是北京。東京は日本の首都です。",
    "Corwin Ellery (the town's mayor) was hired by Northwind in 1990: a long story!",
    "In that year the council agreed to meet again in the old mill, because of the winter.",
    "We all know 👩‍🚀 Valentina, Ame\u0301lie, O'Neill and Q; Danielle Darrieux's tongue is one.",
    '("Zoë", 1) and ("北京", 1), 🜚 and “French”.',
]
SPECIAL = ["<unk>", "<s>", "</s>"]

_GROUPED = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
}
_PLAIN = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64}
_TOKENS = {"vocab_size": 320, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

# family: configuration; path of the blocks; what follows it up to the MLP's and attention's output
# projections; the final norm; whether the weight of the MLP's projection is stored transposed.
FAMILIES: dict[str, tuple[hf.PreTrainedConfig, str, str, str, str | None, bool]] = {
    "gpt2": (
        hf.GPT2Config(**_PLAIN, **_TOKENS),
        "transformer.h", "mlp.c_proj", "attn.c_proj", "transformer.ln_f", True,
    ),
    "gptj": (
        hf.GPTJConfig(**_PLAIN, rotary_dim=4, **_TOKENS, tie_word_embeddings=False),
        "transformer.h", "mlp.fc_out", "attn.out_proj", "transformer.ln_f", False,
    ),
    "gpt_neox": (
        hf.GPTNeoXConfig(
            hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=48,
            max_position_embeddings=64, **_TOKENS,
        ),
        "gpt_neox.layers", "mlp.dense_4h_to_h", "attention.dense", "gpt_neox.final_layer_norm",
        False,
    ),
    "llama": (
        hf.LlamaConfig(**_GROUPED, **_TOKENS),
        "model.layers", "mlp.down_proj", "self_attn.o_proj", "model.norm", False,
    ),
    "mistral": (
        hf.MistralConfig(**_GROUPED, **_TOKENS, sliding_window=None),
        "model.layers", "mlp.down_proj", "self_attn.o_proj", "model.norm", False,
    ),
    "mistral_sliding": (
        hf.MistralConfig(**_GROUPED, **_TOKENS, sliding_window=6),
        "model.layers", "mlp.down_proj", "self_attn.o_proj", "model.norm", False,
    ),
    "qwen2": (
        hf.Qwen2Config(**_GROUPED, **_TOKENS),
        "model.layers", "mlp.down_proj", "self_attn.o_proj", "model.norm", False,
    ),
    "qwen3": (
        hf.Qwen3Config(**_GROUPED, **_TOKENS, head_dim=8),
        "model.layers", "mlp.down_proj", "self_attn.o_proj", "model.norm", False,
    ),
    "gemma2": (
        hf.Gemma2Config(**_GROUPED, **_TOKENS, head_dim=8, sliding_window=6),
        "model.layers", "mlp.down_proj", "self_attn.o_proj", "model.norm", False,
    ),
    "gemma3": (
        hf.Gemma3TextConfig(**_GROUPED, **_TOKENS, head_dim=8, sliding_window=6),
        "model.layers", "mlp.down_proj", "self_attn.o_proj", "model.norm", False,
    ),
    "opt": (
        hf.OPTConfig(
            hidden_size=32, num_hidden_layers=4, num_attention_heads=4, ffn_dim=48,
            max_position_embeddings=64, word_embed_proj_dim=32, **_TOKENS,
        ),
        "model.decoder.layers", "fc2", "self_attn.out_proj", "model.decoder.final_layer_norm",
        False,
    ),
    "opt_post_norm": (
        hf.OPTConfig(
            hidden_size=32, num_hidden_layers=4, num_attention_heads=4, ffn_dim=48,
            max_position_embeddings=64, word_embed_proj_dim=16, do_layer_norm_before=False,
            **_TOKENS,
        ),
        "model.decoder.layers", "fc2", "self_attn.out_proj", None, False,
    ),
    "phi3": (
        hf.Phi3Config(**_GROUPED, **_TOKENS),
        "model.layers", "mlp.down_proj", "self_attn.o_proj", "model.norm", False,
    ),
    "olmo": (
        hf.OlmoConfig(**_GROUPED, **_TOKENS),
        "model.layers", "mlp.down_proj", "self_attn.o_proj", "model.norm", False,
    ),
    "olmo2": (
        hf.Olmo2Config(**_GROUPED, **_TOKENS),
        "model.layers", "mlp.down_proj", "self_attn.o_proj", "model.norm", False,
    ),
    "falcon": (
        hf.FalconConfig(hidden_size=32, num_hidden_layers=4, num_attention_heads=4, **_TOKENS),
        "transformer.h", "mlp.dense_4h_to_h", "self_attention.dense", "transformer.ln_f", False,
    ),
    "bloom": (
        hf.BloomConfig(hidden_size=32, n_layer=4, n_head=4, **_TOKENS),
        "transformer.h", "mlp.dense_4h_to_h", "self_attention.dense", "transformer.ln_f", False,
    ),
    "mpt": (  # ALiBi that counts places, padding included
        hf.MptConfig(
            d_model=32, n_heads=4, n_layers=4, max_seq_len=128, expansion_ratio=2, **_TOKENS
        ),
        "transformer.blocks", "ffn.down_proj", "attn.out_proj", "transformer.norm_f", False,
    ),
    "gpt_neo": (  # every other block looks at six places
        hf.GPTNeoConfig(
            hidden_size=32, num_layers=4, num_heads=4, max_position_embeddings=64, window_size=6,
            attention_types=[[["global", "local"], 2]], **_TOKENS,
        ),
        "transformer.h", "mlp.c_proj", "attn.attention.out_proj", "transformer.ln_f", False,
    ),
}  # fmt: skip


def build_network(config: hf.PreTrainedConfig, seed: int = 0) -> hf.PreTrainedModel:
    """A model of random weights that are large enough for its predictions to differ."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(std=0.3)
    return network


@pytest.fixture(scope="session")
def make_network() -> Callable[..., hf.PreTrainedModel]:
    return build_network


@pytest.fixture(scope="session", params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def families() -> dict[str, tuple[hf.PreTrainedConfig, str, str, str, str | None, bool]]:
    return FAMILIES


@pytest.fixture(scope="session")
def family_model(
    family: str, tokenizers: dict[str, hf.PreTrainedTokenizerFast]
) -> Iterator[EditableModel]:
    """A model that all tests share; whoever leaves it changed makes others fail, so it is told."""
    model = EditableModel(build_network(FAMILIES[family][0]), tokenizers["bos"], name=family)
    before = model.fingerprint
    yield model
    assert model.compute_fingerprint() == before, f"a test left the weights of {family} changed"


def _train_byte_level(*, trim_offsets: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        SENTENCES * 4,
        BpeTrainer(
            vocab_size=320,
            special_tokens=SPECIAL,
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    return tokenizer


def _train_metaspace(trainer: str, prepend_scheme: str) -> Tokenizer:
    model = models.BPE(unk_token="<unk>") if trainer == "bpe" else models.Unigram()
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prepend_scheme)
    options = {"vocab_size": 240, "special_tokens": SPECIAL, "show_progress": False}
    tokenizer.train_from_iterator(
        SENTENCES * 4,
        BpeTrainer(**options) if trainer == "bpe" else UnigramTrainer(**options, unk_token="<unk>"),
    )
    return tokenizer


def _add_specials(tokenizer: Tokenizer, template: str) -> Tokenizer:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, hf.PreTrainedTokenizerFast]:
    """One tokenizer of each kind; what they have in common is a vocabulary below 320."""
    kinds = {
        "byte_level": _train_byte_level(),
        "byte_level_trimmed": _train_byte_level(trim_offsets=True),
        "bos": _add_specials(_train_byte_level(), "<s> $A"),
        "bos_eos": _add_specials(_train_byte_level(), "<s> $A </s>"),
        "eos": _add_specials(_train_byte_level(), "$A </s>"),
        "unigram_always": _train_metaspace("unigram", "always"),
        "unigram_first": _add_specials(_train_metaspace("unigram", "first"), "<s> $A"),
        "metaspace_bpe": _add_specials(_train_metaspace("bpe", "always"), "<s> $A"),
    }
    return {
        kind: hf.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
        )
        for kind, tokenizer in kinds.items()
    }


@pytest.fixture(scope="session")
def gpt2_tokenizer(shared: Path) -> hf.PreTrainedTokenizerBase:
    """GPT-2's real vocabulary."""
    folder = shared / "data" / "gpt2-tokenizer"
    return hf.GPT2TokenizerFast(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))


@pytest.fixture(scope="session")
def stories(shared: Path) -> EditableModel:
    """A small really trained Llama: tied head, grouped queries, BOS, byte fallback."""
    return load_model(str(shared / "data" / "stories260k"), specs={}, device="cpu")


@pytest.fixture
def model_folder(
    tmp_path: Path, tokenizers: dict[str, hf.PreTrainedTokenizerFast]
) -> Callable[..., Path]:
    """Saves a tiny GPT-2 in a new folder, and leaves out the files that are named."""

    def save(name: str = "model", without: Iterable[str] = (), **config: object) -> Path:
        folder = tmp_path / name
        build_network(FAMILIES["gpt2"][0]).save_pretrained(folder)
        tokenizers["byte_level"].save_pretrained(folder)
        for file in without:
            (folder / file).unlink()
        if config:
            path = folder / "config.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
        return folder

    return save


@pytest.fixture
def room_for() -> Callable[..., AbstractContextManager[list[int]]]:
    """A device whose memory runs out in a block where more rows than so many run together.

    ``with room_for(model, n_rows, layer=-1) as sizes``: `sizes` are those of all calls.
    """

    @contextmanager
    def give_room(model: EditableModel, n_rows: int, layer: int = -1) -> Iterator[list[int]]:
        find_continuing(model)  # it takes two rows, once
        sizes: list[int] = []

        def refuse(
            module: torch.nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, Any]
        ) -> None:
            sizes.append(len(args[0] if args else kwargs["hidden_states"]))
            if sizes[-1] > n_rows:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        block = model.architecture.block(range(model.architecture.n_layers)[layer])
        module = model.model.get_submodule(block)
        handle = module.register_forward_pre_hook(refuse, with_kwargs=True)
        try:
            yield sizes
        finally:
            handle.remove()

    return give_room
