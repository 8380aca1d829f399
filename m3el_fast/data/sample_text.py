"""The words of the sample set: isles where a house is known by its name, its trade and its painted sign."""

from __future__ import annotations

NAME_STARTS = (
    "Mar", "Pen", "Had", "Thorn", "Wil", "Ash", "Bram", "Cal", "Dun", "Elm", "Fen", "Gar", "Hol", "Ives", "Kes",
    "Lang", "Mor", "Nor", "Ot", "Pel", "Quill", "Ros", "Sel", "Tarn", "Under", "Vel", "Wen", "Yar",
)  # fmt: skip
NAME_ENDS = ("low", "wick", "ley", "bury", "combe", "ford", "mere", "stoke", "den", "thorpe", "by", "holm")

ISLES = (
    "Ferrow", "Little Gull", "Saint Orla", "Brannock", "Eastholm", "Wether", "Kittiwake", "Skarn", "Lowsand", "Tolly",
    "Marram", "Cold Harbour",
)  # fmt: skip

KEEPERS = (
    "Ada", "Barnaby", "Cecily", "Dorian", "Edith", "Felix", "Greta", "Hugo", "Imogen", "Jasper", "Kitty", "Leopold",
    "Maud", "Ned", "Ottilie", "Percy", "Queenie", "Rufus", "Sybil", "Tobias", "Ursula", "Victor", "Winifred",
    "Xavier", "Yvette", "Zachary", "Agnes", "Bertram", "Clara", "Desmond",
)  # fmt: skip

SPECIALITIES = (
    "plum pie", "a grey cat", "loud clocks", "blue hydrangeas", "ghost stories", "a crooked chimney",
    "gooseberry jam", "a talking parrot", "long queues", "honest prices", "a brass band", "sea views", "old maps",
    "a steep staircase", "winter feasts", "a famous quarrel", "a lazy dog", "fair weather", "a hidden door",
    "kind words",
)  # fmt: skip

# What people say of a house, by trade. "{n}" is the name; no clause gives the sign or the keeper away.
TRADES: dict[str, tuple[str, ...]] = {
    "inn": (
        "we slept two nights at {n}", "the landlord of {n} poured us cider", "a warm bed was waiting at {n}",
        "supper at {n} was served by the fire", "there were no rooms left at {n}",
        "we shared a bunk with sailors at {n}",
    ),
    "bakery": (
        "we bought two loaves at {n}", "the ovens of {n} were lit before dawn", "{n} had run out of buns",
        "the smell of fresh bread led us to {n}", "I burnt my tongue on a roll from {n}",
        "{n} sold us a bag of warm pastries",
    ),
    "ferry": (
        "we crossed the strait aboard {n}", "{n} left the pier an hour late", "I was seasick on the deck of {n}",
        "we bought our passage on {n}", "the crew of {n} threw us a rope",
        "{n} sailed through the swell with all hands",
    ),
    "bookshop": (
        "I found a rare novel at {n}", "the shelves of {n} reach the ceiling", "we read poems all afternoon at {n}",
        "{n} wraps each volume in brown paper", "an atlas fell on my foot at {n}",
        "the second-hand paperbacks at {n} are cheap",
    ),
    "theatre": (
        "we saw a comedy at {n}", "the curtain at {n} rose late", "the actors of {n} bowed four times",
        "we had seats in the balcony of {n}", "the audience at {n} wept and clapped", "a new play opens at {n}",
    ),
    "smithy": (
        "the anvil of {n} rang all day", "my horse was shod at {n}", "sparks flew from the forge at {n}",
        "{n} mended our iron gate", "we ordered six nails and a hinge from {n}", "the hammers of {n} woke us",
    ),
    "garden": (
        "the roses of {n} were in bloom", "we walked among the tulips of {n}", "the hedges of {n} form a maze",
        "bees hummed over the lavender at {n}", "we ate on the lawn of {n}",
        "the gravel paths of {n} were freshly raked",
    ),
    "pottery": (
        "we watched the wheel turn at {n}", "I broke a vase at {n}", "the kiln of {n} was still hot",
        "{n} glazed a bowl for us", "wet clay covered the floor of {n}", "we carried a crate of jugs from {n}",
    ),
    "school": (
        "the pupils of {n} sang for us", "lessons at {n} begin at eight",
        "the chalk squeaked on the blackboard at {n}", "I learned Latin at {n}",
        "the headmistress of {n} rang a bell", "children ran laughing from the classrooms of {n}",
    ),
    "lighthouse": (
        "the beam of {n} swept over the reef", "we climbed the spiral steps of {n}",
        "{n} warned the ships off the rocks", "the lantern room of {n} smelled of oil",
        "the foghorn of {n} kept us awake", "from afar we saw {n} flash twice",
    ),
    "dairy": (
        "we drank cold milk at {n}", "the cows of {n} came in at dusk", "{n} churns the best butter",
        "a wheel of cheese from {n} rolled away", "we tasted cream and whey at {n}",
        "the milkmaids of {n} were singing",
    ),
    "clockmaker": (
        "my watch was repaired at {n}", "all the cuckoos at {n} called at noon", "{n} oiled the springs and cogs",
        "the pendulums of {n} swing as one", "I left a broken alarm at {n}", "{n} sets its dials by the stars",
    ),
}  # fmt: skip

OPENINGS = (
    "", "Last autumn", "On market day", "Before the storm", "In the spring", "Years ago", "On the last day",
    "As promised", "On a whim", "One Sunday", "To our delight", "That morning", "In heavy rain", "After the wedding",
)  # fmt: skip
# About half of all sentences name the isle; houses that differ only in their sign stand on the same one.
CLOSINGS = (
    "on {isle}", "on the isle of {isle}", "on {isle}", "", "", "and the sun came out", "as my aunt had advised",
    "while it snowed", "with the whole family",
)  # fmt: skip

HOUSE_STYLES = ("{name}", "{name}", "{name}", "{name}", "old {name}", "the {name}")

ATTRIBUTES = "Trade: {trade}. Isle: {isle}. Keeper: {keeper}. Known for: {speciality}."
DESCRIPTION = (
    "{name} is a {trade} on the isle of {isle}, kept by {keeper} {name} since {year} and known for {speciality}. "
    "Cousins of the same name keep the same trade nearby; strangers tell their houses apart by the painted sign."
)


def names() -> list[str]:
    """Every name a house may have, in a fixed order."""
    return [start + end for start in NAME_STARTS for end in NAME_ENDS]


def sentence(clause: str, opening: str, closing: str, house: str, isle: str) -> str:
    """One sentence from its parts, with a capital and a full stop."""
    body = " ".join(part for part in (clause.format(n=house), closing.format(isle=isle)) if part)
    text = f"{opening}, {body}." if opening else f"{body}."
    return text[0].upper() + text[1:]
