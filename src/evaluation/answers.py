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
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence

TURN = re.compile(r"###|</s>|\n(?:Question|Context|Instruction|Input):|\nBelow is an instruction")
"""Where the next exchange begins, which a model goes on to write if nothing stops it."""
MARKUP = re.compile(r"[*_`]+|\\boxed\b|\\text\b|\$|</?(?:b|i|u|p|em|strong|br)\s*/?>", re.IGNORECASE)
NEGATIONS = re.compile(
    r"\b(?:not|no|nor|neither|never|none|without|except|excluding|cannot|incorrect|wrong|false|unlikely|unlike|instead"
    r"|rather than|rules? out|ruled out)\b|n[’']t\b",
    re.IGNORECASE,
)
CHANCE_LETTERS = 3
"""An option's text of so few letters may occur in any sentence."""
NEAR = 500
"""Characters before and behind a statement that may take it back."""

_OPEN, _CLOSE = r"[\s\"'“‘(\[{]*", r"[\"'”’)\]}]*"
_WORD = r"(?:option|choice|answer|letter)"
_OF = r"(?:the\s+)?(?:(?:option|choice|letter)\s*:?\s+)?"
# The letter with brackets or quotes around it, and behind it nothing that makes it a word's beginning.
_END = r"(?![\w-]|['’]\w)"
_LETTER = rf"{_OPEN}(?P<letter>[A-Za-z]){_END}{_CLOSE}"
_BE = r"(?:is|would\s+be|must\s+be|should\s+be)\b"
_LIKELY = r"(?:(?:most\s+)?likely\s+|probably\s+|clearly\s+|therefore\s+|thus\s+|either\s+)?"
_BEST = r"(?:correct|right|best|most\s+likely|most\s+appropriate)"
_REASON = (
    r"(?:because|since|as|for|while|whereas|although|though|given|unlike|(?:and\s+|but\s+)?not|rather\s+than|instead\s+of)"
    r"\b"
)
_AND = r"(?:and|or|but|is|was|due|which|with|could|may|might|would)\b"
_OVER = rf"(?:\W*$|\s*[.,;:!)](?!\w)|\s*\(|\s+[-–—]\s|,?\s*{_REASON})"
"""Behind an option's text: it is not part of a longer name."""
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
_VERDICT = rf"\s+is\s+{_LIKELY}(?:(?:the|my)\s+(?:{_BEST}\s+|only\s+)?{_WORD}\b|(?:the\s+)?{_BEST}(?={_OVER}|\s+and\b))"
_LINE = re.compile(
    rf"^[\s>#-]*(?:{_WORD}\s*:?\s+)?(?P<open>{_OPEN})(?P<letter>[A-Za-z]){_END}(?P<close>{_CLOSE})"
    r"(?P<mark>\s*[:.]|\s+[-–—](?=\s)|\s*,|)(?P<rest>.*)$",
    re.IGNORECASE,
)
_CLAUSE = re.compile(r"\n|[.,;:!?]\s|\b(?:and|but|so|thus|therefore|hence|then)\b", re.IGNORECASE)
_DOUBT = re.compile(
    r"\b(?:not|never|cannot|unlikely|incorrect|wrong|false|doubt\w*|if|whether|unless|wonder|unclear|unsure|uncertain"
    r"|might|may|could|(?<!\bI )would|thought)\b|n[’']t\b",
    re.IGNORECASE,
)
"""Before a statement, in its clause: it is not meant."""
_ASKED = re.compile(r"[^.!;?]*\?")
_DENIED = re.compile(
    r"[\W_]*(?:(?:this|that|it|which)\s+)?(?:(?:is|was|are|can|could|would|does)\s*)?"
    r"(?:n[’']t|not|cannot|no(?!,)|incorrect|wrong|false)\b",
    re.IGNORECASE,
)
"""Behind an option: the text refuses it."""
_CONTRAST = re.compile(rf"[,;]?\s*(?:and\s+|but\s+)?not\s+{_OF}", re.IGNORECASE)
"""Behind an option: the text refuses another."""
_JOINED = re.compile(rf"{_CLOSE}\s*(?:,\s*or\b|,|/|&|and\b|or\b)\s*{_OF}", re.IGNORECASE)
_PERHAPS = re.compile(
    r"\b(?:or|but|no|wait|actually|maybe|perhaps|possibly|however|alternatively)\b,?\s+"
    rf"(?:(?:it|this|that|also|is|may|might|could|be)\s+)*{_OF}",
    re.IGNORECASE,
)
_FLAGS = re.IGNORECASE | re.MULTILINE
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
    stated = {*_statements(said, options), *_verdicts(said, options)}
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


