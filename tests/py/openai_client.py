"""The official OpenAI client against Millrace. Each function is one promise; all run in turn.

    openai_client.py BASE_URL API_KEY [NAME ...]
"""
import asyncio
import json
import math
import re
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


def several_answers_to_one_question():
    question = dict(temperature=1.0, seed=7, max_tokens=16)
    one = chat(**question).choices[0].message.content
    reply = chat(n=4, **question)
    texts = [choice.message.content for choice in reply.choices]
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3] and len(set(texts)) > 1, texts
    assert texts[0] == one, "the first answer is the one without n"
    assert texts[1] == chat(**{**question, "seed": 8}).choices[0].message.content, "the next has the next seed"
    alone = chat(**question).usage
    assert reply.usage.prompt_tokens == alone.prompt_tokens, "the prompt is read once"
    assert reply.usage.completion_tokens == 4 * 16 and reply.usage.total_tokens == alone.prompt_tokens + 64, reply.usage
    streamed, ends = [""] * 4, []
    for chunk in chat(n=4, stream=True, stream_options={"include_usage": True}, **question):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
            ends += [choice.index] if choice.finish_reason else []
        last = chunk
    assert streamed == texts and sorted(ends) == [0, 1, 2, 3], (streamed, texts, ends)
    assert last.usage.completion_tokens == 64 and last.usage.prompt_tokens == alone.prompt_tokens, last
    plain = client.completions.create(model=model_name(), prompt="Once upon a time", n=3, best_of=3, echo=True, **question)
    assert [choice.index for choice in plain.choices] == [0, 1, 2] and plain.usage.completion_tokens == 48, plain
    assert all(choice.text.startswith("Once upon a time") for choice in plain.choices), plain
    assert len({choice.text for choice in plain.choices}) > 1, plain
    both = chat(n=2, temperature=1.0, seed=3, max_tokens=200, response_format=json_schema(CITY), messages=CITY_QUESTION)
    for choice in both.choices:
        check_city(choice.message.content)
    called = chat(n=2, messages=ASK_WEATHER, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False, max_tokens=200)
    ids = [choice.message.tool_calls[0].id for choice in called.choices]
    assert len(set(ids)) == 2 and all(choice.finish_reason == "tool_calls" for choice in called.choices), called


def more_answers_than_are_given_back_are_refused():
    for param, code, changes in [
        ("n", "invalid_value", {"n": 0}), ("n", "invalid_value", {"n": 33}),
        ("n", "unsupported_parameter", {"n": 2, "extra_body": {"session": "several"}}),
        ("best_of", "unsupported_parameter", {"extra_body": {"best_of": 4}}),
    ]:
        body = expect_error(openai.BadRequestError, code, lambda: chat(**changes))
        assert body["param"] == param, body
    ask = lambda: client.completions.create(model=model_name(), prompt="Once", max_tokens=4, n=2, best_of=4)
    assert "n answers" in expect_error(openai.BadRequestError, "unsupported_parameter", ask)["next_step"]


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
    cut = client.embeddings.create(model=embedding_model(), input=texts, dimensions=96)
    for short, whole in zip(cut.data, vectors):
        length = math.sqrt(sum(x * x for x in whole[:96]))
        assert len(short.embedding) == 96 and abs(math.sqrt(sum(x * x for x in short.embedding)) - 1) < 1e-3
        assert max(abs(a - b / length) for a, b in zip(short.embedding, whole)) < 1e-4, "the first components, of length 1 again"
    for dimensions in (0, 385):
        wrong = lambda: client.embeddings.create(model=embedding_model(), input=texts[0], dimensions=dimensions)
        assert expect_error(openai.BadRequestError, "invalid_value", wrong)["param"] == "dimensions"
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
        ("frequency_penalty", -9), ("max_tokens", 0), ("max_tokens", -3), ("n", 40), ("n", 0), ("top_logprobs", 99),
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


