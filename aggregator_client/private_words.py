"""What a project's differential privacy promises and what it does not, in plain words for the project sheet."""

from __future__ import annotations

from aggregator_client.project import ProjectDraft


def promises(draft: ProjectDraft) -> list[str]:
    """The lines under "How it is protected"; none without privacy.dp."""
    terms = draft.privacy.dp
    if terms is None:
        return []
    who = (
        "any one patient, with all images of that patient,"
        if terms.unit == "patient"
        else "any one image; a hospital where a patient has two training images does not take part, so this holds for a patient"
    )
    return [
        (
            f"Noise in training (differential privacy, DP-SGD): what {who} can change in the training is cut to a bound and"
            f" covered by noise of {terms.noise_multiplier:g} times that bound, before anything leaves. Nobody has the version"
            " without."
        ),
        (
            "Over all rounds, whoever sees the updates can tell whether a patient took part only within epsilon"
            f" {terms.epsilon:g} at delta {terms.delta:g} (the smaller, the better; 1 is strong, 8 is weak). Your node computes"
            " it itself (privacy loss distributions), records it before each training, and refuses the round that would pass it."
        ),
        (
            "Your node also keeps a total for each patient over all such projects ([privacy] in node.toml), and shows what is"
            " left with `fedpacs node status`."
        ),
    ]


def limits(draft: ProjectDraft) -> list[str]:
    """The lines under "What this does not protect against"."""
    terms = draft.privacy.dp
    if terms is None:
        return ["No noise is added: there is no differential privacy in this mode."]
    return [
        (
            "The noise hides single patients, not your hospital: what is common to many of your patients can be seen. The number"
            " of training images or patients is not hidden by it, and noise makes the model less accurate."
        ),
        "The evaluation's figures on your held-out patients are sent without noise; those patients are not trained on.",
        "Trainings of other projects without noise are not in the total: no number bounds what they reveal.",
    ]
