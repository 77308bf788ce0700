import http.client
import json
import socket
import struct
from concurrent.futures import ThreadPoolExecutor

import pytest

from helpers.evaluation import generate, load_tuned
from helpers.settings import EvaluationSettings, SettingsError
from helpers.sharing.demo import DemoServer
from tests.command_line import call
from tests.sharing.serving import serving

REQUEST = {"prompt": "The fox", "temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0, "seed": 3}


@pytest.fixture
def demo(run):
    with serving(run) as server:
        yield server


def ask(demo, method, path, *, body=None, headers=()):
    connection = http.client.HTTPConnection("127.0.0.1", demo.port, timeout=30)
    connection.request(method, path, body=body, headers=dict(headers))
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer, text


def post(demo, values, **headers):
    body = values if isinstance(values, str) else json.dumps(values)
    token = demo.address.partition("token=")[2]
    return ask(demo, "POST", "/continue", body=body, headers={"X-Token": token} | headers)


def test_events_contain_the_text_so_far_and_the_last_one_matches_generate(demo, run):
    answer, text = post(demo, REQUEST | {"max_new_tokens": 12})
    events = [json.loads(event.removeprefix("data: ")) for event in text.split("\n\n") if event]
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    texts = {name: [event["text"] for event in events if event["model"] == name] for name in ("base", "tuned")}
    settings = EvaluationSettings(run=run, num_return_sequences=1, max_new_tokens=12, **{
        name: value for name, value in REQUEST.items() if name != "prompt"
    })  # fmt: skip
    ((sample,),) = generate(*load_tuned(run), [REQUEST["prompt"]], settings)
    assert texts["tuned"][-1] == sample.continuation.rstrip("\ufffd")
    assert len(texts["base"]) > 1


def test_two_concurrent_visitors_keep_one_model_at_a_time_on_the_gpu(demo, fake_card):
    values = REQUEST | {"max_new_tokens": 12}
    with ThreadPoolExecutor() as pool:
        (_, first), (_, second) = pool.map(lambda _: post(demo, values), range(2))
    assert first == second
    assert (fake_card.n_visits, fake_card.most, fake_card.present) == (4, 1, set())


def test_the_page_shows_the_model_card_and_blocks_external_content(demo):
    answer, page = ask(demo, "GET", demo.address.partition(str(demo.port))[2])
    assert "Not evaluated yet." in page
    assert "default-src 'none'" in page
    assert dict(answer.headers) | {
        "Content-Type": "text/html; charset=utf-8", "Cache-Control": "no-store", "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY",
    } == dict(answer.headers)  # fmt: skip


@pytest.mark.parametrize("path", ["/", "/?token=wrong", "/?token=%F0%9F%A6%8A"])
def test_the_page_is_refused_without_its_token(demo, path):
    answer, text = ask(demo, "GET", path)
    assert answer.status == 403
    assert "ends in a token" in text


def test_a_wrong_host_token_or_path_is_refused(demo):
    assert post(demo, REQUEST, Host="evil.example")[0].status == 403
    assert post(demo, REQUEST, **{"X-Token": "wrong"})[0].status == 403
    assert ask(demo, "GET", demo.address.partition(str(demo.port))[2].replace("/", "/x"))[0].status == 404


def test_on_port_80_the_host_header_may_omit_the_port(demo):
    token = demo.address.partition("token=")[2]
    assert not demo.is_allowed("127.0.0.1", token)
    demo.port = 80
    assert demo.is_allowed("127.0.0.1", token) and demo.is_allowed("localhost:80", token)
    assert not demo.is_allowed("evil.example", token)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"temperature": 0}, "temperature = 0 is not allowed: it must be a number, above 0"),
        ({"prompt": "fox " * 90, "max_new_tokens": 5}, "together at most 64, the model's positions"),
        ("[1]", "not a JSON object with settings"),
        ("{", "not a JSON object with settings"),
        ("[" * 50_000, "not a JSON object with settings"),
    ],
)
def test_a_bad_request_is_explained_and_the_server_continues(demo, values, words):
    answer, text = post(demo, values)
    assert answer.status == 400
    assert words in text
    assert post(demo, REQUEST | {"max_new_tokens": 1})[0].status == 200


