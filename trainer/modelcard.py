"""A model folder: model.safetensors beside model.json, which says what the weights are for."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from trainer import weights
from trainer.errors import SpecError, WeightsError
from trainer.spec import NetworkSpec, TaskSpec

if TYPE_CHECKING:  # whoever only reads a card need not wait for torch
    from torch import nn

WEIGHTS = "model.safetensors"
CARD = "model.json"


class ModelCard(BaseModel):
    """name and version identify the model in every DICOM object made with it; sha256 is that of model.safetensors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "fedpacs model"
    version: str = "1"
    network: NetworkSpec
    task: TaskSpec
    sha256: str


@dataclass(frozen=True)
class LoadedModel:
    """A card with its network, weights loaded, in evaluation mode."""

    card: ModelCard
    network: nn.Module


def write_card(folder: Path, card: ModelCard) -> None:
    """Write model.json beside the weights."""
    (folder / CARD).write_text(card.model_dump_json(indent=1), encoding="utf-8")


def read_card(folder: Path) -> ModelCard:
    """A model folder's card. Errors: SpecError when there is none."""
    try:
        return ModelCard.model_validate_json((folder / CARD).read_bytes())
    except OSError as err:
        raise SpecError(f"{folder} is not a model folder ({err.strerror}); it must hold {CARD} and {WEIGHTS}") from err
    except (ValidationError, json.JSONDecodeError) as err:
        raise SpecError(f"{CARD} in {folder} is not a model card; export the model again") from err


def load_model(folder: Path) -> LoadedModel:
    """Load a model folder. Errors: SpecError for a bad card, WeightsError when the weights are not the card's."""
    from trainer import networks

    card = read_card(folder)
    try:
        data = (folder / WEIGHTS).read_bytes()
    except OSError as err:
        raise SpecError(f"{folder} is not a model folder ({err.strerror}); it must hold {CARD} and {WEIGHTS}") from err
    if hashlib.sha256(data).hexdigest() != card.sha256:
        raise WeightsError(f"{WEIGHTS} in {folder} is not what {CARD} describes; export the model again")
    network = networks.build(card.network.name, card.network.args)
    weights.into_module(network, weights.from_bytes(data))
    return LoadedModel(card, network.eval())
