"""One trainer process: `python -m trainer.job spec.json` → result.json, model.safetensors, progress as JSON lines.

Standard output carries one JSON object a line ({"event": ...}); the last is the result or the error. The exit code is the
error's (docs/exit-codes.md). A training in several processes starts itself again under torchrun (trainer.launch). Nothing is
read but the spec, the de-identified side it names, and installed code.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from trainer import launch, networks, weights
from trainer.cohort import Loaded, load_cohort
from trainer.errors import CohortError, SpecError, TrainerError, WeightsError
from trainer.evaluation import classification, drift
from trainer.evaluation.subgroups import subgroups, worst
from trainer.local.algorithms import choose
from trainer.local.checkpoint import Checkpoints
from trainer.local.data import Samples
from trainer.local.parallel import Team, join, leave
from trainer.local.patches import Patches
from trainer.local.training import reestimate_norm, train
from trainer.modelcard import ModelCard, write_card
from trainer.spec import JobSpec, load_spec


def run(spec: JobSpec) -> dict[str, Any]:
    """Do the job and write its files into spec.out; returns what result.json holds.

    In a team only the first process tells, evaluates and writes; the others train with it and return {}.
    """
    started = time.monotonic()
    device = choose_device(spec.device)
    team = join(launch.meeting(spec.out), device)
    threads = spec.threads or max(1, len(os.sched_getaffinity(0)) // team.size)
    torch.set_num_threads(threads)
    spec.out.mkdir(parents=True, exist_ok=True)
    if not team.leads:
        _train(spec, starting_model(spec), load_cohort(spec, threads), device, team)
        return {}
    _say(event="start", kind=spec.kind, network=spec.network.name, device=str(device), processes=team.size)
    model = starting_model(spec)
    loaded = load_cohort(spec, threads, lambda done, total: _say(event="prepared", done=done, total=total))
    _say(event="cohort", **{name: len(part) for name, part in loaded.samples.items()})
    result: dict[str, Any] = {
        "kind": spec.kind,
        "samples": len(loaded.samples[_sample_side(spec)]),
        "failures": loaded.failures,
        "set_aside": loaded.set_aside,
        "studies": loaded.studies[_sample_side(spec)],
        "class_counts": loaded.samples[_sample_side(spec)].class_counts(len(spec.task.classes)).tolist(),
    }
    given = _evaluate(spec, model, loaded, device) if spec.evaluate_first else None
    if spec.kind == "train":
        result |= _train(spec, model, loaded, device, team)
    result |= _evaluate(spec, model, loaded, device) if given is None else given
    result["seconds"] = round(time.monotonic() - started, 3)
    _write_json(spec.out / "result.json", result)
    if spec.kind == "train":
        checkpoint(spec).remove()
    return result


def _sample_side(spec: JobSpec) -> str:
    return "train" if spec.kind == "train" else spec.evaluate_on


def starting_model(spec: JobSpec) -> nn.Module:
    """The network with weights_in loaded, or with initial weights from the seed."""
    model = networks.build(spec.network.name, spec.network.args)
    start = weights.load(spec.weights_in) if spec.weights_in else None
    if start is None:
        start = networks.initial_weights(spec.network.name, spec.network.args, spec.seed)
    if spec.initial_seed is not None:
        require_initial(start, networks.initial_weights(spec.network.name, spec.network.args, spec.initial_seed))
    if spec.local.algorithm == "fedbn" and spec.state_in:
        start = start | kept_norm(model, weights.load(spec.state_in))
    weights.into_module(model, start)
    return model


def require_initial(given: weights.Weights, wanted: weights.Weights) -> None:
    """Errors: WeightsError when a model that nobody vouches for is not the network's own start (to a float's rounding)."""
    same = given.keys() == wanted.keys() and all(
        given[name].shape == one.shape and np.allclose(given[name], one, rtol=1e-4, atol=1e-6)
        for name, one in wanted.items()
    )
    if not same:
        raise WeightsError(
            "the first model is not this network's own start from the project's seed; it may be made to reveal data: ask the"
            " coordinator"
        )


def kept_norm(model: nn.Module, state: weights.Weights) -> weights.Weights:
    """FedBN's site-kept arrays. Errors: WeightsError when they are not exactly this network's norm layers."""
    if set(state) != networks.norm_keys(model):
        raise WeightsError("state_in does not hold this network's norm layers; start FedBN afresh at this site")
    return state


def choose_device(name: str) -> torch.device:
    """ "auto" takes CUDA when there is one; a process of a team takes its own GPU. Errors: SpecError for a device this machine
    lacks.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and torch.cuda.is_available():
        return launch.own_gpu()
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise SpecError(f"device {name!r} is not on this machine; set device to 'cpu' or 'auto'")
    try:
        return torch.device(name)
    except RuntimeError as err:
        raise SpecError(f"device {name!r} is unknown; use 'cpu', 'cuda' or 'auto'") from err


