"""Options that several commands have, and the checks of their values."""

from typing import Annotated, Any, Literal

import typer

from gptlab import completion
from gptlab.errors import BadInputError
from gptlab.validation import MAX_TAG_LENGTH

MAX_COUNT = 10_000

RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="A run's id, a unique prefix of one, or its directory.", autocompletion=completion.runs
    ),
]
RunsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN",
        help="Ids, unique prefixes of ids, directories, or 'tiny-*-s*'.",
        autocompletion=completion.runs,
    ),
]
ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN|DIR",
        help="A run's id, a unique prefix of one, or its directory; or a directory of transformers' GPT-2.",
        autocompletion=completion.runs,
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout and everything else on stderr.")
]
DeviceOption = Annotated[str, typer.Option(help="Device: auto, cpu, cuda or mps.")]
WandbOption = Annotated[
    Literal["online", "offline", "off"] | None,
    typer.Option(help="Where to log. Default: online if there is an API key and the server responds, else offline."),
]
ArtifactsOption = Annotated[
    Literal["best", "final"] | None,
    typer.Option(help="Upload the best or the final checkpoint to W&B when training ends."),
]
StepsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=10**8,
        help="Total number of optimizer steps; more extends the run. Default: as in the spec.",
    ),
]
TextOption = Annotated[
    str | None, typer.Option(help="A named text or the path of a .txt file.", autocompletion=completion.texts)
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a field of the spec; `gptlab show NAME` lists them. Repeatable."
    ),
]
TagsOption = Annotated[list[str] | None, typer.Option("--tag", help="Tag for W&B and reports. Repeatable.")]
DeterministicOption = Annotated[
    bool, typer.Option("--deterministic", help="Bitwise reproducible results on a GPU too; slower.")
]
CompileOption = Annotated[
    bool | None,
    typer.Option("--compile/--no-compile", help="Compile the model's blocks. Default: on CUDA, with a C compiler."),
]
CaptureOption = Annotated[
    bool | None,
    typer.Option("--capture/--no-capture", help="Capture the step as a CUDA graph. Default: on CUDA."),
]
ProcessesOption = Annotated[
    int | None,
    typer.Option("--nproc", min=1, max=MAX_COUNT, help="Processes to train the run with."),
]
ShardOption = Annotated[bool, typer.Option("--shard", help="Divide weights and moments among them.")]
TimeoutOption = Annotated[
    float,
    typer.Option("--timeout", min=1, max=10**6, metavar="SECONDS", help="Limit on waiting for another process."),
]
StepOption = Annotated[int | None, typer.Option(min=0, help="Step of a checkpoint. Default: the newest.")]


def check_tags(tags: list[str] | None) -> None:
    """Check the lengths and the characters of tags.

    Raises:
        BadInputError: A tag is empty, too long or not printable.
    """
    for tag in tags or ():
        if not (0 < len(tag) <= MAX_TAG_LENGTH and tag.isprintable()):
            raise BadInputError(f"--tag must have 1 to {MAX_TAG_LENGTH} printable characters, not {tag!r}")


def spec_changes(settings: list[str] | None, text: str | None, steps: int | None) -> dict[str, Any]:
    """Return the fields of the spec that the options change, by dotted key."""
    from gptlab.spec import parse_settings

    changes: dict[str, Any] = parse_settings(settings or [])
    changes |= {} if text is None else {"data.text": text}
    return changes | ({} if steps is None else {"train.steps": steps})
