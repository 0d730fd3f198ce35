r"""Which option did a text choose? A parser that would rather find nothing than what was not said.

An answer stands in one of these places:

    a line's begin    "B", "B: Pancreas", "B. Pancreas", "(B)", "B)", "**B**", "Option B", "B Pancreas"
    a statement       "Answer: B", "the correct answer is the pancreas", "not A, but B", "I choose B", "I think it is B"
    a verdict         "B is correct", "Pancreas is the answer"

A letter is not taken where a word only looks like one: "A 35-year-old man", "I think", "E. coli", "vitamin B". Nor is
what is denied, doubted, asked or supposed: "B is wrong", "I doubt that it is B", "Is it B?", "if the answer is B".

Without any of these, an option's own text is an answer if it is the only option that the text mentions: exactly but for
case and punctuation, in a sentence without a negation, and with letters enough not to occur by chance ("no", "5 mg"
count only where a line begins with them and ends, or a stop follows).

Whatever contradicts itself is no answer: two letters, one option's letter before another's text, "B, or maybe C". What
follows the answer's end does not count: the next "### Instruction" that a model makes up, the next question, what
stands behind end-of-text.
"""

import re
from collections.abc import Iterator, Mapping

from evaluation.option_names import (
    CLOSE,
    END,
    NEGATIONS,
    OPEN,
    OVER,
    REASON,
    STOP,
    begins_with,
    is_word,
    letter_at,
    mentions,
    places,
    plain,
    spelled,
    text_at,
    wording,
    words_of,
)

TURN = re.compile(r"###|</s>|\n(?:Question|Context|Instruction|Input):|\nBelow is an instruction")
"""Where the next exchange begins, which a model goes on to write if nothing stops it."""
MARKUP = re.compile(r"[*_`]+|\\boxed\b|\\text\b|\$|</?(?:b|i|u|p|em|strong|br)\s*/?>", re.IGNORECASE)
NEAR = 300
"""Characters before and behind a statement that may take it back."""

_WORD = r"(?:option|choice|answer|letter)"
_OF = r"(?:the\s+)?(?:(?:option|choice|letter)\s*:?\s+)?"
_BE = r"(?:is|would\s+be|must\s+be|should\s+be)\b"
_LIKELY = r"(?:(?:most\s+)?likely\s+|probably\s+|clearly\s+|therefore\s+|thus\s+|either\s+)?"
_BEST = r"(?:correct|right|best|most\s+likely|most\s+appropriate)"
_STATEMENT = re.compile(
    rf"(?:(?P<firm>\banswer(?:\s+(?:to|for)\s+(?:the|this)\s+question)?(?:\s+{_BE}\s*[:=]?|\s*[:=])"
    rf"|\b(?:correct|right|best|my|answer)\s+(?:{_WORD}|guess)(?:\s+{_BE}\s*:?|\s*:)"
    r"|\bI(?:\s+would|['’]d)?\s+(?:choose|pick|select|say|go\s+(?:with|for))\b)"
    rf"|\banswer\b|\b(?:it|this|that)(?:\s+{_BE}|['’]s\b)|\bI\s+(?:think|believe|guess)(?:\s+that)?\b"
    r"|\b(?:thus|therefore|hence|so)\b,?)"
    rf"\s*{_LIKELY}(?:not\b[^.;:?\n]{{1,100}}?\bbut\s+(?:rather\s+)?)?{_OF}",
    re.IGNORECASE,
)
"""What comes before an answer. Behind a firm one an option's text counts too, else a capital letter by itself."""
_SUBJECT = rf"(?:^|[.!?;:,(]\s|\b(?:that|therefore|thus|hence|so|think|believe|say)\s|\b{_WORD}\s)"
_VERDICT = rf"\s+is\s+{_LIKELY}(?:(?:the|my)\s+(?:{_BEST}\s+|only\s+)?{_WORD}\b|(?:the\s+)?{_BEST}(?={OVER}|\s+and\b))"
_LINE = re.compile(
    rf"^[\s>#-]*(?:{_WORD}\s*:?\s+)?(?P<open>{OPEN})(?P<letter>[A-Za-z]){END}(?P<close>{CLOSE})"
    r"(?P<mark>\s*[:.]|\s+[-–—](?=\s)|\s*,|)(?P<rest>.*)$",
    re.IGNORECASE,
)
_CLAUSE = re.compile(r"\n|[.,;:!?]\s|\b(?:and|but|so|thus|therefore|hence|then)\b", re.IGNORECASE)
_ASIDE = re.compile(
    r"\b(?:since|because|as|while|although|though|given)\b"
    r"(?:(?!\b(?:I|you|we|one|that|if|whether|say|unlikely|doubt\w*)\b).)*$",
    re.IGNORECASE,
)
"""In the clause before a statement: a reason, whose negations are not the statement's, unless it speaks of saying."""
_DOUBT = re.compile(
    r"\b(?:not|never|cannot|unlikely|incorrect|wrong|false|doubt\w*|if|whether|unless|wonder|unclear|unsure|uncertain"
    r"|might|may|could|(?<!\bI )would|thought)\b|n[’']t\b"
    rf"|\b(?:no|least|next|second|worst)\s+(?:(?:{_BEST}|likely|appropriate)\s+)?$",
    re.IGNORECASE,
)
"""Before a statement, in its clause: it is not meant."""
_ASKED = re.compile(r"(?:[^.!;?\"“]|[\"“](?!\w\w))*\?")  # itself, not a question that it quotes
_DENIED = re.compile(
    rf"(?:(?![.!?;]{CLOSE}\s)[\W_])*(?:(?:this|that|it|which)\s+)?(?:(?:is|was|are|can|could|would|does)\s*(?:be\s+)?)?"
    r"(?:n[’']t|not|cannot|no(?!,|\s+other)|incorrect|wrong|false)\b"
    # In the next sentence only what is about the answer: not "B. It does not make bile."
    r"|[\W_]*(?:(?:this|that|it)\s+)?(?:is\s*)?(?:(?:(?:n[’']t|not)\s+(?:correct|right|true)|incorrect|wrong|false)\b"
    r"|(?:n[’']t|not|no)(?=\W*$|[.;!]))",
    re.IGNORECASE,
)
"""Behind an option: the text refuses it."""
_CONTRAST = re.compile(rf"[,;:]?\s*(?:and\s+|but\s+)?not\s+{_OF}", re.IGNORECASE)
"""Behind an option: the text refuses another."""
_JOINED = re.compile(rf"{CLOSE}\s*(?:,\s*or\b|,|/|&|and\b|or\b)\s*{_OF}", re.IGNORECASE)
_PERHAPS = re.compile(
    r"\b(?:or|but|no|wait|actually|maybe|perhaps|possibly|however|alternatively|sorry|I\s+mean)\b[,:]?\s+"
    rf"(?:(?:it|this|that|also|is|may|might|could|be)\s+)*{_OF}",
    re.IGNORECASE,
)
_FLAGS = re.IGNORECASE | re.MULTILINE
CONTRADICTION = ""
"""Stands among the letters where one place gives two."""


