"""How fast a text is tokenised beside tiktoken on one thread, and how much memory it takes as the text grows."""

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from _pairs import ratios, spread

from gptlab.data import tokens
from gptlab.data.text import locate
from gptlab.data.tokenizer import gpt2

MB = 10**6
SPEED_MB, PAIRS = 32, 5
GROWTH_MB = (16, 128, 1024)


def main() -> None:
    """Print both tables."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GPTLAB_CACHE"] = folder
        _speed(Path(folder))
        _growth(Path(folder))


def _speed(folder: Path) -> None:
    path = _text(folder, SPEED_MB)
    pieces = list(tokens.pieces(locate(str(path)), 0, path.stat().st_size))
    made = 0

    def ours() -> None:
        nonlocal made
        made += 1
        tokens.prepare(locate(str(path)), made / 1000)  # another split, so nothing is in the cache

    def theirs() -> None:
        for piece in pieces:
            gpt2().encode_to_numpy(piece)

    measured = ratios(ours, theirs, PAIRS)
    print(f"tokenising {SPEED_MB} MB, times as fast as tiktoken on one thread, {os.cpu_count()} cores, {PAIRS} pairs")
    print(f"  by the wall clock   {spread(measured['wall'])}")
    print(f"  by CPU seconds      {spread(measured['cpu'])}")


def _growth(folder: Path) -> None:
    print("the whole process, its peak memory beside what it holds before the text")
    for size in GROWTH_MB:
        path = _text(folder, size)
        command = [sys.executable, __file__, str(path)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        print(f"  {size:>5} MB  {done.stdout.strip()}")
        path.unlink()


def _text(folder: Path, size_mb: int) -> Path:
    """pandas' docstrings, again and again."""
    docs, path = locate("pandas-docs").path.read_bytes(), folder / f"{size_mb}.txt"
    with path.open("wb") as file:
        for _ in range(round(size_mb * MB / len(docs))):
            file.write(docs)
    return path


def _tokenise(path: str) -> None:
    gpt2()
    idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    made = tokens.prepare(locate(path), 0.1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = len(made.train.tokens) + len(made.val.tokens)
    print(f"{count:>11,} tokens  {peak / 1024:.0f} MiB, of which {idle / 1024:.0f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _tokenise(sys.argv[1])
    else:
        main()
