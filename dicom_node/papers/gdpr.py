"""The record of processing activities (GDPR Article 30) and the draft of a data protection impact assessment (Article 35)."""

from __future__ import annotations

from dicom_node.papers.document import Paper, Section, blank
from dicom_node.papers.facts import Facts


def record_of_processing(facts: Facts) -> Paper:
    """Article 30(1), letter by letter."""
    return Paper(
        "Record of processing activities: federated training on medical images (GDPR Article 30)",
        facts.made,
        [
            Section(
                "(a) Controller",
                [
                    f"Controller: {blank('name and contact details of the hospital')}",
                    f"Joint controllers, if any: {blank('or write none')}",
                    f"Data protection officer: {blank('name and contact details')}",
                ],
            ),
            Section(
                "(b) Purposes", [*_purposes(facts), f"Legal basis: {blank('e.g. Article 9(2)(j) with national law')}"]
            ),
            Section(
                "(c) Data subjects and categories of personal data",
                [
                    f"Data subjects: patients whose studies this node received ({_counts(facts.studies)}).",
                    f"Images and their headers, by modality: {_counts(facts.modalities)}.",
                    "Health data (special category, Article 9). Received with identity, kept without it after de-identification.",
                    f"Patients who opted out and are left out: {facts.optouts}.",
                ],
            ),
            Section("(d) Recipients", _recipients(facts), _egress(facts)),
            Section(
                "(e) Transfers to third countries",
                [
                    f"Country of the coordinator and safeguards, if outside of the EEA: {blank('country, Article 46 safeguard')}"
                ],
            ),
            Section("(f) Time limits for erasure", retention(facts)),
            Section("(g) Technical and organisational measures", measures(facts)),
        ],
    )


def assessment(facts: Facts) -> Paper:
    """Article 35(7): description, necessity, risks, measures; the judgement is the hospital's."""
    return Paper(
        "Data protection impact assessment (draft, GDPR Article 35)",
        facts.made,
        [
            Section(
                "Description of the processing",
                [
                    *_purposes(facts),
                    (
                        "Studies come in over DICOM, are de-identified inside the hospital, train a model on the hospital's own"
                        " computers; model updates leave, images do not. See data-flow.svg."
                    ),
                    *_recipients(facts),
                ],
            ),
            Section("Necessity and proportionality", [blank("why this purpose needs these data, and not fewer")]),
            Section("Consultation", [f"Data protection officer's advice: {blank('date and advice')}"]),
            Section("Risks to patients, and what stands against them", (), _risks(facts)),
            Section("Measures", measures(facts)),
            Section("Time limits", retention(facts)),
            Section(
                "Judgement",
                [
                    f"Residual risk: {blank('low, medium or high, and why')}",
                    f"Prior consultation of the authority (Article 36): {blank('needed or not')}",
                    f"Approved by: {blank('name, role, date')}",
                ],
            ),
        ],
    )


def retention(facts: Facts) -> list[str]:
    storage, hours = facts.config.storage, facts.config.retention.quarantine_hours
    kept = f"{hours:g} hours after it was received" if hours else "when a person decides so (no time is set)"
    return [
        f"Received identified images: erased {storage.keep_identified_hours:g} hours after the study was worked on.",
        f"Identified images that could not be proven clean (quarantine): erased {kept}.",
        f"Crosswalk between identifiers and pseudonyms: {blank('when its key is destroyed')}",
        f"De-identified images and labels: {blank('until when they are kept')}",
        f"Audit log: {blank('how long the hospital keeps it')}",
        (
            "Erasing overwrites or releases the bytes in the file system. On solid-state disks, copies may outlive that in spare"
            " blocks: only destroying the key of an encrypted disk erases them surely."
        ),
    ]


def measures(facts: Facts) -> list[str]:
    config = facts.config
    key = "a program or token" if config.vault.key_command else "a file only the node's user can read"
    key = "a passphrase (scrypt)" if config.vault.passphrase_env else key
    at_rest = {
        "dm-crypt": "all data folders lie on dm-crypt devices; the node looks that up and does not start otherwise",
        "attested": f"the hospital vouches for it: {blank('how the disks are encrypted')}",
        "none": "not set up in this node's configuration (storage.encryption = none), except for the vault",
    }[config.storage.encryption]
    tls = "with mutual TLS" if config.dicom.tls_certificate else "without TLS"
    return [
        (
            f"De-identification by PS3.15 Annex E ({facts.profile.edition}), profile {facts.profile.name}:"
            f" {', '.join(facts.options) or 'no option beyond the Basic Profile'}."
        ),
        f"Crosswalk and pseudonym key: AES-256-GCM; its key comes from {key}.",
        f"Encryption at rest: {at_rest}.",
        f"DICOM is received {tls} from {', '.join(config.dicom.allowed_networks)}.",
        "Every message to the coordinator is encrypted to it (HPKE, MLKEM768-X25519, AES-256-GCM) and signed (Ed25519).",
        "No project runs without a signed approval by a named person; any change of it asks again.",
        "Every byte string that leaves is recorded first in a hash-chained audit log with signed checkpoints.",
    ]


def _purposes(facts: Facts) -> list[str]:
    if not facts.approved:
        return ["No project is approved on this node at present: nothing is processed for any."]
    return [
        f"{one.name} {one.version} (digest {one.digest[:16]}, approved by {one.decided_by} as {one.role}): {one.purpose}"
        for one in facts.approved
    ]


def _recipients(facts: Facts) -> list[str]:
    if not facts.approved:
        return ["Nobody: no project is approved."]
    return [f"{one.coordinator}, for {one.name} {one.version}: {one.leaves}." for one in facts.approved]


def _egress(facts: Facts) -> list[list[str]]:
    if not facts.egress:
        return []
    rows = [[what, str(count), str(size)] for what, (count, size) in sorted(facts.egress.items())]
    return [["what has left so far (audit log)", "messages", "bytes"], *rows]


def _risks(facts: Facts) -> list[list[str]]:
    rows = [["risk", "what stands against it here", "the hospital's judgement"]]
    sealed = [one.name for one in facts.approved if one.mode != "secure_aggregation"]
    summed = [one.name for one in facts.approved if one.mode == "secure_aggregation"]
    if sealed:
        rows.append(
            [
                "The coordinator reconstructs images from a single update",
                f"nothing technical in {', '.join(sealed)} (mode sealed): the coordinator sees each update; contract and trust",
                blank("acceptable or not"),
            ]
        )
    if summed:
        rows.append(
            [
                "The coordinator reconstructs images from the sum of updates",
                f"secure aggregation in {', '.join(summed)} hides single updates, not what the sum shows",
                blank("acceptable or not"),
            ]
        )
    rows += [
        [
            "The finished model remembers patients",
            "no technical bound is shown here unless the project uses differential privacy; see its project sheet",
            blank("acceptable or not"),
        ],
        [
            "Identity remains in an image or header",
            f"profile {facts.profile.name}; pixels: {facts.profile.pixels}; what cannot be proven clean is quarantined",
            blank("acceptable or not"),
        ],
        [
            "Somebody inside the hospital re-identifies",
            "needs the vault's key; every use is recorded with its reason",
            blank("acceptable or not"),
        ],
        [
            "The node's machine is taken over",
            "nothing: its administrator reads everything on it",
            blank("acceptable or not"),
        ],
    ]
    return rows


def _counts(values: object) -> str:
    assert hasattr(values, "items")
    return ", ".join(f"{name}: {count}" for name, count in sorted(values.items())) or "none yet"
