"""Some hundred turns of conversations over many sessions, in two languages, with questions whose answers are known.

People talk about the same few things, each with an answer of their own, so the words of a question fit several turns.
About half of the answers share no word with their question: the turn before them does, or only the meaning fits.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from memory.embedders.lexical import vector as spelling
from memory.embedders.port import Nearness
from memory.records import NewMemory
from memory.words import context_of


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, and the text of the turn that answers it."""

    query: str
    answer: str
    language: str


# What the other one says, what the speaker answers, what is asked later, what is different with each speaker.
_ENGLISH: Sequence[tuple[str, str, str, Sequence[str]]] = (
    ("Any plans for your summer holiday?", "We booked a cabin near {} for two weeks.", "Where does {} go on vacation?",
     ("Bergen", "Split", "Inverness", "Bled", "Faro", "Tartu")),
    ("How is the new puppy doing?", "{} chewed up my slippers again.", "What is the name of {}'s dog?",
     ("Biscuit", "Rocket", "Pepper", "Mango", "Olive", "Waffle")),
    ("Did the interview go well?", "Yes, I start at the {} in May!", "Where is {}'s new job?",
     ("harbour museum", "tax office", "tile factory", "city library", "radio station", "fish market")),
    ("What are you cooking tonight?", "Probably {}, the kids love it.", "What does {} make for dinner?",
     ("lentil stew", "pumpkin risotto", "fish tacos", "mushroom pie", "beef noodles", "tomato soup")),
    ("Still taking lessons?", "Every Monday, the {} teacher is strict.", "Which instrument does {} learn?",
     ("cello", "oboe", "harp", "banjo", "trumpet", "drum")),
    ("You look tired, what did the doctor say?", "She thinks it is the {}.", "What health problem does {} have?",
     ("iron level", "left knee", "pollen", "thyroid", "back", "migraine")),
    ("Is the car fixed?", "The garage replaced the {}, at last.", "What was repaired in {}'s car?",
     ("clutch", "gearbox", "alternator", "windscreen", "exhaust", "radiator")),
    ("What should your mother get for her birthday?", "She keeps talking about {}.", "What would {}'s mother like?",
     ("a telescope", "orchids", "a kayak tour", "a sewing machine", "garden gnomes", "opera tickets")),
    ("Are you reading anything good?", "I am halfway through a book about {}.", "What is {} reading?",
     ("glaciers", "Napoleon", "beekeeping", "chess", "volcanoes", "pirates")),
    ("When does the course begin?", "On the {} of next month, I signed up today.", "When does {}'s class start?",
     ("third", "ninth", "twelfth", "fourteenth", "twentieth", "seventh")),
)  # fmt: skip

_CHINESE: Sequence[tuple[str, str, str, Sequence[str]]] = (
    ("暑假有什么打算？", "我们订了{}的民宿，住两个星期。", "{}去哪里度假？", ("大理", "青岛", "桂林", "敦煌")),
    ("新来的小狗怎么样？", "{}又把我的拖鞋咬坏了。", "{}的宠物狗叫什么名字？", ("豆豆", "旺财", "雪球", "可乐")),
    ("面试结果出来了吗？", "出来了，五月去{}上班！", "{}的新工作在哪里？", ("海洋馆", "税务局", "图书馆", "电视台")),
    ("今晚做什么菜？", "大概做{}，孩子爱吃。", "{}晚饭吃什么？", ("红烧茄子", "番茄牛腩", "清蒸鲈鱼", "香菇鸡汤")),
    ("还在上音乐课吗？", "每周一上，{}老师很严格。", "{}在学什么乐器？", ("古筝", "二胡", "长笛", "吉他")),
    ("脸色不好，医生怎么讲？", "她说是{}的毛病。", "{}的身体有什么问题？", ("膝盖", "花粉过敏", "颈椎", "偏头痛")),
    ("车修好了没有？", "修理厂换了{}，总算好了。", "{}的汽车修了什么地方？", ("离合器", "变速箱", "挡风玻璃", "水箱")),
    ("你妈妈过生日送什么？", "她一直念叨{}。", "送{}的母亲什么礼物合适？", ("望远镜", "兰花", "缝纫机", "京剧票")),
)  # fmt: skip

