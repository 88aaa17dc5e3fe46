"""What every stage's command line shares: flags, layers of settings, errors, exit codes.

Exit codes: 0 done, 1 the work failed, 2 wrong usage, 130 interrupted. Results go to stdout, the
log and progress bars to stderr.
"""

import argparse
import difflib
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from itertools import pairwise
from typing import Any, NoReturn, Protocol

import yaml
from pydantic import ValidationError
from pydantic_settings import CliSettingsSource, SettingsError

from dclip.methods.registry import find_settings
from pipeline.settings.config import (
    DEFAULT_METHOD,
    Config,
    check_environment,
    check_layer,
    conf_folder,
    config_class,
    explain,
    find_config_file,
    in_force,
    known_keys,
    merge,
    of_method,
    read_layer,
    yaml_layers,
)
from pipeline.terminal.called import as_called, command
from pipeline.terminal.checks import require_backbone, require_checkpoints, require_output
from pipeline.terminal.errors import StageError, UsageError
from pipeline.terminal.following import following
from pipeline.terminal.moved import follow_folder
from pipeline.terminal.short_help import SHARED, flags_of, short_help
from pipeline.terminal.start import quicken
from pipeline.terminal.versions import versions

Report = dict[str, Any]


class Reported(Protocol):
    """A report that is an object of its own: `pipeline.records.report.StageReport`."""

    def to_json(self) -> dict[str, Any]:
        """The report as JSON has it."""
        ...


_EPILOG = """\
Flags may be written in any YAML file too (--config FILE), or as an environment variable:
--train.lr 0.002 is `train: {{lr: 0.002}}` and DCLIP_TRAIN__LR=0.002. Within this stage the keys of
its own section need no prefix: {short}
Ready-made settings: {conf}
"""


class _Parser(argparse.ArgumentParser):
    """Argument parser whose errors name the nearest flag and never print the whole usage."""

    own: Sequence[str] = ()  # flags of the stage that are known without their prefix

    def error(self, message: str) -> NoReturn:
        flags = sorted(flag for flag in self._option_string_actions if flag.startswith("--"))
        hints = []
        if message.startswith("unrecognized arguments: "):
            for word in message.removeprefix("unrecognized arguments: ").split():
                flag = word.split("=")[0]
                leaf = flag.rpartition(".")[2].removeprefix("--")
                close = [other for other in flags if other.endswith(f".{leaf}")][:2]
                close = close or difflib.get_close_matches(flag, [*self.own, *flags], n=2)
                if word.startswith("--"):
                    hints.append(f"did you mean {' or '.join(close)}?" if close else "")
        hint = " ".join(filter(None, hints))
        raise UsageError(f"{message}. {hint} (see {self.prog} --help)".replace(".  (", ". ("))


class _ShowPage(argparse.Action):
    """Prints a page and stops."""

    def __init__(self, *args: Any, page: Callable[[], str], **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._page = page

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        _print(self._page().rstrip())
        parser.exit()


class _Version(argparse.Action):
    """Prints the versions of this package and of what results depend on, and stops."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        _print(versions())
        parser.exit()


def main(stage: str, argv: Sequence[str] | None = None) -> int:
    """Parse the command line of one stage, run it, and turn its outcome into an exit code.

    The module ``pipeline.<stage>`` has ``DESCRIPTION``, the help text; ``pipeline.stages.<stage>``
    has ``describe``, what it would do in words (``--dry-run``), and ``run``, the work, whose report
    ``--json`` prints. A report with an ``error`` is of work that could be done in part only.

    Args:
        stage: Name of the module, as in ``python -m pipeline.<stage>``.
        argv: Words of the command line; ``sys.argv[1:]`` if left out.

    Returns:
        Exit code of the process.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if argv is None:  # the process is this command's
        quicken()
    show_log()
    description = import_module(f"pipeline.{stage}").DESCRIPTION
    try:
        config, flags = parse(stage, description, sys.argv[1:] if argv is None else argv)
        if flags.print_config:
            _print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).rstrip())
            return 0
        require_backbone(config)
        require_checkpoints(getattr(getattr(config, stage, None), "checkpoint", None))
        module = import_module(f"pipeline.stages.{stage}")
        if flags.dry_run:
            _print(module.describe(config))
            return 0
        require_output(config.output.absolute())
        follow_folder(config.output.absolute())
        if any(config.pending.glob("*.jsonl")):
            import_module("pipeline.records.tracking").upload_pending(config)
        done: Report | Reported = module.run(config)
    except UsageError as error:
        return _fail(stage, error, 2)
    except (StageError, ValueError, OSError) as error:
        return _fail(stage, error, 1)
    except KeyboardInterrupt:
        _log(f"{stage}: interrupted; the same command goes on where this one stopped")
        return 130
    report = done if isinstance(done, dict) else done.to_json()
    if flags.json:
        _print(json.dumps(report))
    next_command = "" if "error" in report else following(stage, config, report)
    if next_command:
        _log(f"next: {next_command}")
    if "error" in report:  # a part of the work could not be done
        _log(f"{stage}: error: {report['error']}")
        return 1
    return 0


