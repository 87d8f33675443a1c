"""all-MiniLM-L6-v2 on analog tiles: does a sentence still find its paraphrase?

python docs/examples/minilm.py
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import pretrained
import torch
from pretrained import Row, Study
from torch import Tensor, nn

import analogc
from analogc import CompiledModel, Target

PAIRS = (
    ("The bakery on our street opens at six.", "Our local bread shop starts selling at 6 a.m."),
    ("My phone battery dies after two hours.", "The mobile runs out of charge far too quickly."),
    ("Heavy snow closed the mountain road.", "The pass is blocked because of the snowfall."),
    ("A dog chases a ball across the lawn.", "On the grass, a puppy runs after a toy."),
    ("She has taught chemistry for ten years.", "For a decade she has been a science teacher."),
    ("How can I get a refund for my ticket?", "I would like my money back for the fare I paid."),
    ("The museum is free on Sundays.", "You pay nothing to see the exhibition at the weekend."),
    ("Two men are repairing a roof.", "A pair of workers fix the top of a house."),
    ("The patient was given antibiotics.", "Doctors treated the infection with medicine."),
    ("Interest rates rose for the third time.", "The central bank made borrowing dearer again."),
    (
        "He learned to swim when he was four.",
        "As a small child he was already at home in the pool.",
    ),
    ("The recipe needs three eggs and butter.", "To bake this cake you take eggs and some fat."),
    ("Our flight was delayed by fog.", "The plane left late since visibility was poor."),
    (
        "The team won the final in extra time.",
        "They became champions after ninety minutes of a draw.",
    ),
    ("Bees are vital for fruit trees.", "Without pollinating insects orchards bear nothing."),
    ("I cannot remember my password.", "I forgot the secret word that I log in with."),
    ("The violin was made in 1720.", "This string instrument is three centuries old."),
    ("The river flooded several villages.", "High water has swamped small towns in the valley."),
    ("He proposed to her on the beach.", "By the sea he asked her to marry him."),
    ("The judge dismissed the case.", "In court the charges were thrown out."),
    ("Astronomers found a planet around a red star.", "Scientists discovered a distant world."),
    ("The children built a castle of sand.", "Kids made a fortress on the shore."),
    (
        "Turn left after the petrol station.",
        "Past the place that sells fuel, take the road on the left.",
    ),
    ("The factory cut its emissions by half.", "The plant now pollutes only half as much."),
)
"""Sentences that mean the same. Each one's partner has to be nearer than all other partners."""

CALIBRATION = (
    "Please keep your bag under the seat in front of you.",
    "The new bridge will be finished by the end of next year.",
    "What time does the last bus to the airport leave?",
    "Salt lowers the freezing point of water.",
    "I am sorry, but this table is reserved.",
    "A red kite circled over the harvested field.",
    "The novel tells of a family of fishermen in the north.",
    "Her knee hurts when she climbs stairs.",
    "Sales of electric bicycles doubled within two years.",
    "Nobody knew who had left the window open.",
    "The function returns a list of integers, sorted.",
    "Stir the sauce until it thickens, then add pepper.",
    "The mayor will answer questions tomorrow evening.",
    "An old clock ticks in the hall.",
    "They crossed the desert on camels in eleven days.",
    "Is it possible to change the delivery address?",
    "The choir rehearses on Thursdays in the town hall.",
    "Plants turn light, water and carbon dioxide into sugar.",
    "The goalkeeper was sent off before half time.",
    "We painted the kitchen yellow, and the ceiling white.",
    "Her lecture on Roman law was surprisingly funny.",
    "The printer is out of paper again.",
    "Wolves have come back to the forests of the east.",
    "Tax returns are due at the end of July.",
)
"""Sentences to choose converter ranges from: none of those above."""

Tokens = Callable[..., tuple[Tensor, Tensor]]


def compile_for(model: nn.Module, tokens: Tokens, target: Target) -> CompiledModel:
    """Compile for any number of sentences of any length."""
    any_size = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    return analogc.compile(
        model,
        tokens(CALIBRATION[:2]),
        target=target,
        dynamic_shapes=(any_size, any_size),
        calibration_data=[tokens(CALIBRATION[i : i + 8]) for i in range(0, len(CALIBRATION), 8)],
        seed=0,
    )


def measure(model: nn.Module, tokens: Tokens, digital: Tensor | None) -> tuple[Row, Tensor]:
    """R@1, its margin, and the cosine to the digital embeddings; and the embeddings."""
    with torch.no_grad():
        found = model(*tokens([sentence for pair in PAIRS for sentence in pair]))
    reference = found if digital is None else digital
    similar = found[0::2] @ found[1::2].T
    own = similar.diagonal()
    others = (similar.sum() - own.sum()) / (len(PAIRS) * (len(PAIRS) - 1))
    cosine = (found * reference).sum(1)
    values = {
        "R@1": float((similar.argmax(1) == torch.arange(len(PAIRS))).float().mean()),
        "margin": float(own.mean() - others),
        "cosine to digital": float(cosine.mean()),
        "worst cosine": float(cosine.min()),
    }
    return ("digital", values), found


def study(wanted: Collection[str] = ()) -> Study:
    """A row for the digital model and for each target (or those wanted)."""
    model, tokens = pretrained.load_minilm()
    row, digital = measure(model, tokens, None)
    yield row, None
    for label, target, _ in pretrained.variants(wanted, {}):
        compiled = compile_for(model, tokens, target)
        (_, values), _ = measure(compiled, tokens, digital)
        yield (label, values), compiled


TABLES = {"all-MiniLM-L6-v2, 24 pairs of sentences": study}

if __name__ == "__main__":
    pretrained.run(TABLES, __doc__)
