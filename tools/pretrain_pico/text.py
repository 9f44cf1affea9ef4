"""Pico's words: one small tokenizer and two small text encoders with the roles that CLIP-L and T5 have in FLUX.

The tokenizer is a byte pair encoding learnt from the captions. Frequent words are one token, rare ones a few, and a word
never seen (the trigger of a LoRA) falls apart into letters and syllables that are all known, so that it is still told
from every other word. The two encoders read the same token ids: the CLIP-like one gives one vector (its state at <eos>),
the T5-like one a vector for each of the 32 positions, paddings included, as FLUX has it without attention masks.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from .catalogue import Subject
from .scene import BACKGROUNDS, PLACES, PREFIXES, SIZES, Scene, caption

MAX_LENGTH = 32
TOKENIZER_FILE = "tokenizer.json"
VOCABULARY = 2200
PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
ALPHABET = list("abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'\"-_()/&+#")


def train_tokenizer(subjects: list[Subject]) -> Tokenizer:
    """A tokenizer of the captions of these subjects; it appends <eos>, and pads with <pad>, id 0."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    scenes = [Scene(background=colour) for colour in BACKGROUNDS] + [Scene("small", place=place) for place in PLACES]
    scenes += [Scene(size) for size in SIZES]
    words = [caption("", scene, prefix) for scene in scenes for prefix in PREFIXES] * 5
    words += [subject.name for subject in subjects for _ in range(4)]
    # every letter both inside and at the end of a word, so that nothing written in this alphabet is unknown
    words += [f"{character * 2} {character}" for character in ALPHABET]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, EOS, UNKNOWN],
        initial_alphabet=ALPHABET,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(words, trainer)
    eos = tokenizer.token_to_id(EOS)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, eos)])
    return tokenizer


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that the data command wrote, as it was trained: the encoders must meet the very same one ever after.

    Training it twice gives two: equally frequent pairs are merged in an order that differs from call to call.
    """
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def as_transformers(tokenizer_file: str) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers knows it."""
    return PreTrainedTokenizerFast(
        tokenizer_file=tokenizer_file, pad_token=PAD, eos_token=EOS, unk_token=UNKNOWN, model_max_length=MAX_LENGTH
    )


def token_ids(tokenizer: Tokenizer, captions: list[str], length: int = MAX_LENGTH) -> torch.Tensor:
    """int64 [B, length]: ids, <eos>, then padding; too long captions lose their end but keep <eos>."""
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=0, pad_token=PAD)
    return torch.tensor([encoding.ids for encoding in tokenizer.encode_batch(captions)])


def clip_config() -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=MAX_LENGTH,
        hidden_act="quick_gelu",
        projection_dim=64,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )


def t5_config() -> T5Config:
    return T5Config(
        vocab_size=VOCABULARY,
        d_model=128,
        d_kv=32,
        num_heads=4,
        d_ff=256,
        num_layers=2,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        is_encoder_decoder=False,
        use_cache=False,
        tie_word_embeddings=True,
    )


class TextEncoders(torch.nn.Module):
    """Both encoders together: token ids [B, L] -> (sequence [B, L, 128], pooled [B, 64])."""

    def __init__(self) -> None:
        super().__init__()
        self.clip = CLIPTextModel(clip_config())
        self.t5 = T5EncoderModel(t5_config())

    def forward(self, ids_BL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.t5(input_ids=ids_BL).last_hidden_state, self.clip(input_ids=ids_BL).pooler_output


def clip_file_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict with the names that CLIP files have (text_model.*), whatever this transformers calls them."""
    return {
        name if name.startswith("text_model.") else f"text_model.{name}": tensor
        for name, tensor in state.items()
        if not re.search(r"position_ids$", name)
    }
