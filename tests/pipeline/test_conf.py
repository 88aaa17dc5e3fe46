"""The shipped YAML files against the settings and the data sets they speak of."""

import pytest

from dclip.data.registry import DATASETS
from pipeline.settings.config import Config, conf_folder, yaml_layers

FILES = sorted(path.stem for path in conf_folder().glob("*.yaml"))


@pytest.mark.parametrize("name", FILES)
def test_a_shipped_file_loads_and_opens_with_its_command(name: str) -> None:
    assert Config(**yaml_layers(name, [])[0][1])
    heading = (conf_folder() / f"{name}.yaml").read_text().split("\n\n")[0].splitlines()
    command = next(line for line in heading if "python -m pipeline." in line)
    assert (
        name in ("shapes", "smoke", "ablate", "compare", "study-mfi")
        or f" {name} " in f"{command} "
    )


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_has_a_file_with_its_splits(name: str) -> None:
    config, dataset = Config(**yaml_layers(name, [])[0][1]), DATASETS[name]
    assert name in FILES
    assert config.dataset == name
    if name != "coco":  # its splits are those of whoever made it
        assert config.test_split == dataset.test_split
        assert dataset.train_split in (None, config.train_split)
