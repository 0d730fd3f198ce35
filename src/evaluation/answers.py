r"""Which option did a text choose? A parser that would rather find nothing than what was not said.

A letter is taken where it stands as an answer, in one of these places:

    at a line's begin    "B", "B: Pancreas", "B. Pancreas", "(B)", "B)", "**B**", "Option B", "B Pancreas"
    in a statement       "Answer: B", "the correct answer is (B)", "I choose B", "B is correct", "\boxed{B}"

and not where a word only looks like one: "A 35-year-old man", "I think", "E. coli", "vitamin B". Without any letter, an
option's own text is an answer if it is the only option that the text mentions: exactly but for case and punctuation, in
a sentence without a negation, and with letters enough not to occur by chance ("no", "5 mg" count only where a line
begins with them and ends, or a stop follows).

Whatever contradicts itself is no answer: two letters, or one option's letter before another's text. What follows the
answer's end does not count: the next "### Instruction" that a model makes up, the next question, what stands behind
end-of-text.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence

TURN = re.compile(r"###|</s>|\n(?:Question|Context|Instruction|Input):|\nBelow is an instruction")
"""Where the next exchange begins, which a model goes on to write if nothing stops it."""
MARKUP = re.compile(r"[*_`]+|\\boxed\b|\\text\b|\$")
NEGATIONS = re.compile(
    r"\b(?:not|no|nor|neither|never|none|without|except|excluding|cannot|incorrect|wrong|false|unlikely|unlike|instead"
    r"|rather than|rules? out|ruled out)\b|n[’']t\b",
    re.IGNORECASE,
)
CHANCE_LETTERS = 3
"""An option's text of so few letters may occur in any sentence."""

_OPEN, _CLOSE = r"[\s\"'“‘(\[{]*", r"[\"'”’)\]}]*"
_WORD = r"(?:option|choice|answer|letter)"
# The letter with brackets or quotes around it, and behind it nothing that makes it a word's beginning.
_END = r"(?![\w-]|['’]\w)"
_LETTER = rf"{_OPEN}(?P<letter>[A-Za-z]){_END}{_CLOSE}"
_LIKELY = r"(?:(?:most\s+)?likely\s+|probably\s+|clearly\s+|therefore\s+|thus\s+|either\s+)?"
_STATEMENTS = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\banswer(?:\s+(?:to|for)\s+(?:the|this)\s+question)?(?:\s+(?:is|would\s+be|must\s+be|should\s+be))?"
        rf"\s*[:=]?\s*{_LIKELY}(?:the\s+)?(?:{_WORD}\s*:?\s+)?{_LETTER}",
        rf"\b(?:correct|right|best)\s+{_WORD}\s*(?:is|:)\s*{_LETTER}",
        rf"\bI\s+(?:would\s+)?(?:choose|pick|select|go\s+with)\s+(?:{_WORD}\s+)?{_LETTER}",
    )
]
_VERDICT = re.compile(
    rf"(?:^|[.!?;:,(]\s|\b(?:that|therefore|thus|hence|so)\s|\b{_WORD}\s){_LETTER}\s+is\s+(?:the\s+)?(?:most\s+likely\s+)?"
    r"(?:correct|right|best)\b",
    re.IGNORECASE | re.MULTILINE,
)
_LINE = re.compile(
    rf"^[\s>#-]*(?:{_WORD}\s*:?\s+)?(?P<open>{_OPEN})(?P<letter>[A-Za-z]){_END}(?P<close>{_CLOSE})"
    r"(?P<mark>\s*[:.]|\s+[-–—](?=\s)|\s*,|)(?P<rest>.*)$",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"[\W_]*(?:(?:this|that|it|which)\s+)?(?:(?:is|was|are|can|could|would|does)\s*)?"
    r"(?:n[’']t|not|cannot|no|incorrect|wrong|false)\b",
    re.IGNORECASE,
)
"""Behind a letter: the text refuses it."""
_SECOND = re.compile(rf"^{_CLOSE}\s*(?:,|/|&|\band\b|\bor\b|,\s*or\b)\s*(?:{_WORD}\s+)?{_OPEN}(?P<letter>[A-Z]){_END}")
_STOP = re.compile(r"(?<!\b[A-Z])[.!?;](?=\s|$)")  # not behind an initial: "E. coli"
_WORDS = re.compile(r"[^\W_]+")
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
    stated = set(_statements(said, options))
    begun = set(_line_starts(said, options))
    # Two or more lines with letters are the options told over, and what is stated beside them decides.
    letters = stated | begun if len(begun) == 1 or not stated else stated
    if letters:
        return letters.pop() if len(letters) == 1 and CONTRADICTION not in letters else None
    mentioned = set(_mentions(said, options))
    if len({tuple(_words(options[letter])) for letter in mentioned}) == 1:  # "< 3" and "> 3" are the same words
        mentioned = {letter for letter in mentioned if _plain(options[letter]) in _plain(said)} or mentioned
    mentioned |= {letter for letter, option in options.items() if _plain(option) == _plain(said)}
    return mentioned.pop() if len(mentioned) == 1 else None


# --- Letters ---


