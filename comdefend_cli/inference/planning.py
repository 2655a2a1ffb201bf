"""How an image is cut on a device, where nothing was asked for."""

from __future__ import annotations

import torch

from comdefend_cli.backends import bands
from comdefend_cli.inference.passes import Route
from comdefend_cli.inference.settings import Settings
from comdefend_cli.inference.stitching import Plan

#: Tile sides and window pixels a batch, by device. A larger tile takes more memory, a smaller one computes more of its halo twice:
#: at 512 a side 15 % more pixels than the image has, at 128 64 %. On the CPU a tile goes through in bands, see `bands`, and its
#: memory is little more than its pixels; not so where gradients are wanted. Batches of so many pixels are OpenVINO's on a CPU;
#: PyTorch's are no larger than bands.
DEFAULT_TILE = {"cpu": 2048, "cuda": 1024, "mps": 512}
GRADIENT_TILE = 512
BATCH_PIXELS = {"cpu": 64 * 32 * 32, "cuda": 2**22, "mps": 2**20}


def make_plan(route: Route, settings: Settings, pixels: int) -> Plan:
    """Tiles and batches that suit the device, or were asked for, for an image of so many pixels."""
    device = route.parameter.device
    usual = GRADIENT_TILE if torch.is_grad_enabled() else DEFAULT_TILE[device.type]
    tile = settings.tile or (route.engine.choose_tile(pixels) if route.engine else usual)
    batch = BATCH_PIXELS[device.type] if route.engine or device.type != "cpu" else bands.count_band_pixels(route.model)
    chosen = None if settings.tiling == "paper" else tile
    return Plan(device, chosen, batch, route.model.halo, route.model.architecture.scale)
