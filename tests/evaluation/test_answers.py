import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.exams import load_exam
from evaluation import parse_answer
from evaluation.option_names import CHANCE_LETTERS

ORGANS = {"A": "Liver", "B": "Pancreas", "C": "Insulin resistance", "D": "E. coli", "E": "Insulin"}
VERDICTS = {"A": "yes", "B": "no", "C": "maybe"}
TREATMENTS = {"A": "5 mg", "B": "No treatment is needed", "C": "Surgery", "I": "Iron"}

LETTERS = [
    *("B", " B", "B.", "B:", "B)", "(B)", "[B]", "B;", "B!", '"B"', "'B'", "“B”", "**B**", "`B`", "\\boxed{B}", "$B$"),
    *("- B", "> B", "# B", "b)", "(b)", "B\n", "B\n\nThe liver stores glycogen.", "B - it makes insulin", "B, because"),
    *("B: Pancreas", "B. Pancreas", "B) Pancreas", "(B) Pancreas", "B Pancreas", "**B: Pancreas**", "B – Pancreas"),
    *("B: pancreas!", "B. The organ behind the stomach", "B. Pancreas makes it", "B: Pancreas\nB: Pancreas"),
    *("option B", "Option B.", "Option (B): Pancreas", "Choice B", "Letter B", "Answer B", "Answer: B", "answer is b"),
    *("Answer:\nB", "Answer: **B**", "**Answer:** B", "Final answer: B", "The answer is B", "The answer is B."),
    *("The answer is (B).", "The answer is: B", "The answer is:\n\nB: Pancreas", "The answer is option B."),
    *("The correct answer is (B) Pancreas.", "The correct option is B", "Correct answer: B", "The best choice is B"),
    *(
        "The Answer to the question is: B",
        "The answer to this question is B because it makes insulin",
        "the answer = B",
    ),
    *(
        "I choose B",
        "I would go with option B.",
        "I pick B",
        "B is correct",
        "B is the correct answer.",
        "(B) is right",
    ),
    *("Option B is correct, option A is wrong.", "I think that B is correct.", "So the answer is most likely B."),
    *(
        "The answer is B, not A",
        "The pancreas makes insulin.\nAnswer: B",
        "Sure! The answer is B.",
        "final answer is: (B)",
    ),
    *(
        "A: Liver\nB: Pancreas\nC: Insulin resistance\nThe answer is B.",
        "$\\boxed{\\text{B}}$",
        "Therefore B is correct.",
    ),
    *("B: Pancreas\n\n### Instruction:\nAnswer: A", "B</s>A: Liver", "B\nQuestion: Which?\nAnswer: A"),
]
TEXTS = [
    *(
        "Pancreas",
        "pancreas.",
        "PANCREAS",
        "It is made in the pancreas.",
        "The answer is pancreas",
        "The pancreas, clearly.",
    ),
    *("The answer is the pancreas.", "Pancreas\nPancreas", "Well, the pancreas makes it, I think."),
]
NO_ANSWER = [
    *("", " ", "\n", "?", "...", "F", "F: nothing", "Z", "The answer is F", "B12 deficiency", "B+", "B-cells"),
    *(
        "A 35-year-old man",
        "A 35-year-old man has pain in the liver and the pancreas.",
        "a 35-year-old",
        "A man comes in",
    ),
    *(
        "I think",
        "I think so",
        "I am not sure.",
        "A. fumigatus grows",
        "E. faecalis",
        "C. difficile is likely",
        "C-section",
    ),
    *("vitamin B", "Hepatitis B is the best known", "Vitamin A is correct for eyes", "B cells make antibodies"),
    *("A or B", "A and B", "A, B", "A/B", "A & B", "Option A or option B", "(A) or (B)", "The answer is B or C."),
    *("The answer is either B or C", "B and C are both right", "A: Liver B: Pancreas", "A. Liver B. Pancreas"),
    *("A) Liver B) Pancreas", "A: Liver\nB: Pancreas", "(A) Liver\n(B) Pancreas", "a) liver\nb) pancreas"),
    *(
        "The answer is B. The answer is C.",
        "B\nThe answer is C",
        "B: Liver",
        "A: Pancreas",
        "The answer is A: Pancreas",
    ),
    *(
        "The answer is not B",
        "B is not correct",
        "Option A is wrong.",
        "The answer is a disease",
        "The answer is B cells",
    ),
    *("A) is wrong", "A: incorrect", "A. This is wrong", "B) Not this one", "(C) cannot be right", "B: no"),
    *(
        "It is not the liver.",
        "The pancreas, not the liver",
        "It isn't the liver",
        "Liver and pancreas",
        "Neither liver",
    ),
    *("answer I think", "### Response:\nB", "E: Insulin resistance", "The liver. The pancreas.", "unlike the liver"),
]


