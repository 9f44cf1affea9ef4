"""Captions: where they come from, which forms they take, and which are too long to be read."""

import json
import logging
from pathlib import Path

import pytest
import torch
from caption_files import captions, csv_table, files, only
from PIL import Image
from safetensors.torch import load_file

from support import encoded, job_data, make_pictures, run_in_process
from trainer_core.data.batches import BatchPlan
from trainer_core.data.caption_variants import holds_word
from trainer_core.data.index import index_datasets
from trainer_core.data.sample import Reject
from trainer_core.data.text_files import TextReader
from trainer_core.data.too_long import cut_captions, describe_cuts
from trainer_core.errors import JobError
from trainer_core.flux.files import PICO_FILES
from trainer_core.flux.flavours import FLAVOURS
from trainer_core.flux.text import load_tokenizer
from trainer_core.job_file import parse_job
from trainer_core.run_dir import run_dir_for
from trainer_core.specs.dataset import DatasetSpec

PICO = FLAVOURS["pico"]


# Where captions come from


def test_captions_can_come_from_names_or_one_prompt(pictures):
    names = [path.name for path in sorted(pictures.glob("*.png"))]
    assert captions(pictures, *names, caption_strategy="filename") == [(f"ball {number}",) for number in range(6)]
    prompted = captions(pictures, *names, caption_strategy="instanceprompt", instance_prompt=" a sks ball ")
    assert set(prompted) == {("a sks ball",)}


def test_a_text_file_is_one_caption_or_with_multiline_captions_one_a_line(tmp_path):
    files(tmp_path, a="a red\n  ball\n\na ball\r\na ball\n", b=" \n")
    assert captions(tmp_path, "a.png", "b.png") == [("a red ball a ball a ball",), ("",)]
    assert captions(tmp_path, "a.png", "b.png", multiline_captions=True) == [("a red", "ball", "a ball"), ("",)]


def test_kohyas_caption_files_are_read_where_there_is_no_txt(tmp_path):
    (tmp_path / "a.caption").write_text("from kohya")
    assert only(tmp_path) == "from kohya"
    (tmp_path / "a.txt").write_text("from txt")
    assert only(tmp_path) == "from txt"


@pytest.mark.parametrize("name", ["two.dots.png", 'it\'s "so".png', "мяч 🎈.png", "x" * 251 + ".png"], ids=ascii)
def test_odd_names_have_captions_too(tmp_path, name):
    (tmp_path / name).with_suffix(".txt").write_text("odd")
    assert captions(tmp_path, name) == [("odd",)]


def test_what_happens_to_a_picture_without_a_caption_is_a_choice(tmp_path):
    with pytest.raises(JobError, match=r"a_ball\.png has no caption: write a_ball\.txt beside it, or choose caption_strategy"):
        captions(tmp_path, "a_ball.png")
    assert captions(tmp_path, "a_ball.png", missing_caption="filename") == [("a ball",)]
    with pytest.raises(Reject, match=r"it has no caption \(write a_ball\.txt beside it\)"):
        captions(tmp_path, "a_ball.png", missing_caption="skip")
    with pytest.raises(JobError, match=r"x\.png has no caption"):
        captions(tmp_path, "x" * 251 + ".png")  # NAME.caption would be too long for a file's name
    (tmp_path / "a_ball.txt").mkdir()
    with pytest.raises(Reject, match=r"its caption .*a_ball\.txt cannot be read \(Is a directory\)"):
        captions(tmp_path, "a_ball.png")


def test_pictures_skipped_for_their_caption_are_in_the_report(tmp_path):
    make_pictures(tmp_path, 3)
    (tmp_path / "ball_1.txt").unlink()
    index = index_datasets((DatasetSpec(instance_data_dir=str(tmp_path), missing_caption="skip"),), PICO)
    assert [sample.path.name for sample in index.samples] == ["ball_0.png", "ball_2.png"]
    assert [(entry.path.name, entry.reason) for entry in index.rejected] == [
        ("ball_1.png", "it has no caption (write ball_1.txt beside it)")
    ]


