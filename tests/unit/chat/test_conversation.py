"""Commands, and what is sent because of them."""

from __future__ import annotations

import pytest

from easel.chat.conversation import COMMANDS, CommandError, Conversation, help_lines, read_command

TIERS = {"fast": {"max_denoising_steps": 16, "stability": 0}, "deep": {"max_denoising_steps": 64}}


def test_a_conversation_goes_on_and_a_puzzle_stands_alone() -> None:
    talk = Conversation("easel")
    talk.set("system", "Be brief.")
    talk.answered("one", "two")
    body = talk.body("three", progress=True)
    assert [message["content"] for message in body["messages"]] == ["Be brief.", "one", "two", "three"]
    assert body["stream_options"] == {"include_usage": True, "include_progress": True}
    assert "max_tokens" not in body
    alone = talk.body("53", progress=False, alone=True)
    assert alone["messages"] == [{"role": "user", "content": "53"}]
    assert alone["stream_options"] == {"include_usage": True}
    talk.set("reset", "")
    assert len(talk.body("four", True)["messages"]) == 2


def test_settings_are_sent_and_taken_back() -> None:
    talk = Conversation("easel")
    assert not {"easel", "temperature"} & set(talk.body("x", True))
    talk.set("tier", "fast")
    talk.set("steps", "8")
    talk.set("temperature", "0.5")
    body = talk.body("x", True)
    assert (body["easel"], body["temperature"]) == ({"max_denoising_steps": 8, "tier": "fast"}, 0.5)
    for name in ("tier", "steps", "temperature"):
        talk.set(name, "default")
    assert not {"easel", "temperature"} & set(talk.body("x", True))


@pytest.mark.parametrize(
    ("name", "argument", "said"),
    [
        ("tier", "fats", "'fats'"),
        ("tier", "fats", "fast, deep and default"),
        ("steps", "0", "'0'"),
        ("steps", "²", "'²'"),
        ("steps", "", "/steps needs"),
        ("temperature", "warm", "'warm'"),
        ("temperature", "nan", "'nan'"),
        ("temperature", "-1", "'-1'"),
    ],
)
def test_wrong_arguments_are_named(name: str, argument: str, said: str) -> None:
    talk = Conversation("easel", tiers=TIERS, default_tier="deep")
    before = talk.body("x", True)
    with pytest.raises(CommandError, match="/" + name) as caught:
        talk.set(name, argument)
    assert said in caught.value.message
    assert talk.body("x", True) == before


def test_tiers_are_those_that_the_service_tells_of() -> None:
    talk = Conversation("easel", tiers=TIERS, default_tier="deep")
    assert talk.set("tier", "").splitlines() == [
        "fast: max_denoising_steps 16, stability 0",
        "deep (default): max_denoising_steps 64",
    ]
    assert talk.set("tier", "fast") == "tier is fast: max_denoising_steps 16, stability 0."
    assert talk.body("x", True)["easel"] == {"tier": "fast"}
    assert talk.set("tier", "default") == "tier is default: max_denoising_steps 64."
    assert "easel" not in talk.body("x", True)


def test_a_service_that_tells_of_no_tiers_is_asked_all_the_same() -> None:
    talk = Conversation("other")
    assert talk.set("tier", "") == "The service does not say which tiers it has."
    assert talk.set("tier", "turbo") == "tier is turbo."
    assert talk.body("x", True)["easel"] == {"tier": "turbo"}


def test_commands_are_read_and_unknown_ones_named() -> None:
    assert read_command("hello /sudoku") is None
    assert read_command("/system  be kind ") == ("system", "be kind")
    assert read_command("/quit") == ("quit", "")
    with pytest.raises(CommandError, match=r"no command '/tire'. Did you mean /tier\?"):
        read_command("/tire fast")
    assert len(help_lines()) == len(COMMANDS)
