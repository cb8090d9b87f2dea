"""Makes text and vocabularies with the `tokenizers` package, and encodes with it.

    tokenizer_reference.py make DIR BYTES [FILE.jsonl.zst ...]
        writes DIR/docs.bin and DIR/{gpt2,llama3,llama3_ignore,nanochat}.json
    tokenizer_reference.py encode DIR
        writes DIR/NAME.ids for every DIR/NAME.json
    tokenizer_reference.py sentencepiece DIR
        trains a SentencePiece BPE model on the text: writes DIR/spm.meta, a JSON object
        with tokens, scores and types as GGUF has them, and DIR/spm.ids; exit code 3
        where the package sentencepiece is missing

docs.bin holds documents, each a little-endian uint32 length and that many bytes of
UTF-8. NAME.ids holds for each document a uint32 count and that many uint32 ids, with
special tokens parsed and added.

The text is mixed: code, prose in many scripts, emoji, numbers, runs of white space,
contractions, special tokens, and characters drawn from all of Unicode. With files
given (JSON lines with a field "text" or "content", compressed with zstd) half of it
comes from them.
"""

import io
import json
import random
import struct
import sys
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NANOCHAT = (
    r"[\r\n]+[ \t]*|[^\S\r\n]{2,}|(?: |[^\s\p{L}\p{M}\p{N}])?[\p{L}\p{M}][\p{L}\p{M}\p{N}_]*"
    r"| ?\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s"
)
SPECIAL = [
    "<|begin_of_text|>",
    "<|endoftext|>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
]

WORDS = (
    "fn let mut self impl struct enum match return use pub mod crate where for while loop if else "
    "String Vec Option Result Some None Ok Err Box dyn usize u8 u32 i64 f32 bool str as_ref "
    "to_string unwrap_or_else is_empty iter collect map filter HashMap derive Debug x86_64 utf8 "
    "sha256 the quick brown fox jumps over lazy dog don't I'm we've they'll it's you're he'd CAN'T "
    "IT'S WE'LL naïve café Straße résumé привет мир это не так καλημέρα κόσμε שלום עולם مرحبا "
    "بالعالم नमस्ते दुनिया สวัสดีชาวโลก 你好世界 日本語の文章 こんにちは 안녕하세요 세계 xin chào "
    "Việt Nam ქართული հայերեն አማርኛ ᚠᚢᚦ"
).split()
PUNCTUATION = (
    ":: -> => == && || // /// /* */ ..= ; , . ! ? ( ) { } [ ] #[ ' ' ' \" ` &'a <T> … — « » € ™ _"
    " __ 'ſ ʼn <| |> \\ \x00 \x1b[0m \u200b \u200d \ufeff"
).split(" ")
MARKS = [*PUNCTUATION, "]\n", "{}\n\n", ");\n", "&'a ", "\x1c"]
SPACES = (
    " | | | |  |    |        |\n|\n|\n    |\n        |\n\n|\r\n|\r|\t|\t\t|\n\t| \n|  \n  "
    "|\u00a0|\u3000|\u2028|\u0085|\v|\f| \t \n \t "
).split("|")
EMOJI = ["😀", "👩‍👩‍👧‍👦", "🇩🇪", "❤️", "👍🏽", "🧑‍💻", "☕", "♥", "🏴󠁧󠁢󠁥󠁮󠁧󠁿"]


def document(r: random.Random, size: int) -> str:
    """Returns one document of about size characters."""
    parts: list[str] = []
    length = 0
    style = r.random()
    while length < size:
        k = r.random()
        if k < 0.45:
            s = r.choice(WORDS)
        elif k < 0.60:
            s = r.choice(MARKS)
        elif k < 0.85:
            s = r.choice(SPACES)
        elif k < 0.90:
            s = str(r.randrange(10 ** r.randrange(1, 12)))
        elif k < 0.92:
            s = r.choice(EMOJI)
        elif k < 0.94:
            s = "".join(r.choice("abcdefghijklmnopqrstuvwxyz_0123456789") for _ in range(r.randrange(1, 40)))
        elif k < 0.95:
            s = r.choice([" ", "=", "-", "a", "\n", "ab", "é", "1", "\u0301"]) * r.randrange(1, 300)
        elif k < 0.953:
            s = r.choice(SPECIAL)
        elif style < 0.5 and k < 0.97:
            s = "".join(character(r) for _ in range(r.randrange(1, 6)))
        else:
            s = " " + r.choice(WORDS)
        parts.append(s)
        length += len(s)
    return "".join(parts)


def character(r: random.Random) -> str:
    """Returns any scalar value, those of the lower planes more often."""
    while True:
        c = r.randrange(r.choice([0x500, 0x3000, 0x10000, 0x20000, 0x110000]))
        if not 0xD800 <= c < 0xE000:
            return chr(c)


