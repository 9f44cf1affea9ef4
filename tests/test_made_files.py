"""What `python -m tools.refresh` makes from the nodes, as far as it can be told without a ComfyUI."""

import copy

import pytest

from tools.refresh.help_tables import BEGIN, END, make_table, page_path, with_table
from tools.refresh.made import SCHEMA_PATH, make_pages
from tools.refresh.schema import broken_promises
from tools.refresh.texts import SPECIAL, TRANSLATED, leaves, read_json, texts_path, translated
from trainer_core.presets import CARDS

SCHEMA = read_json(SCHEMA_PATH)
ENGLISH = read_json(texts_path("en"))


def test_the_tables_of_the_help_pages_are_current():
    for path, page in make_pages(SCHEMA, ENGLISH).items():
        assert path.read_text(encoding="utf-8") == page, f"{path.name}: run python -m tools.refresh"


def test_each_help_page_shows_its_node_in_a_small_picture():
    for node in SCHEMA:
        assert f"({node}.jpg)" in page_path(node).read_text(encoding="utf-8"), node
        assert page_path(node).with_suffix(".jpg").stat().st_size < 60_000, node


@pytest.mark.parametrize("language", TRANSLATED)
def test_a_translation_has_the_keys_of_the_english_texts(language):
    own = read_json(texts_path(language))
    assert [path for path, _ in leaves(own)] == [path for path, _ in leaves(ENGLISH)]
    for path, text in leaves(own):
        assert not SPECIAL & set(text), (language, path)


@pytest.mark.parametrize("language", ["en", *TRANSLATED])
def test_every_language_tells_what_the_presets_set(language):
    told = read_json(texts_path(language))["LoadFluxForTraining"]["inputs"]["card"]["tooltip"]
    assert [card for card, preset in CARDS.items() if f"{card}: {preset.settings()}" not in told] == []


@pytest.mark.parametrize("language", TRANSLATED)
def test_a_translated_tooltip_ends_with_the_name_that_messages_use(language):
    for path, text in leaves(read_json(texts_path(language))):
        assert path[-1] != "tooltip" or not text or text.endswith(f"({path[-2]})"), (language, path)


def test_new_inputs_come_at_the_end_and_are_not_needed():
    assert SCHEMA.keys() == ENGLISH.keys()
    more, fewer, moved, needed = (copy.deepcopy(SCHEMA) for _ in range(4))
    more["TREADRoute"]["inputs"].append({"name": "late", "type": "INT", "needed": False})
    assert broken_promises(SCHEMA, SCHEMA) == broken_promises(SCHEMA, more) == []
    fewer["LoRAConfig"]["outputs"].pop()
    assert broken_promises(SCHEMA, fewer) == ["LoRAConfig: the outputs no longer begin as they did, from 'LORA_CONFIG' on"]
    moved["TREADRoute"]["inputs"].insert(1, {"name": "early", "type": "INT", "needed": False})
    assert broken_promises(SCHEMA, moved) == ["TREADRoute: the inputs no longer begin as they did, from 'start_layer_idx' on"]
    needed["TREADRoute"]["inputs"].append({"name": "late", "type": "INT", "needed": True})
    assert broken_promises(SCHEMA, needed) == ["TREADRoute: the new input 'late' is needed, and saved workflows have none"]


def test_a_page_keeps_its_words_around_the_table():
    inputs = [{"name": "rank", "type": "INT", "needed": False, "default": 16, "min": 1, "max": 64}]
    texts = {"inputs": {"rank": {"name": "rank", "tooltip": "How large."}}}
    page = with_table("# Title\n\nWords.\n", inputs, texts)
    assert page.startswith("# Title\n\nWords.\n\n## Inputs\n\n" + BEGIN) and page.endswith(END + "\n")
    assert "| **rank** | `16` | 1 to 64 | How large. |" in make_table(inputs, texts)
    assert with_table(page, inputs, texts) == page
    assert with_table(page + "\n## More\n", [], texts).endswith(END + "\n\n## More\n")


def test_a_translation_keeps_what_it_has_and_follows_the_english_keys():
    source = {"a": {"name": "one", "tooltip": "new"}, "b": {"name": "two"}}
    own = {"a": {"name": "eins", "gone": "weg"}}
    assert translated(source, own) == {"a": {"name": "eins", "tooltip": "new (one)"}, "b": {"name": "two"}}