def parse(stage: str, description: str, argv: Sequence[str]) -> tuple[Config, argparse.Namespace]:
    """Settings and control flags (``json``, ``dry_run``, ``print_config``) of a command line.

    Raises:
        UsageError: An unknown flag, key or value.
    """
    given_layers = [read_layer(find_config_file(name)) for name in _given(argv, "--config")]
    named = _given(argv, "--method")
    method = in_force("method", named[-1] if named else None, given_layers, DEFAULT_METHOD)
    for other in named[:-1]:  # whose checkpoints may be given
        config_class(other)
    model = config_class(method)
    sections = {name: known_keys(model, name) for name in sections_of(stage, model)}
    section = sections[stage]
    key, shown, what = POSITIONAL.get(stage, ("", "", ""))

    def page() -> str:
        return _page(stage, description, model)

    if {"-h", "--help"} & set(argv):  # all that follows would make a parser of hundreds of flags
        _print(page())
        raise SystemExit(0)
    parser = _Parser(
        prog=command(stage),
        description=as_called(description),
        add_help=False,
        epilog=_EPILOG.format(
            short=", ".join(f"--{key.replace('_', '-')}" for key in section[:4]) + ", ..."
            if section
            else "(none)",
            conf=", ".join(sorted(path.name for path in conf_folder().glob("*.yaml"))),
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.own = [f"--{key.replace('_', '-')}" for keys in sections.values() for key in keys]
    control = parser.add_argument_group("control")
    control.add_argument(
        "-h",
        "--help",
        action=_ShowPage,
        nargs=0,
        page=page,
        help="show what this stage uses and stop",
    )
    control.add_argument(
        "--help-all",
        action=_ShowPage,
        nargs=0,
        page=parser.format_help,
        help="show all of this and stop",
    )
    control.add_argument(
        "--config", action="append", default=[], metavar="FILE", help="YAML file; repeatable"
    )
    control.add_argument("--version", action=_Version, nargs=0, help="print the versions and stop")
    control.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    control.add_argument("--print-config", action="store_true", help="print all settings and stop")
    control.add_argument(
        "--json", action="store_true", help="end stdout with the report as one line of JSON"
    )
    source = CliSettingsSource[Any](
        model, root_parser=parser, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words = [_long_form(word, sections) for word in argv]
    given: list[str] = []
    if key:
        parser.add_argument(key, nargs="*", metavar=shown, help=what)
        flags = parser.parse_intermixed_args(words)
        given = flags.__dict__.pop(key)
    else:
        flags = parser.parse_args(words)
    check_environment(model)
    default = str(Config.model_fields["dataset"].default)
    dataset = in_force("dataset", getattr(flags, "dataset", None), given_layers, default)
    layers = yaml_layers(dataset, given_layers)
    merged: dict[str, Any] = {}
    for layer in layers:
        check_layer(layer, model)
        merged = merge(merged, of_method(layer[1], model))
    if given:
        merged = merge(merged, {stage: {key: given}})
    values = {key: value for key, value in vars(flags).items() if key not in _CONTROL}
    try:
        config = model(_cli_settings_source=source(parsed_args=values), **merged)
    except ValidationError as error:
        raise UsageError(explain(error, layers, model)) from None
    except SettingsError as error:
        raise UsageError(f"cannot read a value of the command line: {error}") from None
    return config, flags


def sections_of(stage: str, model: type[Config]) -> list[str]:
    """Sections whose keys need no prefix in a stage."""
    own = find_settings(str(model.model_fields["method"].default)).name
    return [stage, own] if stage == "train" else [stage]  # a method's own are what is trained


def shared_of(stage: str) -> Sequence[str]:
    """Settings of all stages that ``--help`` of one shows, as its module names them."""
    shared: Sequence[str] = getattr(import_module(f"pipeline.{stage}"), "SHARED", SHARED)
    return shared


def _page(stage: str, description: str, model: type[Config]) -> str:
    """What ``--help`` prints."""
    key, shown, _ = POSITIONAL.get(stage, ("", "", ""))
    flags = flags_of(model, sections_of(stage, model), shared_of(stage), without=[key])
    there = sum(len(known_keys(model, one)) or 1 for one in model.model_fields)
    others = there - sum(map(len, flags.values())) - bool(key)
    words = f"[{shown} ...]" if key else ""
    return short_help(stage, description, flags, words=words, others=others)


# no usage statistics leave the machine unless the user says so; no chatter among our lines; a
# tracking server that does not answer is given up after seconds, not minutes; threads of torch
# that wait for each other sleep: spinning takes the cores from whatever else is running
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "OMP_WAIT_POLICY": "PASSIVE",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
}
POSITIONAL = {
    "predict": ("paths", "IMAGE", "images, or folders of images"),
    "search": ("queries", "QUERY", "a text in quotes, or an image"),
}
"""Words without a flag: the key of the section that takes them, and what ``--help`` says."""

_CONTROL = ("config", "dry_run", "print_config", "json", "help", "help_all")


def _given(argv: Sequence[str], flag: str) -> list[str]:
    """Values of a flag of the command line, in order, before it is parsed."""
    found = []
    for word, after in pairwise([*argv, ""]):
        if word.startswith(f"{flag}="):
            found.append(word.partition("=")[2])
        elif word == flag:
            found.append(after)
    return found


def _long_form(word: str, sections: Mapping[str, Sequence[str]]) -> str:
    """Accept ``--key`` of the stage's own sections without their prefix, and ``_`` for ``-``."""
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    flag = flag.replace("_", "-")
    bare = flag.removeprefix("--").removeprefix("no-").replace("-", "_")
    # the name of a whole section does not count: sweep has a key `search` of its own
    taken = {key for key in Config.model_fields if not known_keys(Config, key)} | {*_CONTROL}
    for section, keys in sections.items():
        if bare in keys and bare not in taken:
            no = "no-" if flag.startswith("--no-") else ""
            flag = f"--{no}{section.replace('_', '-')}.{bare.replace('_', '-')}"
            break
    return f"{flag}{equals}{value}"


class _Stderr(logging.Handler):
    """Writes messages to whatever stderr is at that moment, above progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        _log(self.format(record))


def show_log() -> None:
    """Let messages of both packages appear on stderr."""
    for name in ("dclip", "pipeline"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        if not any(isinstance(handler, _Stderr) for handler in logger.handlers):
            logger.addHandler(_Stderr())


def _fail(stage: str, error: Exception, code: int) -> int:
    if os.environ.get("DCLIP_TRACEBACK"):
        traceback.print_exception(error)
    _log(f"{stage}: error: {as_called(str(error))}")
    return code


def _print(text: str) -> None:
    with no_bar():
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


def no_bar() -> AbstractContextManager[None]:
    """Progress bars are gone while a block writes to the terminal."""
    if "tqdm" not in sys.modules:  # then there is none
        return nullcontext()
    cleared: AbstractContextManager[None] = sys.modules["tqdm"].tqdm.external_write_mode(sys.stderr)
    return cleared


def _log(text: str) -> None:
    with no_bar():
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
