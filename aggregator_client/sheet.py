"""The project sheet: a project told in plain words to the person in the hospital who decides about it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from aggregator_client.algorithm_words import words
from aggregator_client.decentral.settings import ALGORITHM as DECENTRALISED
from aggregator_client.private_words import limits, promises
from aggregator_client.project import SPLIT, ProjectDocument, ProjectDraft, SumSettings

WIDTH = 100


def plain_words(draft: ProjectDraft, digest: str = "") -> str:
    """Who asks, why, which patients, what is computed, what leaves, how it is protected, and what that does not stop."""
    parts = [
        f"{draft.name}, version {draft.version}",
        f"Digest: {digest}" if digest else "DRAFT: not signed, cannot be approved.",
        *(_section(title, lines) for title, lines in _sections(draft)),
    ]
    return "\n".join(parts) + "\n"


def _sections(draft: ProjectDraft) -> list[tuple[str, list[str]]]:
    return [
        ("Who asks", _who(draft)),
        ("Why", [draft.purpose]),
        ("Which patients", _patients(draft)),
        ("What is computed in your hospital", _computed(draft)),
        ("How the hospitals train together", words(draft.algorithm.name, draft.algorithm.args)),
        ("What leaves your hospital", _leaves(draft)),
        ("How it is protected", _protected(draft)),
        ("What this does not protect against", _not_protected(draft)),
        ("Your say", _your_say(draft)),
    ]


def _section(title: str, lines: Sequence[str]) -> str:
    body = "\n".join(
        textwrap.fill(line, WIDTH, initial_indent="  - ", subsequent_indent="    ", break_on_hyphens=False)
        for line in lines
    )
    return f"\n{title}\n{body}"


def _who(draft: ProjectDraft) -> list[str]:
    if not isinstance(draft, ProjectDocument):
        return ["Nobody yet: the coordinator signs the draft."]
    who = draft.coordinator
    return [
        f"{who.name}, who signed this file. Fingerprint of its keys: {who.fingerprint} (compare it over the telephone)."
    ]


def _patients(draft: ProjectDraft) -> list[str]:
    rule = draft.cohort
    wanted = [
        f"Modalities: {_any(rule.modalities)}; body parts: {_any(rule.body_parts)}; views: {_any(rule.views)}.",
        f"Age: {_ages(rule.min_age_years, rule.max_age_years)}.",
        _labels(draft),
        (
            f"At least {rule.min_patients} patients and {draft.contract.min_train_images} training images, or your hospital"
            " sits the project out."
        ),
        "Patients who opted out and studies your own policy excludes never take part, whatever the project asks for.",
    ]
    wanted += _each_study(draft)
    if draft.contract.max_unlabelled_share < 1:
        wanted.append(
            f"No more than {draft.contract.max_unlabelled_share:.0%} of the matching studies without a label."
        )
    if draft.contract.min_classes > 1:
        wanted.append(f"At least {draft.contract.min_classes} of the {len(draft.task.classes)} classes in your data.")
    return wanted


def _labels(draft: ProjectDraft) -> str:
    """What the task learns from: a study's label, or the masks in a study."""
    task = draft.task
    if task.name == "classification":
        return f"Studies with the label {task.label!r} being one of {', '.join(task.classes)}."
    labelled = f" and the label {task.label!r}" if task.label else ""
    return f"Studies with a segmentation or contours of {', '.join(task.classes[1:])}{labelled}."


def _each_study(draft: ProjectDraft) -> list[str]:
    """What a study must measure to be used."""
    asked, told = draft.contract, []
    if asked.min_slices > 1:
        told.append(f"at least {asked.min_slices} slices in each image series")
    if asked.spacing_mm:
        told.append(f"pixels {asked.spacing_mm[0]:g} to {asked.spacing_mm[1]:g} mm apart")
    if asked.slice_mm:
        told.append(f"slices {asked.slice_mm[0]:g} to {asked.slice_mm[1]:g} mm apart")
    if asked.intensity:
        told.append(f"intensities between {asked.intensity[0]:g} and {asked.intensity[1]:g} in the modality's units")
    return [f"Each study needs {'; '.join(told)}. One that fails is left out."] if told else []


def _any(values: Sequence[str]) -> str:
    return ", ".join(values) if values else "any"


def _ages(low: int | None, high: int | None) -> str:
    if low is None and high is None:
        return "any"
    return f"{'any' if low is None else low} to {'any' if high is None else high} years"