CITY = {"type": "object", "additionalProperties": False, "required": ["name", "country", "rivers", "population"], "properties": {
    "name": {"type": "string", "maxLength": 30}, "country": {"enum": ["France", "Spain", "Italy"]},
    "rivers": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 3},
    "population": {"type": "integer", "minimum": 0, "maximum": 20000000}}}
CITY_QUESTION = [{"role": "user", "content": "Describe the city of Paris as JSON."}]


def check_city(text):
    city = json.loads(text)
    assert set(city) == set(CITY["required"]), city
    assert isinstance(city["name"], str) and len(city["name"]) <= 30, city
    assert city["country"] in ("France", "Spain", "Italy"), city
    assert isinstance(city["rivers"], list) and len(city["rivers"]) <= 3 and all(len(r) <= 20 for r in city["rivers"]), city
    assert type(city["population"]) is int and 0 <= city["population"] <= 20_000_000, city


def json_schema(schema, name="city"):
    return {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": schema}}


def an_answer_follows_its_schema():
    for changes in ({}, {"temperature": 1.5, "seed": 3}, {"temperature": 1.0, "seed": 4, "top_p": 0.8, "presence_penalty": 0.5}):
        reply = chat(messages=CITY_QUESTION, max_tokens=300, response_format=json_schema(CITY), **changes)
        assert reply.choices[0].finish_reason == "stop", reply
        check_city(reply.choices[0].message.content)
    one, two = (chat(messages=CITY_QUESTION, max_tokens=300, response_format=json_schema(CITY)).choices[0].message.content for _ in range(2))
    assert one == two, "greedy answers under a schema repeat"
    chunks = chat(messages=CITY_QUESTION, max_tokens=300, response_format=json_schema(CITY), stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == one, "the stream is the same text"


def a_pydantic_model_is_parsed():
    import pydantic

    class Step(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="forbid")
        title: str = pydantic.Field(max_length=20)
        minutes: int = pydantic.Field(ge=0, le=99)

    class Plan(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="forbid")
        first: Step
        others: list[Step] = pydantic.Field(max_length=2)

    reply = client.chat.completions.parse(
        model=model_name(), messages=[{"role": "user", "content": "Plan my morning."}], max_tokens=400, temperature=0, response_format=Plan)
    plan = reply.choices[0].message.parsed
    assert isinstance(plan, Plan) and len(plan.others) <= 2, reply


def other_formats_are_followed():
    reply = chat(messages=CITY_QUESTION, max_tokens=400, response_format={"type": "json_object"})
    assert reply.choices[0].finish_reason == "length" or isinstance(json.loads(reply.choices[0].message.content), dict), reply
    for expression, body in [
        ("north|south", {"guided_choice": ["north", "south"]}),
        ("north|south", {"structured_outputs": {"choice": ["north", "south"]}}),
        (r"[0-9]{3}-[a-f]{2}", {"guided_regex": "[0-9]{3}-[a-f]{2}"}),
        (r"(ha ){1,4}ha!", {"guided_grammar": 'start: "ha " laugh{0,3} "ha!"\nlaugh: "ha "'}),
    ]:
        text = chat(temperature=1.0, seed=5, max_tokens=40, extra_body=body).choices[0].message.content
        assert re.fullmatch(expression, text), (body, text)
    check_city(chat(messages=CITY_QUESTION, max_tokens=300, extra_body={"guided_json": CITY}).choices[0].message.content)
    plain = client.completions.create(model=model_name(), prompt="A number:", max_tokens=20, extra_body={"guided_regex": "[0-9]{4}"})
    assert re.fullmatch("[0-9]{4}", plain.choices[0].text), plain


def formats_that_cannot_be_followed_are_refused():
    def refused(param, code="invalid_constraint", **changes):
        body = expect_error(openai.BadRequestError, code, lambda: chat(**changes))
        assert body["param"] == param, body
        return body["message"]

    deep = {"type": "string"}
    for _ in range(110):
        deep = {"type": "array", "items": deep}
    two = {"anyOf": [{"type": "string"}, {"type": "number"}]}
    assert "deep" in refused("response_format", response_format=json_schema(deep))
    assert "cases" in refused("response_format", response_format=json_schema({"allOf": [two] * 40}))
    refused("response_format", response_format=json_schema({"type": "spaceship"}))
    refused("response_format", response_format=json_schema({"type": "string", "minLength": 3, "maxLength": 1}))
    refused("guided_regex", extra_body={"guided_regex": "a("})
    refused("guided_regex", extra_body={"guided_regex": "(" * 2000 + ")" * 2000})
    refused("guided_grammar", extra_body={"guided_grammar": "start: nowhere"})
    refused("guided_grammar", "unsupported_parameter", extra_body={"guided_grammar": 'root ::= "a"'})
    refused("response_format", "unsupported_parameter", response_format={"type": "structural_tag"})
    refused("ignore_eos", "invalid_value", response_format={"type": "json_object"}, extra_body={"ignore_eos": True})
    refused("response_format", "unsupported_parameter", response_format=json_schema(CITY), extra_body={"session": "structured"})
    assert chat(max_tokens=4).usage.completion_tokens == 4, "the engine answers as before"


WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "The weather of a city.", "parameters": {
    "type": "object", "additionalProperties": False, "required": ["city", "unit"],
    "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"$ref": "#/$defs/unit"}}, "$defs": {"unit": {"enum": ["celsius", "fahrenheit"]}}}}}
TIME = {"type": "function", "function": {"name": "get_time", "parameters": {
    "type": "object", "additionalProperties": False, "required": ["zone"], "properties": {"zone": {"type": "string", "maxLength": 20}}}}}
ASK_WEATHER = [{"role": "user", "content": "What is the weather in Paris, in celsius?"}]


def check_call(call, names=("get_weather", "get_time")):
    arguments = json.loads(call.function.arguments)
    assert call.id and call.type == "function" and call.function.name in names, call
    wanted = {"city", "unit"} if call.function.name == "get_weather" else {"zone"}
    assert set(arguments) == wanted and arguments.get("unit", "celsius") in ("celsius", "fahrenheit"), call


def a_demanded_tool_is_called():
    for choice, names in (("required", ("get_weather", "get_time")), ({"type": "function", "function": {"name": "get_time"}}, ("get_time",))):
        for changes in ({}, {"temperature": 1.2, "seed": 2}):
            reply = chat(messages=ASK_WEATHER, tools=[WEATHER, TIME], tool_choice=choice, max_tokens=500, **changes)
            message = reply.choices[0].message
            assert reply.choices[0].finish_reason == "tool_calls" and message.tool_calls and not message.content, reply
            for call in message.tool_calls:
                check_call(call, names)
            assert len({call.id for call in message.tool_calls}) == len(message.tool_calls)
    single = chat(messages=ASK_WEATHER, tools=[WEATHER, TIME], tool_choice="required", parallel_tool_calls=False, max_tokens=200)
    assert len(single.choices[0].message.tool_calls) == 1, single


def streamed_calls_are_assembled():
    calls, reasons = {}, []
    for chunk in chat(messages=ASK_WEATHER, tools=[WEATHER, TIME], tool_choice="required", max_tokens=500, stream=True):
        for choice in chunk.choices:
            assert not choice.delta.content, "a demanded call brings no text"
            reasons += [choice.finish_reason] if choice.finish_reason else []
            for delta in choice.delta.tool_calls or []:
                call = calls.setdefault(delta.index, {"id": "", "name": "", "arguments": ""})
                call["id"] += delta.id or ""
                call["name"] += delta.function.name or ""
                call["arguments"] += delta.function.arguments or ""
    assert reasons == ["tool_calls"] and sorted(calls) == list(range(len(calls))) and calls, (reasons, calls)
    whole = chat(messages=ASK_WEATHER, tools=[WEATHER, TIME], tool_choice="required", max_tokens=500).choices[0].message.tool_calls
    assert [(c.function.name, c.function.arguments) for c in whole] == [(c["name"], c["arguments"]) for _, c in sorted(calls.items())]
    with client.chat.completions.stream(model=model_name(), messages=ASK_WEATHER, tools=[WEATHER], tool_choice="required", max_tokens=500, temperature=0) as stream:
        final = stream.get_final_completion()
    check_call(final.choices[0].message.tool_calls[0])


def the_result_of_a_tool_goes_back():
    first = chat(messages=ASK_WEATHER, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False, max_tokens=200)
    call = first.choices[0].message.tool_calls[0]
    messages = [*ASK_WEATHER, first.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "It is 18 degrees and sunny."}]
    reply = chat(messages=messages, tools=[WEATHER], tool_choice="none", max_tokens=60)
    assert reply.choices[0].message.content.strip() and not reply.choices[0].message.tool_calls, reply
    assert reply.choices[0].finish_reason in ("stop", "length")
    auto = chat(messages=messages, tools=[WEATHER], max_tokens=60)
    assert auto.usage.prompt_tokens > reply.usage.prompt_tokens, "with tools the prompt describes them"
    wrong = [*messages[:2], {**messages[2], "tool_call_id": "call_unknown"}]
    body = expect_error(openai.BadRequestError, "invalid_value", lambda: chat(messages=wrong, tools=[WEATHER]))
    assert body["param"] == "messages.2.tool_call_id", body


def wrong_tools_are_refused():
    for param, code, changes in [
        ("tool_choice", "invalid_value", {"tool_choice": "required"}),
        ("tool_choice", "invalid_value", {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "missing"}}}),
        ("tools", "invalid_value", {"tools": [WEATHER, WEATHER]}),
        ("tools", "unsupported_parameter", {"tools": [{"type": "custom", "custom": {"name": "x"}}]}),
        ("tools", "unsupported_parameter", {"tools": [WEATHER], "extra_body": {"session": "tools"}}),
        ("response_format", "unsupported_parameter", {"tools": [WEATHER], "response_format": json_schema(CITY)}),
        ("functions", "unsupported_parameter", {"extra_body": {"functions": [WEATHER["function"]]}}),
    ]:
        body = expect_error(openai.BadRequestError, code, lambda: chat(**changes))
        assert body["param"] == param, body
    broken = {"type": "function", "function": {"name": "broken", "parameters": {"type": "spaceship"}}}
    body = expect_error(openai.BadRequestError, "invalid_constraint", lambda: chat(tools=[broken], tool_choice="required"))
    assert body["param"] == "tools", body


def hostile_formats_hold_nobody_up():
    """While expressions are worked on that expand without end, ordinary chats go on as ever."""
    async def run():
        many = AsyncOpenAI(base_url=BASE + "/v1", api_key=KEY, max_retries=0, timeout=120)
        model = model_name()
        ask = lambda **more: many.chat.completions.create(model=model, messages=MESSAGES, max_tokens=24, temperature=0, **more)
        hostile = [f"(((x{number}{{1,900}}){{1,900}}){{1,900}}){{1,900}}y" for number in range(8)]
        answers = await asyncio.gather(ask(), *[ask(extra_body={"guided_regex": regex}) for regex in hostile], ask(), return_exceptions=True)
        return answers[0], answers[1:-1], answers[-1]

    before, bound, after = asyncio.run(run())
    assert before.choices[0].message.content == after.choices[0].message.content == chat().choices[0].message.content
    for answer in bound:
        if isinstance(answer, openai.APIStatusError):
            assert answer.body["code"] in ("invalid_constraint", "overloaded"), answer
        else:
            assert set(answer.choices[0].message.content) <= set("x01234567y"), answer


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
