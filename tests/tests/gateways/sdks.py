"""Calls AI providers through gateways with the SDKs that applications use.

usage: sdks.py SDK URL TOKEN RETRIES CALLS

The SDK makes CALLS calls with a train token in place of the provider's key. Prints how many of them
succeeded; one that fails ends the program with the SDK's own words.
"""

import os
import sys

# Nothing but the gateway is asked.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
os.environ["LITELLM_TELEMETRY"] = "False"

SAYS = "hello from the upstream"
MESSAGES = [{"role": "user", "content": "Hello"}]


def anthropic(url, token, retries):
    """As `x-api-key`, which is how this SDK sends a key."""
    from anthropic import Anthropic

    client = Anthropic(base_url=url, api_key=token, max_retries=retries)

    def call():
        answer = client.messages.create(model="claude-opus-4-1", max_tokens=64, messages=MESSAGES)
        return answer.content[0].text

    return call


def openai(url, token, retries):
    """As `Authorization: Bearer`."""
    from openai import OpenAI

    client = OpenAI(base_url=url + "/v1", api_key=token, max_retries=retries)

    def call():
        answer = client.chat.completions.create(model="gpt-5", messages=MESSAGES)
        return answer.choices[0].message.content

    return call


def litellm(model, base):
    """In the form of the provider that the model's name begins with."""

    def start(url, token, retries):
        import litellm

        litellm.suppress_debug_info = True

        def call():
            answer = litellm.completion(
                model=model, messages=MESSAGES, api_base=url + base, api_key=token, num_retries=retries, max_retries=0
            )
            return answer.choices[0].message.content

        return call

    return start


SDKS = {
    "anthropic": anthropic,
    "openai": openai,
    "litellm-anthropic": litellm("anthropic/claude-opus-4-1", ""),
    "litellm-openai": litellm("openai/gpt-5", "/v1"),
}


def main(sdk, url, token, retries, calls):
    call = SDKS[sdk](url, token, int(retries))
    done = 0
    for _ in range(int(calls)):
        said = call()
        assert said == SAYS, said
        done += 1
    print(done)


main(*sys.argv[1:])