def _statements(said: str, options: Mapping[str, str]) -> Iterator[str]:
    for pattern in _STATEMENTS:
        for match in pattern.finditer(said):
            letter, rest = match["letter"].upper(), said[match.end() :].split("\n", 1)[0]
            if letter in options and not _is_word(letter, rest, options[letter]):
                yield letter if _agrees(letter, rest, options) else CONTRADICTION
    for match in _VERDICT.finditer(said):
        if (letter := match["letter"].upper()) in options:
            yield letter


def _line_starts(said: str, options: Mapping[str, str]) -> Iterator[str]:
    for line in said.split("\n"):
        match = _LINE.match(line)
        if match is None or (letter := match["letter"].upper()) not in options:
            continue
        mark, rest = match["mark"].strip(), match["rest"]
        bracketed = match["close"].startswith((")", "]", "}"))
        if match["letter"].islower() and not bracketed:
            continue
        taken = bracketed or not rest.strip(" \t;!") or _begins_with(rest, options[letter])
        if mark == ".":
            taken |= not re.match(r"\s*[a-z]", rest)  # not "E. coli"
        elif mark == ",":
            taken |= letter != "I"
        else:
            taken |= mark != ""
        if _DENIED.match(rest) and _words(rest)[:1] != _words(options[letter])[:1]:
            continue
        if taken:
            yield letter if _agrees(letter, mark.replace(":", "") + rest, options) else CONTRADICTION


def _is_word(letter: str, rest: str, option: str) -> bool:
    """Whether the letter is a word of a sentence: "the answer is a disease", "... is B cells", "... is E. coli"."""
    if _begins_with(rest, option):
        return False
    if re.match(r"\.\s*[a-z]", rest):
        return True
    if not re.match(r"\s+[^\W_]", rest):
        return False
    # "the answer is B because ..." is an answer; what follows an article or "I" is another word.
    return letter in "AI" or not re.match(r"\s+(?:because|since|as|and|or|for|is|due|which|with)\b", rest)


def _agrees(letter: str, rest: str, options: Mapping[str, str]) -> bool:
    """Whether what follows a letter on its line gives no other one: "A or B", "A: " before the text of B."""
    own = options[letter]
    before, own_text, after = rest.partition(own)
    behind = after if own_text and not _words(before) else rest  # "V(D)J recombination" names no letter D
    if (second := _SECOND.match(behind)) and second["letter"] in options and second["letter"] != letter:
        return False
    for other, option in options.items():
        if other == letter:
            continue
        listed = [other.casefold(), *_words(option)]
        if re.search(rf"(?<!\w){re.escape(other)}[:)]", behind) or _places(listed, _words(behind)):
            return False
        longer = len(_words(option)) > len(_words(own)) or not _begins_with(rest, own)
        if (longer and _begins_with(rest, option)) or _plain(rest) == _plain(option):
            return False
    return True


# --- Texts ---


def _mentions(said: str, options: Mapping[str, str]) -> Iterator[str]:
    """Letters of the options whose text occurs as an answer; of texts within one another, the longest."""
    sought = {letter: _words(option) for letter, option in options.items() if _words(option)}
    longer = {
        letter: [
            (other, offset)
            for other, around in sought.items()
            if len(around) > len(option)
            for offset in _places(option, around)
        ]
        for letter, option in sought.items()
    }
    for line in said.split("\n"):
        words, heard = list(_WORDS.finditer(line)), _words(line)
        stops = [match.end() for match in _STOP.finditer(line)]
        negations = [match.start() for match in NEGATIONS.finditer(line)]
        found = {(start, letter) for letter, text in sought.items() for start in _places(text, heard)}
        for start, letter in found:
            if any((start - offset, other) in found for other, offset in longer[letter]):
                continue
            begin, end = words[start].start(), words[start + len(sought[letter]) - 1].end()
            sentence = (stops[i - 1] if (i := bisect_right(stops, begin)) else 0), (*stops, len(line))[i]
            negated = _between(negations, *sentence) > _between(negations, begin, end)
            if not negated and (_telling(options[letter]) or _apart(line[:begin], line[end:])):
                yield letter


def _between(positions: Sequence[int], begin: int, end: int) -> int:
    return bisect_left(positions, end) - bisect_left(positions, begin)


def _telling(option: str) -> bool:
    return sum(map(str.isalpha, option)) > CHANCE_LETTERS


def _apart(before: str, after: str) -> bool:
    """Whether a text stands by itself: at the line's begin, or behind "answer is", and before a stop."""
    begins = not _words(before) or re.search(r"\banswer(?:\s+is|\s*:)\s*\W*$", before, re.IGNORECASE)
    return bool(begins) and bool(re.match(r"\W*$|\s*[,:.;!–—]", after))


def _begins_with(text: str, option: str) -> bool:
    return bool(words := _words(option)) and _words(text)[: len(words)] == words


def _places(sought: list[str], heard: list[str]) -> list[int]:
    return [i for i in range(len(heard) - len(sought) + 1) if heard[i : i + len(sought)] == sought]


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .")


def _words(text: str) -> list[str]:
    """What a comparison looks at: words and numbers, without case and punctuation."""
    return [match[0].casefold() for match in _WORDS.finditer(text)]
