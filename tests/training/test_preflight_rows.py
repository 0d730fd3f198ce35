"""Preflight, the rows: every fault of tokenizer, template, mask or ends is named before anything is trained."""

import json
from dataclasses import replace

import pytest
from preflight_run import ROWS, PreparedRun, make_base, prepare, tiny_config, write_rows
from tiny_models import train_tokenizer

from data import Example, PromptTemplate
from llama import Tokenizer
from recipe import RunPlan
from training.preflight_rows import check_cuts, check_ends, check_ids, check_targets, check_template, check_tokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def run(base, tmp_path) -> PreparedRun:
    return prepare(tiny_config(base, tmp_path))


def with_rows(run: PreparedRun, change) -> PreparedRun:
    """The run with every training example changed."""
    run.data = replace(run.data, train=[change(example) for example in run.data.train])
    return run


# --- The tokenizer ---


def test_a_tokenizer_larger_than_the_embedding_is_refused_with_both_numbers(run):
    with pytest.raises(ValueError, match="the tokenizer has 330 pieces, the embedding 300 rows"):
        check_tokenizer(run.config, run.data, run.tokenizer, 300)


@pytest.mark.parametrize("eos_id", [1, 0, -1, 330])
def test_control_ids_that_are_the_same_or_outside_are_refused(run, eos_id):
    run.tokenizer.eos_id = eos_id
    with pytest.raises(ValueError, match=rf"preflight, tokenizer: control ids .*'eos': {eos_id},"):
        run.preflight()


def test_a_model_without_bos_is_fine_where_none_is_added(base, tmp_path):
    tokenizer = Tokenizer(train_tokenizer(tmp_path, bos_id=-1, eos_id=1))
    run = prepare(tiny_config(base, tmp_path, add_bos=False), tokenizer=tokenizer)
    assert run.warnings() == []


def test_a_tokenizer_that_loses_a_character_is_refused(run):
    class Careless(Tokenizer):
        def decode(self, ids, **options):
            return super().decode(ids, **options).replace("?", "")

    careless = Careless(run.config.model.base)
    with pytest.raises(ValueError, match=r"is gout\?.* comes back as .*\(\d+ and \d+ characters\)"):
        check_tokenizer(run.config, run.data, careless, 330)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True}, "changes text before it encodes"),
        ({"byte_fallback": False, "vocab_size": 100}, "no pieces for some characters"),
    ],
)
def test_what_a_tokenizer_is_known_to_lose_is_a_warning(base, tmp_path, options, message):
    tokenizer = Tokenizer(train_tokenizer(tmp_path, **options))
    run = prepare(tiny_config(base, tmp_path), tokenizer=tokenizer)
    [warning] = run.warnings()
    assert message in warning


@pytest.mark.parametrize("row", [0, 17, 39])
@pytest.mark.parametrize("wrong_id", [330, -1])
def test_an_id_without_an_embedding_is_named_with_its_example(run, row, wrong_id):
    run.data.train[row] = Example([1, wrong_id, 2], [False, True, True])
    with pytest.raises(ValueError, match=rf"training example {row} .* the id {wrong_id}, .* 330 rows"):
        check_ids(run.data, 330)


def test_validation_ids_are_looked_at_too(base, tmp_path):
    run = prepare(tiny_config(base, tmp_path, validation_rows=4))
    run.data.validation[3] = Example([1, 999], [False, True])
    with pytest.raises(ValueError, match=r"validation example 3 .* the id 999"):
        run.preflight()


# --- Prompts and marks ---

TEMPLATES = ["alpaca", "alpaca_legacy", "alpaca_short", "medalpaca", "context_question"]


@pytest.mark.parametrize("on_prompt", [False, True])
@pytest.mark.parametrize("template", TEMPLATES)
def test_the_published_templates_pass(base, tmp_path, template, on_prompt):
    run = prepare(tiny_config(base, tmp_path, template=template, max_length=256, train_on_prompt=on_prompt))
    assert check_template(run.config, run.data, run.tokenizer).found.startswith("8 rows hold the prompt")


