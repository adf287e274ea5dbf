"""The commented TOML draft that `fedpacs project new` writes."""

from __future__ import annotations

import json

_TEMPLATE = """\
# A project draft. Edit it, read it as hospitals will (`fedpacs project show FILE`), then sign it:
#   fedpacs project sign FILE --coordinator DIR --out project.json
# A key in a comment shows the value that holds without it.

name = {name}
version = "1"
purpose = "Say in one or two sentences, for people outside the field, what the model is for."
rounds = 12
min_sites = 2            # a round with fewer answers does not count
deadline_s = 600         # how long a round waits for its sites
# seed = 0

[task]
name = "classification"
label = "finding"        # the study label that is learned
classes = ["normal", "bacterial", "viral"]
size = 64                # images are resized to size x size
# harmonise.at = [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]  # where histogram landmarks go; docs/trainer.md

[cohort]                 # which studies are asked for; [] means any
modalities = ["DX", "CR"]
body_parts = ["CHEST"]
views = []
# min_age_years = 0
# max_age_years = 120
min_patients = 20        # a hospital with fewer sits it out

[contract]               # what a hospital's data must fulfil; each hospital checks its own
min_train_images = 20
min_classes = 1          # how many of the classes must occur
max_unlabelled_share = 1.0
# min_slices = 1         # a study with fewer in an image series is left out, and so is one outside the following
# spacing_mm = [0.1, 1.0]        # [least, most] distance of pixels in plane; any, unless given
# slice_mm = [0.5, 5.0]          # [least, most] distance between slices
# intensity = [-1100, 3100]      # in modality units (HU, SUV): where the 1st and the 99th percentile of an image lie

[network]                # installed networks only; a project carries no code
name = "small_resnet"
args = {{ in_channels = 1, classes = 3, widths = [16, 32, 64], norm = "batch" }}

[algorithm]
name = "fedavg"          # fedavg | fedprox | scaffold | fedbn | fedper | fednova | fedavgm | fedadam | fedyogi | fedadagrad
                         # | qfedavg | agnostic | cyclic | single_transfer | median | trimmed_mean | krum | multi_krum
                         # | geometric_median | centred_clipping | norm_bound | ensemble | split | decentralised
                         # (docs/coordinator.md)
# args = {{ share = 0.5 }}  # each algorithm has its own; share: of the hospitals that train in a round

[local]                  # training at a hospital between two rounds
epochs = 2
batch = 32
lr = 0.003               # of the first round; lowered from round to round
weight_decay = 0.0001
augment = "style"        # none | light | style
class_weighted = true

[stop]
# patience = 4           # end when so many rounds brought no better model; 0 runs all rounds
# keep = "best"          # or "last": which model is handed out

[transfer]
# compression = "int8"   # none | fp16 | bf16 | int8 | int4 | topk | lowrank

[personal]
# epochs = 2             # each hospital trains the final model further for itself

[privacy]
mode = "sealed"          # each update sealed to you and signed by its hospital: you can read single updates
                         # "secure_aggregation": you see the sum of three or more hospitals only; robust rules are then impossible
# [privacy.secure_aggregation]
# ring = 32              # bits of a number on its way: 16 | 32 | 64
# clip = 8.0             # the largest change of a number in a round
# weight_cap = 1000      # a hospital with more training images counts as this many
# group_size = 0         # 3 or more: sum groups of so many, take their median; min_sites must be three times as many
# max_norm = 0.0         # what a round may change the whole model by (L2 norm); 0 for no bound
# [privacy.vote]         # the hospitals measure each round's model on held-out patients, and vote
# share = 0.5            # more than this share of those who trained must accept it; with "sealed" there is no vote unless you ask
# tolerance = 0.05       # one accepts while its score falls by no more
# retries = 3            # so many lost votes in a row are followed by another round
# [privacy.dp]           # noise in training, with either mode (docs/privacy.md); norm = "group" and class_weighted = false
# unit = "patient"       # or "record", where no patient has two
# epsilon = 8.0          # what a patient may lose over all rounds; each hospital's node refuses the round that passes it
# delta = 1e-5
# noise_multiplier = 1.0
# clip = 1.0             # the norm a patient's gradient is cut to
# per_unit = 8           # the most images of a patient in one step

[split]                  # patients without a designated partition: 70/10/20 by keyed hash
salt = ""
"""


def write(name: str) -> str:
    """The draft's text."""
    return _TEMPLATE.format(name=json.dumps(name))
