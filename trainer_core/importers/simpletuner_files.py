"""SimpleTuner's files as plain values: config.json, .toml or .env, the list of datasets, and what these point to.

All forms become one dict: option, in snake_case and without dashes, -> value. What TRAINER_EXTRA_ARGS holds is taken apart.
Its guide shows JSON with comments and with a comma too many, which its users then have in their files: both are read.

Paths inside are relative to the folder that SimpleTuner is started in, not to the file: the one above `config/`.
"""

import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import JobError
from ..file_names import expanded, problem_of_path

Options = dict[str, Any]

EXTRA = "TRAINER_EXTRA_ARGS"
CONFIG_NAMES = ("config.json", "config.toml", "config.env")
# strings are matched first, so that what looks like a comment inside one stays
LOOSE = re.compile(r'("(?:\\.|[^"\\])*")|(?://|#)[^\n]*|,(?=(?:\s|(?://|#)[^\n]*\n)*[}\]])')
ASSIGNMENT = re.compile(r"^\s*(?:export\s+)?([A-Za-z_]\w*)(\+?)=(.*)$")
VARIABLE = re.compile(r"\$\{(\w+)\}|\$(\w+)")
ENV_NAMES = {  # where the name in .env is not the option's own in capitals
    "model_name": "pretrained_model_name_or_path",
    "vae_name": "pretrained_vae_model_name_or_path",
    "dataloader_config": "data_backend_config",
    "max_num_steps": "max_train_steps",
    "num_epochs": "num_train_epochs",
    "checkpointing_limit": "checkpoints_total_limit",
    "resume_checkpoint": "resume_from_checkpoint",
    "trainer_dynamo_backend": "dynamo_backend",
    "push_checkpoints": "push_checkpoints_to_hub",
    "lr_schedule": "lr_scheduler",
    "training_seed": "seed",
    "use_gradient_checkpointing": "gradient_checkpointing",
    "minimum_resolution": "minimum_image_size",
    "hub_model_name": "hub_model_id",
    "instance_dir": "instance_data_dir",
}


def find_config(path: Path) -> Path:
    """The configuration itself, also where its folder is given; JobError when there is none."""
    path = expanded(str(path)).absolute()
    if path.is_dir():
        path = next((path / name for name in CONFIG_NAMES if (path / name).is_file()), path / CONFIG_NAMES[0])
    if not path.is_file():
        raise JobError(f"there is no {path}; give SimpleTuner's config.json, config.toml or config.env")
    return path


def read_options(path: Path) -> Options:
    """Every option of the configuration; JobError when the file cannot be read."""
    text = read_text(path)
    if path.suffix.lower() == ".toml":
        given = _from_toml(text, path)
    elif path.suffix.lower() == ".json" or text.lstrip().startswith("{"):
        given = parse_json(text, path)
    else:
        given = _from_env(text, path)
    if not isinstance(given, dict):
        raise JobError(f"{path} is no set of options; SimpleTuner's config.json is {{'--option': value, ...}}")
    options: Options = {}
    for name, value in given.items():
        if name.strip("-").upper() == EXTRA:
            options |= parse_arguments(list(map(str, value)) if isinstance(value, list) else _words(str(value), path))
        else:
            options[option_name(name)] = value
    return options


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise JobError(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(f"{path} cannot be read: {error}") from None


def read_json(path: Path) -> Any:
    return parse_json(read_text(path), path)


def parse_json(text: str, source: Path | str) -> Any:
    """JSON, also with comments (# and //) and a comma behind the last entry."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        pass
    except (ValueError, RecursionError) as error:
        raise JobError(f"{source} is not JSON: {error}") from None
    try:
        return json.loads(LOOSE.sub(lambda found: found[1] or "", text))
    except json.JSONDecodeError as error:
        raise JobError(f"{source} is not JSON: line {error.lineno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise JobError(f"{source} is not JSON: {error}") from None


def option_name(name: str) -> str:
    return name.strip().lstrip("-").replace("-", "_").lower()


def parse_arguments(words: list[str]) -> Options:
    """A command line: --option=value, --option value, and --option alone, which switches it on."""
    options: Options = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            options[option_name(name)] = value if equals else True
            name = "" if equals else name
        elif name:
            options[option_name(name)] = word
            name = ""
        else:
            raise JobError(f"{EXTRA}: {word!r} belongs to no option; write --option=value")
    return options


def _from_toml(text: str, path: Path) -> Any:
    if sys.version_info < (3, 11):
        raise JobError(
            f"{path}: reading TOML needs Python 3.11 or newer, and this is {sys.version.split()[0]}; give config.json"
        )
    import tomllib

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise JobError(f"{path} is not TOML: {error}") from None


def _from_env(text: str, path: Path) -> Options:
    """A shell file of assignments; $NAME and += are understood, anything else of the shell is not run."""
    values: dict[str, str] = {}
    for number, line in enumerate(text.replace("\\\n", " ").splitlines(), start=1):
        found = ASSIGNMENT.match(line)
        if found is None:
            continue
        name, adds, value = found.groups()
        words = _words(value, f"{path} line {number}", comments=True)
        filled = VARIABLE.sub(lambda name: values.get(name[1] or name[2], ""), " ".join(words))
        values[name] = (values.get(name, "") + filled if adds else filled).strip()
    return {name if name == EXTRA else ENV_NAMES.get(name.lower(), name): value for name, value in values.items()}


def _words(text: str, source: Path | str, *, comments: bool = False) -> list[str]:
    """As a shell would cut them; nothing is run."""
    try:
        return shlex.split(text, comments=comments)
    except ValueError as error:
        raise JobError(f"{source}: {error}") from None


class Place:
    """Where the paths inside a configuration begin, and which of them may be looked at."""

    def __init__(self, config: Path, may_read: Callable[[Path], bool] = lambda path: True):
        self._may_read = may_read
        above = [folder.parent for folder in config.parents if folder.name == "config"]
        self.root = above[0] if above else config.parent
        self._starts = tuple(dict.fromkeys((self.root, config.parent, Path.cwd())))

    def find(self, given: str) -> Path:
        """The absolute path that is meant: from SimpleTuner's folder on, or else beside the configuration."""
        path = expanded(given)
        if problem := problem_of_path(path):
            raise JobError(f"{given[:80]!r} {problem}; correct it in the configuration")
        places = [place for place in ((start / path).absolute() for start in self._starts) if self._may_read(place)]
        if not places:
            raise JobError(f"{given} lies outside of what a workflow may read here")
        return next((place for place in places if place.exists()), places[0])
