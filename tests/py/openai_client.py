"""The official OpenAI client against Millrace. Each function is one promise; all run in turn.

    openai_client.py BASE_URL API_KEY [NAME ...]
"""
import asyncio
import json
import math
import sys

import openai
from openai import AsyncOpenAI, OpenAI

BASE, KEY, *ONLY = sys.argv[1:]
client = OpenAI(base_url=BASE + "/v1", api_key=KEY, max_retries=0, timeout=120)
MESSAGES = [{"role": "user", "content": "Tell me about the sea in a few sentences."}]


def model_name():
    return client.models.list().data[0].id


def chat(**changes):
    return client.chat.completions.create(**{"model": model_name(), "messages": MESSAGES, "max_tokens": 24, "temperature": 0, **changes})


def expect_error(kind, code, call):
    """Runs `call`, which must fail with this class and code and say what to do next."""
    try:
        call()
    except kind as error:
        body = error.body
        assert body and body.get("message"), error.response.text
        assert body.get("code") == code, f"code {body.get('code')!r} instead of {code!r}: {error.response.text}"
        assert body.get("type"), error.response.text
        assert body.get("next_step"), f"no next step: {error.response.text}"
        assert isinstance(body.get("retryable"), bool), error.response.text
        return body
    raise AssertionError(f"no {kind.__name__}")


def models_are_listed_and_found():
    models = client.models.list().data
    assert models and all(m.object == "model" and m.id and m.created > 0 for m in models), models
    for model in models:
        assert client.models.retrieve(model.id).id == model.id
    expect_error(openai.NotFoundError, "model_not_found", lambda: client.models.retrieve("no-such-model"))


def a_chat_is_answered_with_usage():
    reply = chat()
    choice = reply.choices[0]
    assert reply.object == "chat.completion" and reply.id and reply.created > 1_600_000_000
    assert choice.message.role == "assistant" and choice.message.content.strip()
    assert choice.finish_reason == "length" and reply.usage.completion_tokens == 24, reply
    assert reply.usage.prompt_tokens > 10
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def a_short_question_ends_with_stop():
    reply = chat(messages=[{"role": "user", "content": "Answer with one word: what colour is snow?"}], max_tokens=200)
    assert reply.choices[0].finish_reason == "stop", reply
    assert 0 < reply.usage.completion_tokens < 200


def the_stream_is_the_same_text_in_pieces():
    whole = chat().choices[0].message.content
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    assert len(chunks) > 5, f"{len(chunks)} chunks"
    assert {c.object for c in chunks} == {"chat.completion.chunk"}
    assert len({c.id for c in chunks}) == 1, "one id for the whole stream"
    assert chunks[0].choices[0].delta.role == "assistant", chunks[0]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole, f"{text!r} != {whole!r}"
    ends = [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason]
    assert ends == ["length"], ends
    last = chunks[-1]
    assert last.choices == [] and last.usage.completion_tokens == 24, last
    assert all(c.usage is None for c in chunks[:-1])
    without = list(chat(stream=True))
    assert all(c.usage is None for c in without), "no usage unless asked for"


def text_from_all_scripts_survives_the_stream():
    messages = [{"role": "user", "content": "Repeat exactly: Zażółć gęślą jaźń, 你好世界, 🙂👍🏽, naïve"}]
    whole = chat(messages=messages, max_tokens=48).choices[0].message.content
    text = "".join(c.choices[0].delta.content or "" for c in chat(messages=messages, max_tokens=48, stream=True) if c.choices)
    assert text == whole and "\ufffd" not in text, (text, whole)


def the_same_seed_gives_the_same_text():
    one = chat(temperature=1.0, seed=7).choices[0].message.content
    two = chat(temperature=1.0, seed=7).choices[0].message.content
    other = [chat(temperature=1.0, seed=seed).choices[0].message.content for seed in (8, 9, 10)]
    assert one == two, (one, two)
    assert any(text != one for text in other), "temperature 1 with other seeds changes nothing"