THREE = {"A": "Liver", "B": "Pancreas", "C": "Spleen"}
STATED = [
    *("I think it is B", "It is B.", "It's B.", "B is the answer", "Option B is the answer", "I would say B"),
    *("Thus, B.", "My choice is B", "It would be (B)", "b", "<b>B</b>", "The answer is not A, but B"),
    *("The liver makes bile, so the answer is pancreas.",),
    *("The correct answer is pancreas because the liver makes bile", "Answer: The pancreas, not the liver"),
    *("It is B, not A.", "B, not A", "B: not A", "B, not the liver", "Therefore B.", "Hence (B)", "So, B"),
    *("So B is the answer.", "I believe it is B because the liver makes bile"),
    *("The answer is pancreas. The liver makes bile.", "It is not A but B."),
    *("Pancreas is the answer because the liver makes bile",),
    *("The pancreas is the correct answer; the liver makes bile.", "B is the most likely answer."),
    *("I am not sure, but I think it is B.", "I am not sure, but the answer is B"),
    *("It can't be A, so the answer is B.", "My answer is pancreas"),
    *("I'd go with the pancreas, although the liver makes bile", "The answer is B and not A"),
    *("The answer is not the liver, but the pancreas.",),
    *("The answer is the pancreas, which unlike the liver makes insulin.", "Is it A? No. It is B."),
    *("A or B? I would say B.", "The answer choice is B", "answer choice B", 'The answer is "pancreas".'),
    *("The answer is pancreas (B).", "Final answer: **Pancreas**"),
    *("The best answer is B, since A is not an endocrine gland", "(B) is the answer", "b.", "<strong>B</strong>"),
    *("The answer is B<br>", "I think the answer is B", "It must be B.", "B.\nThe liver makes bile."),
    *("Answer: B.", "The answer is B because A is wrong", "The answer must be B", "That would be B."),
    *("It is option B.", "It is the pancreas.", "The answer is B\nA is wrong", "B is correct, but A is wrong"),
    *("I choose the pancreas", "the answer is b because it makes insulin"),
    *("I think it is B, since the liver makes bile.", "The answer is not A or C, but B."),
    *("The answer is B, though A is close to it.", 'The answer is B because "Why is it the liver?" is no answer'),
    *("The answer is B. It is not associated with alcohol.", "The answer is B. No other organ makes insulin."),
    *("The answer is B. It does not make bile.", "B. No other organ makes insulin.", "B. It does not make bile."),
    *("Answer: B! This is not made elsewhere.", 'The answer is "B." It is not the organ of bile.'),
    *("The answer is pancreas. It is not the only one.", "B is correct. It is not wrong to ask.", "B. That is right."),
    *("Since the patient does not drink the answer is B", "Because it is not the liver the answer is B"),
    *("As the patient is not pregnant, B is correct", "While A would be right in adults the answer is B"),
    *("Although it may be rare the answer is the pancreas", "The answer is B. A is not."),
    *("The answer is B, I mean the pancreas", "The next question: the answer is B"),
    *("The pancreas (B)", "Pancreas - B", "A is wrong. The pancreas makes it."),
]
NOT_STATED = [
    *("A or B", "It is not B", "B is wrong", "A liver disease", "Is it B?", "Is the answer B?", "It is A or B"),
    *("I don't think it is B", "I doubt the answer is B", "I do not believe that it is B."),
    *("If the answer is B, then A is wrong", "It is B or the liver.", "The answer is B, or maybe the liver."),
    *("The answer is pancreas or liver", "The answer is either the pancreas or the liver."),
    *("The answer is pancreas (A).", "The answer is pancreas, option A", "It is A disease"),
    *("It is a disease of B cells", "Thus, A patient with B cells", "So I think", "I think A patient"),
    *("It is B-cell", "It is B12", "It's B cells", "The answer is pancreas. No, the answer is liver."),
    *("The answer is B. However, C could be right.", "The answer is B, but C is also possible"),
    *("Maybe A, maybe B.", "It is B. It is C.", "Liver is not the answer"),
    *("Neither liver nor pancreas is the answer", "If pancreas is the answer, the liver is not"),
    *("The answer is liver failure", "Answer: spleen rupture", "One might think it is B"),
    *("You might say that the answer is B", "I doubt that B is correct", "Whether B is correct is unclear."),
    *("It is wrong to say that the answer is B.", "The answer may be B.", "vitamin B is the answer"),
    *("In the figure, A is the right ventricle", "B is the best known antigen", "B is incorrect."),
    *("It is unclear whether it is B", "Why is the answer B?", "I would not say B", "It is B that is wrong"),
    *("I thought it is B", "The answer is B? Or C?", "It's A man", "so a", "It is a.", "This is a"),
    *("Pancreas is the answer? No.", "A liver biopsy shows nothing.", "This is a liver disease"),
    *("The answer is A: Pancreas", "The answer is liver, or B.", "The answer is not B."),
    *("The answer is not only A but also B", "I would say B would be wrong", "The answer is A: No pancreas"),
    *("The answer is B. Actually, C.", "Is it the pancreas?", "Answer: B C", "Thus, B would be wrong."),
    *("B. This is wrong.", "The answer is B. That isn't right.", "The answer is B. Wrong.", "The answer is B. No."),
    *("I doubt that it is rare because the answer is B", "As I do not think that the answer is B", "B. Not correct"),
    *(
        "Pancreas. This is wrong.",
        "The pancreas? No.",
        "The answer is B. It is not.",
        "I would say B. That is not true.",
    ),
    *("Because it is unclear whether the answer is B", "I do not believe since today that the answer is B"),
    *("B is incorrect. The pancreas makes insulin.", "Option (B) is not right; the pancreas makes insulin"),
    *("There is no answer B.", "No answer: B", "The least likely answer is B", "The next best answer is B"),
    *("The worst choice is B", "The second most likely answer is B", "There is no correct answer B"),
    *("The answer is B. C is also possible.", "B. C may also be right", "The answer is pancreas. C could also be."),
    *("The answer is B. Wait, no: C.", "The answer is B. I mean C.", "The answer is B. Sorry, C.", "B - I mean C"),
    *("The spleen (B)", "Spleen - B", "It is made in the spleen (B).", "The pancreas makes it, or A", "Pancreas – C."),
]


