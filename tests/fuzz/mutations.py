"""Ways to damage a checkpoint folder, each drawn from a seed.

`mutate(folder, seed)` changes one thing and says what. Files are replaced, never written into: they may be hard links.
"""

import json
import os
import random
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path

from cosmos3_lab.weights import INDEX


@dataclass(frozen=True)
class Mutation:
    """What was done.

    Attributes:
        kind: name of the way.
        files: that were touched, relative to the folder; an error must name one of them, or the component that it is in.
        detail: for a person.
        key: of a JSON value that was changed, "" for none.
    """

    kind: str
    files: tuple[str, ...]
    detail: str
    key: str = ""


COMPONENTS = ("transformer", "vae", "sound_tokenizer")
TEXTS = (
    "transformer/config.json",
    "vae/config.json",
    "sound_tokenizer/config.json",
    "scheduler/scheduler_config.json",
    "cosmos3_lab.json",
    f"transformer/{INDEX}",
    "text_tokenizer/tokenizer.json",
    "text_tokenizer/tokenizer_config.json",
    "text_tokenizer/chat_template.jinja",
    "assets/negative_prompt.json",
    "assets/latent_preview.json",
    "model_index.json",
)
JSONS = tuple(name for name in TEXTS if name.endswith(".json"))
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%064d\nsize 1409400600\n" % 0
PAGE = b"<!DOCTYPE html><html><title>401 Unauthorized</title></html>\n"
PICKLE = b"\x80\x04cposix\nsystem\n\x8c\x0btouch ranned\x85R."
ODD = (
    *(None, True, False, 0, 1, -1, 2, 3, 0.5, -0.0, 1e308, -1e308, 5e-324, 10**30, -(10**30), 2**31, 2**63, 2**64),
    *(
        float("nan"),
        float("inf"),
        float("-inf"),
        "",
        " ",
        "text",
        "1",
        "nan",
        "\x00",
        "\x1b[31mred\n\r\x07",
        "\u202egnp",
        "\ud800",
    ),
    *("a" * 100_000, "é" * 70, "日本語", "../../outside", "/etc/hostname", "~", "{{ 7*7 }}", "<script>alert(1)</script>", "%s%n"),
    *([], {}, [[]], [None], [1] * 5000, [0], ["a", 1], {"a": 1}, {"": None}, [1, [2, [3, [4]]]], {"a": {"a": {"a": {}}}}),
)


def mutate(folder: Path, seed: int) -> Mutation:
    """Damage the folder in the way that the seed draws."""
    rng = random.Random(seed)
    ways, weights = zip(*WAYS.items(), strict=True)
    way = rng.choices(ways, weights)[0]
    return way(folder, rng)


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def weight_files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for c in COMPONENTS for p in (folder / c).glob("*.safetensors"))


# ------------------------------------------------------------------------------------------------------------ weights


def split_file(content: bytes) -> tuple[bytes, bytes]:
    """Header and data."""
    (length,) = struct.unpack("<Q", content[:8])
    return content[8 : 8 + length], content[8 + length :]


