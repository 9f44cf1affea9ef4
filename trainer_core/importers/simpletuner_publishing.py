"""What becomes of SimpleTuner's options about the Hugging Face Hub, the model card and webhooks.

They are taken as they are meant, with two differences: a repository is private unless the configuration says otherwise, and
a webhook is told of the run's end alone. A graph that has them is refused until the server's owner allows the network
(`nodes/permissions.py`); the command line is the owner's own. The report shows no address, which often is a secret.
"""

from typing import Any

from ..specs.publishing import ADDRESS, HUB_NAME
from .simpletuner_draft import IDLE, OTHERWISE, TAKEN, Draft, Row, Unfit, by, ignore, is_on, take
from .simpletuner_files import parse_json, read_json

HIDDEN = "(not shown)"
ADDRESSES = ("callback_url", "webhook_url")  # of a raw hook, and of Discord's


def _push(draft: Draft, option: str, value: Any) -> None:
    if not is_on(value):
        return draft.note(IDLE, option, "is off")
    draft.put("publishing.push_to_hub", True)
    text = "publishing.push_to_hub, by this machine's own login; a graph may only where the server's owner allows the network"
    if draft.given("model_card_private"):
        return draft.note(TAKEN, option, text)
    draft.note(OTHERWISE, option, f"{text}. A new repository is private; there it is public unless model_card_private is on")


def _repository(draft: Draft, option: str, value: Any) -> None:
    name = str(value).strip()
    if HUB_NAME.fullmatch(name):
        draft.put("publishing.hub_model_id", name)
        return draft.note(TAKEN, option, "publishing.hub_model_id")
    if is_on(draft.options.get("push_to_hub")):
        raise Unfit("is no repository; write NAME or OWNER/NAME")
    draft.note(IDLE, option, "is no repository, and nothing is sent; it names the LoRA, if nothing before it does")


def _webhook(draft: Draft, option: str, value: Any) -> None:
    """The first address among the hooks."""
    hooks = _hooks(draft, option, value)
    given = [str(hook[name]).strip() for hook in hooks for name in ADDRESSES if hook.get(name)]
    if not given or not ADDRESS.fullmatch(given[0]):
        raise Unfit(f"names no address that begins with https:// or http://; give one as {' or '.join(ADDRESSES)}")
    draft.put("publishing.webhook_url", given[0])
    text = "publishing.webhook_url: told once, at the end of the run; there of every event"
    draft.note(OTHERWISE, option, f"{text}. {len(given) - 1} more are left out" if given[1:] else text)
    rest = dict.fromkeys(name for hook in hooks for name in hook if name not in (*ADDRESSES, "webhook_type"))
    if rest:
        draft.note(IDLE, f"{option}: {', '.join(rest)}", "the end alone is told, always in the same form")


def _hooks(draft: Draft, option: str, value: Any) -> list[dict[str, Any]]:
    """Those of a file, or of what stands there in its place, which the report then does not show."""
    if isinstance(value, str) and not value.lstrip().startswith(("{", "[")):
        value = read_json(draft.place.find(value))
    else:
        draft.options[option] = HIDDEN
        value = parse_json(value, option) if isinstance(value, str) else value
    return [hook for hook in (value if isinstance(value, list) else [value]) if isinstance(hook, dict)]


PUBLISHING: dict[str, Row] = {
    "push_to_hub": by(_push),
    "hub_model_id": by(_repository),
    "push_checkpoints_to_hub": ignore("the finished LoRA is sent; `flux-lora publish --which STEP` sends that of a checkpoint"),
    "push_to_hub_background": ignore("it is sent when the run is done, so nothing waits for it"),
    "model_card_private": take("publishing.model_card_private"),
    "model_card_note": take("publishing.model_card_note"),
    "model_card_safe_for_work": ignore("the card does not speak of it; publishing.tags may have not-for-all-audiences"),
    "modelspec_comment": ignore("the LoRA's header says what made it"),
    "publishing_config": ignore("the Hugging Face Hub is all that is known here"),
    "webhook_config": by(_webhook),
    "webhook_reporting_interval": ignore("the webhook is told once, at the end"),
}
