"""The words that say little, and English endings.

Crude on purpose: both sides of a comparison are read by the same rules, so an odd stem does no harm, and what is
spelled differently otherwise is the embedder's business.
"""

from __future__ import annotations

import re

_STOP = """
    a about after again all also am an and any are as at be because been before being but by can could did do does
    doing done each else ever every for from further had has have having he her here hers him his how i if in into is
    it its itself just let ll m may me might mine more most much must my myself no nor not of off ok okay on once
    only or other our ours out over own per please re really s same shall she should so some someone something such
    t than thank thanks that the their theirs them then there these they this those through to too under until up
    upon us ve very was we were what when where whether which while who whom whose why will with would yes yet you
    your yours hello hi hey don doesn didn isn aren wasn weren won wouldn shouldn couldn hasn haven hadn ain
"""

_LIGHT = """
    always answer ask best call change come create day everything example explain fact find first five four get give go
    good happen help keep kind know last like list long look made make many mean memory name need never new number
    often old one part people place put question read remember say see show start still take tell ten thing think
    three time today took try two use used user using want way week well word work write year
"""

# Between the segments of a run without spaces. The one group holds the words that are kept as light terms.
RUN_BREAKS = re.compile(
    "为什么|怎么样|有没有|能不能|是不是|什么|怎么|怎样|如何|哪里|哪个|哪些|多少|请问|我们|你们|他们|她们|它们|这个|那个|这些|那些|这里|"
    "那里|以及|因为|所以|但是|如果|就是|还是|或者|已经|非常|有关|关于|你好|谢谢|"
    "(一下|一个|一些|今天|可以|告诉|喜欢|大家|应该|工作|时候|时间|现在|用户|知道|记住|解释|需要|问题|名字)|"
    "[的了吗呢吧啊呀嘛们么我你您他她它是这那哪谁请很最]"
)

_SHORTEST_STEM = 4
_INFLECTIONS = (("ies", "y"), ("ied", "y"), ("sses", "ss"), ("ing", ""), ("ed", ""), ("s", ""))
_DERIVATIONS = (
    ("ization", "iz"), ("isation", "iz"), ("ation", ""), ("ical", "i"), ("ment", ""), ("ness", ""), ("ance", ""),
    ("ence", ""), ("able", ""), ("ible", ""), ("tion", "t"), ("sion", "s"), ("ity", ""), ("ive", ""), ("ful", ""),
    ("ise", "iz"), ("ize", "iz"), ("iser", "iz"), ("tor", "t"), ("ic", "i"), ("al", ""), ("ly", ""), ("er", ""),
    ("sis", "s"), ("is", "iz"), ("y", "i"),
)  # fmt: skip
_CLIPPED = re.compile("[^aeiou][aeiou][^aeiouwxy]")
_OUR = re.compile("(?<=..)our")  # colour, color


def without_ending(word: str) -> str:
    """An English word in lower case without what grammar adds: deploys, deployed, deployment → deploy."""
    if len(word) < _SHORTEST_STEM:
        return word
    if not word.endswith(("ss", "us", "is", "eed")):
        word = _inflected(word)
    word = _OUR.sub("or", word)
    shorter = _shortened(word)
    while shorter != word:
        word, shorter = shorter, _shortened(shorter)
    return word[:-1] if word.endswith("e") and len(word) > _SHORTEST_STEM else word


def _inflected(word: str) -> str:
    for ending, instead in _INFLECTIONS:
        if word.endswith(ending):
            stem = word.removesuffix(ending) + instead
            if len(stem) < 3 or not re.search("[aeiouy]", stem):
                return word
            if ending in ("ing", "ed"):
                if stem[-1] == stem[-2] and stem[-1] not in "aeiouls":
                    return stem[:-1]  # running, run
                if _CLIPPED.fullmatch(stem):
                    return stem + "e"  # living, live
            return stem
    return word


def _shortened(word: str) -> str:
    for ending, instead in _DERIVATIONS:
        if word.endswith(ending):
            stem = word.removesuffix(ending) + instead
            return stem if len(stem) >= _SHORTEST_STEM else word
    return word


STOP_WORDS = frozenset(_STOP.split())
LIGHT_WORDS = frozenset(without_ending(word) for word in _LIGHT.split())
