"""Encode the pieces of a text on all processors, in order and in bounded memory.

A long text is encoded by child processes, because threads share the GIL and malloc's locks (docs/performance.md has the
measurements). For a short text, a child would not make up for its start, which takes a tenth of a second.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptlab.data.encoder_process import EncoderProcess
from gptlab.data.vocabularies import Encoder, Tokenizer
from gptlab.limits import processors

MAX_THREADS = 16
"""The thread that reads and writes cannot keep more of them busy."""
MIN_BYTES_FOR_PROCESSES = 1 << 25
TOKEN_DTYPE = np.dtype("<u2")  # no tokenizer has more tokens than 16 bits can number

EncodedPiece = tuple[str, NDArray[np.uint16]]
"""A piece and its tokens."""


@contextmanager
def parallel_encoder(tokenizer: Tokenizer, size: int) -> Iterator[Callable[[Iterator[str]], Iterator[EncodedPiece]]]:
    """A function that tokenizes the pieces of a text of `size` bytes and yields them in order.

    There is one thread per usable processor, with its own encoder or a child process. At most a few pieces per thread
    are in memory at a time.
    """
    threads, local = min(processors().threads, MAX_THREADS), threading.local()

    def initialize() -> None:
        local.encode = new_encoder()

    def encode(piece: str) -> NDArray[np.uint16]:
        tokens: NDArray[np.integer[Any]] = local.encode(piece)
        return tokens.astype(TOKEN_DTYPE)

    def encode_all(remaining: Iterator[str]) -> Iterator[EncodedPiece]:
        pending: deque[tuple[str, Future[NDArray[np.uint16]]]] = deque()
        for piece in remaining:
            pending.append((piece, pool.submit(encode, piece)))
            if len(pending) > 2 * threads:
                first, future = pending.popleft()
                yield first, future.result()
        for piece, future in pending:
            yield piece, future.result()

    with ThreadPoolExecutor(threads, initializer=initialize) as pool, ExitStack() as stack:
        new_encoder = tokenizer.encoders()  # loaded once, before the threads start
        if size >= MIN_BYTES_FOR_PROCESSES and threads > 1 and (vocabulary := tokenizer.vocabulary()):
            new_encoder = _in_processes(vocabulary, threads, new_encoder, stack)
        yield encode_all


def _in_processes(
    vocabulary: bytes, count: int, new_encoder: Callable[[], Encoder], stack: ExitStack
) -> Callable[[], Encoder]:
    """Start processes, which end with `stack`, and return a function that makes an encoder from each.

    A process that cannot be started or cannot load the vocabulary, as with little memory, is replaced by `new_encoder`.
    """
    started: deque[EncoderProcess] = deque()
    with suppress(OSError):
        for _ in range(count):
            started.append(EncoderProcess())
            stack.callback(started[-1].end)

    def new() -> Encoder:
        with suppress(IndexError):
            process = started.popleft()
            if process.load(vocabulary):
                return process.encode
        return new_encoder()

    return new