def checkpoint(spec: JobSpec) -> Checkpoints:
    """The mid-training checkpoint in the out folder, keyed by everything that decides the result."""
    facts = spec.model_dump(mode="json", exclude={"out", "cache", "threads", "checkpoint_seconds", "device"})
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for path in (spec.weights_in, spec.state_in):
        digest.update(path.read_bytes() if path else b"")
    return Checkpoints(spec.out / "checkpoint.safetensors", digest.hexdigest(), spec.checkpoint_seconds)


def _train(spec: JobSpec, model: nn.Module, loaded: Loaded, device: torch.device, team: Team) -> dict[str, Any]:
    samples = loaded.samples["train"]
    if len(samples) < 2:
        raise CohortError(
            f"the cohort gives {len(samples)} training images and 2 are the least; label more studies or widen"
            f" the cohort rule"
        )
    control = weights.load(spec.state_in) if spec.state_in and spec.local.algorithm == "scaffold" else None
    algorithm = choose(spec.local, control)
    kept: dict[str, Any] = {
        "device": device,
        "algorithm": algorithm,
        "checkpoints": checkpoint(spec),
        "report": _throttled() if team.leads else None,
    }
    if spec.private is not None:
        from trainer.privacy.training import train_privately

        done = train_privately(model, samples, spec.local, spec.private, seed=spec.seed, **kept)
    else:
        classes = len(spec.task.classes)
        done = train(model, samples, spec.local, classes=classes, seed=spec.seed, team=team, **kept)
    if not team.leads:
        return {}
    digest = weights.save(spec.out / "model.safetensors", weights.from_module(model))
    write_card(spec.out, ModelCard(network=spec.network, task=spec.task, sha256=digest))
    out: dict[str, Any] = {
        "weights": "model.safetensors",
        "sha256": digest,
        "steps": done.steps,
        "loss": round(done.loss, 6),
        "training_seconds": round(done.seconds, 3),
        "waiting_share": round(done.waiting, 4),
    }
    state = done.state
    if spec.local.algorithm == "fedbn":
        state = {name: value for name, value in weights.from_module(model).items() if name in networks.norm_keys(model)}
    if state:
        out["state"] = "state.safetensors"
        out["state_sha256"] = weights.save(spec.out / "state.safetensors", state)
    return out


def _evaluate(spec: JobSpec, model: nn.Module, loaded: Loaded, device: torch.device) -> dict[str, Any]:
    samples = loaded.samples[spec.evaluate_on]
    if not len(samples):
        if spec.kind == "train":
            return {"metrics": None}
        raise CohortError(f"no labelled image is in the {spec.evaluate_on} partition; designate some patients for it")
    if spec.reestimate_norm:
        reestimate_norm(model, loaded.samples["train"], device=device)
    if spec.task.name == "segmentation":
        return _evaluate_masks(spec, model, loaded, device)
    probabilities = classification.predict(model, samples, device=device)
    figures = classification.metrics(samples.labels, probabilities, spec.task.classes)
    groups = subgroups(
        loaded.facts[spec.evaluate_on],
        lambda rows: classification.macro_auc(samples.labels[rows], probabilities[rows]),
    )
    out: dict[str, Any] = {"metrics": figures, "evaluated_on": spec.evaluate_on, "subgroups": groups}
    out["worst_subgroup"] = worst(groups)
    out["drift"] = _drift(spec, samples, probabilities)
    out.setdefault("loss", figures["loss"])
    if spec.kind == "train":
        out.pop("loss")
    if spec.kind == "scores":
        out["scores"] = "scores.safetensors"
        out["scores_sha256"] = save_scores(spec.out / "scores.safetensors", samples, probabilities)
    return out


