"""The pipeline of coloured shapes, with tokenizers that spell: every letter is a token."""

from diffusers import FluxPipeline
from flowfactory_plugin_shapes.architecture import pipeline
from transformers import CLIPTokenizer, T5Tokenizer

from flowfactory_plugin_glyphs.writing import HEIGHT, LETTERS, WIDTH, prompt

TEXT_TOKENS = 16  # of T5: the longest prompt has eleven; give it to the pipeline as max_sequence_length
CLIP_TOKENS = 24  # CLIP spells the other words, too
GRID = (HEIGHT // 8, WIDTH // 8)  # rows and columns of tokens of an image
SAYING = prompt("").replace('"', "").split()


def build(seed: int = 0) -> FluxPipeline:
    """The pipeline with random weights, float32, on the CPU."""
    return pipeline(clip_tokenizer(), t5_tokenizer(), seed)


def clip_tokenizer() -> CLIPTokenizer:
    """Byte-pair encoding without a single pair."""
    symbols = [*LETTERS.lower(), '"']
    vocab = ["<|startoftext|>", "<|endoftext|>", *symbols, *(f"{symbol}</w>" for symbol in symbols)]
    numbers = {token: number for number, token in enumerate(vocab)}
    return CLIPTokenizer(vocab=numbers, merges=[], model_max_length=CLIP_TOKENS)


def t5_tokenizer() -> T5Tokenizer:
    """A unigram model whose pieces are capital letters, quotation marks, and the words that every prompt has."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *(f"▁{word}" for word in SAYING), '"', '▁"', *LETTERS]
    return T5Tokenizer(vocab=[(piece, 0.0) for piece in pieces], extra_ids=0, model_max_length=TEXT_TOKENS)
