"""Losses for splats and neural fields: NFC's classification losses and target encoding, and the usual photometric ones.

Importing this package imports torch and the standard library, nothing else, so that any project can use it:

    from nfc_splat.losses import NFCLoss

    loss = NFCLoss(base="l1", weight=2.0)(render, image)
"""

from nfc_splat.losses.encoding import TargetEncoding as TargetEncoding
from nfc_splat.losses.nfc import NFCLoss as NFCLoss
from nfc_splat.losses.nfc import bitwise_classification_loss as bitwise_classification_loss
from nfc_splat.losses.nfc import channelwise_classification_loss as channelwise_classification_loss
from nfc_splat.losses.nfc import nfc_loss as nfc_loss
from nfc_splat.losses.photometric import dssim as dssim
from nfc_splat.losses.photometric import l1 as l1
from nfc_splat.losses.photometric import l1_dssim as l1_dssim
from nfc_splat.losses.photometric import mse as mse
from nfc_splat.losses.photometric import ssim as ssim
