"""``csm-hybrid say``: a text becomes a file, a stream or sound."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..audio.formats import FILES
from ..defaults import LONGEST_UTTERANCE
from ..errors import InputError
from ..options import SpeechOptions
from . import INTERRUPTED
from .options import (
    ENGINE_OPTIONS,
    MODEL_OPTIONS,
    add_options,
    find_model,
    model_flags,
    model_options,
    speech_option,
)
from .standard_input import StandardInput

if TYPE_CHECKING:
    from ..audio.files import AudioSink
    from ..speech import Model
    from ..speech_stream import SpeechStream

_BUFFER_FRAMES = 20  # a write to a file need not come with every frame
DEFAULT_TEXT = "Hello there, this is a test"
_END = {
    "eos": "the model ended it",
    "length": "cut at the longest length, see --max-audio-len-ms",
    "cancelled": "interrupted",
}


@click.command(short_help="Speak a text.")
@click.argument("text", required=False)
@click.option("--text", "text_option", help='The text, if not given as TEXT; "-" reads standard input, as TEXT does.')
@click.option("--text-file", type=click.Path(path_type=Path, dir_okay=False), help="A UTF-8 file with the text.")
@click.option(
    "--output",
    "-o",
    default="csm_output.wav",
    show_default=True,
    help=f'Audio file: {", ".join(FILES)}; "-" streams a WAV to standard output.',
)
@click.option("--play", is_flag=True, help="Play the sound; a file is then written only with --output.")
@speech_option("speaker", "--speaker-id")
@click.option(
    "--voice",
    "voices",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A recording whose voice speaks, with what it says in the .txt beside it; again for more of that voice.",
)
@click.option(
    "--voice-text",
    "voice_texts",
    multiple=True,
    help="What the recording says, instead of its .txt; once for each --voice.",
)
@speech_option("temperature")
@speech_option("top_k")
@speech_option("seed")
@click.option(
    "--max-audio-len-ms",
    type=click.FloatRange(0, min_open=True),
    help=f"The longest audio, in milliseconds.  [default: {LONGEST_UTTERANCE * 1000:g} for each chunk of the text]",
)
@speech_option("history")
@speech_option("buffer_frames", "--buffer-size", default=_BUFFER_FRAMES)
@speech_option("template", "--tokenizer-template")
@add_options(MODEL_OPTIONS)
@add_options(ENGINE_OPTIONS)
@click.option("--quiet", "-q", is_flag=True, help="Say nothing on standard error but errors.")
def say(**values: Any) -> None:
    """Speak TEXT into an audio file (csm_output.wav unless --output names another).

    Text of any length is spoken, a few sentences at a time, and written as it is made. TEXT "-" reads standard
    input; while that is still being written, each sentence is spoken as soon as it is whole.

    \b
    csm-hybrid say "Hello from a small voice."
    csm-hybrid say "Hello." --weights-path csm-1b-q8_0.gguf -o hello.mp3
    csm-hybrid say "In the voice of anna.wav, which says what stands in anna.txt." --voice anna.wav
    llm "Tell me a story." | csm-hybrid say - --play
    echo "Read from a pipe." | csm-hybrid say - -o - | ffplay -nodisp -autoexit -
    """
    recordings = _recordings(values.pop("voices"), values.pop("voice_texts"))
    source = _text(values.pop("text"), values.pop("text_option"), values.pop("text_file"))
    quiet = values.pop("quiet")
    typed = not isinstance(source, str) and source.typed
    if typed and not quiet:
        click.echo("Type the text; it is spoken line by line. Ctrl-D ends it.", err=True)
    flags = model_flags(values)
    options = model_options(values)
    output, play = _output(values.pop("output"), values.pop("play"))

    from ..audio.files import check_output
    from ..speech import Model

    if output is not None and output != "-":
        check_output(Path(output))
    longest = values.pop("max_audio_len_ms")
    with Model(find_model(flags, quiet=quiet), options) as model:
        speech = SpeechOptions(
            **values,
            max_seconds=None if longest is None else longest / 1000,
            context=[model.segment(path, said, speaker=values["speaker"]) for path, said in recordings],
        )
        stream = model.start(source if isinstance(source, str) else source.text(), speech)
        _write(model, stream, output, play, _Progress(model, stream, quiet, live=not typed))


def _text(argument: str | None, option: str | None, file: Path | None) -> str | StandardInput:
    given = [value for value in (argument, option, file) if value is not None]
    if len(given) > 1:
        raise click.UsageError("give the text once: as TEXT, by --text or by --text-file")
    try:
        if file is not None:
            return file.read_text(encoding="utf-8")
        text = DEFAULT_TEXT if not given else str(given[0])
        return StandardInput() if text == "-" else text
    except OSError as error:
        raise InputError(f"cannot read the text file {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"the text file {file} is not UTF-8: {error}; convert it first, as with iconv -t UTF-8"
        ) from error


def _recordings(paths: tuple[Path, ...], texts: tuple[str, ...]) -> list[tuple[Path, str | None]]:
    if texts and len(texts) != len(paths):
        raise click.UsageError(f"--voice-text belongs to --voice: {len(texts)} for {len(paths)} were given")
    return list(zip(paths, texts or [None] * len(paths), strict=True))


def _output(output: str, play: bool) -> tuple[str | None, bool]:
    """Where the sound goes: with --play alone, to no file."""
    context = click.get_current_context()
    named = context.get_parameter_source("output") is not click.core.ParameterSource.DEFAULT
    return (output if named or not play else None), play


def _write(model: Model, stream: SpeechStream, output: str | None, play: bool, progress: _Progress) -> None:
    from ..audio.files import open_file, open_speaker, open_stdout

    interrupted = False
    try:
        with ExitStack() as stack:
            sinks: list[AudioSink] = []
            if output == "-":
                sinks.append(stack.enter_context(open_stdout(model.sample_rate)))
            elif output is not None:
                frame = model.config.codec.frame_samples
                sinks.append(stack.enter_context(open_file(Path(output), model.sample_rate, frame)))
            if play:
                sinks.append(stack.enter_context(open_speaker(model.sample_rate)))
            for chunk in stream:
                for sink in sinks:
                    sink.write(chunk)
                progress.update()
    except KeyboardInterrupt:
        stream.close()
        interrupted = True
    finally:
        progress.clear()
    progress.end(output)
    if interrupted:
        sys.exit(INTERRUPTED)


class _Progress:
    """One line on standard error: how much has been spoken, how fast, and how soon the first sound came."""

    def __init__(self, model: Model, stream: SpeechStream, quiet: bool, *, live: bool) -> None:
        self._frame_rate = model.config.frame_rate
        self._stream = stream
        self._quiet = quiet
        self._live = live and not quiet and sys.stderr.isatty()
        self._begin = time.perf_counter()

    def _figures(self) -> str:
        seconds = self._stream.frames / self._frame_rate
        speed = seconds / (time.perf_counter() - self._begin - self._stream.text_seconds)
        first = self._stream.first_audio_seconds
        text = f"{seconds:.2f} s spoken, {speed:.1f}x real time"
        share = self._stream.share
        if share is not None and 0.0 < share < 1.0:
            text = f"{share:.0%} of the text, {text}"
        return text if first is None else f"{text}, first audio after {first:.2f} s"

    def update(self) -> None:
        if self._live:
            click.echo(f"\r\033[K{self._figures()}", nl=False, err=True)

    def clear(self) -> None:
        if self._live:
            click.echo("\r\033[K", nl=False, err=True)

    def end(self, output: str | None) -> None:
        if self._quiet:
            return
        if self._stream.frames == 0 and self._stream.finish_reason == "eos":
            click.echo(
                "The model ended the speech before its first sound, so the audio is empty: try another --seed,"
                " a higher --temperature or a longer text.",
                err=True,
            )
        where = f"{output}: " if output not in (None, "-") else ""
        why = _END.get(self._stream.finish_reason or "cancelled", "")
        click.echo(f"{where}{self._figures()}; {why} (seed {self._stream.seed}).", err=True)