@pytest.mark.parametrize("text", STATED)
def test_an_answer_is_read_however_it_is_put(text: str) -> None:
    assert parse_answer(text, THREE) == "B"


@pytest.mark.parametrize("text", NOT_STATED)
def test_what_is_denied_doubted_asked_or_said_of_two_is_not_read(text: str) -> None:
    assert parse_answer(text, THREE) is None


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("It is E. coli.", "C"),
        ("It is E. Coli", "C"),
        ("E. Coli", "C"),
        ("E. coli is the answer, not S. aureus", "C"),
        ("The answer is E. coli because it is a rod", "C"),
        ("The answer is A because it is", "A"),
        ("It is A.", "A"),
        ("Thus, A.", "A"),
        ("I would say I", "I"),
        ("The answer is I.", "I"),
        ("I is the answer", "I"),
        ("I is", None),
        ("It is I who said so", None),
        ("The answer I like", None),
        ("The answer is B and I am sure", "B"),
        ("I am sure the answer is B, but I am tired", "B"),
    ],
)
def test_words_that_look_like_letters_in_statements(text: str, letter: str | None) -> None:
    options = {"A": "Liver", "B": "Pancreas", "C": "E. coli", "E": "S. aureus", "I": "Iron"}
    assert parse_answer(text, options) == letter