@pytest.mark.parametrize("made", TEMPLATES)
def test_rows_of_another_template_are_noticed(base, tmp_path, made):
    run = prepare(tiny_config(base, tmp_path, template=made, max_length=256))
    same = {"alpaca", "medalpaca"}  # in rows with an input
    for named in TEMPLATES:
        if named != made and {made, named} != same:
            run.data = replace(run.data, template=PromptTemplate.named(named))
            with pytest.raises(ValueError, match=rf"preflight, template: training example 0 .* template '{named}'"):
                run.preflight()


def test_a_template_that_no_row_fills_is_noticed(run):
    """The instruction and the input are both empty: the model would learn answers to nothing."""
    empty = run.data.template.render("", "")
    joint = run.tokenizer.encode(f"{empty}drug", bos=True, eos=True)
    first = len(run.tokenizer.encode(empty, bos=True))
    run = with_rows(run, lambda _: Example(joint, [i >= first for i in range(len(joint))]))
    with pytest.raises(ValueError, match="does not hold the prompt of template 'alpaca_short'"):
        check_template(run.config, run.data, run.tokenizer)


@pytest.mark.parametrize("shift", [-1, 1, 2])
def test_a_mask_that_is_off_is_noticed(run, shift):
    def shifted(example: Example) -> Example:
        first = example.supervised.index(True) + shift
        return Example(example.token_ids, [i >= first for i in range(len(example))])

    run = with_rows(run, shifted)
    with pytest.raises(ValueError, match=r"first target is token|ends in"):
        check_template(run.config, run.data, run.tokenizer)


def test_a_mask_of_the_answer_alone_is_noticed_where_the_prompt_should_count(run):
    run.config = replace(run.config, data=replace(run.config.data, train_on_prompt=True))
    with pytest.raises(ValueError, match="should be token 1, where the row begins"):
        check_template(run.config, run.data, run.tokenizer)


def spelling_prompts_out(n_characters: int) -> type[Tokenizer]:
    """A tokenizer that spells the last characters of a text out in bytes if it ends like a prompt."""

    class Spelling(Tokenizer):
        def encode(self, text, *, bos=False, eos=False):
            if not text.endswith("\n"):
                return super().encode(text, bos=bos, eos=eos)
            kept, spelt = text[:-n_characters], text[-n_characters:].encode()
            return [*super().encode(kept, bos=bos), *(3 + byte for byte in spelt)]  # the byte pieces follow unk bos eos

    return Spelling


def test_a_prompt_of_other_tokens_than_in_its_row_is_refused(base, tmp_path):
    tokenizer = spelling_prompts_out(40)(base)
    run = prepare(tiny_config(base, tmp_path), tokenizer=tokenizer)
    with pytest.raises(ValueError, match=r"its prompt of \d+ tokens agrees with the row in the first \d+ only"):
        check_template(run.config, run.data, tokenizer)


def test_more_than_a_boundary_token_is_a_warning(base, tmp_path):
    tokenizer = spelling_prompts_out(5)(base)
    run = prepare(tiny_config(base, tmp_path), tokenizer=tokenizer)
    finding = check_template(run.config, run.data, tokenizer)
    assert "a prompt's last 5 tokens are others than in training" in finding.warning


# --- Ends, cuts, targets ---


def test_rows_without_an_end_are_refused(base, tmp_path):
    run = prepare(tiny_config(base, tmp_path, add_eos=False))
    run.config = replace(run.config, data=replace(run.config.data, add_eos=True))
    with pytest.raises(
        ValueError, match="EOS ends 0 of 40 whole rows; 0 are cut: nothing would teach the model to stop"
    ):
        run.preflight()


def test_an_end_that_is_no_target_teaches_nothing(run):
    run = with_rows(run, lambda e: Example(e.token_ids, [*e.supervised[:-1], False]))
    with pytest.raises(ValueError, match="EOS ends 0 of 40"):
        check_ends(run.config, run.data, run.tokenizer, 256)