_SMALL_TALK = {
    "en": ("Ha, that sounds familiar.", "I have to run, the bus is coming.", "Good luck with that!", "It still rains.",
           "Let me call you back on Friday.", "My phone battery is nearly empty."),
    "zh": ("哈哈，听起来很熟悉。", "公交车来了，先走一步。", "祝你顺利！", "外面在下雨。", "再打电话。", "快没电了。"),
}  # fmt: skip

_SPEAKERS = {"en": ("Maria", "Tom", "Priya", "Lukas", "Grace", "Omar"), "zh": ("王芳", "李娜", "张伟", "陈静")}

# What a model of meaning would know, and spelling does not.
_CONCEPTS = (
    ("holiday", "vacation", "cabin", "暑假", "度假", "民宿"),
    ("puppy", "dog", "chewed", "小狗", "宠物狗", "咬坏"),
    ("interview", "job", "start at", "面试", "工作", "上班"),
    ("cooking", "dinner", "the kids love", "做什么菜", "晚饭", "爱吃"),
    ("lessons", "instrument", "teacher", "音乐课", "乐器", "老师"),
    ("doctor", "health", "she thinks it", "医生", "身体", "毛病"),
    ("garage", "repaired", "fixed", "修好", "修理厂", "修了"),
    ("birthday", "gift", "keeps talking", "生日", "礼物", "念叨"),
    ("reading", "book", "halfway"),
    ("course", "class", "signed up"),
)


class ConceptEmbedder:
    """Knows what the conversations are about, and a little of spelling; `local` and without a network."""

    model = "concepts-of-the-tests"
    dimensions = 512
    local = True
    nearness = Nearness(floor=0.3, weight=1.0)

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        return [_concept_vector(text) for text in texts]

    async def aclose(self) -> None:
        """Holds nothing."""


class WithoutVectors(ConceptEmbedder):
    """Sees nothing in any text: what remains of recall is the text arm."""

    model = "nothing-of-the-tests"

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        return [[0.0] * self.dimensions for _ in texts]


def conversations(seed: int = 5) -> tuple[list[NewMemory], list[Asked]]:
    """All turns, in order, and the questions."""
    chance = random.Random(seed)
    turns: list[NewMemory] = []
    asked: list[Asked] = []
    # The same text again would be the same memory: who is spoken to is named, as people do, and the time is.
    day = datetime(2026, 1, 5, 18, tzinfo=UTC)
    for language, topics in (("en", _ENGLISH), ("zh", _CHINESE)):
        exchanges = [(topic, place) for topic in topics for place in range(len(_SPEAKERS[language]))]
        chance.shuffle(exchanges)
        for session in range(0, len(exchanges), 5):
            thread, place = f"{language}-{session}", 0
            day += timedelta(days=chance.randint(1, 9))
            for (prompt, answer, question, values), who in exchanges[session : session + 5]:
                speakers = _SPEAKERS[language]
                speaker, other = speakers[who], chance.choice([name for name in speakers if name != speakers[who]])
                comma = ", " if language == "en" else "，"
                said = [(other, f"{speaker}{comma}{prompt}"), (speaker, answer.format(values[who]))]
                if chance.random() < 0.9:
                    said.append((other, f"{chance.choice(_SMALL_TALK[language])} {speaker}{comma}{day:%H:%M}!"))
                for name, text in said:
                    turns.append(
                        NewMemory(
                            text, "summary", thread=thread, place=place, context=context_of(name, day), entities=()
                        )
                    )
                    place += 1
                    day += timedelta(minutes=1)
                if chance.random() < 0.7:
                    asked.append(Asked(question.format(speaker), said[1][1], language))
    return turns, asked


def _concept_vector(text: str) -> list[float]:
    lowered = text.lower()
    values = [0.5 * value for value in spelling(text)]
    for number, words in enumerate(_CONCEPTS):
        if any(word in lowered for word in words):
            values[number * 7] += 1.0
    length = sum(value * value for value in values) ** 0.5
    return [round(value / length, 6) for value in values] if length else values