def parse_answer(text: str, options: Mapping[str, str]) -> str | None:
    """The letter of the option that the text chose, or None: it chose none, or more than one.

    >>> options = {"A": "Liver", "B": "Pancreas"}
    >>> [parse_answer(text, options) for text in ("B", "The answer is (B).", "It is made in the pancreas.")]
    ['B', 'B', 'B']
    >>> [parse_answer(text, options) for text in ("A 35-year-old man", "I think so", "A or B", "A: Pancreas")]
    [None, None, None, None]

    Args:
        text: what was said after the prompt.
        options: letter -> text, as shown.
    """
    known = {letter.upper(): option for letter, option in options.items()}
    # One space, one line break: patterns with several optional spaces are slow where there are thousands.
    said = re.sub(r"\s*\n\s*", "\n", re.sub(r"[^\S\n]+", " ", text))
    found = _parse(MARKUP.sub("", TURN.split(said, maxsplit=1)[0]), known)
    return next((letter for letter in options if letter.upper() == found), None)


def _parse(said: str, options: Mapping[str, str]) -> str | None:
    stated = {*_statements(said, options), *_verdicts(said, options)}
    begun = set(_line_starts(said, options))
    # Two or more lines with letters are the options told over, and what is stated beside them decides.
    letters = stated | begun if len(begun) == 1 or not stated else stated
    if letters:
        return letters.pop() if len(letters) == 1 and CONTRADICTION not in letters else None
    named = list(mentions(said, options))
    mentioned = {letter for letter, _ in named}
    if len({tuple(words_of(options[letter])) for letter in mentioned}) == 1:  # "< 3" and "> 3" are the same words
        mentioned = {letter for letter in mentioned if plain(options[letter]) in plain(said)} or mentioned
    mentioned |= {letter for letter, option in options.items() if plain(option) == plain(said)}
    if len(mentioned) != 1:
        return None
    [letter] = mentioned
    followed = [behind[:NEAR] for found, behind in named if found == letter]
    refused = not NEGATIONS.search(options[letter]) and any(_refused(behind, options) for behind in followed)
    contradicted = any(_gives_another(letter, behind, options) for behind in followed)
    return None if refused or contradicted or _called_wrong(letter, said) else letter


# --- Statements ---


def _statements(said: str, options: Mapping[str, str]) -> Iterator[str]:
    for match in _STATEMENT.finditer(said):
        rest = _rest(said, match.end())
        if not _meant(said, match.start(), rest):
            continue
        if match["firm"] and (named := text_at(rest, options)):
            letter, behind = named
            whole = re.match(OVER, behind, re.IGNORECASE)
            if not _refused(behind, options):
                yield letter if whole and _stands_alone(letter, behind, options) else CONTRADICTION
        elif spelled := letter_at(rest, options):
            letter, behind = spelled
            if not _refused(behind, options) and (match["firm"] or _by_itself(rest, behind)):
                yield letter if _agrees(letter, behind, options) else CONTRADICTION