def from_files(paths: list[str], size: int):
    """Yields documents from compressed JSON lines until size bytes are reached."""
    import zstandard

    got = 0
    for path in paths:
        with open(path, "rb") as f:
            for line in io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(f), encoding="utf-8"):
                row = json.loads(line)
                text = row.get("text") or row.get("content") or ""
                yield text
                got += len(text.encode())
                if got >= size:
                    return


def make(folder: Path, size: int, files: list[str]) -> None:
    r = random.Random(20240607)
    docs = list(from_files(files, size // 2)) if files else []
    total = sum(len(d.encode()) for d in docs)
    while total < size:
        docs.append(document(r, r.randrange(1, 6000)))
        total += len(docs[-1].encode())
    r.shuffle(docs)
    with open(folder / "docs.bin", "wb") as out:
        for d in docs:
            b = d.encode()
            out.write(struct.pack("<I", len(b)) + b)

    sample = docs[: max(1, len(docs) // 4)]
    for name, pattern in [("gpt2", None), ("llama3", LLAMA3), ("nanochat", NANOCHAT)]:
        t = Tokenizer(BPE())
        if pattern is None:
            t.pre_tokenizer = ByteLevel(add_prefix_space=False)
        else:
            t.pre_tokenizer = Sequence(
                [
                    Split(Regex(pattern), "isolated"),
                    ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            )
        t.decoder = ByteLevelDecoder()
        t.train_from_iterator(
            sample,
            BpeTrainer(
                vocab_size=6000,
                show_progress=False,
                initial_alphabet=ByteLevel.alphabet(),
                special_tokens=[] if pattern else SPECIAL,
            ),
        )
        if pattern:  # ids after the merges, as in Llama-3
            t.add_special_tokens([AddedToken(s, normalized=False) for s in SPECIAL])
            bos = SPECIAL[0]
            t.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, t.token_to_id(bos))])
        t.save(str(folder / f"{name}.json"))

    # Without the last merges of each kind some tokens can be made by ignore_merges only.
    doc = json.loads((folder / "llama3.json").read_text(encoding="utf-8"))
    doc["model"]["merges"] = [m for i, m in enumerate(doc["model"]["merges"]) if i < 1000 or i % 5]
    doc["model"]["ignore_merges"] = True
    (folder / "llama3_ignore.json").write_text(json.dumps(doc), encoding="utf-8")


def read_docs(folder: Path) -> list[str]:
    data = (folder / "docs.bin").read_bytes()
    docs = []
    at = 0
    while at < len(data):
        (n,) = struct.unpack_from("<I", data, at)
        docs.append(data[at + 4 : at + 4 + n].decode())
        at += 4 + n
    return docs


def encode(folder: Path) -> None:
    docs = read_docs(folder)
    for path in sorted(folder.glob("*.json")):
        t = Tokenizer.from_file(str(path))
        with open(path.with_suffix(".ids"), "wb") as out:
            for i in range(0, len(docs), 256):
                for e in t.encode_batch(docs[i : i + 256]):
                    write_ids(out, e.ids)


def write_ids(out, ids: list[int]) -> None:
    out.write(struct.pack(f"<I{len(ids)}I", len(ids), *ids))


def sentence_piece(folder: Path) -> None:
    try:
        import sentencepiece
    except ImportError:
        sys.exit(3)
    docs = read_docs(folder)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(docs[: max(1, len(docs) // 4)]),
        model_writer=model,
        model_type="bpe",
        vocab_size=3000,
        byte_fallback=True,
        normalization_rule_name="identity",
        character_coverage=0.995,
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        max_sentence_length=100_000,
        num_threads=1,
        minloglevel=2,
    )
    p = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    kinds = {"unknown": 2, "control": 3, "unused": 5, "byte": 6}
    ids = range(p.get_piece_size())
    types = [next((v for k, v in kinds.items() if getattr(p, f"is_{k}")(i)), 1) for i in ids]
    meta = {
        "tokens": [p.id_to_piece(i) for i in ids],
        "scores": [p.get_score(i) for i in ids],
        "types": types,
    }
    (folder / "spm.meta").write_text(json.dumps(meta), encoding="utf-8")
    with open(folder / "spm.ids", "wb") as out:
        for d in docs:
            write_ids(out, p.encode(d))


def main() -> None:
    command, folder = sys.argv[1], Path(sys.argv[2])
    if command == "make":
        make(folder, int(sys.argv[3]), sys.argv[4:])
    elif command == "encode":
        encode(folder)
    elif command == "sentencepiece":
        sentence_piece(folder)
    else:
        sys.exit(f"unknown command {command}")


if __name__ == "__main__":
    main()