@pytest.mark.parametrize("text", LETTERS)
def test_a_letter_is_read_where_it_stands_as_an_answer(text: str) -> None:
    assert parse_answer(text, ORGANS) == "B"


@pytest.mark.parametrize("text", TEXTS)
def test_an_options_own_words_are_read(text: str) -> None:
    assert parse_answer(text, ORGANS) == "B"


@pytest.mark.parametrize("text", NO_ANSWER)
def test_what_is_no_answer_is_not_read_as_one(text: str) -> None:
    assert parse_answer(text, ORGANS) is None


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A", "A"),
        ("A.", "A"),
        ("A: Liver", "A"),
        ("A Liver", "A"),
        ("A, because the liver", "A"),
        ("The answer is a.", "A"),
        ("E. coli", "D"),
        ("E. coli is the cause", "D"),
        ("D: E. coli", "D"),
        ("E", "E"),
        ("E. Insulin", "E"),
        ("Insulin", "E"),
        ("insulin-resistance", "C"),
        ("It is insulin resistance.", "C"),
        ("C - Insulin resistance", "C"),
    ],
)
def test_letters_that_begin_words_too(text: str, letter: str) -> None:
    assert parse_answer(text, ORGANS) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("yes", "A"),
        ("Yes, because", "A"),
        ("Yes. There is no doubt.", "A"),
        ("No.", "B"),
        ("The answer is no", "B"),
        ("Answer: no.", "B"),
        ("No. It is not.", "B"),
        ("The answer is no. That is not true.", "B"),
        ("Yes. That is not true.", None),
        ("There is no evidence", None),
        ("No evidence was found", None),
        ("Maybe.", "C"),
        ("Yes and no.", None),
    ],
)
def test_short_options_count_only_where_they_stand_alone(text: str, letter: str | None) -> None:
    assert parse_answer(text, VERDICTS) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("5 mg", "A"),
        ("5 mg, once a day", "A"),
        ("A man of 70 kg takes 5 mg daily", None),
        ("No treatment is needed.", "B"),  # the negation is the option's own
        ("In this case no treatment is needed", "B"),
        ("I", "I"),
        ("I: Iron", "I"),
        ("I, too, would operate", None),
        ("I think surgery", "C"),
        ("I would choose C", "C"),
    ],
)
def test_numbers_negations_and_the_letter_i(text: str, letter: str | None) -> None:
    assert parse_answer(text, TREATMENTS) == letter


SIGNS = {"A": "LOD score < 1", "B": "LOD score < 3", "C": "LOD score > 3", "D": "↓ ↓ ↓", "E": "V(D)J recombination"}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("LOD score < 3", "B"),
        ("The LOD score > 3.", "C"),
        ("C: LOD score > 3", "C"),
        ("LOD score 3", None),
        ("↓ ↓ ↓", "D"),
        ("D: ↓ ↓ ↓", "D"),
        ("↓ ↑ ↓", None),
        ("D: ↑ ↑ ↑", "D"),  # no option's text, so only a letter
        ("A: ↓ ↓ ↓", None),
        ("B: LOD score > 3", None),
        ("E: V(D)J recombination", "E"),
        ("E: V(D)J recombination, (D)", None),
        ("V(D)J recombination", "E"),
        ("The answer is C. difficile.", None),
        ("The most likely answer is E. coli colitis", None),
    ],
)
def test_signs_count_where_words_do_not_tell(text: str, letter: str | None) -> None:
    assert parse_answer(text, SIGNS) == letter


def test_letters_of_an_exam_may_be_small() -> None:
    assert parse_answer("The answer is B", {"a": "Liver", "b": "Pancreas"}) == "b"


ORGAN_NAMES = ["liver", "pancreas", "spleen", "kidney", "lung", "heart", "skin", "bone"]
option_texts = st.lists(st.sampled_from(ORGAN_NAMES), min_size=2, max_size=5, unique=True)
FORMS = ["{0}", "({0})", "{0}:", "{0}: {1}", "{0}. {1}", "{0}) {1}", "**{0}**"]
FORMS += ["Answer: {0}", "The answer is {0}.", "Option {0}", "{1}", "It is the {1}."]


