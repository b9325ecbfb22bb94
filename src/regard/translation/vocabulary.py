"""One vocabulary of subwords for both languages (SentencePiece; Kudo and Richardson 2018)."""

import io
import re
from collections.abc import Iterable

import sentencepiece

from regard._errors import FileError, OptionError

PAD, UNKNOWN, BEGIN, END = range(4)
BYTES = 256  # pieces for characters that the training text did not have, so that they pass through
LEAST, MOST = re.compile(r"required_chars\. \d+ vs (\d+)"), re.compile(r"value <= (\d+)")
BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # such a piece


class Vocabulary:
    """Text to numbers and back.

    Args:
        model: a SentencePiece model, as `serialized` gives it.

    Raises:
        FileError: it is none, or its special tokens are others.
    """

    def __init__(self, model: bytes) -> None:
        self.serialized = model
        try:
            # The C++ parser takes any bytes; an empty or broken model raises here or below.
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            p = self._processor
            special = p.pad_id(), p.unk_id(), p.bos_id(), p.eos_id()
        except (RuntimeError, OSError) as error:
            raise FileError("vocabulary: is not a SentencePiece model") from error
        if special != (PAD, UNKNOWN, BEGIN, END):
            raise FileError(f"vocabulary: pad, unknown, begin and end are {special}; needs 0 to 3")

    def __len__(self) -> int:
        return int(self._processor.get_piece_size())

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without begin or end."""
        return list(self._processor.encode(text))

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens. Bytes that are no UTF-8, which a model may write, are left out."""
        return str(self._processor.decode(list(tokens))).replace("\ufffd", "")

    def spells(self, character: str) -> bool:
        """Whether a character can only be written in bytes."""
        return any(map(self._processor.is_byte, self.encode(character)))

    def pieces(self, tokens: Iterable[int]) -> list[str]:
        """Each token as SentencePiece writes it: "▁" begins a word."""
        return [str(self._processor.id_to_piece(token)) for token in tokens]


def learn(sentences: Iterable[str], size: int) -> Vocabulary:
    """A vocabulary from the sentences of both languages; the same sentences give the same one.

    Raises:
        OptionError: the sentences have no room for so many pieces, or more are necessary.
    """
    text = list(sentences)
    try:
        return Vocabulary(_learnt(text, size))
    except (RuntimeError, OSError) as error:
        # SentencePiece tells its limits in words, and only the one that was passed: fewer pieces
        # than bytes are too few, more than characters beside those too many.
        told, characters = str(error), sum(map(len, text))
        least = LEAST.search(told) or LEAST.search(_refused(text, BYTES))
        most = MOST.search(told) or MOST.search(_refused(text, characters + 2 * BYTES))
        if not (least and most):
            raise OptionError(
                f"vocabulary: SentencePiece refused {size} pieces: {error}"
            ) from error
        raise OptionError(
            f"vocabulary: got {size} pieces; this text needs {least[1]} to {most[1]}"
        ) from error


def _learnt(sentences: list[str], size: int) -> bytes:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=written,
        vocab_size=size,
        byte_fallback=True,
        character_coverage=0.9998,
        normalization_rule_name="identity",  # NFKC would turn "m²" into "m2"
        max_sentence_length=1 << 16,
        num_threads=1,  # sums in one order
        pad_id=PAD,
        unk_id=UNKNOWN,
        bos_id=BEGIN,
        eos_id=END,
        minloglevel=2,
    )
    return written.getvalue()


def _refused(sentences: list[str], size: int) -> str:
    """Why SentencePiece cannot learn so many pieces."""
    try:
        _learnt(sentences, size)
    except (RuntimeError, OSError) as error:
        return str(error)
    return ""
