"""An imported configuration is read again once one of its files has changed, or a picture; not before."""

from pathlib import Path

from comfy_client import queue
from comfy_server import Server
from simpletuner_examples import simpletuner_dir


def test_a_changed_configuration_or_caption_is_imported_anew(server: Server, tmp_path: Path) -> None:
    config = simpletuner_dir(tmp_path, small=True)
    prompt = {
        "import": {"class_type": "ImportSimpleTunerConfig", "inputs": {"config": str(config), "base": "pico"}},
        "report": {"class_type": "PreviewAny", "inputs": {"source": ["import", 10]}},
    }

    def is_kept() -> bool:
        outcome = queue(server.url, prompt)
        assert outcome.status == "success", outcome.error
        return "import" in outcome.of("execution_cached")[0]["nodes"]

    assert [is_kept(), is_kept()] == [False, True]
    caption = sorted((tmp_path / "datasets" / "dreambooth-subject").glob("*.txt"))[0]
    caption.write_text("something else entirely", encoding="utf-8")
    assert [is_kept(), is_kept()] == [False, True]
    config.write_text(config.read_text(encoding="utf-8").replace('"--seed": 7', '"--seed": 8'), encoding="utf-8")
    assert [is_kept(), is_kept()] == [False, True]
