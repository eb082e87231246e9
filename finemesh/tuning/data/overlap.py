"""Rows of different tasks that are about the same: all that a row of one task asks by stands in a row of another one.

One task may answer with what another one asks by, so all texts of a row count, on whichever side they stand. What many
rows of a task hold, such as a label, tells none of them from the others and is no match there.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from finemesh.tuning.data.examples import content_hash
from finemesh.tuning.data.instructions import Item

MANY = 10  # rows: a passage that several questions are asked about has fewer, a label more

Texts = frozenset[str]


def related(tasks: Mapping[str, Sequence[Item]]) -> dict[str, list[Item]]:
    """The distinct rows of each task, with what they are `about`."""
    rows = {name: _Rows.of(items) for name, items in tasks.items()}
    about = {name: [[subject] for subject in task.subjects()] for name, task in rows.items()}
    subjects = {name: {own[0] for own in found} for name, found in about.items()}
    for name, task in rows.items():
        for subject in {subject for other, own in subjects.items() if other != name for subject in own}:
            for place in task.holding(subject):
                if subject != about[name][place][0]:
                    about[name][place].append(subject)
    return {name: [replace(item, about=(_mark(own), *sorted(map(_mark, others))))
                   for item, (own, *others) in zip(task.items, about[name], strict=True)] for name, task in rows.items()}


def without(items: Iterable[Item], others: Sequence[Item]) -> list[Item]:
    """Those that are about nothing that one of the others is about in another task."""
    holding: defaultdict[str, set[str]] = defaultdict(set)  # the tasks of the others, by what they hold
    asking: defaultdict[str, set[str]] = defaultdict(set)  # and by what they are about themselves
    for other in others:
        asking[other.about[0]].add(other.task)
        for mark in other.about:
            holding[mark].add(other.task)

    def met(item: Item) -> set[str]:
        return holding[item.about[0]].union(*(asking[mark] for mark in item.about)) - {item.task}

    return [item for item in items if not met(item)]


@dataclass(frozen=True)
class _Rows:
    """The rows of a task with their texts, and where each text stands."""

    items: Sequence[Item]
    texts: Sequence[Texts]
    places: Mapping[str, Sequence[int]]

    @staticmethod
    def of(items: Sequence[Item]) -> "_Rows":
        texts = [item.texts(item.values) for item in items]
        places: defaultdict[str, list[int]] = defaultdict(list)
        for place, own in enumerate(texts):
            for text in own:
                places[text].append(place)
        return _Rows(items, texts, dict(places))

    def subjects(self) -> list[Texts]:
        """What each row asks by; where many ask that, those of its texts that few rows have."""
        questions = [item.texts(item.asked) for item in self.items]
        counts = Counter(questions)
        return [question if question and counts[question] <= MANY else
                frozenset(text for text in own if len(self.places[text]) <= MANY) or own
                for question, own in zip(questions, self.texts, strict=True)]

    def holding(self, subject: Texts) -> list[int]:
        """The rows with all of these texts, unless there are many."""
        fewest = min((self.places.get(text, ()) for text in subject), key=len)
        found = [place for place in fewest if subject <= self.texts[place]]
        return found if len(found) <= MANY else []


def _mark(texts: Texts) -> str:
    return content_hash(sorted(texts))[:16]