def _drift(spec: JobSpec, samples: Samples, probabilities: np.ndarray) -> dict[str, Any]:
    """This evaluation's images and scores against those of the first one of the same task, kept beside the cache."""
    task = hashlib.sha256(f"{spec.task.model_dump_json()}{spec.evaluate_on}".encode()).hexdigest()[:16]
    file = spec.cache / "drift" / f"{task}.safetensors"
    found = drift.against_reference(file, drift.features(samples), probabilities, spec.task.classes)
    if found["warning"]:
        _say(event="drift", warning=found["warning"])
    return found


def _evaluate_masks(spec: JobSpec, model: nn.Module, loaded: Loaded, device: torch.device) -> dict[str, Any]:
    """Dice and HD95 by volume, over subgroups too."""
    from trainer import segmentation, volumetric
    from trainer.evaluation.segmentation import case_scores, summary

    samples, cases = loaded.samples[spec.evaluate_on], loaded.cases[spec.evaluate_on]
    if isinstance(samples, Patches):
        pairs = volumetric.cases_of(model, samples, spec.task, device)
    else:
        pairs = segmentation.cases_of(model, samples, device)
    scores = [
        case_scores(truth, said, spec.task.classes, fact.get("spacing_mm"))
        for (truth, said), fact in zip(pairs, cases, strict=True)
    ]
    groups = subgroups(cases, lambda rows: summary([scores[i] for i in rows], spec.task.classes, draws=0)["dice"])
    return {
        "metrics": summary(scores, spec.task.classes),
        "evaluated_on": spec.evaluate_on,
        "subgroups": groups,
        "worst_subgroup": worst(groups),
    }


def save_scores(path: Path, samples: Samples, probabilities: np.ndarray) -> str:
    """probabilities float32 [N, classes] and labels int64 [N] as safetensors; returns the SHA-256."""
    return weights.save(path, {"probabilities": probabilities.astype(np.float32), "labels": samples.labels})


def _throttled(every: float = 1.0) -> Any:
    last = [0.0]

    def report(facts: dict[str, object]) -> None:
        now = time.monotonic()
        if now - last[0] >= every or facts.get("step") == facts.get("steps"):
            last[0] = now
            _say(**facts)

    return report


def _say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


def _write_json(path: Path, facts: dict[str, Any]) -> None:
    part = path.with_name(path.name + ".part")
    try:
        with part.open("w", encoding="utf-8") as file:
            json.dump(facts, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as err:
        raise TrainerError(f"cannot write {path.name} ({err.strerror}); free some space and run the job again") from err


def main(argv: list[str] | None = None) -> int:
    """Entry of `python -m trainer.job`."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1 or arguments[0] in ("-h", "--help"):
        print("usage: python -m trainer.job spec.json   (see docs/trainer.md)", file=sys.stderr)
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    out: Path | None = None
    launch.die_with_torchrun()
    try:
        spec = load_spec(Path(arguments[0]))
        out = spec.out
        if spec.kind == "train" and spec.processes > 1 and not launch.in_team():
            return launch.torchrun(Path(arguments[0]), spec)
        result = run(spec)
    except Exception as err:  # noqa: BLE001 - the process boundary: every error becomes one line and one exit code
        code = getattr(err, "exit_code", None)
        if code is None or os.environ.get("FEDPACS_TRACE"):
            import traceback

            traceback.print_exc()
        sentence = (
            str(err) if code is not None else f"the trainer failed unexpectedly ({type(err).__name__}); report this"
        )
        if launch.in_team() and out is not None:  # whoever started this process tells it, once
            launch.leave_word(out, sentence, int(code or 1))
            return int(code or 1)
        _say(event="error", message=sentence, exit_code=code or 1)
        print(f"trainer: {sentence}", file=sys.stderr)
        return int(code or 1)
    finally:
        leave()
    if result:
        _say(event="done", samples=result["samples"], metrics=result.get("metrics"), seconds=result["seconds"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