def test_a_name_that_is_not_all_text_is_a_caption_all_the_same(tmp_path):
    assert captions(tmp_path, "ball_\udcff.png", "мяч_🎈.png", caption_strategy="filename") == [("ball �",), ("мяч 🎈",)]


def test_captions_are_decoded_tolerantly(tmp_path, caplog):
    path, decode = tmp_path / "caption.txt", TextReader("caption").decode
    assert decode("\ufeffgrün".encode(), path) == "grün"
    assert decode("grün".encode("utf-16"), path) == decode(b"\xfe\xff" + "grün".encode("utf-16-be"), path) == "grün"
    assert not caplog.records
    assert decode("100 €".encode("cp1252"), path) == "100 €"
    assert "caption.txt is not UTF-8" in caplog.text


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"a \x81 ball", r"is neither UTF-8 nor Windows-1252 text \(byte 0x81 at 2\); save it as UTF-8"),
        (b"\xff\xfea", r"begins as UTF-16 but does not go on so"),
        ("a ball".encode("utf-16-le"), r"holds zero bytes"),
    ],
    ids=["bytes", "half a character", "utf-16 without mark"],
)
def test_a_caption_that_is_no_text_is_named(tmp_path, data, said):
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(JobError, match=r"caption .*a\.txt " + said):
        captions(tmp_path)


def test_only_some_of_many_captions_that_are_not_utf8_are_named(tmp_path, caplog):
    for number in range(30):
        (tmp_path / f"{number}.txt").write_bytes("grün".encode("cp1252"))
    assert set(captions(tmp_path, *(f"{number}.png" for number in range(30)))) == {("grün",)}
    assert len(caplog.records) == 11 and "more caption files" in caplog.messages[-1]


def test_columns_are_named_and_a_wrong_name_lists_those_there_are(tmp_path):
    table = csv_table(tmp_path, "file;short;long\na.png;;a long text\n")
    columns = {"filename_column": "file", "caption_column": "short", "fallback_caption_column": "long"}
    assert only(tmp_path, **table, **columns) == "a long text"
    for field in columns:
        with pytest.raises(
            JobError, match=rf"table\.csv has no column 'x'; correct {field}: its columns are 'file', 'short', 'lo"
        ):
            only(tmp_path, **table, **columns | {field: "x"})
    with pytest.raises(JobError, match=r"a\.png has no caption: write one into column 'short' of .*table\.csv"):
        only(tmp_path, **table, **columns | {"fallback_caption_column": ""})
    assert only(tmp_path, **table, **columns | {"fallback_caption_column": ""}, missing_caption="filename") == "a"


# Forms


def test_the_trigger_word_and_the_prefix_go_in_front(tmp_path):
    files(tmp_path, a="a ball that asks, red", b="A SKS ball", c="")
    names = ("a.png", "b.png", "c.png")
    plain = captions(tmp_path, *names, trigger_word="sks")
    assert plain == [("sks a ball that asks, red",), ("A SKS ball",), ("sks",)]
    both = captions(tmp_path, *names, trigger_word=" sks ", caption_prefix="photo of ")
    assert both == [("photo of sks a ball that asks, red",), ("photo of A SKS ball",), ("photo of sks",)]
    assert only(tmp_path, trigger_word="sks", caption_prefix="a sks photo,") == "a sks photo, a ball that asks, red"
    assert holds_word("<x>")("a <X> b") and not holds_word("sks")("asks")


def test_tags_are_shuffled_the_same_way_in_each_run(tmp_path):
    tags = [f"tag {number}" for number in range(8)]
    files(tmp_path, a=",".join(tags), b=", ".join(tags), c="no tags")
    ((first,), (second,), (third,)) = captions(tmp_path, "a.png", "b.png", "c.png", shuffle_tags=True)
    assert sorted(first.split(", ")) == sorted(second.split(", ")) == tags
    assert len({first, second, ", ".join(tags)}) == 3 and third == "no tags"
    assert first == "tag 1, tag 5, tag 0, tag 6, tag 3, tag 4, tag 7, tag 2", "caches of earlier versions hold this form"


