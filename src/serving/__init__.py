"""A local web page that asks the model: answers token by token, with the alternatives the model saw at each place.

question.py  a request: what to ask, how to sample, every value in its range
answer.py    question -> events: tokens with their probabilities, base and adapter one after the other
guard.py     which requests are let in at all, and what every response says to the browser
app.py       routes, and one answer at a time (needs the extra `serve`)
server.py    socket, address, start and stop (needs the extra `serve`)
page.*       what the browser gets: one file each of HTML, CSS and JavaScript

`docs/serving.md` has the protocol.
"""

from serving.answer import answer_events
from serving.question import Question, parse_question

__all__ = ["Question", "answer_events", "parse_question"]
