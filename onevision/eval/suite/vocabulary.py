"""Vocabulary of scenes, and the parts of it that are held out from training.

Held out are combinations: pairs of shape and color, words, numbers, sums, fonts, and speeds. Each is either
never seen in training or always allowed there. The test split draws from the held-out part alone where an
answer is read (words, numbers, sums), and from everything where the parts are known and their combination is
new.
"""

from __future__ import annotations

from random import Random

from onevision.eval.suite.sample import Split

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (215, 30, 35),
    "orange": (245, 135, 20),
    "yellow": (235, 215, 30),
    "green": (35, 150, 50),
    "cyan": (40, 200, 210),
    "blue": (35, 70, 210),
    "purple": (125, 45, 165),
    "pink": (250, 130, 190),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "moon")

Thing = tuple[str, str]  # (color, shape)
THINGS: tuple[Thing, ...] = tuple((color, shape) for color in COLORS for shape in SHAPES)

#: Two colors of each shape, and two shapes of each color, are never seen together in training.
HELD_OUT_THINGS: frozenset[Thing] = frozenset(
    (color, shape)
    for at, color in enumerate(COLORS)
    for number, shape in enumerate(SHAPES)
    if (at + 3 * number) % 4 == 1
)

_LEXICON = """
ACE ACT AIR ANT APE ARM ART ASH BAG BALL BAND BANK BARK BARN BAT BEACH BEAN BEAR BED BEE BELL BELT
BIRD BOAT BONE BOOK BOOT BOWL BOX BOY BREAD BRICK BRUSH BUS CAB CAKE CAMP CAP CAR CARD CART CAT CAVE
CHAIR CLAY CLOCK CLOUD COAL COAT COIN COLD CORN COW CRAB CROW CUP DAWN DEER DESK DISH DOG DOLL DOOR
DOVE DRUM DUCK DUST EAGLE EAR EGG ELM EYE FAN FARM FERN FIG FILM FIRE FISH FLAG FLUTE FOG FOOD FOOT
FORK FOX FROG FUR GAME GATE GIFT GLASS GOAT GOLD GRAPE GRASS GULL GUM HAND HARP HAT HAWK HAY HEN
HILL HIVE HOME HOOK HORN HORSE HOUSE ICE INK IRON ISLE IVY JAM JAR JET JOB JUG JUICE KEY KING KITE
KNEE KNOT LACE LAKE LAMB LAMP LAND LEAF LEMON LIME LION LOCK LOG MAP MASK MAT MILK MINT MIST MOLE
MOON MOSS MOTH MOUSE MUD MUG NAIL NEST NET NIGHT NOSE NUT OAK OAR OIL OLIVE ONION OTTER OVEN OWL OX
PAGE PAIL PAINT PALM PAN PARK PATH PEA PEAR PEN PET PIANO PIE PIG PIN PINE PIPE PLANE PLATE PLUM
POND POT QUAIL QUEEN QUILT RAIN RAT RICE RING RIVER ROAD ROBIN ROCK ROOF ROOM ROPE ROSE RUG SAIL
SALT SAND SEA SEAL SEED SHEEP SHELL SHIP SHOE SILK SKY SNAIL SNOW SOAP SOCK SOUP SPOON STAR STONE
SUGAR SUN SWAN TABLE TAXI TEA TENT TIGER TOAST TOE TOWER TOY TRAIN TREE TRUCK TUB VAN VASE VEST
VIOLA WALL WASP WAVE WAX WEB WELL WHALE WHEAT WHEEL WIG WIND WING WOLF WOOD WOOL WORM YARD YARN
ZEBRA ZOO
"""
WORDS = tuple(_LEXICON.split())
HELD_OUT_WORDS = frozenset(WORDS[2::5])

NUMBERS = tuple(str(number) for number in range(10, 100))
#: Every digit still occurs in both places.
HELD_OUT_NUMBERS = frozenset(number for number in NUMBERS if sum(map(int, number)) % 5 == 3)

Sum = tuple[int, int]
SUMS: tuple[Sum, ...] = tuple((a, b) for a in range(1, 10) for b in range(1, 10))
LARGEST_SUMMAND = 29  # in training
#: No two with the same sum; the summands the other way round are in training.
HELD_OUT_SUMS: frozenset[Sum] = frozenset(
    ((1, 2), (1, 7), (2, 4), (2, 9), (3, 6), (4, 8), (6, 7), (7, 9), (5, 9))
)

#: Files in ``fonts/``, and ``Aileron``, which Pillow brings.
FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSerif-Bold",
    "DejaVuSerif-Italic", "DejaVuSansMono", "DejaVuSansMono-Bold", "Aileron",
)  # fmt: skip
HELD_OUT_FONTS = frozenset(("Aileron", "DejaVuSerif-Bold"))

#: Distances that a thing moves in a video, as fractions of the image's side.
TRAIN_SPEEDS = ((0.3, 0.42), (0.52, 0.62))
HELD_OUT_SPEEDS = (0.43, 0.51)

