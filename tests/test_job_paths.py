"""The list of what a job reads: complete, and right about what is a path."""

from pathlib import Path

import pytest

from trainer_core.job import TrainJob
from trainer_core.job_file import parse_job
from trainer_core.job_paths import PATH_FIELDS, NamedPath, paths_of, paths_of_job
from trainer_core.specs.base import BaseModelSpec
from trainer_core.specs.dataset import DatasetSpec
from trainer_core.specs.spec import Spec

ENDINGS = ("_path", "_dir", "_table", "_lora", "_file", "_folder")


def specs_of(spec: type[Spec]) -> set[type[Spec]]:
    """The parts of a spec, and theirs."""
    kinds = [info.annotation for info in spec.model_fields.values()] + [DatasetSpec]
    parts = {kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Spec)}
    return parts.union(*map(specs_of, parts - {DatasetSpec})) if parts - {DatasetSpec} else parts


def test_every_field_that_is_named_like_a_path_is_listed_and_no_other() -> None:
    for spec in specs_of(TrainJob):
        texts = {name for name, info in spec.model_fields.items() if info.annotation is str}
        assert {name for name in texts if name.endswith(ENDINGS)} == set(PATH_FIELDS.get(spec, ()))


def test_what_looks_like_a_hub_id_is_a_path_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "flux").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    base = BaseModelSpec(model_flavour="dev", pretrained_model_name_or_path="models/flux")
    assert list(paths_of(base)) == [NamedPath("pretrained_model_name_or_path", Path("models/flux"))]


def test_what_a_job_names_is_listed_by_field_hub_ids_left_out_and_tables_below_their_pictures(tmp_path: Path) -> None:
    dataset = {"instance_data_dir": str(tmp_path), "caption_strategy": "csv", "caption_table": "table.csv"}
    base = {"pretrained_model_name_or_path": "black-forest-labs/FLUX.1-dev", "vae_path": " /models/ae.safetensors "}
    job = parse_job({"base": base | {"model_flavour": "dev", "allow_download": True}, "datasets": [dataset]}, "test")
    assert list(paths_of_job(job)) == [
        NamedPath("vae_path", Path("/models/ae.safetensors")),
        NamedPath("instance_data_dir", tmp_path),
        NamedPath("caption_table", tmp_path / "table.csv"),
    ]