def test_variants_are_distinct_begin_with_the_order_as_written_and_stay_when_more_are_asked_for(tmp_path):
    files(tmp_path, a="a, b, c, d, e", b="a, b, c", c="a,b,a", d="only")
    names = ("a.png", "b.png", "c.png", "d.png")
    few, many = (captions(tmp_path, *names, shuffle_tags=True, caption_variants=number) for number in (4, 64))
    assert [forms[0] for forms in few] == [forms[0] for forms in many] == ["a, b, c, d, e", "a, b, c", "a, b, a", "only"]
    assert [len(set(forms)) for forms in few] == [4, 4, 3, 1] and [len(set(forms)) for forms in many] == [64, 6, 3, 1]
    assert many[0][:4] == few[0] and many[1][:4] == few[1]
    assert captions(tmp_path, "a.png", shuffle_tags=True)[0] == few[0][1:2]


def test_a_changed_caption_changes_only_itself_and_a_moved_folder_nothing(tmp_path):
    settings = {"shuffle_tags": True, "caption_variants": 3}
    files(tmp_path / "x", a="a, b, c, d", b="e, f, g, h")
    before = captions(tmp_path / "x", "a.png", "b.png", **settings)
    (tmp_path / "x").rename(tmp_path / "y")
    assert captions(tmp_path / "y", "a.png", "b.png", **settings) == before
    files(tmp_path / "y", b="e, f, g, i")
    after = captions(tmp_path / "y", "a.png", "b.png", **settings)
    assert after[0] == before[0] and not set(after[1]) & set(before[1])


def test_kept_tags_and_the_trigger_word_stay_in_front(tmp_path):
    files(tmp_path, a="a, b, c, sks, d, e, f")
    for form in captions(tmp_path, shuffle_tags=True, caption_variants=20, keep_tags=2)[0]:
        assert form.startswith("a, b, ")
    for form in captions(tmp_path, shuffle_tags=True, caption_variants=20, keep_tags=2, trigger_word="SKS")[0]:
        assert form.startswith("sks, a, b, ")
    for form in captions(tmp_path, shuffle_tags=True, caption_variants=20, trigger_word="ohwx,", caption_prefix="art:")[0]:
        assert form.startswith("art: ohwx, ") and len(form.split(", ")) == 8
    assert only(tmp_path, shuffle_tags=True, keep_tags=99) == "a, b, c, sks, d, e, f"


@pytest.mark.parametrize(
    ("separator", "caption"), [(";", "a,b; c; d; e"), (". ", "A dog. It runs. Far. Away"), (" ", "a b c d e")]
)
def test_parts_are_what_stands_between_separators(tmp_path, separator, caption):
    files(tmp_path, a=caption)
    forms = captions(tmp_path, shuffle_tags=True, tag_separator=separator, caption_variants=20)[0]
    assert forms[0] == caption and len(forms) == 20
    assert {tuple(sorted(form.split(separator))) for form in forms} >= {tuple(sorted(caption.split(separator)))}
    if separator == ";":
        assert all("a,b" in form for form in forms)


def test_wildcards_become_lines_of_their_files(tmp_path):
    folder = files(tmp_path / "w", hair_color="# a comment\nred\n\nblue\nred\n", sub__pet="a cat\na __hair_color__ dog")
    files(
        tmp_path, a="__hair_color__ hair", b="with __sub/pet__, ____ and a__b", **{f"n{n}": "__hair_color__" for n in range(20)}
    )
    forms = captions(tmp_path, wildcards_dir=str(folder), caption_variants=9)[0]
    assert sorted(forms) == ["blue hair", "red hair"]
    (pets,) = captions(tmp_path, "b.png", wildcards_dir=str(folder), caption_variants=9)
    pet = {form.removeprefix("with ").removesuffix(", ____ and a__b") for form in pets}
    assert pet == {"a cat", "a red dog", "a blue dog"}
    drawn = captions(tmp_path, *(f"n{number}.png" for number in range(20)), wildcards_dir=str(folder))
    assert set(drawn) == {("red",), ("blue",)}, "pictures with the same caption draw for themselves"
    assert captions(tmp_path, *(f"n{number}.png" for number in range(20)), wildcards_dir=str(folder)) == drawn


