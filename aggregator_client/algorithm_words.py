"""What each federated algorithm does with a hospital's work, in words for the person who decides about a project."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MEAN = "All hospitals train the same model at the same time; the coordinator averages their results"
_ROBUST = (
    "All hospitals train the same model at the same time; so that a faulty or malicious hospital cannot spoil it, the"
    " coordinator"
)
WORDS: Mapping[str, str] = {
    "fedavg": f"{_MEAN}, a hospital with more images counting for more (federated averaging) unless the project says equally.",
    "fedprox": f"{_MEAN}; each hospital's training is held near the common model, so that unlike hospitals pull it apart less.",
    "scaffold": f"{_MEAN}; a correction, sent beside the model, takes out how each hospital's data pull in their own direction.",
    "fedbn": f"{_MEAN}, except for what fits the look of your scanners' images: that stays in your hospital.",
    "fedper": f"{_MEAN}, except for the last layers: each hospital keeps its own, which never leave it.",
    "fednova": f"{_MEAN}, evening out that some hospitals take more training steps than others.",
    "fedavgm": f"{_MEAN}, and keeps some of the direction of the rounds before.",
    "fedadam": f"{_MEAN}, and steps along the average change with an adaptive rule (Adam).",
    "fedyogi": f"{_MEAN}, and steps along the average change with an adaptive rule (Yogi).",
    "fedadagrad": f"{_MEAN}, and steps along the average change with an adaptive rule (Adagrad).",
    "qfedavg": f"{_MEAN}, hospitals for which the model is worse counting for more, so that results lie nearer together.",
    "agnostic": f"{_MEAN}, with weights that follow the hospitals for which the model is worst.",
    "cyclic": "The model visits one hospital after the other, again and again; each trains it further and sends it back.",
    "single_transfer": "The model visits one hospital after the other, once; each trains it for some rounds and sends it back.",
    "median": f"{_ROBUST} takes the middle value of every number.",
    "trimmed_mean": f"{_ROBUST} leaves out the largest and smallest values of every number before averaging.",
    "krum": f"{_ROBUST} takes the one result that lies nearest to its neighbours.",
    "multi_krum": f"{_ROBUST} averages only the results that lie nearest to their neighbours.",
    "geometric_median": f"{_ROBUST} takes the point with the least sum of distances to all results.",
    "centred_clipping": f"{_ROBUST} shortens every change that lies far from the round before.",
    "norm_bound": f"{_ROBUST} shortens every change that is larger than a bound.",
    "split": "The network is cut: its first and last layers are computed in your hospital, the middle at the coordinator. For"
    " each batch what the first layers make of your images goes there and back; images and labels stay.",
    "decentralised": "All hospitals train the same model at the same time and exchange their results among themselves, through a"
    " mailbox (relay) that cannot read them. Each computes the same average; a majority has to sign it before it counts.",
    "ensemble": "Each hospital trains a model of its own, which never leaves it; only what these models say about reference"
    " studies of the coordinator is sent.",
}  # fmt: skip


def words(name: str, args: Mapping[str, Any]) -> list[str]:
    """The algorithm's sentences, with the settings that change what a hospital is asked for."""
    told = [WORDS.get(name, f"The algorithm {name} is not known to the software installed here.")]
    if name in ("median", "trimmed_mean", "krum", "multi_krum", "geometric_median", "centred_clipping", "norm_bound"):
        told.append(
            "For that the coordinator must read each hospital's own result: this protection and hiding single results from the"
            " coordinator exclude each other, and this project chose the former."
        )
    if float(args.get("share", 1.0)) < 1:
        told.append(f"In each round {float(args['share']):.0%} of the hospitals train, drawn by lot.")
    return told
