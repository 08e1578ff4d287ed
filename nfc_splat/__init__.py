"""Train, render and measure scene models learned from posed photographs.

Importing this package costs nothing: every heavy library is imported where it is used.
"""

from nfc_splat import _checkout as _checkout

__version__ = "0.1.0"