# --- Statements ---


def _statements(said: str, options: Mapping[str, str]) -> Iterator[str]:
    for match in _STATEMENT.finditer(said):
        rest = _rest(said, match.end())
        if not _meant(said, match.start(), rest):
            continue
        if match["firm"] and (named := _text_at(rest, options)):
            letter, behind = named
            whole = re.match(_OVER, behind, re.IGNORECASE)
            if not _refused(behind, options):
                yield letter if whole and _stands_alone(letter, behind, options) else CONTRADICTION
        elif spelled := _letter_at(rest, options):
            letter, behind = spelled
            if not _refused(behind, options) and (match["firm"] or _by_itself(rest, behind)):
                yield letter if _agrees(letter, behind, options) else CONTRADICTION


def _verdicts(said: str, options: Mapping[str, str]) -> Iterator[str]:
    for match in re.finditer(_SUBJECT + _LETTER + _VERDICT, said, _FLAGS):
        letter, rest = match["letter"].upper(), _rest(said, match.end())
        if letter in options and _meant(said, match.start(), rest):
            yield letter if _agrees(letter, rest, options) else CONTRADICTION
    for letter, option in options.items():
        for match in re.finditer(_SUBJECT + _pattern(option) + _VERDICT, said, _FLAGS):
            rest = _rest(said, match.end())
            if _meant(said, match.start(), rest):
                yield letter if _stands_alone(letter, rest, options) else CONTRADICTION


def _rest(said: str, begin: int) -> str:
    """What follows a statement on its line."""
    return said[begin : begin + NEAR].split("\n", 1)[0]


def _meant(said: str, begin: int, rest: str) -> bool:
    """Whether a statement is one: "I doubt that it is B", "if it is B", "is it B?" are none."""
    clause = _CLAUSE.split(said[max(0, begin - NEAR) : begin])[-1]
    return not _DOUBT.search(clause) and not _ASKED.match(rest)


def _by_itself(rest: str, behind: str) -> bool:
    """Whether a letter is a capital, and behind it the statement ends or a second one comes."""
    ends = re.match(_OVER, behind, re.IGNORECASE) or _JOINED.match(behind)
    return bool(ends) and re.match(f"{_OPEN}[A-Z]", rest) is not None


def _refused(behind: str, options: Mapping[str, str]) -> bool:
    """Whether the text takes an option back at once: "B is wrong", not "B, not A"."""
    if not _DENIED.match(behind):
        return False
    contrast = _CONTRAST.match(behind)
    return not (
        contrast and (_letter_at(behind[contrast.end() :], options) or _text_at(behind[contrast.end() :], options))
    )


# --- Letters ---


def _line_starts(said: str, options: Mapping[str, str]) -> Iterator[str]:
    for line in said.split("\n"):
        match = _LINE.match(line)
        if match is None or (letter := match["letter"].upper()) not in options:
            continue
        mark, rest = match["mark"].strip(), match["rest"]
        bracketed = match["close"].startswith((")", "]", "}"))
        if match["letter"].islower() and not bracketed and len(_words(said)) > 1:
            continue
        own = re.match(rf"{_pattern(options[letter])}{_OVER}", rest, re.IGNORECASE)
        taken = bracketed or not rest.strip(" \t;!") or own is not None
        if mark == ".":
            taken |= not _is_word(letter, mark + rest, options)
        elif mark == ",":
            taken |= letter != "I"
        else:
            taken |= mark != ""
        if _refused(rest, options) and _words(rest)[:1] != _words(options[letter])[:1]:
            continue
        if taken:
            yield letter if _agrees(letter, mark.replace(":", "") + rest, options) else CONTRADICTION


def _letter_at(text: str, options: Mapping[str, str]) -> tuple[str, str] | None:
    """The letter of an option that a text begins with, and what follows it."""
    match = re.match(_LETTER, text)
    if match is None or (letter := match["letter"].upper()) not in options:
        return None
    behind = text[match.end() :]
    return None if _is_word(letter, behind, options) else (letter, behind)