_VOWELS, _CONSONANTS = "AEIOU", "BCDFGHJKLMNPQRSTVWXYZ"


def things(split: Split) -> tuple[Thing, ...]:
    """Pairs of color and shape that may be drawn: in the test split all of them, evenly."""
    return THINGS if split == "test" else _TRAIN_THINGS


def words(split: Split) -> tuple[str, ...]:
    """Words of the split."""
    return _TEST_WORDS if split == "test" else _TRAIN_WORDS


def numbers(split: Split) -> tuple[str, ...]:
    """Two-digit numbers of the split."""
    return _TEST_NUMBERS if split == "test" else _TRAIN_NUMBERS


def sums(split: Split) -> tuple[Sum, ...]:
    """Pairs of summands from 1 to 9 of the split."""
    return tuple(pair for pair in SUMS if (pair in HELD_OUT_SUMS) == (split == "test"))


_TRAIN_THINGS = tuple(thing for thing in THINGS if thing not in HELD_OUT_THINGS)
_HELD_OUT_THINGS = tuple(thing for thing in THINGS if thing in HELD_OUT_THINGS)
_TRAIN_WORDS = tuple(word for word in WORDS if word not in HELD_OUT_WORDS)
_TEST_WORDS = tuple(word for word in WORDS if word in HELD_OUT_WORDS)
_TRAIN_NUMBERS = tuple(number for number in NUMBERS if number not in HELD_OUT_NUMBERS)
_TEST_NUMBERS = tuple(number for number in NUMBERS if number in HELD_OUT_NUMBERS)


def draw_things(random: Random, split: Split, count: int, *, new: bool = False) -> list[Thing]:
    """Things of different shapes and colors; ``new``: in the test split only held-out ones."""
    pool = _HELD_OUT_THINGS if new and split == "test" else things(split)
    drawn: list[Thing] = []
    while len(drawn) < count:
        color, shape = random.choice(pool)
        if all(shape != other and color != hue for hue, other in drawn):
            drawn.append((color, shape))
    return drawn


def draw_word(random: Random, split: Split) -> str:
    """A word; in training every other one is random letters: letters are read, not words guessed."""
    if split == "test" or random.random() < 0.5:
        return random.choice(words(split))
    while True:
        letters = [
            random.choice(_VOWELS if random.random() < 0.4 else _CONSONANTS)
            for _ in range(random.randint(3, 5))
        ]
        word = "".join(letters)
        if word not in HELD_OUT_WORDS:
            return word


def draw_words(random: Random, split: Split, count: int) -> list[str]:
    """Different words."""
    drawn: list[str] = []
    while len(drawn) < count:
        word = draw_word(random, split)
        if word not in drawn:
            drawn.append(word)
    return drawn


def draw_numbers(random: Random, split: Split, count: int) -> list[str]:
    """Different two-digit numbers; in training every third has three digits, so that each digit is read.

    With two digits only, a model learns which digits never occur together in training, and fails the test.
    """
    drawn: list[str] = []
    while len(drawn) < count:
        long = split == "train" and random.random() < 1 / 3
        number = str(random.randint(100, 999)) if long else random.choice(numbers(split))
        if number not in drawn:
            drawn.append(number)
    return drawn


def like(number: str, random: Random, split: Split) -> tuple[str, ...]:
    """Numbers with the same number of digits, to choose from."""
    if len(number) == 2:
        return numbers(split)
    return tuple(str(other) for other in random.sample(range(100, 1000), 4))


def draw_sum(random: Random, split: Split) -> Sum:
    """Two summands from 1 to 9, all sums equally likely; in training every other pair is larger.

    With 72 pairs only, a model learns the sums by heart, and fails the test.
    """
    if split == "train" and random.random() < 0.5:
        while True:
            a, b = random.randint(1, LARGEST_SUMMAND), random.randint(1, LARGEST_SUMMAND)
            if max(a, b) > 9:
                return a, b
    pool = sums(split)
    total = random.choice(sorted({a + b for a, b in pool}))
    return random.choice([pair for pair in pool if sum(pair) == total])


def draw_font(random: Random, split: Split) -> str:
    """The name of a font: in the test split a held-out one half of the time."""
    held_out = split == "test" and random.random() < 0.5
    return random.choice([font for font in FONTS if (font in HELD_OUT_FONTS) == held_out])


def draw_speed(random: Random, split: Split) -> float:
    """Distance from the first to the last frame, as a fraction of the image's side."""
    return random.uniform(*(HELD_OUT_SPEEDS if split == "test" else random.choice(TRAIN_SPEEDS)))


def a_thing(thing: Thing) -> str:
    """A thing with its article."""
    color, shape = thing
    return f"{'an' if color == 'orange' else 'a'} {color} {shape}"


def plural(shape: str) -> str:
    """Plural of a shape's name."""
    return shape + ("es" if shape == "cross" else "s")