def join_file(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def header_bytes(folder: Path, rng: random.Random) -> Mutation:
    """Flip, drop or repeat a few bytes of a header; the length is made to fit, or not."""
    name = rng.choice(weight_files(folder))
    header, data = split_file((folder / name).read_bytes())
    broken, detail = bent(header, rng)
    length = struct.pack("<Q", len(header)) if rng.random() < 0.3 else struct.pack("<Q", len(broken))
    replace(folder / name, length + broken + data)
    return Mutation("header bytes", (name,), detail)


def header_length(folder: Path, rng: random.Random) -> Mutation:
    name = rng.choice(weight_files(folder))
    content = (folder / name).read_bytes()
    (right,) = struct.unpack("<Q", content[:8])
    some = (0, 1, 2, right - 1, right + 1, right - 8, right * 2, len(content) - 8, len(content), 2**31, 2**63, 2**64 - 1)
    length = rng.choice([*some, rng.getrandbits(64), rng.randrange(len(content))])
    replace(folder / name, struct.pack("<Q", length) + content[8:])
    return Mutation("header length", (name,), f"{right} -> {length}")


def header_json(folder: Path, rng: random.Random) -> Mutation:
    """Change what a header says, with everything else in order."""
    name = rng.choice(weight_files(folder))
    header, data = split_file((folder / name).read_bytes())
    text, detail, key = bent_json(json.loads(header), rng)
    replace(folder / name, join_file(text, data))
    return Mutation("header JSON", (name,), detail, key)


def header_entry(folder: Path, rng: random.Random) -> Mutation:
    """One entry: other dtype, shape, place or name; twice the same; two in the same place."""
    name = rng.choice(weight_files(folder))
    header, data = split_file((folder / name).read_bytes())
    entries = json.loads(header)
    metadata = entries.pop("__metadata__", None)
    one, two = rng.choice(list(entries)), rng.choice(list(entries))
    entry, before = entries[one], json.dumps(entries)
    way = rng.choice(["dtype", "dims", "dim", "place", "rename", "swap", "drop", "repeat", "metadata", "same place"])
    if way == "dtype":
        entry["dtype"] = rng.choice(["F32", "F16", "BF16", "F64", "I8", "U8", "BOOL", "F8_E4M3", "I64", "f32", "", "F32 "])
    elif way == "dims":
        entry["shape"] = entry["shape"][::-1] if rng.random() < 0.5 else [*entry["shape"], 1]
    elif way == "dim":
        entry["shape"] = [rng.choice([0, 1, 2**62, n + 1, n * 2]) for n in entry["shape"]] or [1]
    elif way == "place":
        entry["data_offsets"] = [n + rng.choice([0, 1, 4, -4, 2**40, 2**63]) for n in entry["data_offsets"]]
    elif way == "same place":
        entries[two]["data_offsets"] = entry["data_offsets"]
    elif way == "rename":
        entries[rng.choice([one.upper(), one + " ", "", "a" * 70_000, one[:-1], "\x1b[2J\n" + one, "../" + one])] = entries.pop(
            one
        )
    elif way == "swap":
        entries[one], entries[two] = entries[two], entries[one]
    elif way == "drop":
        del entries[one]
    elif way == "metadata":
        metadata = rng.choice([None, 5, [], {"format": 5}, {"format": "tf"}, {"x": "y" * 100_000}])
    text = json.dumps(entries)
    if way == "repeat":
        text = text[:-1] + f", {json.dumps(one)}: {json.dumps(rng.choice([entry, entries[two], None]))}}}"
    elif way == "metadata":
        text = json.dumps({"__metadata__": metadata} | entries)
    replace(folder / name, join_file(text.encode(), data))
    return Mutation(f"header {way}", (name,), f"{one} in {len(before)} characters", one)


def data_bytes(folder: Path, rng: random.Random) -> Mutation:
    """Flip bits of the weights: another network, or numbers that are none."""
    name = rng.choice(weight_files(folder))
    header, data = split_file((folder / name).read_bytes())
    data = bytearray(data)
    for _ in range(rng.choice([1, 2, 50])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    replace(folder / name, join_file(header, bytes(data)))
    return Mutation("data bits", (name,), "flipped")


def not_finite(folder: Path, rng: random.Random) -> Mutation:
    """One weight is NaN or infinite."""
    name = rng.choice(weight_files(folder))
    header, data = split_file((folder / name).read_bytes())
    entries = json.loads(header)
    entries.pop("__metadata__", None)
    one = rng.choice(list(entries))
    kind, (begin, stop) = entries[one]["dtype"], entries[one]["data_offsets"]
    patterns = {
        "F32": (0x7FC00000, 0x7F800000, 0xFF800000, 0x7F800001),
        "F16": (0x7E00, 0x7C00, 0xFC00),
        "BF16": (0x7FC0, 0x7F80),
    }
    width = 4 if kind == "F32" else 2
    at = begin + rng.randrange((stop - begin) // width) * width
    value = struct.pack("<I" if width == 4 else "<H", rng.choice(patterns[kind]))
    replace(folder / name, join_file(header, data[:at] + value + data[at + width :]))
    return Mutation("not finite", (name,), one, one)


# --------------------------------------------------------------------------------------------------------------- text


def text_bytes(folder: Path, rng: random.Random) -> Mutation:
    name = rng.choice(TEXTS)
    content, detail = bent((folder / name).read_bytes(), rng)
    replace(folder / name, content)
    return Mutation("text bytes", (name,), detail)


def text_coding(folder: Path, rng: random.Random) -> Mutation:
    """Other encodings, marks and JSON dialects."""
    name = rng.choice(TEXTS)
    text = (folder / name).read_text(encoding="utf-8")
    made = {
        "BOM": b"\xef\xbb\xbf" + text.encode(),
        "UTF-16": text.encode("utf-16"),
        "UTF-32": text.encode("utf-32"),
        "NUL": text.encode() + b"\0",
        "comma": text.strip()[:-1].encode() + b",}",
        "comment": b"// from the model hub\n" + text.encode(),
        "twice": text.encode() * 2,
        "quotes": text.replace('"', "'").encode(),
        "CRLF": text.replace("\n", "\r\n").encode(),
        "deep": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        "deep list": b"[" * 200_000,
        "digits": b'{"a": ' + b"9" * 100_000 + b"}",
        "padded": text.encode() + b" " * 1_000_000,
    }
    way = rng.choice(list(made))
    replace(folder / name, made[way])
    return Mutation("coding", (name,), way)


def json_value(folder: Path, rng: random.Random) -> Mutation:
    name = rng.choice(JSONS)
    text, detail, key = bent_json(json.loads((folder / name).read_text(encoding="utf-8")), rng)
    replace(folder / name, text)
    return Mutation("JSON value", (name,), detail, key)


def index_entry(folder: Path, rng: random.Random) -> Mutation:
    """The index sends a tensor somewhere else."""
    name = f"transformer/{INDEX}"
    content = json.loads((folder / name).read_text())
    tensor = rng.choice(list(content["weight_map"]))
    shard = content["weight_map"][tensor]
    places = (
        "../outside.safetensors",
        str(folder.parent / "outside.safetensors"),
        "",
        ".",
        "..",
        "config.json",
        INDEX,
        shard + "\0",
    )
    more = (
        f"./{shard}",
        f"../transformer/{shard}",
        "a" * 5000,
        "x/y.safetensors",
        f"..\\{shard}",
        "con",
        "~/x",
        "\ud800",
        "é.safetensors",
    )
    other = rng.choice([*places, *more, *set(content["weight_map"].values())])
    content["weight_map"][tensor] = other
    replace(folder / name, json.dumps(content).encode())
    return Mutation("index entry", (name, f"transformer/{shard}"), f"{tensor}: {other[:60]!r}", tensor)


def chat_template(folder: Path, rng: random.Random) -> Mutation:
    """Templates that are wrong, that reach for Python, or that are made to take for ever."""
    name = "text_tokenizer/chat_template.jinja"
    good = (folder / name).read_text()
    bad = (
        "",
        "{% broken",
        "no message here",
        "{{ 1 / 0 }}" + good,
        "{{ ''.__class__.__mro__[1].__subclasses__() }}" + good,
        "{{ cycler.__init__.__globals__.os.system('touch ran') }}" + good,
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}" + good,
        "{{ 'a' * 10000000000 }}" + good,
        "{{ 10 ** 10000000 }}" + good,
        "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}" + good,
        "{{ raise_exception('\\x1b[31mno') }}" + good,
        "{{ lipsum(n=100000) }}" + good,
        "{% include '/etc/hostname' %}" + good,
        good.replace("m['content']", "m['content'] | upper"),
        good + good,
        "{#" + "a" * 200_000 + "#}" + good,
        "{{ '%999999999s' | format('a') }}" + good,
        "{{ 'a'.ljust(9999999999) }}" + good,
        "{{ 'a' | center(9999999999) }}" + good,
    )
    text = rng.choice(bad)
    replace(folder / name, text.encode())
    return Mutation("chat template", (name,), text[:90])


# -------------------------------------------------------------------------------------------------------------- files


def any_file(folder: Path, rng: random.Random) -> str:
    return rng.choice([*TEXTS, *weight_files(folder)])


def whole_file(folder: Path, rng: random.Random) -> Mutation:
    """Cut, lengthened, or something else altogether."""
    name = any_file(folder, rng)
    content = (folder / name).read_bytes()
    made = {
        "cut": content[: rng.randrange(len(content))],
        "cut a little": content[:-1],
        "longer": content + bytes(rng.randrange(1, 9)),
        "empty": b"",
        "LFS pointer": POINTER,
        "web page": PAGE,
        "pickle": PICKLE,
        "zip": b"PK\x03\x04" + content,
        "gzip": b"\x1f\x8b\x08" + content,
        "zeros": bytes(len(content)),
        "noise": rng.randbytes(min(len(content), 4096)),
        "reversed": content[::-1],
    }
    way = rng.choice(list(made))
    replace(folder / name, made[way])
    return Mutation("file", (name,), way)


def place(folder: Path, rng: random.Random) -> Mutation:
    """A file is gone, renamed, a folder, a pipe, a link to something."""
    name = any_file(folder, rng)
    path = folder / name
    kept = path.with_name("kept" + path.suffix)
    way = rng.choice(["gone", "renamed", "folder", "pipe", "endless", "dangling", "loop", "outside", "device", "other case"])
    path.rename(kept)
    if way == "gone":
        kept.unlink()
    elif way == "renamed":
        kept.rename(path.with_name(path.name + rng.choice([".bak", ".incomplete", ".part", " "])))
    elif way == "folder":
        path.mkdir()
    elif way == "pipe":
        os.mkfifo(path)
    elif way == "endless":
        path.symlink_to("/dev/zero")
    elif way == "device":
        path.symlink_to("/dev/null")
    elif way == "dangling":
        path.symlink_to("nowhere")
    elif way == "loop":
        path.symlink_to(path.name)
    elif way == "outside":  # how the cache of the Hugging Face hub looks
        blob = folder.parent / f"blob-{path.name}"
        shutil.move(kept, blob)
        path.symlink_to(blob)
    elif way == "other case":
        kept.rename(path.with_name(path.name.upper()))
    kept.unlink(missing_ok=True)
    return Mutation(f"place: {way}", (name,), way)


def swap(folder: Path, rng: random.Random) -> Mutation:
    """Two files, or two components, in each other's place."""
    whole = rng.random() < 0.3
    pairs = [[*COMPONENTS, "text_tokenizer"]] if whole else [weight_files(folder), list(JSONS)]
    one, two = rng.sample(rng.choice(pairs), 2)
    aside = folder / "aside"
    (folder / one).rename(aside)
    (folder / two).rename(folder / one)
    aside.rename(folder / two)
    return Mutation("swap", (one, two), f"{one} <-> {two}")


def extra(folder: Path, rng: random.Random) -> Mutation:
    """Files beside the right ones, which must stay unread."""
    names = (
        "pytorch_model.bin",
        "model.pt",
        "modeling.py",
        "sitecustomize.py",
        "x.safetensors",
        "tokenizer.py",
        "config.json.bak",
        "added_tokens.json",
    )
    where, name = rng.choice(["", *COMPONENTS, "text_tokenizer"]), rng.choice(names)
    (folder / where / name).write_bytes(rng.choice([PICKLE, b"import os; os.abort()", b"", b"{}"]))
    return Mutation("extra", (f"{where}/{name}",), f"{where}/{name}")


WAYS = {
    header_bytes: 16,
    header_length: 4,
    header_json: 10,
    header_entry: 12,
    data_bytes: 3,
    not_finite: 5,
    text_bytes: 12,
    text_coding: 5,
    json_value: 30,
    index_entry: 5,
    chat_template: 3,
    whole_file: 8,
    place: 6,
    swap: 3,
    extra: 2,
}


# ------------------------------------------------------------------------------------------------------------ helpers


def bent(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A few bytes flipped, dropped, repeated or put in."""
    made, done = bytearray(content), []
    for _ in range(rng.choice([1, 1, 2, 5])):
        at, way = rng.randrange(len(made)) if made else 0, rng.choice(["flip", "set", "drop", "repeat", "insert"])
        done.append(f"{way} at {at}")
        if way == "flip" and made:
            made[at] ^= 1 << rng.randrange(8)
        elif way == "set" and made:
            made[at] = rng.choice(b'\0\n"{}[]:,\\0129-eE.\xff\xc3')
        elif way == "drop":
            del made[at : at + rng.choice([1, 1, 4, 40])]
        elif way == "repeat":
            made[at:at] = made[at : at + rng.choice([1, 4, 40])]
        else:
            made[at:at] = rng.choice([b"\0", b'"', b"{", b"9" * 30, b"\\u0000", b"\xf0\x9f\x8e\x88", b"NaN", b"1e999"])
    return bytes(made), ", ".join(done)


def bent_json(value: object, rng: random.Random) -> tuple[bytes, str, str]:
    """One value of a JSON document changed, as text; also what was done, and the nearest key above it."""
    holder, step, key = {"": value}, "", ""
    while isinstance(holder[step], dict | list) and holder[step] and (step == "" or rng.random() < 0.7):
        holder = holder[step]
        step = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        key = step if isinstance(step, str) else key
    old, way = holder[step], rng.choice(["odd", "odd", "odd", "near", "drop", "rename", "repeat", "unknown", "wrap"])
    said = f"{way} {key!r}: {str(old)[:40]}"
    if way == "near" and isinstance(old, int | float) and not isinstance(old, bool):
        holder[step] = rng.choice([old + 1, old - 1, old * 2, -old, float(old), str(old), bool(old), old / 2])
    elif way == "drop":
        del holder[step]
    elif way == "rename" and isinstance(holder, dict):
        holder[rng.choice([str(step).upper(), f"{step} ", f"{step}_", "", str(step)[1:], "\u0430" + str(step)[1:]])] = holder.pop(
            step
        )
    elif way == "unknown" and isinstance(holder, dict):
        holder[
            rng.choice(["auto_map", "trust_remote_code", "_class_name", "__class__", "x", "tokenizer_class", "custom_pipelines"])
        ] = rng.choice(ODD)
    elif way == "wrap":
        holder[step] = [old]
    elif way != "repeat":
        holder[step] = rng.choice(ODD)
    text = json.dumps(holder[""] if step == "" and isinstance(holder, dict) and set(holder) == {""} else value)
    if way == "repeat" and isinstance(value, dict) and value:
        name = rng.choice(list(value))
        key, text = name, text[:-1] + f", {json.dumps(name)}: {json.dumps(rng.choice(ODD))}}}"
    return text.encode("utf-8", "surrogatepass"), said, key
