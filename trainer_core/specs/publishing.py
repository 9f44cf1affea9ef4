"""What others see of the LoRA, where it goes when it is trained, and who is told."""

import re

from pydantic import Field, field_validator

from .spec import Spec

HUB_NAME = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]{0,95}/)?[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
ADDRESS = re.compile(r"https?://[^\s/?#]+\S*|\$[A-Za-z_][A-Za-z0-9_]*")


class PublishingSpec(Spec):
    """What model libraries show of the LoRA, whether it goes to the Hugging Face Hub, and who is told at the end."""

    title: str = Field("", max_length=200, description="Title in model libraries. Empty: the name of the LoRA.")
    author: str = Field("", max_length=200, description="Author in model libraries.")
    description: str = Field(
        "",
        max_length=20_000,
        description="What it is, for model libraries and the model card. Empty: kind, rank and steps.",
        json_schema_extra={"multiline": True},
    )
    trigger_phrase: str = Field(
        "",
        max_length=1000,
        description="What a prompt must say. Empty: the trigger words of the datasets, or their instance_prompt.",
    )
    usage_hint: str = Field(
        "",
        max_length=1000,
        description="A short hint on how to use it. Empty: the trigger and the base's resolution, guidance and steps.",
    )
    tags: str = Field("", max_length=1000, description="Tags with commas, such as: style, watercolour.")
    push_to_hub: bool = Field(
        False,
        description="Upload the finished LoRA, its pictures and a model card to the Hugging Face Hub, with the login of this machine "
        "(HF_TOKEN, or `hf auth login`).",
    )
    hub_model_id: str = Field(
        "",
        description="The repository there, NAME or OWNER/NAME. Empty: the name of the LoRA, in the account that is logged in.",
    )
    model_card_private: bool = Field(True, description="A new repository is private. Off: everybody sees it at once.")
    model_card_note: str = Field(
        "", max_length=20_000, description="Added to the model card.", json_schema_extra={"multiline": True}
    )
    webhook_url: str = Field(
        "",
        max_length=2000,
        description="At the end of the run, also where it stopped or failed, a JSON object is sent there by POST. $NAME takes the "
        "address from this environment variable, since an address may be a secret. It is in no LoRA file.",
    )

    @field_validator("hub_model_id")
    @classmethod
    def _a_repository(cls, value: str) -> str:
        if value and not HUB_NAME.fullmatch(value):
            raise ValueError(f"hub_model_id {value!r} is no repository; write NAME or OWNER/NAME")
        return value

    @field_validator("webhook_url")
    @classmethod
    def _an_address(cls, value: str) -> str:
        if value and not ADDRESS.fullmatch(value):
            raise ValueError("webhook_url must begin with https:// or http://, or be $NAME of an environment variable")
        return value