def _computed(draft: ProjectDraft) -> list[str]:
    local = draft.local
    amount = f"{local.steps} steps" if local.steps else f"{local.epochs} pass{'es' if local.epochs > 1 else ''}"
    return [
        (
            f"A network ({draft.network.name}, part of the software installed here) learns to tell {len(draft.task.classes)}"
            f" classes apart on de-identified images of {draft.task.size} × {draft.task.size} pixels."
        ),
        (
            f"Up to {draft.rounds} rounds; in each, {amount} over your training images, then one evaluation on your"
            " validation images."
        ),
        *(
            ["Each image's brightness is first brought to one histogram, which this file gives."]
            if draft.task.harmonise
            else []
        ),
        *_run(draft),
        "No program code comes from the coordinator; only settings of what is installed here.",
    ]


def _run(draft: ProjectDraft) -> list[str]:
    told = []
    if draft.stop.patience:
        told.append(f"The rounds end sooner when {draft.stop.patience} of them brought no better model.")
    if draft.stop.keep == "best":
        told.append(
            "The model that is kept is the one that was best on the hospitals' held-out patients, not the last one."
        )
    if draft.personal.epochs:
        told.append(
            f"At the end your hospital trains the common model {draft.personal.epochs} passes further on its own images. That"
            " model stays here; its evaluation's figures are sent."
        )
    return told


def _leaves(draft: ProjectDraft) -> list[str]:
    if draft.algorithm.name == "ensemble":
        return [
            (
                f"What your hospital's own model says about {len(draft.reference.digests)} reference files of the coordinator:"
                " probabilities or masks. The files are named in the project by their digest; your node answers for no other"
                " file, and never for a study of yours."
            ),
            "After each round: how many training images were used, the training loss and the evaluation's figures, as totals.",
            "Your model stays here. What all hospitals' answers become is sent back to you (federation/results).",
            "Each message is recorded in your audit log before it is sent: `fedpacs audit show --kind egress`.",
        ]
    if draft.algorithm.name == DECENTRALISED:
        return [
            (
                "After each round: the numbers of the trained network (its weights), sealed to each other hospital of the project"
                f" ({', '.join(sorted(draft.peers.sites)) or 'those enrolled when it is signed'}), and how many training images"
                " were used."
            ),
            "Signed statements in clear to the relay: whose updates your node holds, and which model it votes for, as digests.",
            "The evaluation's figures stay here. No image, no header, no label of a single study and no pseudonym is sent.",
            "Each message is recorded in your audit log before it is sent: `fedpacs audit show --kind egress`.",
        ]
    if draft.algorithm.name == SPLIT:
        return [
            "For each batch of images: what the network's first layers make of them (activations), and gradients of the loss.",
            "After each round: the numbers of the network's first and last layers, the number of training images and the loss.",
            "After the last round: the evaluation's figures.",
            "No image, no header, no label of a single study and no patient's pseudonym is sent.",
            "Each message is recorded in your audit log before it is sent: `fedpacs audit show --kind egress`.",
        ]
    if draft.privacy.summed:
        return [
            "After each round: the change of the network's numbers, masked, so that only the hospitals' sum can be read.",
            f"With it: how long it took, {_loss(draft)}and the common model's score (AUC or Dice) on your held-out patients.",
            "The number of training images goes into the sum, masked too. After the last round: the evaluation's figures.",
            "No image, no header, no label of a single study and no patient's pseudonym is sent.",
            "Each message is recorded in your audit log before it is sent: `fedpacs audit show --kind egress`.",
        ]
    return [
        "After each round: the numbers of the trained network (its weights).",
        *_smaller(draft),
        (
            f"With them: how many training images were used, how long it took, {_loss(draft)}and the evaluation's"
            " figures (such as the AUC, the number of cases of each class, and how the weakest group of ten or more patients"
            " fares, say by sex or age), as totals."
        ),
        "No image, no header, no label of a single study and no patient's pseudonym is sent.",
        "Each message is recorded in your audit log before it is sent: `fedpacs audit show --kind egress`.",
    ]


def _loss(draft: ProjectDraft) -> str:
    return "the training loss, " if draft.privacy.dp is None else ""


def _smaller(draft: ProjectDraft) -> list[str]:
    form = {
        "fp16": "in half precision",
        "bf16": "in half precision",
        "int8": "rounded to eight bits a number",
        "int4": "rounded to four bits a number",
        "topk": f"only the largest {draft.transfer.share:.0%} of their changes, the rest being added to the next round's",
        "lowrank": f"their changes as factors of rank {draft.transfer.rank}, what these miss being added to the next round's",
    }.get(draft.transfer.compression)
    return (
        [f"They are made smaller on their way: {form}. This saves bytes and is no protection of privacy."]
        if form
        else []
    )