def test_an_error_during_generation_is_sent_and_the_server_continues(demo, monkeypatch):
    def overflow(*_):
        raise RuntimeError("probability tensor contains inf\nand more")
        yield

    with monkeypatch.context() as patch:
        patch.setattr("helpers.sharing.demo.sample_tokens", overflow)
        _, text = post(demo, REQUEST | {"max_new_tokens": 1})
    error = "The model could not continue the text: probability tensor contains inf."
    assert json.loads(text.removeprefix("data: ")) == {"error": error}
    assert '"model": "tuned"' in post(demo, REQUEST | {"max_new_tokens": 1})[1]


def test_closing_the_page_ends_a_generation(demo):
    events = demo.start(REQUEST | {"max_new_tokens": 50})
    next(events)
    demo.close()
    assert list(events) == []


def test_a_lone_surrogate_in_a_prompt_becomes_the_replacement_character(demo):
    values = REQUEST | {"max_new_tokens": 4}
    halves = json.dumps(values | {"prompt": "fox \ud83d"})
    answer, text = post(demo, halves)
    assert (answer.status, text) == (200, post(demo, values | {"prompt": "fox \ufffd"})[1])


@pytest.mark.parametrize("is_early", [False, True])
def test_a_dropped_connection_does_not_stop_the_server_and_prints_nothing(demo, capsys, is_early):
    connection = http.client.HTTPConnection("127.0.0.1", demo.port)
    headers = {"X-Token": demo.address.partition("token=")[2]} | ({"Content-Length": "999"} if is_early else {})
    connection.request("POST", "/continue", json.dumps(REQUEST | {"max_new_tokens": 50}), headers)
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not an end
    connection.sock.close()
    assert post(demo, REQUEST | {"max_new_tokens": 1})[0].status == 200
    assert capsys.readouterr().err == ""


def test_an_invalid_address_is_refused_and_prints_nothing(demo, capsys):
    assert ask(demo, "GET", "HTTP://[/")[0].status == 403
    assert capsys.readouterr().err == ""


def test_a_port_in_use_is_refused_with_advice(demo, run):
    with pytest.raises(SettingsError, match=f"Port {demo.port} cannot be used .*: .*--port 0 takes a free one"):
        DemoServer(run, port=demo.port)


def test_without_its_base_model_only_the_tuned_model_is_shown(run, runs):
    path = runs / "tiny/settings.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["settings"]["model_name_or_path"] = "nobody/nothing"
    path.write_text(json.dumps(content))
    server = DemoServer(run)
    assert "Only the tuned model is shown, because the base model is missing" in server.note
    assert 'data-model="base"' not in server.page()
    server._server.server_close()


def test_an_unfinished_run_is_refused(run, runs):
    (runs / "tiny/model").rename(runs / "tiny/gone")
    with pytest.raises(SettingsError, match="no final model yet"):
        DemoServer(run)


def test_a_model_that_does_not_fit_its_tokenizer_is_refused(run, runs):
    path = runs / "tiny/model/config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"eos_token_id": 5}))
    with pytest.raises(SettingsError, match="ends a text with token 5 and the tokenizer with 4095"):
        DemoServer(run)


def test_ctrl_c_closes_the_page(run, monkeypatch):
    def interrupt(self, poll_interval):
        raise KeyboardInterrupt

    monkeypatch.setattr("http.server.ThreadingHTTPServer.serve_forever", interrupt)
    result = call("demo", run, "--port", "0")
    assert result.exit_code == 0
    assert "http://127.0.0.1:" in result.output
    assert result.output.endswith("\nClosed.\n")