def a_stop_string_ends_the_text_before_itself():
    whole = chat(max_tokens=48).choices[0].message.content
    words = whole.split()
    stop = f"{words[6]} {words[7]}"
    reply = chat(max_tokens=48, stop=stop)
    assert reply.choices[0].message.content == whole[: whole.index(stop)], (stop, reply.choices[0].message.content, whole)
    assert reply.choices[0].finish_reason == "stop"
    streamed = "".join(c.choices[0].delta.content or "" for c in chat(max_tokens=48, stop=[stop, "never"], stream=True) if c.choices)
    assert streamed == whole[: whole.index(stop)], "the stream may not show the stop string or a part of it"


def log_probabilities_are_probabilities():
    reply = chat(logprobs=True, top_logprobs=4, max_tokens=8)
    content = reply.choices[0].logprobs.content
    assert len(content) == 8, len(content)
    for token in content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 4
        ordered = [t.logprob for t in token.top_logprobs]
        assert ordered == sorted(ordered, reverse=True)
        assert sum(math.exp(p) for p in ordered) <= 1.0001
        assert token.token == token.top_logprobs[0].token, "greedy takes the likeliest"
        assert bytes(token.bytes).decode(errors="replace") == token.token or "\ufffd" in token.token
    joined = b"".join(bytes(t.bytes) for t in content).decode(errors="ignore")
    assert reply.choices[0].message.content.startswith(joined[:10]), (joined, reply.choices[0].message.content)


def roles_and_parts_are_accepted():
    reply = chat(messages=[
        {"role": "system", "content": "You answer in English."},
        {"role": "user", "content": [{"type": "text", "text": "Say "}, {"type": "text", "text": "hello."}]},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "And again."},
    ])
    assert reply.choices[0].message.content.strip()


def a_picture_is_refused_and_says_so():
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}]
    try:
        chat(messages=picture)
        raise AssertionError("an image was accepted by a text model")
    except openai.BadRequestError as error:
        assert "image" in error.body["message"], error.response.text


def plain_completions_work():
    reply = client.completions.create(model=model_name(), prompt="The capital of France is", max_tokens=8, temperature=0)
    assert reply.object == "text_completion" and reply.choices[0].text.strip(), reply
    chunks = client.completions.create(model=model_name(), prompt="The capital of France is", max_tokens=8, temperature=0, stream=True)
    assert "".join(c.choices[0].text for c in chunks if c.choices) == reply.choices[0].text


def embedding_model():
    names = [m.id for m in client.models.list().data]
    return next(name for name in names if "MiniLM" in name)


def embeddings_have_meaning():
    texts = ["The cat sleeps on the sofa.", "A kitten is resting on the couch.", "Interest rates rose last quarter."]
    reply = client.embeddings.create(model=embedding_model(), input=texts)
    vectors = [d.embedding for d in reply.data]
    assert [d.index for d in reply.data] == [0, 1, 2] and {len(v) for v in vectors} == {384}
    for vector in vectors:
        assert abs(math.sqrt(sum(x * x for x in vector)) - 1) < 1e-3
    dot = lambda a, b: sum(x * y for x, y in zip(a, b))
    assert dot(vectors[0], vectors[1]) > 0.5 > dot(vectors[0], vectors[2]), (dot(vectors[0], vectors[1]), dot(vectors[0], vectors[2]))
    assert reply.usage.prompt_tokens > 10 and reply.usage.total_tokens == reply.usage.prompt_tokens
    plain = client.embeddings.create(model=embedding_model(), input=texts[0], encoding_format="float").data[0].embedding
    assert max(abs(a - b) for a, b in zip(plain, vectors[0])) < 1e-4, "base64 and float say the same, alone or in a batch"
    expect_error(openai.BadRequestError, "invalid_value", lambda: client.embeddings.create(model=embedding_model(), input=[]))


def a_wrong_key_is_refused():
    for key in ("mr-" + "A" * 43, "nonsense", "mr-"):
        stranger = OpenAI(base_url=BASE + "/v1", api_key=key, max_retries=0)
        expect_error(openai.AuthenticationError, "invalid_api_key", stranger.models.list)