def test_wildcards_come_before_the_shuffle_and_fill_one_prompt_too(tmp_path):
    folder = files(tmp_path / "w", two="x, y")
    settings = {"caption_strategy": "instanceprompt", "instance_prompt": "__two__, z", "wildcards_dir": str(folder)}
    assert only(tmp_path, **settings) == "x, y, z"
    (forms,) = captions(tmp_path, **settings, shuffle_tags=True, caption_variants=10, trigger_word="__two__")
    assert len(forms) == 6 and all(form.startswith("__two__, ") for form in forms) and "__two__, z, y, x" in forms


@pytest.mark.parametrize(
    ("caption", "said"),
    [
        ("a __none__", r"caption of .*a\.png: wildcard __none__ needs .*none\.txt \(No such file"),
        ("a __empty__", r"empty\.txt has no line to take for the wildcard __empty__"),
        ("a __a__", r"hold each other without end: __a__ in __b__ in __a__; take one out"),
        ("a __../secret__", r"wildcard __\.\./secret__ is outside of .*w; only files below"),
        ("a __sub/../../secret__", r"wildcard __sub/\.\./\.\./secret__ is outside of"),
        ("a __/etc/hostname__", r"is outside of"),
        ("a __linked__", r"is outside of"),
    ],
)
def test_a_wildcard_that_cannot_be_filled_is_an_error(tmp_path, caption, said):
    folder = files(tmp_path / "w", empty="# nothing", a="x __b__", b="__a__", sub__x="x")
    files(tmp_path, a=caption, secret="secret")
    (folder / "linked.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(JobError, match=said):
        captions(tmp_path, wildcards_dir=str(folder))


def test_a_missing_folder_of_wildcards_is_said_once(tmp_path):
    make_pictures(tmp_path, 3)
    with pytest.raises(JobError) as caught:
        index_datasets((DatasetSpec(instance_data_dir=str(tmp_path), wildcards_dir=str(tmp_path / "none")),), PICO)
    assert str(caught.value) == f"dataset 'pictures': there is no folder {tmp_path / 'none'}; correct wildcards_dir"


# What is trained


@pytest.fixture(scope="module")
def tagged(tmp_path_factory) -> Path:
    """Four pictures with tags, a table and a folder of wildcards beside them."""
    root = tmp_path_factory.mktemp("tagged")
    folder = make_pictures(root / "pictures", 4)
    for number in range(4):
        (folder / f"ball_{number}.txt").write_text(f"a ball; round, __color__\nred, toy {number}")
    files(root / "wildcards", color="green\npink\nblack\nwhite")
    lines = [f'ball_{number}.png,ball_{number},"{number} balls","",a cat' for number in range(4)]
    (root / "table.csv").write_text("\n".join(["filename,stem,caption,empty,other", *lines]))
    return root


SHUFFLED = {"shuffle_tags": True}
CSV = {"caption_strategy": "csv"}
ROWS = [
    ({}, {"multiline_captions": True}),
    ({}, {"trigger_word": "sks"}),
    ({}, {"wildcards_dir": "wildcards"}),
    (SHUFFLED, {"caption_variants": 4}),
]


@pytest.fixture(scope="module")
def train(tagged, cache, tmp_path_factory):
    """Trains on `tagged` with these settings of the dataset, once for each of them; the LoRA's tensors."""
    known: dict[str, dict] = {}

    def trained(settings: dict) -> dict:
        if (name := json.dumps(settings)) not in known:
            fields = {"instance_data_dir": str(tagged / "pictures"), **settings}
            if "caption_strategy" in settings:
                fields["caption_table"] = str(tagged / "table.csv")
            if "wildcards_dir" in settings:
                fields["wildcards_dir"] = str(tagged / "wildcards")
            data = job_data(tagged, training={"max_train_steps": 2}, lora={"lora_save_precision": "fp32"})
            job = parse_job(data | {"datasets": [fields]})
            known[name] = load_file(run_in_process(job, tmp_path_factory.mktemp("out"), cache)["lora"])
        return known[name]

    return trained


@pytest.mark.parametrize(("others", "fields"), ROWS, ids=[next(iter(fields)) for _, fields in ROWS])
def test_a_setting_of_captions_changes_what_is_trained(train, others, fields):
    without, with_it = train(others), train(others | fields)
    assert without.keys() == with_it.keys() and any(not with_it[name].equal(tensor) for name, tensor in without.items())


def test_filename_column_says_which_column_names_the_picture(train):
    without, with_it = train(CSV), train(CSV | {"filename_column": "stem"})
    assert all(with_it[name].equal(tensor) for name, tensor in without.items()), "both columns name the same pictures"


def test_each_visit_draws_one_of_the_forms(tagged, cache):
    spec = DatasetSpec(instance_data_dir=str(tagged / "pictures"), caption_variants=3, repeats=15, **SHUFFLED)
    samples = index_datasets((spec,), PICO).samples
    assert [len(sample.captions) for sample in samples] == [3] * 4
    caches = encoded(samples, cache)
    plan = BatchPlan(samples, caches, batch_size=1, caption_dropout=0.0, seed=1)
    for index, sample in enumerate(samples):
        texts = [plan.batch(number).text_BLD[0] for number in range(64) if plan.indices(number) == (index,)]
        assert len(texts) == 16
        seen = [sum(torch.equal(text, caches.text(caption)["text"]) for text in texts) for caption in sample.captions]
        assert sum(seen) == 16 and min(seen) > 0


def test_a_changed_table_in_the_folder_is_another_run(tmp_path):
    table = csv_table(make_pictures(tmp_path / "pictures", 1), "filename,caption\nball_0,x\n")
    job = parse_job(job_data(tmp_path) | {"datasets": [{"instance_data_dir": str(tmp_path / "pictures"), **table}]})
    before = run_dir_for(job, tmp_path).root
    csv_table(tmp_path / "pictures", "filename,caption\nball_0,a ball\n")
    assert run_dir_for(job, tmp_path).root != before


# Too long


def test_what_the_encoders_do_not_read_is_named(tmp_path):
    words = [f"ball {number}" for number in range(40)]
    files(tmp_path, a=", ".join(words), b="a short one", c="é" * 5)
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (64, 64)).save(tmp_path / name)
    spec = DatasetSpec(instance_data_dir=str(tmp_path), resolution=(48, 64))
    cuts = cut_captions(index_datasets((spec,), PICO).samples, PICO_FILES, PICO)
    assert [(cut.path.name, cut.encoder, cut.limit) for cut in cuts] == [("a.png", "T5", 32), ("a.png", "CLIP", 32)]
    tokenizer = load_tokenizer(PICO_FILES.t5_tokenizer)
    for cut in cuts:
        read, first, rest = cut.caption.removesuffix(cut.cut), cut.cut.split()[0], cut.cut.split()[1]
        sizes = [len(tokenizer(text, truncation=False)["input_ids"]) for text in (cut.caption, read, f"{read}{first} {rest}")]
        assert sizes[0] == cut.num_tokens > 100 and read.endswith(" ") and sizes[1] <= 32 < sizes[2]
    told = describe_cuts(cuts)
    assert len(told) == 2
    assert told[0].startswith("1 caption is longer than the 32 tokens that T5 reads; the rest is never learned.")
    assert f"a.png ({cuts[0].num_tokens} tokens), not read: '{cuts[0].cut[:40]}" in told[0]
    assert "32 tokens that CLIP reads; which matters little" in told[1]


def test_a_run_warns_of_what_is_not_read_and_counts_the_others(tmp_path, cache, caplog):
    folder = make_pictures(tmp_path / "pictures", 14)
    for number in range(14):
        (folder / f"ball_{number}.txt").write_text("red ball " * (13 + number))
    data = job_data(folder, training={"max_train_steps": 1})
    with caplog.at_level(logging.WARNING):
        run_in_process(parse_job(data), tmp_path / "out", cache)
    t5, clip = (message for message in caplog.messages if "longer than the 32 tokens" in message)
    many = int(t5.split()[0])
    assert 10 < many < 14 and clip.startswith(f"{many} captions are")
    assert t5.count(" tokens), not read: '") == 10 and t5.endswith(f"  and {many - 10} more")
    assert clip.count(" tokens), not read: '") == 3 and clip.endswith(f"  and {many - 3} more")
