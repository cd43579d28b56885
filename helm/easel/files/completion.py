"""`helm test`: asks the service for a completion, whole and streamed, as a client does. Standard library only.

Says on standard output what it did, and ends with 1 and a sentence where an answer is not what it should be.
"""

import json
import os
import sys
import time
import urllib.error
import urllib.request


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def fail(text: str) -> None:
    say(f"FAILED: {text}")
    sys.exit(1)


def open_(path: str, body: object = None, key: str = ""):
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(os.environ["EASEL_URL"] + path, data, headers)
    return urllib.request.urlopen(request, timeout=float(os.environ["EASEL_TIMEOUT_S"]))


def wait_until_ready() -> None:
    """Serve needs minutes for a large model, and a name needs an endpoint before it leads anywhere."""
    deadline = time.monotonic() + float(os.environ["EASEL_TIMEOUT_S"])
    last = ""
    while time.monotonic() < deadline:
        try:
            with open_("/readyz") as answer:
                if answer.status == 200:
                    return
        except urllib.error.HTTPError as error:
            now = f"{error.code} {error.read(300).decode(errors='replace')}"
        except OSError as error:
            now = str(error)
        if now != last:
            say(f"not ready yet: {now}")
            last = now
        time.sleep(2)
    fail(f"not ready after {os.environ['EASEL_TIMEOUT_S']} s; last: {last}")


def refuse_without_key(body: object) -> None:
    try:
        open_("/v1/chat/completions", body)
    except urllib.error.HTTPError as error:
        code = json.loads(error.read())["error"]["code"]
        if (error.code, code) != (401, "invalid_api_key"):
            fail(f"without a key: {error.code} {code}, not 401 invalid_api_key")
        say("without a key: 401 invalid_api_key")
        return
    fail("it answered without a key, though keys are configured")


def main() -> None:
    model, key = os.environ["EASEL_MODEL"], os.environ.get("EASEL_API_KEY", "")
    body = {
        "model": model,
        "messages": [{"role": "user", "content": os.environ["EASEL_PROMPT"]}],
        "max_tokens": int(os.environ["EASEL_MAX_TOKENS"]),
    }
    wait_until_ready()
    say("ready")
    if os.environ.get("EASEL_KEYED"):
        refuse_without_key(body)
        if not key:
            fail("the service asks for keys and this test has none: set test.apiKey.secretName to a Secret with one")
    try:
        with open_("/v1/chat/completions", body, key) as answer:
            whole = json.load(answer)
        text = whole["choices"][0]["message"]["content"]
        if not text or not whole["usage"]["completion_tokens"]:
            fail(f"an empty answer: {whole}")
        say(f"whole: {whole['usage']['completion_tokens']} tokens, {text[:60]!r}")
        with open_("/v1/chat/completions", body | {"stream": True}, key) as answer:
            lines = [line.decode().strip() for line in answer]
    except urllib.error.HTTPError as error:
        fail(f"{error.code}: {error.read(1000).decode(errors='replace')}")
    events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    if not events or events[-1] != "[DONE]":
        fail(f"a stream that does not end in [DONE]: {events[-1:]}")
    parts = [json.loads(event)["choices"] for event in events[:-1]]
    streamed = "".join(choice[0]["delta"].get("content") or "" for choice in parts if choice)
    if not streamed:
        fail("a stream without text")
    say(f"streamed: {len(parts)} events, {streamed[:60]!r}")
    say("PASSED")


if __name__ == "__main__":
    main()