@given(option_texts, st.data())
def test_every_option_is_read_in_every_form(texts: list[str], data: st.DataObject) -> None:
    options = dict(zip("ABCDE", texts, strict=False))
    letter, form = data.draw(st.sampled_from(list(options))), data.draw(st.sampled_from(FORMS))
    assert parse_answer(form.format(letter, options[letter]), options) == letter


@given(option_texts, st.data())
def test_two_answers_are_none(texts: list[str], data: st.DataObject) -> None:
    options = dict(zip("ABCDE", texts, strict=False))
    one, other = data.draw(st.permutations(list(options)))[:2]
    joint = data.draw(st.sampled_from([" or ", ", ", "/", " and "]))
    assert parse_answer(f"{one}{joint}{other}", options) is None
    assert parse_answer(f"The answer is {one}. No, the answer is {other}.", options) is None
    assert parse_answer(f"{one}: {options[other]}", options) is None
    assert parse_answer(f"the {options[one]}{joint}the {options[other]}", options) is None


def test_the_options_of_a_real_exam_are_read_in_every_form(real_data: Path, count_faults) -> None:
    exam = load_exam(real_data / "exams" / "medqa_5options_test.jsonl")[::20]
    for question in exam:
        for letter, text in question.options.items():
            for form in (*FORMS, "The answer is {0}: {1}", "({0}) {1}"):
                if form == "It is the {1}." and sum(map(str.isalpha, text)) <= CHANCE_LETTERS:
                    continue  # "1 and 2" may occur in any sentence
                assert parse_answer(form.format(letter, text), question.options) == letter
            for other in question.options.keys() - {letter}:
                assert parse_answer(f"{other}: {text}", question.options) is None
                count_faults("contradicting answers")


REASONED = [
    "The answer is {1} because {3} is rare.",
    "{1} is the correct answer.",
    "{3} is rare, so the answer is {1}.",
]
REASONED += ["Answer: {1}, not {3}", "The answer is {0} because {3} is rare.", "The answer is not {2}, but {0}."]
OPEN = ["The answer is {1} or {3}.", "The answer is {1} ({2}).", "The answer is {1}. No, the answer is {3}."]
OPEN += ["Is the answer {0}?", "I don't think the answer is {0}.", "The answer is {0}. However, {2} could be right."]


@pytest.mark.parametrize("name", ["medqa_5options_test.jsonl", "medbullets_op5.json"])
def test_the_options_of_a_real_exam_are_read_past_another(real_data: Path, count_faults, name: str) -> None:
    read = asked = 0
    for question in load_exam(real_data / "exams" / name)[::20]:
        letters = list(question.options)
        for letter, other in zip(letters, letters[1:] + letters[:1], strict=True):
            parts = letter, question.options[letter].strip('\n"'), other, question.options[other].strip('\n"')
            for form in REASONED:
                found = parse_answer(form.format(*parts), question.options)
                assert found in (letter, None)
                read, asked = read + (found == letter), asked + 1
            for form in OPEN:
                assert parse_answer(form.format(*parts), question.options) is None
                count_faults("contradicting answers")
    assert read / asked > 0.98


PIECES = ["A", "B", "I", " ", "\n", ":", ".", ")", "(", "*", "</s>", "###", "É", "\0", "ſ"]
PIECES += ["answer", "is", "the", "option", "liver", "pancreas", "not", "or"]
pieces = st.sampled_from(PIECES)


@given(st.lists(pieces, max_size=30).map("".join) | st.text(max_size=60))
def test_any_text_gives_an_option_or_none(text: str) -> None:
    assert parse_answer(text, {"A": "Liver", "B": "Pancreas", "I": "..."}) in ("A", "B", "I", None)


@pytest.mark.parametrize(
    "piece", [" ", "\n", '"', "(", "answer ", "answer is the ", "A ", "A: Liver ", "liver ", "so A ", "B is correct. "]
)
def test_a_long_text_is_read_in_no_time(piece: str) -> None:
    started = time.process_time()
    parse_answer("The answer is" + piece * (20_000 // len(piece)), ORGANS)
    assert time.process_time() - started < 2