def _is_word(letter: str, rest: str, options: Mapping[str, str]) -> bool:
    """Whether the letter is a word of a sentence: "the answer is a disease", "... is B cells", "... is E. coli"."""
    if _begins_with(rest, options[letter]):
        return False
    if re.match(r"\.\s*[a-z]", rest) or any(
        _begins_with(letter + rest, text) for text in options.values() if " " in text
    ):
        return True
    # "the answer is A because ..." is an answer; what else follows an article or "I" is another word.
    return _goes_on(rest) if letter != "I" else re.match(rf"\s+(?!{_REASON})[^\W_]", rest) is not None


def _goes_on(rest: str) -> bool:
    """Whether a word follows that belongs to the same name: "liver" and "disease", not "liver" and "because"."""
    return re.match(rf"\s+(?!{_REASON}|{_AND})[^\W_]", rest) is not None


def _agrees(letter: str, rest: str, options: Mapping[str, str]) -> bool:
    """Whether what follows a letter on its line gives no other one: "A or B", "A: " before the text of B."""
    own = options[letter]
    before, own_text, after = rest.partition(own)
    behind = after if own_text and not _words(before) else rest  # "V(D)J recombination" names no letter D
    if _gives_another(letter, behind, options):
        return False
    for other, option in options.items():
        if other == letter:
            continue
        if _places([other.casefold(), *_words(option)], _words(behind)):
            return False
        longer = len(_words(option)) > len(_words(own)) or not _begins_with(rest, own)
        if (longer and _begins_with(rest, option)) or _plain(rest) == _plain(option):
            return False
    return True


def _stands_alone(letter: str, behind: str, options: Mapping[str, str]) -> bool:
    """Whether what follows an option's text gives no other one: "... or the liver", "... (A)". A reason may name it."""
    if _gives_another(letter, behind, options):
        return False
    if re.match(rf",?\s*{_REASON}", behind, re.IGNORECASE):
        return True
    return not set(_mentions(_STOP.split(behind, maxsplit=1)[0], options)) - {letter}


def _gives_another(letter: str, behind: str, options: Mapping[str, str]) -> bool:
    """Whether a second answer follows: "... or C", "... but perhaps the liver", "... (C)"."""
    others = "|".join(re.escape(other) for other in options if other != letter)
    if re.search(rf"(?<!\w)(?:{others})[:)\]]", behind):
        return True
    joined = _JOINED.match(behind)
    for match in [*([joined] if joined else []), *_PERHAPS.finditer(behind)]:
        after = behind[match.end() :]
        found = _letter_at(after, options) if re.match(f"{_OPEN}[A-Z]", after) else None
        found = found or _text_at(after, options)
        if found and found[0] != letter and not _refused(found[1], options):
            return True
    return False


# --- Texts ---


def _pattern(option: str) -> str:
    """A regular expression of an option's text as a sentence may have it: without case, with an article, in quotes."""
    words = list(_WORDS.finditer(option))
    if not words or re.fullmatch("[A-Za-z]", " ".join(_words(option))):
        return r"(?!)"  # a single letter is read as one
    lead, tail = option[: words[0].start()].strip(), option[words[-1].end() :].strip(" .")
    article = len(words) > 1 and words[0][0].casefold() in ("the", "a", "an")
    text = r"[\W_]+".join(re.escape(word[0]) for word in words[article:])
    return (
        rf"{_OPEN}(?:(?:the|an?)\s+)?{_OPEN}(?:{re.escape(lead)}\s*)?{text}(?![^\W_])(?:\s*{re.escape(tail)})?{_CLOSE}"
    )


def _text_at(text: str, options: Mapping[str, str]) -> tuple[str, str] | None:
    """The option whose text another begins with, of several the longest, and what follows it."""
    found = {
        letter: match.end()
        for letter, option in options.items()
        if (match := re.match(_pattern(option), text, re.IGNORECASE))
    }
    if not found:
        return None
    longest = max(len(_words(options[letter])) for letter in found)
    found = {letter: end for letter, end in found.items() if len(_words(options[letter])) == longest}
    if len(found) > 1:  # "< 3" and "> 3" are the same words
        found = {letter: end for letter, end in found.items() if _plain(text).startswith(_plain(options[letter]))}
    return next(((letter, text[end:]) for letter, end in found.items()), None) if len(found) == 1 else None


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
            if re.search(r"\ban?\s$", line[:begin], re.IGNORECASE) and _goes_on(line[end:]):
                continue  # "a liver disease" is no liver
            asked = line[: sentence[1]].endswith("?") and not options[letter].endswith("?")
            if not negated and not asked and (_telling(options[letter]) or _apart(line[:begin], line[end:])):
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
