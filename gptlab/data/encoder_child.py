"""The child process of `gptlab.data.encoder_process`: it reads texts and writes their tokens.

    python gptlab/data/encoder_child.py

A message is its number of bytes in 4 bytes, then these bytes. The first message on standard input is the vocabulary:
the pattern and the tokens in hexadecimal, one per line. The answer is an empty message. Each further message is a text
in UTF-8; the answer is its tokens, 32 bits each. The end of standard input ends the process.

It imports little, so it starts in a tenth of a second and takes 30 MiB.
"""

import sys
from contextlib import suppress

HEADER_BYTES = 4
UNUSED_SPECIAL_TOKEN = "<|unused|>"  # noqa: S105 - it is no password
"""tiktoken searches each text for special tokens. Without any, its pattern is empty and matches at each character."""


def main() -> None:
    """Encode texts until standard input ends."""
    import tiktoken

    source, sink = sys.stdin.buffer, sys.stdout.buffer

    def receive() -> bytes | None:
        header = source.read(HEADER_BYTES)
        return source.read(int.from_bytes(header, "little")) if header else None

    def send(content: bytes | memoryview) -> None:
        sink.write(len(content).to_bytes(HEADER_BYTES, "little"))
        sink.write(content)
        sink.flush()

    pattern, *tokens = (receive() or b"").decode().split("\n")
    ranks = {bytes.fromhex(token): rank for rank, token in enumerate(tokens)}
    special = {UNUSED_SPECIAL_TOKEN: len(ranks)}
    # `Encoding.encode_to_numpy` would import numpy, which takes longer than everything else here.
    encoding = tiktoken.Encoding("", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)._core_bpe
    del ranks, tokens  # 16 MB
    send(b"")
    while (text := receive()) is not None:
        send(memoryview(encoding.encode_to_tiktoken_buffer(text.decode(), set())).cast("B"))


if __name__ == "__main__":
    with suppress(BrokenPipeError):  # the parent process was killed
        main()
