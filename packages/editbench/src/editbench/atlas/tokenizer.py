"""A byte-level BPE tokenizer, learned from the text of a world."""

import random
from itertools import islice

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from editbench.atlas.world import World

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0

_MAX_DOCUMENTS = 20_000


def train_tokenizer(world: World, *, n_vocabulary: int) -> PreTrainedTokenizerFast:
    """Learn the merges from one epoch of the world's documents, or its first 20,000.

    The vocabulary's size counts the 256 bytes and the one special token.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    documents = world.documents(random.Random(f"atlas/{world.seed}/tokenizer"))
    text = (document.text for document in islice(documents, _MAX_DOCUMENTS))
    tokenizer.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
