"""generate.py: each way of asking, with a tiny model in place of the loader's; the command line itself in a process."""

import io
import json
import os
import select
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_llama, train_tokenizer

import generate as script
from data import PromptTemplate, Record
from llama.decoding import beam_search, generate
from llama.tokenizer import Tokenizer
from lora import LoraConfig, adapters_disabled, add_lora
from recipe import Inference, ModelOptions

try:
    import fcntl
    import pty
    import termios
except ImportError:  # not a system with pseudo-terminals
    pty = None

ROOT = Path(__file__).resolve().parent.parent
QUESTIONS = ["What is the treatment of asthma?", "What is gout?", "Fever"]


@dataclass
class Terminal(io.StringIO):
    """Standard input that claims to be, or not to be, a terminal."""

    text: str
    tty: bool

    def __post_init__(self) -> None:
        super().__init__(self.text)

    def isatty(self) -> bool:
        return self.tty


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(train_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def inference(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Inference:
    """What the loader would give: a random model with a trained-looking adapter."""
    model = tiny_llama(0, vocab_size=tokenizer.vocab_size, max_seq_len=256)
    generator = torch.Generator().manual_seed(1)
    add_lora(model, LoraConfig(r=4, alpha=8, dropout=0.1, targets=("q_proj", "v_proj")), generator=generator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                parameter.normal_(generator=generator)
    loaded = Inference(model.eval(), tokenizer, PromptTemplate.named("alpaca_short"), "a tiny model")
    monkeypatch.setattr(ModelOptions, "load", lambda _: loaded)
    return loaded


def expected(inference: Inference, question: str, context: str = "", *, seed: int = 0, **options: Any) -> str:
    """The answer by the library alone."""
    ids = inference.tokenizer.encode(inference.template.render(question, context), bos=True)
    generator = torch.Generator().manual_seed(seed)
    options = {"max_new_tokens": 12, "stop_ids": [inference.tokenizer.eos_id], "generator": generator} | options
    new = generate(inference.model, ids, **options)
    return inference.tokenizer.decode(new, continues=True)


def ask(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    script.main(["--max-new-tokens", "12", "--device", "cpu", *arguments])
    return capsys.readouterr().out


def test_one_question(inference: Inference, capsys: pytest.CaptureFixture[str]) -> None:
    out = ask(capsys, QUESTIONS[0], "--input", "The patient wheezes.")
    assert out == expected(inference, QUESTIONS[0], "The patient wheezes.") + "\n"


def test_an_instruction_makes_the_question_the_input(
    inference: Inference, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    answer = expected(inference, "Answer truthfully", QUESTIONS[1])
    assert ask(capsys, QUESTIONS[1], "--instruction", "Answer truthfully") == answer + "\n"
    (tmp_path / "q.txt").write_text(QUESTIONS[1], encoding="utf-8")
    out = ask(capsys, "--prompts", str(tmp_path / "q.txt"), "--instruction", "Answer truthfully")
    assert json.loads(out)["output"] == answer.strip()


def test_sampled_answers_repeat_with_their_seed(inference: Inference, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--temperature", "1.5", "--top-k", "50", "--top-p", "0.95", "--repetition-penalty", "1.2"]
    options = {"temperature": 1.5, "top_k": 50, "top_p": 0.95, "repetition_penalty": 1.2}
    first = ask(capsys, QUESTIONS[0], *flags, "--seed", "5")
    assert (
        first
        == ask(capsys, QUESTIONS[0], *flags, "--seed", "5")
        == expected(inference, QUESTIONS[0], seed=5, **options) + "\n"
    )
    assert first != ask(capsys, QUESTIONS[0], *flags, "--seed", "6")


def test_beams(inference: Inference, capsys: pytest.CaptureFixture[str]) -> None:
    ids = inference.tokenizer.encode(inference.template.render(QUESTIONS[0]), bos=True)
    best = beam_search(inference.model, ids, beams=3, max_new_tokens=12, stop_ids=[2])[0]
    assert ask(capsys, QUESTIONS[0], "--beams", "3") == inference.tokenizer.decode(best.ids, continues=True) + "\n"


def test_stop_strings(inference: Inference, capsys: pytest.CaptureFixture[str]) -> None:
    whole = expected(inference, QUESTIONS[0])
    stop = whole[3:5]
    assert ask(capsys, QUESTIONS[0], "--stop", stop) == whole[: whole.index(stop)] + "\n"


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("batch_size", ["1", "2", "8"])
def test_file_of_lines(
    inference: Inference, capsys: pytest.CaptureFixture[str], tmp_path: Path, batch_size: str, sampled: bool
) -> None:
    (tmp_path / "questions.txt").write_text("\ufeff" + "\n\n".join(QUESTIONS) + "\n", encoding="utf-8")
    flags = ["--temperature", "1.0", "--seed", "7"] if sampled else []
    files = ["--prompts", str(tmp_path / "questions.txt"), "--out", str(tmp_path / "a.jsonl")]
    ask(capsys, *files, "--batch-size", batch_size, *flags)
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows == [
        {
            "instruction": question,
            "input": "",
            "output": expected(inference, question, seed=7 + n, temperature=1.0 if sampled else 0.0).strip(),
        }
        for n, question in enumerate(QUESTIONS)
    ]


def test_file_of_rows_to_standard_output(
    inference: Inference, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = [{"instruction": "What is it?", "input": "Fever, 3 days."}, {"instruction": "Gout?", "output": "ignored"}]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    out = [json.loads(line) for line in ask(capsys, "--prompts", str(tmp_path / "q.jsonl")).splitlines()]
    assert [row["output"] for row in out] == [
        expected(inference, "What is it?", "Fever, 3 days.").strip(),
        expected(inference, "Gout?").strip(),
    ]


def test_a_long_question_does_not_shorten_its_neighbours(
    inference: Inference, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Near the end of the window an answer gets what room there is; the others in its batch get all they asked for."""
    frame = len(inference.tokenizer.encode(inference.template.render("x"), bos=True))
    long = "x" * (256 - frame - 4)
    room = 256 - len(inference.tokenizer.encode(inference.template.render(long), bos=True))
    assert 0 < room < 12
    (tmp_path / "q.txt").write_text(f"{long}\n{QUESTIONS[0]}\n")
    out = [json.loads(line)["output"] for line in ask(capsys, "--prompts", str(tmp_path / "q.txt")).splitlines()]
    assert out == [expected(inference, long, max_new_tokens=room).strip(), expected(inference, QUESTIONS[0]).strip()]


def test_an_overlong_question_of_a_file_is_named_before_any_answer(
    inference: Inference, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "q.txt").write_text("\n".join([QUESTIONS[0], "x" * 300, QUESTIONS[1]]), encoding="utf-8")
    with pytest.raises(SystemExit, match=r"q\.txt: question 2 has \d+ tokens .* window of 256: shorten it"):
        ask(capsys, "--prompts", str(tmp_path / "q.txt"))
    assert capsys.readouterr().out == ""


def test_piped_lines(inference: Inference, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal("\n\n".join(QUESTIONS), tty=False))
    assert ask(capsys) == "".join(expected(inference, question) + "\n" for question in QUESTIONS)


def test_piped_lines_of_one_conversation(
    inference: Inference, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """--chat: the second line is asked after the first and its answer, and commands are obeyed."""
    monkeypatch.setattr(sys, "stdin", Terminal(f"{QUESTIONS[1]}\n{QUESTIONS[2]}\n/reset\n{QUESTIONS[2]}\n", tty=False))
    first, alone = expected(inference, QUESTIONS[1]), expected(inference, QUESTIONS[2])
    told = f"{QUESTIONS[1]}\n\n### Response:\n{first.strip()}\n\n### Instruction:\n{QUESTIONS[2]}"
    second = expected(inference, told)
    assert second != alone
    assert ask(capsys, "--chat") == f"{first}\n{second}\n{alone}\n"


def test_piped_bytes_that_are_no_text_are_named(inference: Inference, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8"))
    with pytest.raises(SystemExit, match=r"error: .*lone surrogate U\+DCE9"):
        script.main([])


def test_chat(inference: Inference, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With --single-turn every question alone; an error or Ctrl-C ends the answer and not the chat."""
    typed = iter([QUESTIONS[0], "  ", "x" * 300, KeyboardInterrupt(), QUESTIONS[1], EOFError()])

    def type_next(_: str) -> str:
        item = next(typed)
        if isinstance(item, BaseException):
            raise item
        return item

    monkeypatch.setattr(sys, "stdin", Terminal("", tty=True))
    monkeypatch.setattr("builtins.input", type_next)
    script.main(["--max-new-tokens", "12", "--single-turn"])
    captured = capsys.readouterr()
    answers = [expected(inference, question) + "\n" for question in QUESTIONS[:2]]
    assert captured.out == "".join(answers)
    assert "window of 256: shorten it" in captured.err.replace("\n", " ")


def test_a_chats_settings_reach_the_answer(
    inference: Inference, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """/set changes the draws; the n-th question takes seed + n."""
    lines = ["/set temperature 1.5", "/set top-k 50", *QUESTIONS[:2], "/set max_new_tokens 0"]
    monkeypatch.setattr(sys, "stdin", Terminal("\n".join(lines), tty=False))
    with pytest.raises(SystemExit, match="error: max_new_tokens = 0 must be at least 1"):
        ask(capsys, "--chat", "--single-turn", "--seed", "3")
    drawn = [expected(inference, QUESTIONS[n], seed=3 + n, temperature=1.5, top_k=50) for n in range(2)]
    assert capsys.readouterr().out == f"{drawn[0]}\n{drawn[1]}\n"


@pytest.mark.parametrize(
    ("setting", "message"),
    [("temperature -1", "temperature = -1.0"), ("top_k 5", "give --temperature"), ("beams 0", "at least 1")],
)
def test_a_setting_that_cannot_be_is_refused_when_it_is_made(
    inference: Inference,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    setting: str,
    message: str,
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(f"/set {setting}\n{QUESTIONS[0]}\n", tty=False))
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        ask(capsys, "--chat")
    assert capsys.readouterr().out == ""


def test_statistics_go_to_standard_error(inference: Inference, capsys: pytest.CaptureFixture[str]) -> None:
    script.main([QUESTIONS[0], "--max-new-tokens", "12"])
    captured = capsys.readouterr()
    assert "window tokens" not in captured.out
    prompt = len(inference.tokenizer.encode(inference.template.render(QUESTIONS[0]), bos=True))
    assert "12 tokens, " in captured.err
    assert f" s, {prompt + 12} of 256 window tokens\n" in captured.err


def test_the_templates_next_question_ends_an_answer(
    inference: Inference, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    invented = inference.tokenizer.encode("\nIt is.\n### Instruction:\nWhat?")[2:]  # without the dummy prefix and \n
    monkeypatch.setattr(script, "generate", lambda *_, **__: iter(invented))
    monkeypatch.setattr(script, "generate_many", lambda _, prompts, **__: enumerate([invented] * len(prompts)))
    assert ask(capsys, QUESTIONS[0], "--stop") == "It is.\n"
    (tmp_path / "q.txt").write_text(QUESTIONS[0])
    assert json.loads(ask(capsys, "--prompts", str(tmp_path / "q.txt"), "--stop"))["output"] == "It is."


def test_who_stops_reading_gets_no_complaint(
    inference: Inference, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under `| head -1`: no traceback, no error, a shell's status for it."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as broken:
        monkeypatch.setattr(sys, "stdout", broken)
        with pytest.raises(SystemExit) as exit_info:
            script.main([QUESTIONS[0], "--max-new-tokens", "12"])
        broken.flush()  # as the interpreter does in the end
    assert exit_info.value.code == 141
    assert "error" not in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--chat"]])
def test_ctrl_c_ends_what_nobody_types(
    inference: Inference, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> Iterator[int]:
        yield 70
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "generate", interrupted)
    monkeypatch.setattr(sys, "stdin", Terminal(QUESTIONS[0], tty=False))
    with pytest.raises(SystemExit) as exit_info:
        script.main(arguments)
    assert exit_info.value.code == 130


ORIGIN = [
    "python generate.py --base DIR --int8 --template context_question "
    '--input "Diabetes is a metabolic disease that causes high blood sugar. The symptoms include increased thirst, '
    'frequent urination, and unexplained weight loss." "What are the symptoms of diabetes?"',
    'python generate.py --base DIR --int8 --template context_question "How to cure COVID-19?"',
]


@pytest.mark.parametrize("command", ORIGIN)
def test_the_two_questions_this_project_began_with(capsys: pytest.CaptureFixture[str], command: str) -> None:
    """With the miniature for DIR."""
    assert command in (ROOT / "README.md").read_text(encoding="utf-8")
    _, _, *arguments = shlex.split(command.replace("DIR", "miniature"))
    script.main([*arguments, "--device", "cpu", "--max-new-tokens", "4"])
    captured = capsys.readouterr()
    assert captured.out.strip()
    assert "int8 by" in captured.err
    assert "template context_question (as asked)" in captured.err


def test_streams_as_it_generates(inference: Inference, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    inference.model.norm.register_forward_hook(lambda *_: calls.append(1))
    pieces = script.answer(inference, script.Options(max_new_tokens=12), Record(QUESTIONS[0], "", ""))
    next(pieces)
    assert len(calls) < 12


def test_side_by_side(inference: Inference, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("\n".join(QUESTIONS))
    arguments = ["--adapter", "adapter", "--side-by-side"]
    rows = [json.loads(x) for x in ask(capsys, *arguments, "--prompts", str(tmp_path / "q.txt")).splitlines()]
    for question, row in zip(QUESTIONS, rows, strict=True):
        tuned = expected(inference, question).strip()
        with adapters_disabled(inference.model):
            base = expected(inference, question).strip()
        assert (row["output"], row["base_output"]) == (tuned, base)
        assert tuned != base
    table = ask(capsys, *arguments, QUESTIONS[1])
    assert table.index(QUESTIONS[1]) < table.index("base") < table.index("with adapter")
    words = [row["output"].split()[0] for row in rows[1:2]] + [row["base_output"].split()[0] for row in rows[1:2]]
    assert all(word[:8] in table for word in words)


def test_demo_questions(inference: Inference, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a question, side by side asks the bundled three."""
    out = ask(capsys, "--adapter", "adapter", "--side-by-side")
    assert out.count("with adapter") == 3


def test_trailing_space_of_a_prompt_is_left_to_the_answer(inference: Inference, tokenizer: Tokenizer) -> None:
    template = PromptTemplate.named("context_question")
    asked = Inference(inference.model, tokenizer, template, "")
    whole = tokenizer.encode(template.render("What is gout?") + "It is", bos=True)
    ids = script.encode_prompt(asked, Record("What is gout?", "", ""))
    assert ids == whole[: len(ids)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a question", "--prompts", "questions.txt"], "give a question or --prompts, not both"),
        (["--side-by-side"], "give --adapter"),
        (["a question", "--out", "x.jsonl"], "give --prompts"),
        (["a question", "--instruction", "Answer", "--input", "context"], "drop --input"),
        (["a question", "--top-k", "5"], "give --temperature"),
        (["a question", "--beams", "2", "--temperature", "1"], "drop --temperature"),
        (["a question", "--beams", "2", "--repetition-penalty", "1.1"], "drop --repetition-penalty"),
        (["a question", "--beams", "0"], "must be at least 1"),
        (["a question", "--chat"], "need a chat: drop the question"),
        (["--single-turn", "--prompts", "questions.txt"], "need a chat: drop the question"),
    ],
)
def test_contradictions_are_refused(
    inference: Inference, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        script.main(arguments)
    assert exit_info.value.code not in (0, None)
    words = capsys.readouterr().err.replace("│", " ").split()  # as tyro wraps it into its box
    assert message in " ".join(words)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a question", "--max-new-tokens", "0"], "at least 1"),
        (["a question", "--temperature", "-1"], "temperature = -1.0"),
        (["x" * 300], "window of 256: shorten it"),
    ],
)
def test_errors_are_one_line(inference: Inference, arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        script.main(arguments)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.txt", b"\n \n", "holds no questions: write one per line"),
        ("q.txt", b"caf\xe9", "line 1.*not UTF-8"),
        ("q.jsonl", b'{"instruction": "a"}\n{"input": "b"}', "line 2.*instruction"),
        ("q.jsonl", b'{"instruction": "a"', "line 1.*not valid JSON"),
        ("missing.txt", None, "missing.txt"),
    ],
)
def test_bad_files_are_named_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    def load(_: ModelOptions) -> None:
        raise AssertionError("loaded a model before reading the questions")

    monkeypatch.setattr(ModelOptions, "load", load)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        script.main(["--prompts", str(tmp_path / name)])


def run_script(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "generate.py"), *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)


def test_help_teaches() -> None:
    done = run_script("--help")
    assert done.returncode == 0, done.stderr
    for word in ("--prompts questions.txt", "--side-by-side", "MedAlpaca", "miniature", "alpaca"):
        assert word in done.stdout


@contextmanager
def typist(*arguments: str) -> Iterator[tuple[Callable[[str], object], Callable[..., str]]]:
    """The script at a terminal: what types, and what waits for a text and gives all that was shown up to it."""
    ours, its = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "generate.py"), *arguments],
        stdin=its,
        stdout=its,
        stderr=its,
        cwd=ROOT,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # or Ctrl-C would be a character like others
    )
    os.close(its)
    shown = b""

    def keys(text: str) -> None:
        os.write(ours, text.encode())

    def wait(text: str, nudge: str = "") -> str:
        """What was shown before the text. `nudge` is typed whenever nothing comes for two seconds."""
        nonlocal shown
        deadline = time.monotonic() + 120
        while text.encode() not in shown:
            ready, _, _ = select.select([ours], [], [], 2.0)
            if ready:
                shown += os.read(ours, 4096)
            elif time.monotonic() < deadline:
                keys(nudge)
            else:
                raise AssertionError(f"no {text!r} in {shown.decode(errors='replace')!r}")
        before, _, shown = shown.partition(text.encode())
        return before.decode(errors="replace")

    try:
        yield keys, wait
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@pytest.mark.skipif(pty is None, reason="needs pseudo-terminals")
def test_at_a_terminal() -> None:
    """Ctrl-C stops an answer and keeps its beginning; a pasted paragraph is one question; Ctrl-D ends the chat."""
    with typist("--device", "cpu", "--temperature", "5", "--max-new-tokens", "240") as (keys, wait):
        wait("> ")
        # At this temperature an answer is some 200 tokens long; on a busy machine it may still be over before the key.
        for _ in range(20):
            keys("What is gout?\r")
            wait("gout?\r\n")
            wait(" ")
            keys("\x03")
            if "stopped: " in wait(" of 256 window tokens"):
                break
            wait("> ")
        else:
            raise AssertionError("Ctrl-C never stopped an answer")
        wait("> ")
        keys("/reset\r")
        wait("All turns are forgotten.")
        wait("> ")
        keys("\x1b[200~What is\ngout?\x1b[201~\r")
        wait(" of 256 window tokens")
        wait("> ")
        keys("/history\r")
        wait("history is on, 1 turn held")
        wait("> ")
        keys("\x03")
        # Python loses sight of a signal that comes just before readline waits for a key, until there is one.
        wait("Ctrl-C again, or Ctrl-D, ends the chat.", nudge="\r")
        wait("> ")
        keys("\x04")


def test_real_model_from_a_pipe(real_data: Path) -> None:
    """The whole script on a real checkpoint: answers on standard output, everything else on standard error."""
    done = run_script(
        "--base", str(real_data / "stories260K"), "--max-new-tokens", "20", stdin="Tell a story.\nAgain!\n"
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 2
    assert "stories260K" in done.stderr
