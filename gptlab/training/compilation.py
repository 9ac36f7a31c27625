"""Compile the model's blocks with `torch.compile`.

Each block is compiled by itself. All blocks have the same code and shapes, so one compilation serves all of them, and
it takes a fifth of the time that compiling the whole model takes.
"""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from gptlab.errors import GptlabError
from gptlab.experiment_files import reason
from gptlab.model.gpt import GPT
from gptlab.training.settings import Settings


def compile_blocks(model: GPT) -> None:
    """Compile each block when it is first called. Names and values of its parameters stay as they are."""
    for block in model.blocks:
        block.compile()


def uncompiled(settings: Settings) -> AbstractContextManager[None]:
    """A context manager in which compiled blocks run uncompiled.

    Evaluation and sampling have other shapes and no gradient. Each would compile the blocks again, which takes longer
    than it saves. Uncompiled, they compute the same bits in training as in `gptlab eval`.
    """
    # The stance is a context manager; its class is private.
    return torch.compiler.set_stance("force_eager") if settings.compile else nullcontext()


@contextmanager
def explain_compiler_errors() -> Iterator[None]:
    """Turn an error of the compiler into one line with a remedy.

    Raises:
        GptlabError: The model cannot be compiled.
    """
    try:
        yield
    except Exception as error:
        dynamo = sys.modules.get("torch._dynamo.exc")  # not imported, which takes a second
        if dynamo is None or not isinstance(error, dynamo.TorchDynamoException):
            raise
        raise GptlabError(f"the model cannot be compiled: {reason(error)}; try --no-compile") from error
