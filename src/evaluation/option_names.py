"""Where a text names an option: by its letter, or in its own words.

    letter_at    the text begins with a letter that is no word: not "a disease", "B cells", "E. coli"
    text_at      the text begins with an option's words
    mentions     the options whose words it holds anywhere, in a sentence that neither denies nor asks

Words are compared without case and punctuation; signs decide only between options of the same words.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

NEGATIONS = re.compile(
    r"\b(?:not|no|nor|neither|never|none|without|except|excluding|cannot|incorrect|wrong|false|unlikely|unlike|instead"
    r"|rather than|rules? out|ruled out)\b|n[’']t\b",
    re.IGNORECASE,
)
CHANCE_LETTERS = 3
"""An option's text of so few letters may occur in any sentence."""
STOP = re.compile(r"(?<!\b[A-Z])[.!?;](?=\s|$)")  # not behind an initial: "E. coli"

OPEN, CLOSE = r"[\s\"'“‘(\[{]*", r"[\"'”’)\]}]*"
# Behind a letter: nothing that makes it a word's beginning.
END = r"(?![\w-]|['’]\w)"
REASON = (
    r"(?:because|since|as|for|while|whereas|although|though|given|unlike|(?:and\s+|but\s+)?not|rather\s+than|instead\s+of)"
    r"\b"
)
AND = r"(?:and|or|but|is|was|due|which|with|could|may|might|would)\b"
OVER = rf"(?:\W*$|\s*[.,;:!)](?!\w)|\s*\(|\s+[-–—]\s|,?\s*{REASON})"
"""Behind an option's letter or text: it is not part of a longer name."""
_ARTICLE = re.compile(r"\ban?\s$", re.IGNORECASE)
_WORDS = re.compile(r"[^\W_]+")


# --- Letters ---


def spelled(letter: str) -> str:
    """A regular expression of a letter, with brackets or quotes around it, that begins no word."""
    return f"{OPEN}{letter}{END}{CLOSE}"


def letter_at(text: str, options: Mapping[str, str]) -> tuple[str, str] | None:
    """The letter of an option that a text begins with, and what follows it."""
    match = re.match(spelled("(?P<letter>[A-Za-z])"), text)
    if match is None or (letter := match["letter"].upper()) not in options:
        return None
    behind = text[match.end() :]
    return None if is_word(letter, behind, options) else (letter, behind)


def is_word(letter: str, rest: str, options: Mapping[str, str]) -> bool:
    """Whether the letter is a word of a sentence: "the answer is a disease", "... is B cells", "... is E. coli"."""
    if begins_with(rest, options[letter]):
        return False
    if any(begins_with(letter + rest, text) for text in options.values() if " " in text):
        return True
    if re.match(r"\.\s*[a-z]", rest):
        return True
    # "I may" has a subject, "A may" none but the letter.
    return re.match(rf"\s+(?!{REASON})[^\W_]", rest) is not None if letter == "I" else goes_on(rest)


def goes_on(rest: str) -> bool:
    """Whether a word follows that belongs to the same name: "liver" and "disease", not "liver" and "because"."""
    return re.match(rf"\s+(?!{REASON}|{AND})[^\W_]", rest) is not None


# --- Words ---


def wording(option: str) -> str:
    """A regular expression of an option's text as a sentence may have it: without case, with an article, in quotes."""
    words = list(_WORDS.finditer(option))
    if re.fullmatch("[A-Za-z]", " ".join(words_of(option))):
        return r"(?!)"  # a single letter is read as one
    if not words:
        return OPEN + r"\s*".join(map(re.escape, option.split()))
    lead, tail = option[: words[0].start()].strip(), option[words[-1].end() :].strip(" .")
    article = len(words) > 1 and words[0][0].casefold() in ("the", "a", "an")
    text = r"[\W_]+".join(re.escape(word[0]) for word in words[article:])
    return rf"{OPEN}(?:(?:the|an?)\s+)?{OPEN}(?:{re.escape(lead)}\s*)?{text}(?![^\W_])(?:\s*{re.escape(tail)})?{CLOSE}"


def text_at(text: str, options: Mapping[str, str]) -> tuple[str, str] | None:
    """The option whose text another begins with, of several the longest, and what follows it."""
    found = {
        letter: match.end()
        for letter, option in options.items()
        if (match := re.match(wording(option), text, re.IGNORECASE))
    }
    longest = max((len(words_of(options[letter])) for letter in found), default=0)
    found = {letter: end for letter, end in found.items() if len(words_of(options[letter])) == longest}
    if len(found) > 1:  # "< 3" and "> 3" are the same words
        found = {letter: end for letter, end in found.items() if plain(text).startswith(plain(options[letter]))}
    if len(found) != 1:
        return None
    [(letter, end)] = found.items()
    return letter, text[end:]


def mentions(said: str, options: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Letters of the options whose text occurs as an answer, of texts within one another the longest, each with what
    follows it on its line."""
    sought = {letter: words_of(option) for letter, option in options.items() if words_of(option)}
    longer = {
        letter: [
            (other, offset)
            for other, around in sought.items()
            if len(around) > len(option)
            for offset in places(option, around)
        ]
        for letter, option in sought.items()
    }
    for line in said.split("\n"):
        words, heard = list(_WORDS.finditer(line)), words_of(line)
        stops = [match.end() for match in STOP.finditer(line)]
        negations = [match.start() for match in NEGATIONS.finditer(line)]
        found = {(start, letter) for letter, text in sought.items() for start in places(text, heard)}
        for start, letter in found:
            if any((start - offset, other) in found for other, offset in longer[letter]):
                continue
            begin, end = words[start].start(), words[start + len(sought[letter]) - 1].end()
            sentence = (stops[i - 1] if (i := bisect_right(stops, begin)) else 0), (*stops, len(line))[i]
            negated = _between(negations, *sentence) > _between(negations, begin, end)
            if _ARTICLE.search(line[max(0, begin - 4) : begin]) and goes_on(line[end:]):
                continue  # "a liver disease" is no liver
            asked = line.endswith("?", 0, sentence[1]) and not options[letter].endswith("?")
            if not negated and not asked and (_telling(options[letter]) or _apart(line[:begin], line[end:])):
                yield letter, line[end:]


def _between(positions: Sequence[int], begin: int, end: int) -> int:
    return bisect_left(positions, end) - bisect_left(positions, begin)


def _telling(option: str) -> bool:
    return sum(map(str.isalpha, option)) > CHANCE_LETTERS


def _apart(before: str, after: str) -> bool:
    """Whether a text stands by itself: at the line's begin, or behind "answer is", and before a stop."""
    begins = not words_of(before) or re.search(r"\banswer(?:\s+is|\s*:)\s*\W*$", before, re.IGNORECASE)
    return bool(begins) and bool(re.match(r"\W*$|\s*[,:.;!–—]", after))


def begins_with(text: str, option: str) -> bool:
    """Whether a text begins with an option's words."""
    sought = words_of(option)
    return bool(sought) and [word[0].casefold() for word in islice(_WORDS.finditer(text), len(sought))] == sought


def places(sought: list[str], heard: list[str]) -> list[int]:
    """Where some words occur one after another among others."""
    return [i for i in range(len(heard) - len(sought) + 1) if heard[i : i + len(sought)] == sought]


def plain(text: str) -> str:
    """A text without case, line breaks and a full stop."""
    return " ".join(text.casefold().split()).strip(" .")


def words_of(text: str) -> list[str]:
    """What a comparison looks at: words and numbers, without case and punctuation."""
    return [match[0].casefold() for match in _WORDS.finditer(text)]