def _verdicts(said: str, options: Mapping[str, str]) -> Iterator[str]:
    if not re.search(_VERDICT, said, re.IGNORECASE):
        return
    for letter, option in options.items():
        for subject, agree in ((spelled(letter), _agrees), (wording(option), _stands_alone)):
            for match in re.finditer(_SUBJECT + subject + _VERDICT, said, _FLAGS):
                rest = _rest(said, match.end())
                if _meant(said, match.start(), rest):
                    yield letter if agree(letter, rest, options) else CONTRADICTION


def _rest(said: str, begin: int) -> str:
    """What follows a statement on its line."""
    return said[begin : begin + NEAR].split("\n", 1)[0]


def _meant(said: str, begin: int, rest: str) -> bool:
    """Whether a statement is one: "I doubt that it is B", "if it is B", "is it B?" are none."""
    clause = _ASIDE.sub("", _CLAUSE.split(said[max(0, begin - NEAR) : begin])[-1])
    return not _DOUBT.search(clause) and not _ASKED.match(rest)


def _by_itself(rest: str, behind: str) -> bool:
    """Whether a letter is a capital, and behind it the statement ends or a second one comes."""
    ends = re.match(OVER, behind, re.IGNORECASE) or _JOINED.match(behind)
    return bool(ends) and re.match(f"{OPEN}[A-Z]", rest) is not None


def _called_wrong(letter: str, said: str) -> bool:
    """Whether the text calls an option wrong by its letter, wherever that is: "A is incorrect. The liver ..."."""
    return any(_DENIED.match(said, found.end()) for found in re.finditer(rf"(?<!\w){letter}{END}{CLOSE}", said))


def _refused(behind: str, options: Mapping[str, str]) -> bool:
    """Whether the text takes an option back at once: "B is wrong", not "B, not A"."""
    if not _DENIED.match(behind):
        return False
    contrast = _CONTRAST.match(behind)
    named = behind[contrast.end() :] if contrast else behind.lstrip(" ,:;.-–—")
    return not (letter_at(named, options) or text_at(named, options))


# --- Letters ---


def _line_starts(said: str, options: Mapping[str, str]) -> Iterator[str]:
    for line in said.split("\n"):
        match = _LINE.match(line)
        if match is None or (letter := match["letter"].upper()) not in options:
            continue
        mark, rest = match["mark"].strip(), match["rest"]
        bracketed = match["close"].startswith((")", "]", "}"))
        if match["letter"].islower() and not bracketed and len(words_of(said)) > 1:
            continue
        own = re.match(rf"{wording(options[letter])}{OVER}", rest, re.IGNORECASE)
        taken = bracketed or not rest.strip(" \t;!") or own is not None
        if mark == ".":
            taken |= not is_word(letter, mark + rest, options)
        elif mark == ",":
            taken |= letter != "I"
        else:
            taken |= mark != ""
        if _refused(mark + rest, options) and words_of(rest)[:1] != words_of(options[letter])[:1]:
            continue
        if taken:
            yield letter if _agrees(letter, mark.replace(":", "") + rest, options) else CONTRADICTION


def _agrees(letter: str, rest: str, options: Mapping[str, str]) -> bool:
    """Whether what follows a letter on its line gives no other one: "A or B", "A: " before the text of B."""
    own = options[letter]
    before, own_text, after = rest.partition(own)
    behind = after if own_text and not words_of(before) else rest  # "V(D)J recombination" names no letter D
    if _gives_another(letter, behind, options):
        return False
    heard = words_of(behind)
    for other, option in options.items():
        if other == letter:
            continue
        if places([other.casefold(), *words_of(option)], heard):
            return False
        longer = len(words_of(option)) > len(words_of(own)) or not begins_with(rest, own)
        if (longer and begins_with(rest, option)) or plain(rest) == plain(option):
            return False
    return True


def _stands_alone(letter: str, behind: str, options: Mapping[str, str]) -> bool:
    """Whether what follows an option's text gives no other one: "... or the liver", "... (A)". A reason may name it."""
    if _gives_another(letter, behind, options):
        return False
    if re.match(rf",?\s*{REASON}", behind, re.IGNORECASE):
        return True
    return all(other == letter for other, _ in mentions(STOP.split(behind, maxsplit=1)[0], options))


def _gives_another(letter: str, behind: str, options: Mapping[str, str]) -> bool:
    """Whether a second answer follows: "... or C", "... but perhaps the liver", "... (C)", "... C is also possible"."""
    others = "|".join(re.escape(other) for other in options if other != letter)
    also = r"\s+(?:is|may|might|can|could|would)\s+(?:be\s+)?also\b"
    if re.search(rf"(?<!\w)(?:{others})(?:[:)\]]|{also})|\s[-–—]\s(?:{others})\W*$", behind):
        return True
    joined = _JOINED.match(behind)
    for match in [*([joined] if joined else []), *_PERHAPS.finditer(behind)]:
        after = behind[match.end() :]
        found = letter_at(after, options) if re.match(f"{OPEN}[A-Z]", after) else None
        found = found or text_at(after, options)
        if found and found[0] != letter and not _refused(found[1], options):
            return True
    return False
