"""Trained models on phase-change memory that drifts: from the first read to a year later.

python docs/examples/over_time.py
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection, Mapping, Sequence

import minilm
import pretrained
import torch
from rich.console import Console

import analogc
from analogc import CompiledModel, Converter, EvaluationResult, Target, targets
from analogc.compiler.demo import network
from analogc.runtime.extras import require

TIMES = {"20 s": 0.0, "1 h": 3600.0, "1 d": 86400.0, "30 d": 30 * 86400.0, "1 y": 365 * 86400.0}
"""Time since programming, as the tables show it, and since the first read, 20 s after it [s]."""
SEEDS = 3
Measured = tuple[EvaluationResult, dict[str, float]]
"""What was measured on tiles, and the same of the digital model."""


def variants(wanted: Collection[str] = ()) -> dict[str, Target]:
    """Targets to compare, by the label that the tables show; those wanted, or all."""
    preset = targets.pcm_like()
    vector = preset.replace(dac=Converter(8, range="dynamic"))
    quiet = vector.replace(output_noise=0.0)
    found = {
        "pcm-like": preset,
        "DAC range per vector": vector,
        "same, no compensation": vector.replace(compensation="none"),
        "same, compensation per column": vector.replace(compensation="column"),
        "same, exact reference per column": vector.replace(compensation="exact"),
        "same, one weight scale": vector.replace(weight_scale="tensor"),
        "DAC range per vector, no output noise": quiet,
        "same, no compensation, no output noise": quiet.replace(compensation="none"),
        "pcm-hermes-two-device": targets.pcm_hermes_two_device(),
        "same, DAC range per vector": targets.pcm_hermes_two_device().replace(
            dac=Converter(8, range="dynamic")
        ),
    }
    return {label: found[label] for label in wanted or found}


def digits(
    seeds: int | Sequence[int] = SEEDS,
    wanted: Collection[str] = (),
    times: Collection[str] = tuple(TIMES),
) -> Measured:
    """Test accuracy [%] of the demo's network, which is trained on scikit-learn's digits first."""
    data = network.load_digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = network.train(data, 12, lambda epoch, loss: None)

    def compile_for(target: Target) -> CompiledModel:
        return analogc.compile(
            model, (data.test,), target=target, dynamic_shapes="batch",
            calibration_data=data.calibration, seed=0,
        )  # fmt: skip

    def score(found: torch.nn.Module) -> dict[str, float]:
        return {"accuracy": network.accuracy(found, data)}

    return _over_time(compile_for, score, seeds, wanted, times), score(model)


def sentences(
    seeds: int | Sequence[int] = SEEDS,
    wanted: Collection[str] = (),
    times: Collection[str] = tuple(TIMES),
) -> Measured:
    """R@1 of MiniLM's paraphrases, and the mean cosine of its embeddings to the digital ones."""
    model, tokens = pretrained.load_minilm()
    _, digital = minilm.measure(model, tokens, None)

    def score(found: torch.nn.Module) -> dict[str, float]:
        (_, values), _ = minilm.measure(found, tokens, digital)
        return {"R@1": values["R@1"], "cosine": values["cosine to digital"]}

    def compile_for(target: Target) -> CompiledModel:
        return minilm.compile_for(model, tokens, target)

    return _over_time(compile_for, score, seeds, wanted, times), score(model)


def _over_time(
    compile_for: Callable[[Target], CompiledModel],
    score: Callable[[torch.nn.Module], dict[str, float]],
    seeds: int | Sequence[int],
    wanted: Collection[str],
    times: Collection[str],
) -> EvaluationResult:
    compiled = {label: compile_for(target) for label, target in variants(wanted).items()}
    return analogc.evaluate(compiled, score, [TIMES[time] for time in times], seeds)


TABLES: Mapping[str, Callable[[int], Measured]] = {
    "Digits network over time, test accuracy in percent": digits,
    "all-MiniLM-L6-v2 over time, 24 pairs of sentences": sentences,
}


def rows(measured: Measured) -> list[list[str]]:
    """Header and lines of a table: for each metric and target, mean ± deviation by time."""
    result, digital = measured
    names = {seconds: time for time, seconds in TIMES.items()}
    found = [["target", "", *(names[time] for time in result.times)]]
    for metric in result.metrics:
        found.append(["digital", metric, *[f"{digital[metric]:.4g}"] * len(result.times)])
        for label in result.variants:
            cells = [str(result.at(time, metric, label)) for time in result.times]
            found.append([label, metric, *cells])
    return found


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1, help="torch's threads (default: 1)")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="programmings of each target")
    parser.add_argument("--plot", metavar="PREFIX", help="also draw PREFIX-digits.png and the like")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.plot:
        require("matplotlib", "evaluate")
    for title, study in TABLES.items():
        try:
            measured = study(args.seeds)
        except pretrained.MissingPackage as err:
            sys.exit(str(err))
        header, *lines = rows(measured)
        rule = ["---", "---", *["---:"] * (len(header) - 2)]
        print(f"**{title}**\n")
        print(*(f"| {' | '.join(line)} |" for line in (header, rule, *lines)), "", sep="\n")
        if args.plot:
            measured[0].plot(f"{args.plot}-{study.__name__}.png")
            Console(stderr=True).print(f"wrote {args.plot}-{study.__name__}.png")


if __name__ == "__main__":
    main()