def test_few_ends_are_a_warning_with_the_share(run):
    def without_end(example: Example) -> Example:
        return Example(example.token_ids[:-1], example.supervised[:-1])

    run.data = replace(run.data, train=[without_end(e) if i % 4 else e for i, e in enumerate(run.data.train)])
    assert "only 25% of the whole rows" in check_ends(run.config, run.data, run.tokenizer, 256).warning


def test_no_end_by_choice_is_a_warning(base, tmp_path):
    [warning] = prepare(tiny_config(base, tmp_path, add_eos=False)).warnings()
    assert warning == "warning, ends: no row ends in EOS: the model will not learn to stop"


def test_a_row_that_begins_otherwise_than_asked_is_named(run):
    run.data.train[20] = Example(run.data.train[20].token_ids[1:], run.data.train[20].supervised[1:])
    with pytest.raises(ValueError, match=r"training example 20 .* not with BOS = 1"):
        run.preflight()


def test_rows_that_are_all_too_long_are_refused_with_the_length_that_keeps_them(base, tmp_path):
    whole = prepare(tiny_config(base, tmp_path)).data.report.full_lengths
    config = tiny_config(base, tmp_path, max_length=min(whole) - 2)
    run = prepare(config)
    longer = sorted(whole)[37]  # 38 of 40 are 95 %
    with pytest.raises(
        ValueError, match=rf"40 are cut: .* data.max_length = {longer} instead of {min(whole) - 2} would"
    ):
        run.preflight()


def test_a_cut_row_among_whole_ones_is_fine_and_many_are_a_warning(base, tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()

    def run_with(n_long: int, max_length: int = 100) -> PreparedRun:
        long = [
            row | {"output": f"rest, then drink for {10 ** (n % 3)} days " * (3 + n % 2)}
            for n, row in enumerate(ROWS[:n_long])
        ]
        write_rows(folder, [*long, *ROWS[n_long:]])
        config = tiny_config(base, tmp_path, max_length=max_length)
        return prepare(replace(config, data=replace(config.data, folder=str(folder))))

    assert check_cuts((few := run_with(8)).config, few.data, 256).warning == ""
    many = run_with(9)
    assert check_ends(many.config, many.data, many.tokenizer, 256).warning == ""
    [warning] = many.warnings()
    assert "22% of the rows do not fit into 100 tokens" in warning
    length = int(warning.partition("max_length = ")[2].split()[0])
    assert run_with(9, length).data.report.truncated <= 2
    assert run_with(9, length - 1).data.report.truncated > 2


def test_the_length_suggested_is_one_that_the_model_can_see(base, tmp_path):
    whole = prepare(tiny_config(base, tmp_path)).data.report.full_lengths
    shortest, short = min(whole), min(whole) - 2
    assert shortest < sorted(whole)[37]  # which is what would be suggested otherwise
    run = prepare(tiny_config(base, tmp_path, max_length=short))
    with pytest.raises(
        ValueError, match=rf"= {shortest} instead of {short}, the model's whole window, would keep \d+% "
    ):
        check_ends(run.config, run.data, run.tokenizer, shortest)
    assert f"the model's window is {short} tokens" in check_cuts(run.config, run.data, short).warning


def test_a_micro_batch_without_targets_is_named(run):
    rows = [i for row in run.plan.steps[2][1] for i in row]
    for i in rows:
        run.data.train[i] = Example(run.data.train[i].token_ids, [False] * len(run.data.train[i]))
    with pytest.raises(
        ValueError, match=rf"step 3, micro-batch 1 has 0 supervised tokens in 4 rows .*{rows[0]}, {rows[1]}"
    ):
        run.preflight()


def test_a_plan_without_steps_is_refused(run):
    with pytest.raises(ValueError, match="no step for 40 examples"):
        check_targets(run.data, RunPlan([], frozenset({0})))


def test_texts_have_neither_template_nor_ends(base, tmp_path):
    (base / "texts.jsonl").write_text("".join(json.dumps({"text": row["input"]}) + "\n" for row in ROWS))
    run = prepare(tiny_config(base, tmp_path, objective="text", files=("texts.jsonl",), add_eos=False))
    [line] = run.preflight()
    assert line.startswith("preflight: 8 checks passed")