def _protected(draft: ProjectDraft) -> list[str]:
    peers = draft.algorithm.name == DECENTRALISED
    what, reader = ("update", "the hospital it is meant for") if peers else ("message", "the coordinator named above")
    return [
        *_summed(draft),
        *_voted(draft),
        *promises(draft),
        (
            f"Sealed end to end: each {what} is encrypted so that only {reader} can read it (HPKE,"
            " MLKEM768-X25519 and AES-256-GCM, also against a later quantum computer), and signed by your node."
        ),
        "Bound to this project's digest, the round and your hospital: it cannot be replayed, mixed up or re-addressed.",
        "Relays, the network and the other hospitals see its size and time, not its content.",
    ]


def _summed(draft: ProjectDraft) -> list[str]:
    if not draft.privacy.summed:
        return []
    terms = draft.privacy.secure_aggregation
    who = f" The {len(terms.sites)} hospitals are: {', '.join(sorted(terms.sites))}." if terms.sites else ""
    return [
        (
            f"Secure aggregation: your update is masked before it leaves, and the masks go away only in the sum of"
            f" {terms.group_size or draft.min_sites} or more hospitals. The coordinator sees that sum, and neither your update"
            f" nor your number of images.{who}"
        ),
        "There is no way back: your node answers this project in no other way, whatever the coordinator asks for.",
        (
            f"A change of a number is cut at {terms.clip:g}; a hospital with more than {terms.weight_cap} training images counts"
            " as that many."
        ),
        *_grouped(terms),
    ]


def _voted(draft: ProjectDraft) -> list[str]:
    if not draft.vote_share:
        return []
    return [
        (
            "Every round's new model is first measured by each hospital on its own held-out patients, against the model before."
            f" It is kept only when more than {draft.vote_share:.0%} of the hospitals that trained accept it; one accepts while"
            f" its score falls by no more than {draft.privacy.vote.tolerance:g}. What leaves is a signed vote with one of four"
            " reasons, which the other hospitals see too, and no figure."
        ),
        *(
            [
                (
                    "Your node trains no model but the project's own start and those that the hospitals' votes carried; after a"
                    f" lost vote up to {draft.privacy.vote.retries} more rounds may begin from one model, your update made anew."
                )
            ]
            if draft.privacy.summed
            else []
        ),
    ]


def _grouped(terms: SumSettings) -> list[str]:
    told = []
    if terms.group_size:
        told.append(
            f"Hospitals are summed in groups of {terms.group_size} or more, drawn anew each round, and the median of the groups'"
            " sums makes the model: a minority of bad groups cannot carry it off."
        )
    if terms.max_norm:
        told.append(f"The coordinator bounds what a round changes in the model to a norm of {terms.max_norm:g}.")
    return told


def _not_protected(draft: ProjectDraft) -> list[str]:
    seen = (
        [
            (
                "The sum of all updates can still reveal something about patients, the more so with few hospitals or a model made"
                " for that purpose; and a coordinator that more than a third of the hospitals help can single out your update."
            ),
            "The common model's score on your held-out patients is sent to the coordinator in clear.",
            (
                "The sum of a small group says more about each hospital in it than the sum of all, the coordinator draws the"
                " groups, and a bad update still spoils its own group's sum."
                if draft.privacy.secure_aggregation.group_size
                else "Nobody sees a single update, so nobody can sort out a bad one: robust rules and full secrecy exclude each"
                " other."
            ),
        ]
        if draft.privacy.summed
        else [
            (
                f"{_reader(draft)} your hospital's own update. Updates can reveal something about the patients they were"
                " learned from: a curious reader may try to reconstruct images or to find out whether somebody took part."
            )
        ]
    )
    if draft.algorithm.name == SPLIT:
        seen.append(
            "Activations of a network's first layers can show the very images they were made from. This method hides labels and"
            " the whole model, not pictures, from a coordinator that looks."
        )
    return [
        *seen,
        *limits(draft),
        *(
            ["No hospital votes on the model: a bad one is noticed only by the scores of the next round."]
            if draft.privacy.summed and not draft.vote_share
            else []
        ),
        *(
            [
                "A vote tells a model that is bad on held-out patients. It does not tell a back door that they do not trigger."
            ]
            if draft.vote_share
            else []
        ),
        "The finished model may remember details of its training data, and everybody who receives it can examine it.",
        "Another hospital may send bad updates and so spoil the model.",
    ]


def _reader(draft: ProjectDraft) -> str:
    return (
        "Every other hospital of the project reads"
        if draft.algorithm.name == DECENTRALISED
        else "The coordinator reads"
    )


def _your_say(draft: ProjectDraft) -> list[str]:
    return [
        (
            "Nothing starts without your approval of exactly this file: `fedpacs project approve`. A changed file has another"
            " digest and is refused until it is approved again."
        ),
        (
            "Stop at any time: `fedpacs project withdraw`, or `fedpacs node pause` for all projects. What was already sent cannot"
            " be called back."
        ),
    ]
