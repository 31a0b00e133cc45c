"""Parts of checkpoints with random weights: the real classes at a small size, a few hundred KB, nothing downloaded.

The tokenizers know single bytes or letters, so that any prompt has tokens of its own.
"""

from __future__ import annotations

import string

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

WIDTH = 32

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} "
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{{ message['content'][0]['text'] }}{% endif %}<|im_end|>{% endfor %}"
)
"""A chat template that takes text, plain or as the first item of a list."""

LANGUAGE_MODEL = {
    "vocab_size": 259,
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 256,
    "bos_token_id": 257,
    "eos_token_id": 256,
}
"""Sizes of a decoder over the tokens of `byte_tokenizer`."""


def clip_tokenizer() -> CLIPTokenizer:
    """One token for each byte."""
    marks = ["<|startoftext|>", "<|endoftext|>"]
    letters = sorted(ByteLevel.alphabet())
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), *marks]
    return CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=77)


def t5_tokenizer() -> T5Tokenizer:
    """One token for each printable ASCII character."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *string.ascii_letters, *string.digits, *string.punctuation]
    return T5Tokenizer(vocab=[(piece, 0.0) for piece in pieces], extra_ids=0, model_max_length=512)


def clip_encoder(tokenizer: CLIPTokenizer, projection: bool = False) -> CLIPTextModel | CLIPTextModelWithProjection:
    """CLIP's text encoder, `WIDTH` wide; with or without the projection of the pooled embedding."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def t5_encoder(tokenizer: T5Tokenizer, width: int = WIDTH) -> T5EncoderModel:
    """T5's encoder, `width` wide."""
    config = T5Config(vocab_size=len(tokenizer), d_model=width, d_kv=16, d_ff=WIDTH, num_layers=2, num_heads=2)
    return T5EncoderModel(config)


def byte_vocabulary() -> dict[str, int]:
    """A token for each byte and the three marks that end a text, begin and end a message."""
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return {piece: i for i, piece in enumerate([*sorted(ByteLevel.alphabet()), *marks])}


def byte_tokenizer(side: str = "right") -> PreTrainedTokenizerFast:
    """One token for each byte, after a first one that begins every text; padded at `side`."""
    model = Tokenizer(BPE(vocab=byte_vocabulary(), merges=[]))
    model.pre_tokenizer = ByteLevel(add_prefix_space=False)
    model.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 257)])
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        padding_side=side,
        model_max_length=4096,
        chat_template=CHAT,
    )


def umt5_encoder(vocabulary: int) -> UMT5EncoderModel:
    """UMT5's encoder, `WIDTH` wide."""
    config = UMT5Config(vocab_size=vocabulary, d_model=WIDTH, d_kv=16, d_ff=WIDTH, num_layers=2, num_heads=2)
    return UMT5EncoderModel(config)


def vae(channels: int) -> AutoencoderKL:
    """An image autoencoder: an eighth of the height and width, `channels` latent channels."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8,) * 4,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=64,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.5,
        shift_factor=0.1,
    )


def stable_diffusion_3(seed: int = 0) -> StableDiffusion3Pipeline:
    """Stable Diffusion 3."""
    torch.manual_seed(seed)
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=2 * WIDTH,
            caption_projection_dim=WIDTH,
            pooled_projection_dim=2 * WIDTH,
            out_channels=4,
            pos_embed_max_size=16,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(4),
        text_encoder=clip_encoder(clip, projection=True),
        tokenizer=clip,
        text_encoder_2=clip_encoder(clip, projection=True),
        tokenizer_2=clip,
        text_encoder_3=t5_encoder(t5, 2 * WIDTH),
        tokenizer_3=t5,
    )