def an_unknown_model_is_named():
    body = expect_error(openai.NotFoundError, "model_not_found", lambda: chat(model="gpt-99"))
    assert "gpt-99" in body["message"], body


def numbers_out_of_range_name_the_parameter():
    for name, value in [
        ("temperature", -0.5), ("temperature", 1e308), ("top_p", 1.5), ("top_p", -1), ("presence_penalty", 9),
        ("frequency_penalty", -9), ("max_tokens", 0), ("max_tokens", -3), ("n", 2), ("n", 0), ("top_logprobs", 99),
    ]:
        changes = {name: value, **({"logprobs": True} if name == "top_logprobs" else {})}
        try:
            chat(**changes)
        except openai.BadRequestError as error:
            assert error.body["param"] == name, f"{name}={value}: {error.response.text}"
            assert name in error.body["message"], error.response.text
        else:
            raise AssertionError(f"{name}={value} was accepted")
    for name, value in [("top_k", -1), ("min_p", 2), ("repetition_penalty", -1), ("repetition_penalty", 1e308)]:
        try:
            chat(extra_body={name: value})
        except openai.BadRequestError as error:
            assert error.body["param"] == name, f"{name}={value}: {error.response.text}"
        else:
            raise AssertionError(f"{name}={value} was accepted")


def a_context_that_is_too_long_is_refused_with_the_numbers():
    long = [{"role": "user", "content": "word " * 9000}]
    body = expect_error(openai.BadRequestError, "context_length_exceeded", lambda: chat(messages=long))
    numbers = [int(n) for n in "".join(c if c.isdigit() else " " for c in body["message"]).split()]
    assert any(n >= 9000 for n in numbers) and any(n in (8192, 8191) or n <= 8192 for n in numbers), body


def a_session_remembers_its_messages():
    session = {"session": "openai-client"}
    first = chat(messages=[{"role": "user", "content": "My name is Wilhelmina."}], extra_body=session)
    second = chat(messages=[{"role": "user", "content": "What is my name?"}], extra_body=session)
    assert second.usage.prompt_tokens > first.usage.prompt_tokens, "the second turn carries the first"
    history = client.get("/sessions/openai-client/messages", cast_to=object)
    text = json.dumps(history)
    assert "Wilhelmina" in text and "What is my name?" in text, text


def many_streams_at_once():
    async def run():
        many = AsyncOpenAI(base_url=BASE + "/v1", api_key=KEY, max_retries=0, timeout=300)
        model = model_name()

        async def one(number):
            messages = [{"role": "user", "content": f"Write about the number {number}."}]
            text = ""
            async for chunk in await many.chat.completions.create(model=model, messages=messages, max_tokens=16, temperature=0, stream=True):
                text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
            return text

        return await asyncio.gather(*[one(i % 8) for i in range(16)])

    texts = asyncio.run(run())
    assert all(text.strip() for text in texts)


def leaving_a_stream_early_frees_the_engine():
    stream = chat(stream=True, max_tokens=2000, extra_body={"ignore_eos": True})
    for number, _ in enumerate(stream):
        if number == 3:
            break
    stream.close()
    assert chat(max_tokens=4).usage.completion_tokens == 4


if __name__ == "__main__":
    checks = [f for name, f in list(globals().items()) if callable(f) and getattr(f, "__module__", "") == "__main__"
              and f.__code__.co_argcount == 0 and name not in ("model_name", "chat", "embedding_model")]
    checks = [f for f in checks if f.__code__.co_flags & 0x0C == 0]
    chosen = [f for f in checks if not ONLY or f.__name__ in ONLY]
    assert chosen, f"no check is called {ONLY}"
    failed = 0
    for check in chosen:
        try:
            check()
            print("ok  ", check.__name__)
        except Exception as error:
            failed += 1
            print("FAIL", check.__name__, type(error).__name__, str(error)[:2000])
    print(f"{len(chosen) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)
